"""Mixtures: several datasets that are read together, each with its share of the bytes.

Every source has its own `Batches`, an endless stream of its own windows, exactly as if it were alone. A mixture only
says which source each row of a run comes from: row number r, counted from 0 through all batches, is the n-th of its
source, and gets that source's n-th window. Both follow from r and the weights alone, so that a batch of a mixture is a
pure function of (datasets, weights, seed, step) too. Draws would do that as well, but leave a source of a share p short
of its rows, or ahead, by about sqrt(p * rows): here it is never two rows ahead or behind, after however many.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.config.sources import DataSource, Sources, sources_of
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batch, Batches, Windows
from hnet_cli.errors import InputError, UsageError
from hnet_cli.storage import shown

MOST_UNITS = 1 << 30
"""Largest sum of the weights as whole numbers: their products stay within int64."""


@dataclass(frozen=True)
class _Fork:
    """A node of the tree that divides the rows: the left side gets `left_units` out of every `units` of them."""

    left: _Fork | int
    right: _Fork | int
    left_units: int
    units: int

    def left_of(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the left side among the first `rows` (int64): its share, rounded to the nearest."""
        whole, rest = np.divmod(rows, self.units)  # divided first: no product leaves int64
        return whole * self.left_units + (2 * rest * self.left_units + self.units) // (2 * self.units)


