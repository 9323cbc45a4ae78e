"""The split: whole groups are held out if there are enough, else the end of the corpus, or what the user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.data.prepare.store import read_shards, table_rows
from hnet_cli.errors import InputError
from hnet_cli.storage import GrowingFile

LEAST_BYTES = 2048
"""Bytes below which there is nothing to learn from or to measure on."""
LEAST_GROUPS = 20
_PREFIX_BITS = 16
"""First bits of the hash of a group by which bytes are counted at first."""
_ROWS_AT_ONCE = 1 << 16
_AROUND = 1 << 16
"""Bytes on either side of the desired division that `Modality.cut` gets to see."""


def make_split(
    folder: Path, size: int, val: float, first_val: int | None, cut: Callable[[bytes, int], int]
) -> tuple[str, dict[str, Any], dict[str, dict[str, Any]]]:
    """Write `split-train.bin` and `split-val.bin`. Returns the rule used, the counts, and the manifest entries.

    `size`: bytes of all documents. `first_val`: documents from this one on are held out by the user's wish. Raises
    InputError for too little data. The table is read in parts, several times: memory does not grow with the number of
    documents.
    """
    if size < LEAST_BYTES:
        raise InputError(
            f"too little data: {size:,} bytes in all, at least {LEAST_BYTES:,} are needed", "give more input"
        )
    groups, document, at = None, first_val or 0, 0  # held out: some groups, or all from byte `at` of `document` on
    if first_val is not None:
        rule = "the inputs given for validation"
    elif groups := _by_groups(folder, val * size):
        rule = "whole groups"
    else:
        rule = "the end of the corpus"
        document, at = _division(folder, size, val * size, cut)
    files = {name: GrowingFile(folder / f"split-{name}.bin") for name in ("train", "val")}
    counts = {name: {"documents": 0, "bytes": 0} for name in files}
    seen = 0
    for table in table_rows(folder):
        numbers = np.arange(seen, seen + len(table))
        ranges = np.stack([numbers, np.zeros(len(table), np.int64), table[:, 1]], axis=1)
        out = (table[:, 5] <= groups[0]) & ~np.isin(table[:, 5], groups[1]) if groups else numbers >= document
        parts = {"train": ranges[~out], "val": ranges[out]}
        if at and seen <= document < seen + len(table):
            parts["train"] = np.concatenate([parts["train"], [[document, 0, at]]])
            parts["val"][0, 1:] += at, -at
        for name, part in parts.items():
            part = part[part[:, 2] > 0]
            files[name].write(np.ascontiguousarray(part, "<i8"))
            counts[name]["documents"] += len(part)
            counts[name]["bytes"] += int(part[:, 2].sum())
        seen += len(table)
    entries = {f"split-{name}.bin": file.close() for name, file in files.items()}
    if not counts["train"]["documents"] or not counts["val"]["documents"]:
        raise InputError(
            f"too little data to hold some out: {seen:,} documents, {size:,} bytes in all",
            "give more input, a larger --val, or --val-input",
        )
    return rule, counts, entries


def _by_groups(folder: Path, wanted: float) -> tuple[int, np.ndarray] | None:
    """The groups to hold out, in the order of their hashes until there are about `wanted` bytes: the last of them, and
    those before it that are too large. None where groups are too few or too large to come near that.

    The bytes are counted by the first bits of the hashes; groups are told apart only where it matters.
    """
    sizes, rows = np.zeros(1 << _PREFIX_BITS, np.int64), np.zeros(1 << _PREFIX_BITS, np.int64)
    some: set[int] = set()
    for table in table_rows(folder):
        prefix = _prefix(table[:, 5])
        sizes += np.bincount(prefix, weights=table[:, 1], minlength=1 << _PREFIX_BITS).astype(np.int64)
        rows += np.bincount(prefix, minlength=1 << _PREFIX_BITS)
        if len(some) < LEAST_GROUPS:
            some.update(np.unique(table[:, 5])[:LEAST_GROUPS].tolist())
    if len(some) < LEAST_GROUPS:
        return None
    taken, last, spared = 0, -(1 << 63), list[int]()
    begin = 0
    while begin < 1 << _PREFIX_BITS and taken < 0.9 * wanted:
        sums = np.cumsum(sizes[begin:])
        if whole := int(np.searchsorted(sums, 0.9 * wanted - taken)):  # all groups of so many prefixes
            taken, begin = taken + int(sums[whole - 1]), begin + whole
            last = (begin - (1 << (_PREFIX_BITS - 1)) << (64 - _PREFIX_BITS)) - 1
            continue
        # As many prefixes as fit in memory, but not many more bytes than may be taken.
        enough = int(np.searchsorted(sums, 2 * (wanted - taken))) + 1
        some_rows = int(np.searchsorted(np.cumsum(rows[begin:]), _ROWS_AT_ONCE, side="right"))
        end = begin + max(1, min(some_rows, enough))
        for group, size in zip(*_group_sizes(folder, begin, end), strict=True):
            if taken >= 0.9 * wanted:
                break
            if taken + size <= 1.5 * wanted:
                taken, last = taken + size, group
            else:
                spared.append(group)
        begin = end
    return (last, np.array(spared, np.int64)) if taken >= 0.5 * wanted else None


def _prefix(groups: np.ndarray) -> np.ndarray:
    """The first bits of hashes, in the order of the hashes."""
    return (groups >> (64 - _PREFIX_BITS)) + (1 << (_PREFIX_BITS - 1))


def _group_sizes(folder: Path, begin: int, end: int) -> tuple[list[int], list[int]]:
    """Groups whose prefix is in [begin, end), ascending, and the bytes of each."""
    groups, sizes = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for table in table_rows(folder):
        prefix = _prefix(table[:, 5])
        inside = table[(prefix >= begin) & (prefix < end)]
        if len(inside):
            groups, where = np.unique(np.concatenate([groups, inside[:, 5]]), return_inverse=True)
            sizes = np.bincount(where, weights=np.concatenate([sizes, inside[:, 1]])).astype(np.int64)
    return groups.tolist(), sizes.tolist()


def _division(folder: Path, size: int, wanted: float, cut: Callable[[bytes, int], int]) -> tuple[int, int]:
    """The document in which the held-out end of the corpus begins, and the byte within it where that is divided."""
    target = min(max(size - round(wanted), 1), size - 1)
    document, start, length = -1, 0, 0
    for table in table_rows(folder):
        inside = int(np.searchsorted(table[:, 0], target, side="right"))
        if inside:
            document, (start, length) = document + inside, table[inside - 1, :2].tolist()
        if inside < len(table):
            break
    near = target - start
    begin = max(0, near - _AROUND)
    at = begin + cut(read_shards(folder, start + begin, start + min(length, near + _AROUND)), near - begin)
    if at <= begin:
        # No good place: before the document, unless nothing would be left to train on, or in the midst of a vast one.
        at = near if begin or document == 0 else 0
    return document, at
