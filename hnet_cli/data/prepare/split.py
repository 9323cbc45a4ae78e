"""The split: whole groups are held out if there are enough, else the end of the corpus, or what the user names.

Documents of one content fall on one side: groups of the same documents count as one, and other documents that would
stand on both sides are moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.data.prepare.store import read_shards, table_rows
from hnet_cli.errors import InputError
from hnet_cli.storage import GrowingFile, discard, make_folder, remove_file

LEAST_BYTES = 2048
"""Bytes below which there is nothing to learn from or to measure on."""
LEAST_GROUPS = 20
_PREFIX_BITS = 16
"""First bits of a hash, by which groups are counted at first, and divided among files."""
_ROWS_AT_ONCE, _MOST_FILES = 1 << 18, 256
_AROUND = 1 << 16
"""Bytes on either side of the desired division that `Modality.cut` gets to see."""

TO_TRAIN = "held-out documents like one to train on, so trained on"
TO_VAL = "documents like a held-out one, so held out"
TO_NONE = "documents like a held-out one, so not trained on"
LEFT_OUT = "held-out rows whose prompt is trained on too, so left out"
ON_BOTH = "held-out documents like one to train on: there is too little else"


@dataclass(frozen=True)
class Split:
    """The split as it was written."""

    rule: str
    counts: dict[str, dict[str, int]]
    """By name: {"documents": stretches of documents, "bytes": n}."""
    files: dict[str, dict[str, Any]]
    """Entries of the manifest."""
    groups: int
    """Number of groups; 0 where the user has named what is held out."""
    notes: Counter[str]
    """Number of documents whose content would stand on both sides, by what became of them."""


@dataclass(frozen=True)
class _Choice:
    """The documents to hold out: those of some groups, or all from byte `at` of `document` on."""

    groups: np.ndarray | None = None
    """Hashes, ascending."""
    document: int = 0
    at: int = 0

    def __call__(self, first: int, table: np.ndarray) -> np.ndarray:
        """True for each row to hold out of a part of the table, which begins with document `first`."""
        if self.groups is not None:
            return _among(table[:, 5], self.groups)
        return np.arange(first, first + len(table)) >= self.document


def make_split(
    folder: Path, size: int, val: float, first_val: int | None, cut: Callable[[bytes, int], int] | None
) -> Split:
    """Write `split-train.bin` and `split-val.bin`.

    `size`: bytes of all documents. `first_val`: documents from this one on are held out by the user's wish. `cut`: of
    the modality; None for rows of prompt and completion, which are neither divided nor moved: what was said in a
    conversation stands in the later prompts of it. Raises InputError for too little data. The tables are read in
    parts, several times: memory does not grow with the number of documents, but by 16 bytes for each that is held out.
    """
    if size < LEAST_BYTES:
        raise InputError(
            f"too little data: {size:,} bytes in all, at least {LEAST_BYTES:,} are needed", "give more input"
        )
    groups = 0
    if first_val is not None:
        rule, choice = "the inputs given for validation", _Choice(document=first_val)
    else:
        groups, hashes = _by_groups(folder, val * size)
        rule, choice = "whole groups", _Choice(hashes)
        if hashes is None:
            rule, choice = "the end of the corpus", _Choice(None, *_division(folder, size, val * size, cut))
    shared, fate = _shared(folder, choice, named=first_val is not None)
    if cut is None:
        fate = {TO_TRAIN: LEFT_OUT, TO_VAL: TO_NONE}.get(fate, fate)
    files = {name: GrowingFile(folder / f"split-{name}.bin") for name in ("train", "val")}
    counts = {name: {"documents": 0, "bytes": 0} for name in files}
    notes: Counter[str] = Counter()
    documents = 0
    for documents, table, contents in _tables(folder):
        out, length, start = choice(documents, table), table[:, 1], np.zeros(len(table), np.int64)
        lengths = {"train": np.where(out, 0, length), "val": np.where(out, length, 0)}
        if choice.at and documents <= choice.document < documents + len(table):
            divided = choice.document - documents
            start[divided] = lengths["train"][divided] = choice.at
            lengths["val"][divided] -= choice.at
        same = _among(contents, shared)
        moved = same & (out if fate in (TO_TRAIN, LEFT_OUT, ON_BOTH) else ~out)
        notes[fate] += int(moved.sum())
        if fate == TO_TRAIN:
            lengths["train"][moved], lengths["val"][moved] = length[moved], 0
        elif fate == TO_VAL:
            start[same], lengths["train"][same], lengths["val"][same] = 0, 0, length[same]  # a divided one in whole
        elif fate == TO_NONE:
            lengths["train"][moved] = 0
        elif fate == LEFT_OUT:
            lengths["val"][moved] = 0
        for name, kept in lengths.items():
            numbers = np.arange(documents, documents + len(table))
            stretches = np.stack([numbers, start if name == "val" else 0 * start, kept], axis=1)[kept > 0]
            files[name].write(np.ascontiguousarray(stretches, "<i8"))
            counts[name]["documents"] += len(stretches)
            counts[name]["bytes"] += int(kept.sum())
    entries = {f"split-{name}.bin": file.close() for name, file in files.items()}
    if first_val is not None and not counts["train"]["documents"]:
        raise InputError("nothing is left to train on: all of it is held out", "give other input, or other --val-input")
    if not counts["train"]["documents"] or not counts["val"]["documents"]:
        raise InputError(
            f"too little data to hold some out: {documents + len(table):,} documents, {size:,} bytes in all",
            "give more input, a larger --val, or --val-input",
        )
    return Split(rule, counts, entries, groups, +notes)


def _tables(folder: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The table of documents in parts: number of the first document, rows, hashes of their contents."""
    first = 0
    for table, contents in zip(table_rows(folder), table_rows(folder, "hashes.bin", 1), strict=True):
        yield first, table, contents[:, 0]
        first += len(table)


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """True for each value that is one of `ascending`."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values


# --- the same content twice -------------------------------------------------------------------------------------------


def _shared(folder: Path, choice: _Choice, named: bool) -> tuple[np.ndarray, str]:
    """Hashes, ascending, of contents that a choice would have on both sides, and what is to become of them.

    Documents to train on yield to held-out ones that the user has `named`. Else the smaller change is made, if enough
    of both sides is left.
    """
    bytes_of, parts = Counter[str](), [np.zeros(0, np.int64)]
    for first, table, contents in _tables(folder):
        out = choice(first, table)
        parts.append(np.unique(contents[out]))
        bytes_of["val"] += int(table[out, 1].sum())
        bytes_of["train"] += int(table[~out, 1].sum())
    held_out = np.unique(np.concatenate(parts))
    twice = np.zeros(len(held_out), bool)
    for first, table, contents in _tables(folder):
        again = _among(contents, held_out) & ~choice(first, table)
        twice[np.searchsorted(held_out, contents[again])] = True
        bytes_of["train again"] += int(table[again, 1].sum())
    shared = held_out[twice]
    if named or not len(shared):
        return shared, TO_NONE
    for first, table, contents in _tables(folder):
        bytes_of["val again"] += int(table[choice(first, table) & _among(contents, shared), 1].sum())
    if bytes_of["val again"] <= bytes_of["val"] / 2:
        return shared, TO_TRAIN
    return shared, TO_VAL if bytes_of["train again"] <= bytes_of["train"] / 2 else ON_BOTH


# --- groups -----------------------------------------------------------------------------------------------------------


def _by_groups(folder: Path, wanted: float) -> tuple[int, np.ndarray | None]:
    """The number of groups, and hashes, ascending, of those to hold out.

    Groups of the same documents have one key; keys are taken in their order until there are about `wanted` bytes, but
    for those that are too large. None where groups are too few or too large to come near that.
    """
    made = folder.with_name("groups")
    discard(made)  # left by a kill
    make_folder(made)
    try:
        groups = _write_groups(folder, made)
        if groups < LEAST_GROUPS or (last := _last_key(made, wanted)) is None:
            return groups, None
        parts = [np.zeros(0, np.int64)]
        for table in table_rows(made, "groups.bin", 3):
            parts.append(table[(table[:, 1] <= last[0]) & ~_among(table[:, 1], last[1]), 0])
    finally:
        discard(made)
    return groups, np.sort(np.concatenate(parts))


def _write_groups(folder: Path, made: Path) -> int:
    """Write the table `groups.bin`: hash, key and bytes of each group. Returns the number of groups.

    The key is the sum of the contents' hashes, so that of a single document the hash of its content. Documents are
    divided among files by the hashes of their groups, lest memory grow with them.
    """
    documents = (folder / "hashes.bin").stat().st_size // 8
    count = min(documents // _ROWS_AT_ONCE + 1, _MOST_FILES)
    files = [GrowingFile(made / f"part-{index}") for index in range(count)]
    for _, table, contents in _tables(folder):
        rows = np.stack([table[:, 5], contents, table[:, 1]], axis=1)
        file = _prefix(rows[:, 0]) * count >> _PREFIX_BITS
        order = np.argsort(file, kind="stable")
        for index, some in enumerate(np.split(rows[order], np.searchsorted(file[order], np.arange(1, count)))):
            files[index].write(some)
    out = GrowingFile(made / "groups.bin")
    for part in files:
        part.close()
        groups = np.zeros((0, 3), np.int64)
        for rows in table_rows(made, part.path.name, 3, _ROWS_AT_ONCE):
            rows = np.concatenate([groups, rows])
            rows = rows[np.argsort(rows[:, 0], kind="stable")]
            starts = np.flatnonzero(np.r_[True, rows[1:, 0] != rows[:-1, 0]])
            groups = np.concatenate([rows[starts, :1], np.add.reduceat(rows[:, 1:], starts)], axis=1)
        out.write(groups)
        remove_file(part.path)
    return int(out.close()["size"]) // 24


def _last_key(made: Path, wanted: float) -> tuple[int, np.ndarray] | None:
    """The last key to hold out, and those before it that are too large, ascending; None as in `_by_groups`.

    Bytes are counted by the first bits of the keys; keys are told apart only where it matters.
    """
    sizes, rows = np.zeros(1 << _PREFIX_BITS, np.int64), np.zeros(1 << _PREFIX_BITS, np.int64)
    for table in table_rows(made, "groups.bin", 3):
        prefix = _prefix(table[:, 1])
        sizes += np.bincount(prefix, weights=table[:, 2], minlength=1 << _PREFIX_BITS).astype(np.int64)
        rows += np.bincount(prefix, minlength=1 << _PREFIX_BITS)
    taken, last, spared = 0, -(1 << 63), list[int]()
    begin = 0
    while begin < 1 << _PREFIX_BITS and taken < 0.9 * wanted:
        sums = np.cumsum(sizes[begin:])
        if whole := int(np.searchsorted(sums, 0.9 * wanted - taken)):  # all keys of so many prefixes
            taken, begin = taken + int(sums[whole - 1]), begin + whole
            last = (begin - (1 << (_PREFIX_BITS - 1)) << (64 - _PREFIX_BITS)) - 1
            continue
        # As many prefixes as fit in memory, but not many more bytes than may be taken.
        enough = int(np.searchsorted(sums, 2 * (wanted - taken))) + 1
        some_rows = int(np.searchsorted(np.cumsum(rows[begin:]), _ROWS_AT_ONCE, side="right"))
        end = begin + max(1, min(some_rows, enough))
        for key, size in zip(*_key_sizes(made, begin, end), strict=True):
            if taken >= 0.9 * wanted:
                break
            if taken + size <= 1.5 * wanted:
                taken, last = taken + size, key
            else:
                spared.append(key)
        begin = end
    return (last, np.array(spared, np.int64)) if taken >= 0.5 * wanted else None


def _prefix(hashes: np.ndarray) -> np.ndarray:
    """The first bits of hashes, in the order of the hashes."""
    return (hashes >> (64 - _PREFIX_BITS)) + (1 << (_PREFIX_BITS - 1))


def _key_sizes(made: Path, begin: int, end: int) -> tuple[list[int], list[int]]:
    """Keys whose prefix is in [begin, end), ascending, and the bytes of each."""
    keys, sizes = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for table in table_rows(made, "groups.bin", 3):
        prefix = _prefix(table[:, 1])
        inside = table[(prefix >= begin) & (prefix < end)]
        if len(inside):
            keys, where = np.unique(np.concatenate([keys, inside[:, 1]]), return_inverse=True)
            sizes = np.bincount(where, weights=np.concatenate([sizes, inside[:, 2]])).astype(np.int64)
    return keys.tolist(), sizes.tolist()


def _division(folder: Path, size: int, wanted: float, cut: Callable[[bytes, int], int] | None) -> tuple[int, int]:
    """The document in which the held-out end of the corpus begins, and the byte within it where that is divided;
    without `cut` the first of a group."""
    target = min(max(size - round(wanted), 1), size - 1)
    document, start, length, first, group = -1, 0, 0, 0, None
    for table in table_rows(folder):
        inside = int(np.searchsorted(table[:, 0], target, side="right"))
        if inside:
            others = np.flatnonzero(table[:inside, 5] != table[inside - 1, 5])
            if len(others) or group != table[0, 5]:
                first = document + 1 + (int(others[-1]) + 1 if len(others) else 0)
            group = table[inside - 1, 5]
            document, (start, length) = document + inside, table[inside - 1, :2].tolist()
        if inside < len(table):
            break
    if cut is None:
        return first or max(document, 1), 0
    near = target - start
    begin = max(0, near - _AROUND)
    at = begin + cut(read_shards(folder, start + begin, start + min(length, near + _AROUND)), near - begin)
    if at <= begin:
        # No good place: before the document, unless nothing would be left to train on, or in the midst of a vast one.
        at = near if begin or document == 0 else 0
    return document, at