class Mixture:
    """Datasets that are read as one; a single one too."""

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float] | None = None) -> None:
        """`weights`: shares of the bytes read, in any unit; None: those of the training splits' bytes.

        Raises UsageError where datasets hold the same, or a model cannot read them all alike.
        """
        self.datasets = tuple(datasets)
        self.weights = None if weights is None or len(datasets) == 1 else tuple(weights)
        first = self.datasets[0]
        self.modality = first.modality
        """That of the first: it decides on presets, samples and what `hnet segment` draws."""
        known: dict[str, Dataset] = {}
        for dataset in self.datasets:
            same = known.setdefault(dataset.fingerprint, dataset)
            if same is not dataset:
                raise UsageError(
                    f"{shown(same.path)} and {shown(dataset.path)} hold the same data", "give it once, with its weight"
                )
            if not np.array_equal(_table(first), _table(dataset)):
                raise UsageError(
                    f"{shown(first.path)} ({first.modality}) and {shown(dataset.path)} ({dataset.modality}) cannot be "
                    "mixed: a model reads their bytes differently",
                    "train one model for each",
                )
        self._units = _units([dataset.nbytes("train") for dataset in datasets] if weights is None else weights)
        self.shares = [units / sum(self._units) for units in self._units]
        """Shares of the bytes read, by source; their sum is 1."""
        keys = [dataset.fingerprint for dataset in self.datasets]
        self._tree = _tree(self._units, keys)
        weighted = [f"{key}:{units}" for key, units in zip(keys, self._units, strict=True)]
        self.key = " ".join(sorted(weighted if self.weights else keys))
        """The fingerprints, each with its weight: what batches depend on. Of one dataset its fingerprint."""

    @classmethod
    def open(cls, data: Path | str | Sequence[DataSource]) -> Mixture:
        """Open and check the datasets. Raises what `Dataset.open` does, and UsageError."""
        sources = sources_of(data)
        weights = [source.weight for source in sources if source.weight is not None]
        return cls([Dataset.open(Path(source.path)) for source in sources], weights or None)

    @classmethod
    def of(cls, data: Mixture | Dataset) -> Mixture:
        """A dataset as a mixture of one."""
        return data if isinstance(data, Mixture) else cls([data])

    @property
    def sources(self) -> Sources:
        """The folders and weights, for `Mixture.open`."""
        weights = self.weights or [None] * len(self.datasets)
        paths = [str(dataset.path) for dataset in self.datasets]
        return tuple(DataSource(path=path, weight=weight) for path, weight in zip(paths, weights, strict=True))

    @cached_property
    def names(self) -> list[str]:
        """The folders' names; with as many of the folders above as tell equal ones apart."""
        parts = [dataset.path.absolute().parts for dataset in self.datasets]
        for length in range(1, max(map(len, parts)) + 1):
            names = [shown("/".join(part[-length:])) for part in parts]
            if len(set(names)) == len(names):
                return names
        return [f"{name} {number}" for number, name in enumerate(names)]

    @property
    def about(self) -> dict[str, Any]:
        """The `dataset.json` of a single dataset; of several nothing."""
        return self.datasets[0].about if len(self.datasets) == 1 else {}

    def nbytes(self, split: str) -> int:
        """Bytes of a split, of all sources together."""
        return sum(dataset.nbytes(split) for dataset in self.datasets)

    def verify(self) -> None:
        """Check the shards; see `Dataset.verify`."""
        for dataset in self.datasets:
            dataset.verify()

    def divide(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, and the number of rows of that source before it; all (n,) int64.

        The datasets in another order have the same rows each.
        """
        sources, numbers = np.empty_like(rows), np.empty_like(rows)
        waiting: list[tuple[_Fork | int, np.ndarray, np.ndarray]] = [(self._tree, np.arange(len(rows)), rows)]
        while waiting:
            node, places, local = waiting.pop()
            if not isinstance(node, _Fork):
                sources[places], numbers[places] = node, local
                continue
            before = node.left_of(local)
            left = node.left_of(local + 1) > before
            waiting.append((node.left, places[left], before[left]))
            waiting.append((node.right, places[~left], (local - before)[~left]))
        return sources, numbers


def _table(dataset: Dataset) -> np.ndarray:
    return np.arange(256, dtype=np.uint8) if dataset.input_table is None else dataset.input_table


def _units(weights: Sequence[float]) -> list[int]:
    """Whole numbers above 0 in the ratio of the weights, exactly where their sum is at most `MOST_UNITS`."""
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth
    common = Fraction(math.gcd(*(e.numerator for e in exact)), math.lcm(*(e.denominator for e in exact)))
    units, total = [int(e / common) for e in exact], int(sum(exact) / common)
    if total > MOST_UNITS:
        units = [max(1, unit * (MOST_UNITS // 2) // total) for unit in units]
    divisor = math.gcd(*units)
    return [unit // divisor for unit in units]


def _tree(units: Sequence[int], keys: Sequence[str]) -> _Fork | int:
    """The tree that divides rows among sources of these units: Huffman's, in which a source's errors add up least.

    At every fork both sides are within half a row of their share of the rows that come there, so that of two sources
    each is within half a row of its own, of three within one, of many within two.
    """
    heap: list[tuple[int, str, _Fork | int]] = sorted(zip(units, keys, range(len(units)), strict=True))
    while len(heap) > 1:
        (one, key, left), (other, second, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (one + other, min(key, second), _Fork(left, right, one, one + other)))
    return heap[0][2]


class MixedBatches:
    """The batches of a mixture: `rows` windows of `sequence_length` bytes each, endless, in the shares of its sources.

    Documents of a batch are numbered through all sources in their order.
    """

    def __init__(
        self, mixture: Mixture, split: str = "train", *, sequence_length: int, rows: int, seed: int = 0
    ) -> None:
        """Raises InputError where a source's split holds less than one window."""
        self.mixture, self.rows, self.sequence_length = mixture, rows, sequence_length
        self.parts = [
            Batches(dataset, split, sequence_length=sequence_length, rows=rows, seed=seed)
            for dataset in mixture.datasets
        ]
        self._first_document = np.cumsum([0, *(len(dataset.table) for dataset in mixture.datasets)])

    def epochs(self, step: int) -> list[float]:
        """Epochs of each source completed when batch `step` begins."""
        rows = step * self.rows
        return [
            share * rows / part.windows_per_epoch for share, part in zip(self.mixture.shares, self.parts, strict=True)
        ]

    def batch(self, step: int, rows_slice: tuple[int, int] | None = None) -> Batch:
        """Batch number `step` (from 0), or only its windows [start, stop): the share of one rank."""
        start, stop = rows_slice or (0, self.rows)
        rows = np.arange(step * self.rows + start, step * self.rows + stop, dtype=np.int64)
        sources, numbers = self.mixture.divide(rows)
        if len(self.parts) > 1 and any(part.dataset.prompted for part in self.parts):  # windows of any length
            each = [self.parts[s].visited(numbers[at : at + 1]) for at, s in enumerate(sources.tolist())]
            return _in_a_row(each, self._first_document[sources])
        present = np.unique(sources).tolist()
        batches = [self.parts[source].visited(numbers[sources == source]) for source in present]
        if len(self.parts) == 1:
            return batches[0]
        return _joined(
            batches,
            [np.flatnonzero(sources == source) for source in present],
            self._first_document[present],
            self.sequence_length,
        )


def _in_a_row(batches: Sequence[Batch], first: np.ndarray) -> Batch:
    """Batches one after the other as one. `first`: what is added to the numbers of each one's documents."""
    lengths = np.concatenate([np.diff(batch.cu_seqlens) for batch in batches])
    plain = (np.ones(len(batch.targets), np.float32) for batch in batches)
    return Batch(
        np.concatenate([batch.inputs for batch in batches]),
        np.concatenate([batch.targets for batch in batches]),
        np.concatenate([one if b.weights is None else b.weights for b, one in zip(batches, plain, strict=True)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        np.concatenate([batch.documents + number for batch, number in zip(batches, first, strict=True)]),
        np.concatenate([batch.offsets for batch in batches]),
    )


def _joined(batches: Sequence[Batch], places: Sequence[np.ndarray], first: np.ndarray, length: int) -> Batch:
    """The windows of several batches as one batch. `places`: where each window of a batch goes. `first`: what is added
    to the numbers of its documents."""
    rows = sum(map(len, places))
    place = np.concatenate([at[batch.cu_seqlens[:-1] // length] for batch, at in zip(batches, places, strict=True)])
    sequences = np.argsort(place, kind="stable")

    def of_bytes(arrays: Sequence[np.ndarray]) -> np.ndarray:
        joined = np.empty((rows, length), arrays[0].dtype)
        for at, array in zip(places, arrays, strict=True):
            joined[at] = array.reshape(-1, length)
        return joined.reshape(-1)

    def of_sequences(arrays: Sequence[np.ndarray]) -> np.ndarray:
        joined: np.ndarray = np.concatenate(arrays)[sequences]
        return joined

    weights = None
    if any(batch.weights is not None for batch in batches):
        plain = (np.ones(len(batch.targets), np.float32) for batch in batches)
        weights = of_bytes([one if (own := b.weights) is None else own for b, one in zip(batches, plain, strict=True)])
    lengths = of_sequences([np.diff(batch.cu_seqlens) for batch in batches])
    return Batch(
        of_bytes([batch.inputs for batch in batches]),
        of_bytes([batch.targets for batch in batches]),
        weights,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        of_sequences([batch.documents + number for batch, number in zip(batches, first, strict=True)]),
        of_sequences([batch.offsets for batch in batches]),
    )


@dataclass(frozen=True)
class HeldOut:
    """The bytes of a mixture's validations: windows of each source's held-out split."""

    names: Sequence[str]
    shares: Sequence[float]
    parts: Sequence[Windows]
    """One per source."""

    @classmethod
    def of(cls, held_out: HeldOut | Windows) -> HeldOut:
        """The windows of a single dataset as of a mixture of one."""
        return held_out if isinstance(held_out, HeldOut) else cls([""], [1.0], [held_out])

    @classmethod
    def choose(cls, mixture: Mixture, length: int, limit: int | None = None) -> HeldOut:
        """Windows of `length` bytes, at most `limit` bytes in all. Raises InputError where a source holds nothing out.

        The limit is divided equally among the sources, however small their shares, so that the figure of each is as
        sure; what one does not have goes to the others.
        """
        for dataset in mixture.datasets:
            if "val" not in dataset.splits or not dataset.nbytes("val"):
                raise InputError(f"{shown(dataset.path)} holds nothing out", "prepare it with --val or --val-input")
        parts, left = dict[int, Windows](), limit
        order = sorted(range(len(mixture.datasets)), key=lambda n: mixture.datasets[n].nbytes("val"))
        for done, n in enumerate(order):
            most = None if left is None else max(1, left // (len(order) - done))
            parts[n] = Windows(mixture.datasets[n], "val", length, most)
            left = None if left is None else left - parts[n].bytes
        return cls(mixture.names, mixture.shares, [parts[n] for n in range(len(order))])

    @property
    def length(self) -> int:
        """Bytes of a window."""
        return self.parts[0].length

    @property
    def bytes(self) -> int:
        """Bytes of all windows."""
        return sum(part.bytes for part in self.parts)

    @property
    def total(self) -> int:
        """Bytes of the splits."""
        return sum(part.of for part in self.parts)

    @property
    def key(self) -> str:
        """A short hash: figures with equal keys are of the same bytes in the same windows and shares."""
        keys = [part.key for part in self.parts]
        if len(keys) == 1:
            return keys[0]
        shares = (f"{key} {share!r}" for key, share in zip(keys, self.shares, strict=True))
        return hashlib.sha256(" ".join(sorted(shares)).encode()).hexdigest()[:16]
