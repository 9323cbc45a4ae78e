"""Near-duplicates across the split, looked for on a sample: what a model was trained on measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hnet_cli.data.prepare.store import name_at, read_shards, stretches

HELD_OUT, HELD_OUT_BYTES = 256, 4096
"""Held-out documents that are looked at, and bytes of the beginning of each."""
TRAINED_ON, TRAINED_ON_BYTES, LONGEST = 8192, 32 << 20, 128 << 10
"""Documents to train on that are looked at beside the neighbours of held-out ones, bytes of all, and of the longest
beginning."""
SHINGLE = 16
"""Bytes; every change of a document makes so many of its shingles others."""
_KEPT = 8
"""A shingle in so many is compared, the same ones in every document."""
_FEWEST = 8
"""Shingles below which a document says too little."""
ALIKE = 0.5
"""Share of the shingles of a held-out document in one document to train on."""
NAMES = 5


@dataclass(frozen=True)
class Similar:
    """Held-out documents that a document to train on is much like."""

    found: int
    held_out: int
    """Held-out documents looked at."""
    trained_on: int
    """Documents to train on looked at."""
    first: list[tuple[str, str]]
    """Names of the first few found, and of what each is like."""


def find(folder: Path, counts: Mapping[str, Mapping[str, int]], table: bytes | None) -> Similar:
    """Compare the beginnings of documents evenly spread over both splits of the dataset being written in `folder`.

    Those before and after a held-out document are compared too: versions of a page often stand side by side.
    `counts`: documents by split; `table`: `Modality.input_table`. Work and memory are bounded.
    """
    documents, names, prints = list[int](), list[int](), list[np.ndarray]()
    for document, name, data in _sample(folder, "val", counts["val"]["documents"], HELD_OUT, HELD_OUT_BYTES):
        if len(marks := np.unique(shingles(data.translate(table)))) >= _FEWEST:
            documents.append(document)
            names.append(name)
            prints.append(marks)
    if not names:
        return Similar(0, 0, 0, [])
    sizes = np.array([len(marks) for marks in prints])
    known, which = np.unique(np.concatenate(prints), return_inverse=True)
    order = np.argsort(which, kind="stable")
    owners, ends = np.repeat(np.arange(len(prints)), sizes)[order], np.cumsum(np.bincount(which))
    best, likest, looked_at = np.zeros(len(prints)), np.zeros(len(prints), np.int64), 0
    number = counts["train"]["documents"]
    length = min(LONGEST, TRAINED_ON_BYTES // min(number, TRAINED_ON))
    for _, name, data in _sample(folder, "train", number, TRAINED_ON, length, beside=np.array(documents)):
        looked_at += 1
        marks = shingles(data.translate(table))
        at = np.minimum(np.searchsorted(known, marks), len(known) - 1)
        if not (same := known[at] == marks).any():
            continue
        holders = [owners[ends[n - 1] if n else 0 : ends[n]] for n in np.unique(at[same]).tolist()]
        share = np.bincount(np.concatenate(holders), minlength=len(prints)) / sizes
        likest[share > best] = name
        best = np.maximum(best, share)
    alike = np.flatnonzero(best > ALIKE).tolist()
    first = [(name_at(folder, names[at]), name_at(folder, int(likest[at]))) for at in alike[:NAMES]]
    return Similar(len(alike), len(names), looked_at, first)


def shingles(data: bytes) -> np.ndarray:
    """Hashes (uint64) of about one in `_KEPT` of the shingles of `data`, in their order."""
    if len(data) < SHINGLE:
        return np.zeros(0, np.uint64)
    words = np.ndarray((len(data) - 7,), "<u8", data, 0, (1,))  # eight bytes from each position on
    with np.errstate(over="ignore"):
        mixed = words[:-8] * np.uint64(0x9E3779B97F4A7C15) ^ words[8:] * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return mixed[mixed >> np.uint64(32) & np.uint64(_KEPT - 1) == 0]


def first_names(folder: Path, split: str) -> list[str]:
    """Names of the first few documents of a split, each once."""
    names: dict[str, None] = {}
    for part in stretches(folder, split):
        for place in part[:1000, 1].tolist():
            names[name_at(folder, place)] = None
            if len(names) == NAMES:
                return list(names)
        break
    return list(names)


def _sample(
    folder: Path, split: str, documents: int, wanted: int, length: int, beside: np.ndarray | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """Document, where its name stands, and the beginning of each of up to `wanted` stretches, evenly spread over a
    split, and of those before and after the documents `beside`."""
    step, before = -(-documents // wanted), 0
    steps = np.arange(-(-documents // step))
    chosen = steps * step + steps * 7919 % step  # one in each step, not always at the same place of what repeats itself
    for part in stretches(folder, split):
        places = [chosen - before]
        if beside is not None:
            near = np.searchsorted(part[:, 0], beside)
            places += [near - 1, near]
        for at in np.unique(np.concatenate(places)).tolist():
            if 0 <= at < len(part):
                document, name, start, end = part[at].tolist()
                yield document, name, read_shards(folder, start, min(end, start + length))
        before += len(part)
