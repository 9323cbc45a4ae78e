"""Batches as a pure function of (dataset, split, seed, step): there is no loader state to save or to lose.

An epoch joins the documents of a split in a shuffled order into one stream and cuts it into windows of equal length,
which are visited in another shuffled order. Batch `step` takes the next `rows` windows. A window that spans several
documents holds each as its own packed sequence; inputs are the targets moved right by one, so every byte of an epoch
(but a tail shorter than a window) is predicted exactly once, from the byte before it or from BOS.

A row of prompt and completion is not cut there, lest the completion lose its prompt: a window holds the rows that end
in it, whole, and so on average as many bytes; the last of an epoch those that are left. A row longer than a window
loses the beginning of its prompt; see `stretches`.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hnet_cli.data.dataset import Dataset, Table, prompt_lengths
from hnet_cli.errors import InputError
from hnet_cli.model.config import BOS
from hnet_cli.storage import shown


@dataclass(frozen=True, slots=True)
class Batch:
    """T bytes in B packed sequences."""

    inputs: np.ndarray
    """(T,) uint8: the byte before each target, or BOS."""
    targets: np.ndarray
    """(T,) uint8."""
    weights: np.ndarray | None
    """(T,) float32 for the loss of each target; None: all 1."""
    cu_seqlens: np.ndarray
    """(B+1,) int32: sequence b is [cu_seqlens[b], cu_seqlens[b+1])."""
    documents: np.ndarray
    """(B,) int64: index of each sequence's document in the dataset."""
    offsets: np.ndarray
    """(B,) int64: position of each sequence's first byte in its document."""
    lengths: np.ndarray | None = None
    """(T,) int64: bytes of each target if targets are tokens, int64 like the inputs; None: 1 each."""

    @property
    def nbytes(self) -> int:
        """Number of bytes that are predicted."""
        return len(self.targets) if self.lengths is None else int(self.lengths.sum())

    @property
    def counted(self) -> int:
        """Number of bytes among them that weigh anything."""
        if self.weights is None:
            return self.nbytes
        counts = self.weights > 0
        return int(counts.sum() if self.lengths is None else self.lengths[counts].sum())

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches of about as many targets each; B must be at least 2."""
        ends = self.cu_seqlens[1:-1]
        first = int(np.abs(ends - len(self.targets) / 2).argmin()) + 1  # sequences of the first half
        return self._part(0, first), self._part(first, len(self.documents))

    def _part(self, first: int, last: int) -> Batch:
        begin, end = self.cu_seqlens[first], self.cu_seqlens[last]
        weights = None if self.weights is None else self.weights[begin:end]
        offsets = self.cu_seqlens[first : last + 1] - begin
        lengths = None if self.lengths is None else self.lengths[begin:end]
        inputs, targets = self.inputs[begin:end], self.targets[begin:end]
        return Batch(inputs, targets, weights, offsets, self.documents[first:last], self.offsets[first:last], lengths)


class Batches:
    """The batches of a split: `rows` windows of `sequence_length` bytes each, endless."""

    def __init__(
        self, dataset: Dataset, split: str = "train", *, sequence_length: int, rows: int, seed: int = 0
    ) -> None:
        """Raises InputError where the split holds less than one window."""
        self.dataset, self.split, self.seed = dataset, split, seed
        self.sequence_length, self.rows = sequence_length, rows
        self._ranges = stretches(dataset, split, sequence_length)
        total = int(self._ranges[:, 2].sum())
        self.windows_per_epoch = -(-total // sequence_length) if dataset.prompted else total // sequence_length
        if not self.windows_per_epoch:
            raise InputError(
                f"the {split} split of {shown(dataset.path)} has {dataset.nbytes(split):,} bytes, less than one "
                f"sequence of {sequence_length:,}",
                "give more data, or a smaller train.sequence_length",
            )
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def batch(self, step: int, rows_slice: tuple[int, int] | None = None) -> Batch:
        """Batch number `step` (from 0), or only its windows [start, stop): the share of one rank."""
        start, stop = rows_slice or (0, self.rows)
        return self.visited(np.arange(step * self.rows + start, step * self.rows + stop, dtype=np.int64))

    def visited(self, visits: np.ndarray) -> Batch:
        """The windows of some visits, ascending int64 counted from 0 through all epochs."""
        epochs, visits = np.divmod(visits, self.windows_per_epoch)
        parts = [self._pieces(int(epoch), visits[epochs == epoch]) for epoch in np.unique(epochs)]
        return _gather(self.dataset, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _pieces(self, epoch: int, visits: np.ndarray) -> tuple[np.ndarray, ...]:
        """The stretches of documents in the windows visited: (document, limit, start, length); see `_gather`."""
        order, ends = self._epoch(epoch)
        begin = shuffled(visits, self.windows_per_epoch, f"{self.seed} windows {epoch}") * self.sequence_length
        whole = self.dataset.prompted
        first = np.searchsorted(ends, begin, side="right")
        last = np.searchsorted(ends, begin + self.sequence_length, side="right" if whole else "left") - whole
        counts = last - first + 1
        window = np.repeat(np.arange(len(visits)), counts)
        place = first[window] + np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = self._ranges[order[place]]
        document_begin = ends[place] - chosen[:, 2]
        if whole:
            return chosen[:, 0], chosen[:, 1], chosen[:, 1], chosen[:, 2]
        start = np.maximum(begin[window], document_begin)
        stop = np.minimum(begin[window] + self.sequence_length, ends[place])
        return chosen[:, 0], chosen[:, 1], chosen[:, 1] + start - document_begin, stop - start

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the documents in an epoch and their ends in its stream; the last two epochs are cached."""
        if epoch not in self._epochs:
            order = shuffled(np.arange(len(self._ranges)), len(self._ranges), f"{self.seed} documents {epoch}")
            while len(self._epochs) > 1:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = order, np.cumsum(self._ranges[:, 2][order])
        return self._epochs[epoch]


