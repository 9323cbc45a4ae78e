"""What is held out: whole groups where there are enough of them, else the end of the corpus, or what the user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.corpus.dataset import COLUMNS, Shards
from hnet_cli.errors import InputError
from hnet_cli.storage import NewFile

LEAST_BYTES = 2048
"""Below this there is nothing to learn from or to measure on."""
LEAST_GROUPS = 20
_AROUND = 1 << 16
"""Bytes on either side of the wished-for division that `Modality.cut` gets to see."""


def make_split(
    folder: Path, shards: Shards, val: float, first_val: int | None, cut: Callable[[bytes, int], int]
) -> tuple[str, dict[str, Any], dict[str, dict[str, Any]]]:
    """Write `split-train.bin` and `split-val.bin`; gives the rule used, the counts, and the manifest entries.

    `first_val`: documents from this one on are held out by the user's wish. Raises InputError for too little data.
    """
    table = np.memmap(folder / "documents.bin", "<i8", "r").reshape(-1, len(COLUMNS)) if shards.size else None
    if table is None or shards.size < LEAST_BYTES:
        raise InputError(
            f"too little data: {shards.size:,} bytes in all, at least {LEAST_BYTES:,} are needed", "give more input"
        )
    lengths = table[:, 1]
    documents = np.arange(len(table))
    whole = np.stack([documents, np.zeros(len(table), np.int64), lengths], axis=1)
    wanted = val * shards.size
    if first_val is not None:
        rule = "the inputs given for validation"
        train, held_out = whole[:first_val], whole[first_val:]
    elif (chosen := _by_groups(table, wanted)) is not None:
        rule = "whole groups"
        train, held_out = whole[~chosen], whole[chosen]
    else:
        rule = "the end of the corpus"
        document, at = _division(table, shards, wanted, cut)
        train, held_out = whole[: document + 1].copy(), whole[document:].copy()
        train[-1, 2], held_out[0, 1:] = at, (at, lengths[document] - at)
        train, held_out = train[train[:, 2] > 0], held_out[held_out[:, 2] > 0]
    if not len(train) or not len(held_out):
        raise InputError(
            f"too little data to hold some out: {len(table):,} documents, {shards.size:,} bytes in all",
            "give more input, a larger --val, or --val-input",
        )
    counts, files = {}, {}
    for name, ranges in (("train", train), ("val", held_out)):
        with NewFile(folder / f"split-{name}.bin") as file:
            file.write(np.ascontiguousarray(ranges, "<i8"))
        files[f"split-{name}.bin"] = file.entry
        counts[name] = {"documents": len(ranges), "bytes": int(ranges[:, 2].sum())}
    return rule, counts, files


def _by_groups(table: np.ndarray, wanted: float) -> np.ndarray | None:
    """Which documents to hold out: groups in the order of their hashes until there is enough. None where the groups are
    too few or too large for that to come near what is wanted."""
    groups, of_document = np.unique(table[:, 5], return_inverse=True)
    if len(groups) < LEAST_GROUPS:
        return None
    sizes = np.bincount(of_document, weights=table[:, 1])
    taken, chosen = 0.0, np.zeros(len(groups), bool)
    for index, size in enumerate(sizes.tolist()):
        if taken >= 0.9 * wanted:
            break
        if taken + size <= 1.5 * wanted:
            chosen[index] = True
            taken += size
    return chosen[of_document] if taken >= 0.5 * wanted else None


def _division(table: np.ndarray, shards: Shards, wanted: float, cut: Callable[[bytes, int], int]) -> tuple[int, int]:
    """The document in which the held-out end of the corpus begins, and the byte within it."""
    target = min(max(shards.size - round(wanted), 1), shards.size - 1)
    document = int(np.searchsorted(table[:, 0], target, side="right")) - 1
    start, length = int(table[document, 0]), int(table[document, 1])
    near = target - start
    begin = max(0, near - _AROUND)
    at = begin + cut(shards.read(start + begin, start + min(length, near + _AROUND)), near - begin)
    if at <= begin:
        # No good place: before the document, unless nothing would be left to train on, or in the midst of a vast one.
        at = near if begin or document == 0 else 0
    return document, at