class Windows:
    """Windows of a split to evaluate on: all of it, or a sample spread over it.

    The stretches of documents in a split are cut into windows of `length` bytes, the last of each shorter. A window
    that does not begin its stretch begins with the byte before it and knows nothing older, in a sample as in the whole.
    A sample has one window, at a place fixed by a hash, of every run of as many neighbours: each window has the same
    chance, so that documents, and places in them, count as they do in the whole.
    """

    def __init__(self, dataset: Dataset, split: str, length: int, limit: int | None = None) -> None:
        """At most `limit` bytes, None for all. They depend on the dataset and these numbers alone."""
        self.dataset, self.split, self.length = dataset, split, length
        ranges = stretches(dataset, split, length)[:]
        total = int(ranges[:, 2].sum())
        counts = -(-ranges[:, 2] // length)
        ends = np.cumsum(counts)
        number = int(ends[-1]) if len(ends) else 0
        wanted = number if limit is None or total <= limit else max(1, number * limit // total)
        while True:
            chosen = _spread(number, wanted)
            row = np.searchsorted(ends, chosen, side="right")
            start = ranges[row, 1] + (chosen - ends[row] + counts[row]) * length
            sizes = np.minimum(length, ranges[row, 1] + ranges[row, 2] - start)
            size = int(sizes.sum())
            if limit is None or size <= limit or wanted <= 1:
                break
            wanted = max(1, min(wanted - 1, wanted * limit // size))
        if limit is not None and size > limit and not dataset.prompted:  # less than a window
            sizes[0] = limit
        self.table = np.stack([ranges[row, 0], ranges[row, 1], start, sizes], 1)
        """(n, 4) int64: document, first byte of the stretch, first byte of the window, bytes."""
        self.bytes = _counted(dataset, self.table[:, 0], self.table[:, 2], sizes)
        """Bytes of the windows that count: all but those of prompts."""
        self.of = _counted(dataset, *ranges.T)
        """Bytes of the split that count."""

    @property
    def key(self) -> str:
        """A short hash: figures with equal keys are of the same bytes in the same windows."""
        digest = hashlib.sha256(f"{self.dataset.fingerprint} {self.length} ".encode())
        digest.update(self.table.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def part(self, wanted: int) -> Windows:
        """`wanted` of the windows, spread over all of them."""
        part = copy.copy(self)
        part.table = self.table[_spread(len(self.table), wanted)]
        part.bytes = _counted(self.dataset, part.table[:, 0], part.table[:, 2], part.table[:, 3])
        return part

    def read(self) -> bytes:
        """The windows joined, as the model reads them."""
        starts = self.dataset.table[self.table[:, 0], 0] + self.table[:, 2]
        return self.dataset.translate(self.dataset.shards.gather(starts, self.table[:, 3])).tobytes()

    def counted(self) -> bytes:
        """A 1 for each byte of the windows joined that counts, a 0 for each of a prompt."""
        return self.dataset.counts(self.table[:, 0], self.table[:, 2], self.table[:, 3]).tobytes()

    def batches(self, batch_bytes: int = 1 << 16) -> Iterator[Batch]:
        """Every window once, in order, each a packed sequence; as many in a batch as fit, at least one."""
        sizes, begin = self.table[:, 3], 0
        ends = np.cumsum(sizes)
        while begin < len(sizes):
            done = int(ends[begin] - sizes[begin])
            end = max(begin + 1, int(np.searchsorted(ends, done + batch_bytes, side="right")))
            yield _gather(self.dataset, *self.table[begin:end].T)
            begin = end


def stretches(dataset: Dataset, split: str, length: int) -> Table | np.ndarray:
    """(n, 3) int64: document, first byte in it, bytes of each stretch of a split, as `Dataset.ranges`.

    Of rows of prompt and completion none is longer than `length`: a longer one is divided from its end on, so that a
    completion keeps the end of its prompt; what is prompt only is left out.
    """
    ranges = dataset.ranges(split)
    if not dataset.prompted:
        return ranges
    ranges = ranges[:]
    counts = -(-ranges[:, 2] // length)
    row = np.repeat(np.arange(len(ranges)), counts)
    after = np.cumsum(counts)[row] - 1 - np.arange(len(row))
    end = ranges[row, 1] + ranges[row, 2] - after * length
    start = np.maximum(ranges[row, 1], end - length)
    counts_for_something = end > prompt_lengths(dataset.table[ranges[row, 0]])
    return np.stack([ranges[row, 0], start, end - start], 1)[counts_for_something]


def _counted(dataset: Dataset, document: np.ndarray, start: np.ndarray, length: np.ndarray) -> int:
    """Bytes of stretches [start, start + length) of documents, (B,) int64, that are of no prompt."""
    if not dataset.prompted:
        return int(length.sum())
    return int(np.minimum(length, start + length - prompt_lengths(dataset.table[document])).clip(0).sum())


def _spread(number: int, wanted: int) -> np.ndarray:
    """`wanted` of `number` positions, ascending int64: one of every run of number / wanted of them."""
    if wanted >= number:
        return np.arange(number)
    borders = np.arange(wanted + 1) * number // wanted
    widths = np.diff(borders)
    jitter: np.ndarray = shuffled(np.arange(wanted), wanted, "validation")
    return borders[:-1] + jitter * widths // wanted


def _gather(dataset: Dataset, document: np.ndarray, limit: np.ndarray, start: np.ndarray, length: np.ndarray) -> Batch:
    """The batch of the sequences [start, start + length) of documents; a sequence with start == limit begins with BOS.

    `limit` > 0 where the split divides a document. All arguments are (B,) int64.
    """
    absolute = dataset.table[document, 0] + start
    cu_seqlens = np.concatenate([[0], np.cumsum(length)])
    stored = dataset.shards.gather(absolute, length)
    inner = start > limit
    first_inputs = np.full(len(length), BOS, np.uint8)
    first_inputs[inner] = dataset.translate(dataset.shards.gather(absolute[inner] - 1, np.ones(inner.sum(), np.int64)))
    targets = dataset.translate(stored)
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    inputs[cu_seqlens[:-1]] = first_inputs
    weights = dataset.weights(stored, document, start, length)
    return Batch(inputs, targets, weights, cu_seqlens.astype(np.int32), document, start)


def shuffled(positions: np.ndarray, count: int, key: str) -> np.ndarray:
    """Images of `positions` (int64, any shape) under a keyed permutation of range(count).

    A Feistel network over pairs (a, b) standing for a * rows + b, hardly more than `count`, walked until inside. No
    table is kept, so corpora of any size shuffle in no memory; unlike numpy's generators it changes with no version.
    """
    rows = np.uint64(max(1, math.isqrt(count - 1) + 1))
    columns = np.uint64(-(-count // int(rows)))
    keys = np.frombuffer(hashlib.sha256(key.encode()).digest(), "<u8").astype(np.uint64)

    def mixed(values: np.ndarray, round_key: np.uint64) -> np.ndarray:
        values = (values + round_key) * np.uint64(0x9E3779B97F4A7C15)
        values ^= values >> np.uint64(32)
        return (values * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(24)

    def permute(values: np.ndarray) -> np.ndarray:
        left, right = np.divmod(values, rows)
        for round_key in keys:
            left = (left + mixed(right, round_key)) % columns
            right = (right + mixed(left, ~round_key)) % rows
        return left * rows + right

    result = permute(positions.astype(np.uint64))
    while len(outside := np.flatnonzero(result >= count)):
        result[outside] = permute(result[outside])
    return result.astype(np.int64)
