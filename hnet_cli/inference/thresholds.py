"""Compression chosen at inference: thresholds, or the thresholds at which chunks have a wanted length.

A boundary is where p exceeds the threshold of its stage. On a sample of documents the probabilities are known, so the
threshold that leaves a wanted number of chunks lies between two of them; the stages are settled from the outermost
inwards, each on the chunks that the outer ones then make. The same sample gives the same thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np

from hnet_cli.errors import UsageError
from hnet_cli.inference.windows import Stream, probabilities
from hnet_cli.modality import Document
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.chunking import THRESHOLD

SAMPLE_BYTES = 1 << 18
"""Bytes of the input that thresholds are found on, at most."""
CLOSE = 0.01
"""Relative difference from what is wanted below which it is reached."""


@dataclass(frozen=True)
class Compression:
    """What a user asks for; by default the thresholds that the model has. Raises UsageError."""

    thresholds: Sequence[float] = ()
    """One for all learned stages, or one for each, outermost first."""
    bytes_per_chunk: Sequence[float] = ()
    """Bytes per chunk of the innermost learned stage, or of each learned stage, outermost first."""

    def __post_init__(self) -> None:
        if self.thresholds and self.bytes_per_chunk:
            raise UsageError("--threshold and --bytes-per-chunk exclude each other", "a length is met by a threshold")
        if wrong := [p for p in self.thresholds if not 0 <= p <= 1]:
            raise UsageError(f"--threshold {wrong[0]:g} is no probability", "give a number from 0 to 1")
        if wrong := [x for x in self.bytes_per_chunk if not 1 <= x < math.inf]:
            raise UsageError(f"--bytes-per-chunk {wrong[0]:g} is no length of chunks", "give a number of at least 1")
        if any(b < a for a, b in zip(self.bytes_per_chunk, self.bytes_per_chunk[1:], strict=False)):
            raise UsageError("--bytes-per-chunk falls from stage to stage", "inner chunks consist of outer ones")

    @staticmethod
    def of(threshold: float | Sequence[float] | None, bytes_per_chunk: float | Sequence[float] | None) -> Compression:
        """From numbers or sequences of them."""
        one = int | float | np.floating
        given = (threshold, bytes_per_chunk)
        return Compression(*(() if x is None else (float(x),) if isinstance(x, one) else tuple(x) for x in given))

    @property
    def is_default(self) -> bool:
        return not (self.thresholds or self.bytes_per_chunk)

    def check(self, model: HNetForCausalLM) -> None:
        """Raise UsageError where the model has other stages than these numbers are for."""
        option, numbers = "--threshold", self.thresholds
        if self.bytes_per_chunk:
            option, numbers = "--bytes-per-chunk", self.bytes_per_chunk
        learned = len(model.thresholds)
        if numbers and not learned:
            rule = "cuts by a fixed rule" if model.config.num_stages else "has no chunks"
            raise UsageError(f"{option} is for boundaries that are learned, and this model {rule}", "leave it out")
        if len(numbers) > 1 and len(numbers) != learned:
            has = f"this model learns the boundaries of {learned} stage{'s' * (learned != 1)}"
            raise UsageError(f"{option} has {len(numbers)} numbers", f"{has}: give one number, or {learned}")

    def apply(self, model: HNetForCausalLM, sample: Callable[[], Iterable[bytes]]) -> Applied | None:
        """Set the model's thresholds; None where nothing is asked. `sample` gives documents as the model reads them,
        of which the first `SAMPLE_BYTES` are used, where thresholds have to be found; without bytes no length can be
        met, and nothing is done. Raises UsageError."""
        self.check(model)
        if self.is_default:
            return None
        if self.thresholds:
            model.set_thresholds(self.thresholds if len(self.thresholds) > 1 else self.thresholds[0])
            return Applied(model.thresholds)
        if not any(documents := list(sample())):
            return None
        with model.set_thresholds(THRESHOLD):
            applied = calibrate(model, documents, self.bytes_per_chunk)
        model.set_thresholds(applied.thresholds)
        return applied

    @contextmanager
    def used(self, model: HNetForCausalLM, sample: Callable[[], Iterable[bytes]]) -> Iterator[Applied | None]:
        """`apply` for the duration of a block."""
        before = model.thresholds
        try:
            yield self.apply(model, sample)
        finally:
            if before:
                model.set_thresholds(before)

    def apply_to(
        self, model: HNetForCausalLM, documents: Iterator[Document | Stream], table: bytes | None
    ) -> tuple[Applied | None, Iterator[Document | Stream]]:
        """`apply`, on the beginning of documents as stored, and these documents, still to be read.

        `table`: `Modality.input_table`.
        """
        sample = list[bytes]()
        if self.bytes_per_chunk:
            self.check(model)
            sample, documents = _held(documents)
        return self.apply(model, lambda: [data.translate(table) for data in sample]), documents


UNCHANGED = Compression()


def _held(items: Iterator[Document | Stream]) -> tuple[list[bytes], Iterator[Document | Stream]]:
    """The first `SAMPLE_BYTES` of documents as stored, and the same documents, still to be read."""
    sample, held, left = list[bytes](), list[Document | Stream](), SAMPLE_BYTES
    for item in items:
        if isinstance(item, Stream):
            blocks, taken = iter(item.blocks), list[bytes]()
            while sum(map(len, taken)) < left and (block := next(blocks, None)) is not None:
                taken.append(block)
            item, data = replace(item, blocks=chain(taken, blocks)), b"".join(taken)
        else:
            data = item.data
        held.append(item)
        sample.append(data[:left])
        left -= len(sample[-1])
        if not left:
            break
    return sample, chain(held, items)


@dataclass(frozen=True)
class Applied:
    """The thresholds that a model decides at, and how they were found."""

    thresholds: list[float]
    """One for each learned stage, outermost first."""
    wanted: list[float] | None = None
    """Bytes per chunk of each learned stage that were aimed at; None where the thresholds were given."""
    reached: list[float] | None = None
    """Bytes per chunk of each learned stage on the sample."""
    sample_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        """The thresholds, and the bytes per chunk they make, in words."""
        numbers = "threshold" + "s" * (len(self.thresholds) > 1) + " " + ", ".join(f"{p:.4g}" for p in self.thresholds)
        if self.reached is None or self.wanted is None:
            return numbers
        found = f"{numbers}, found on {self.sample_bytes:,} bytes: {_listed(self.reached)} bytes per chunk"
        missed = any(abs(a - b) > CLOSE * b for a, b in zip(self.reached, self.wanted, strict=True))
        return f"{found}, the nearest to {_listed(self.wanted)} that there is" if missed else found


def _listed(lengths: Sequence[float]) -> str:
    return ", ".join(f"{length:.2f}" if length < 100 else f"{length:,.0f}" for length in lengths)


def calibrate(model: HNetForCausalLM, documents: Iterable[bytes], bytes_per_chunk: Sequence[float]) -> Applied:
    """The thresholds at which the chunks of `documents`, as the model reads them, have a length nearest to that wanted;
    the model keeps those it has.

    One number is the length at the innermost learned stage, and every learned stage makes its chunks longer or shorter
    by the same factor; else there is one for each learned stage. Raises UsageError where there is nothing to read.
    """
    sample = _beginning(documents)
    total = sum(map(len, sample))
    if not total:
        raise UsageError("--bytes-per-chunk needs bytes to find the threshold on", "give --threshold instead")
    learned = [stage for stage, router in enumerate(model.routers) if router.learned]
    wanted = list(bytes_per_chunk)
    if len(wanted) < len(learned):
        decisions = _decisions(model, sample)
        usual = [total / decisions[stage].chunks(model.routers[stage].threshold) for stage in learned]
        factor = wanted[-1] / usual[-1]
        wanted = [length * factor ** ((n + 1) / len(learned)) for n, length in enumerate(usual)]
    thresholds, reached = list(model.thresholds), list[float]()
    for number, (stage, length) in enumerate(zip(learned, wanted, strict=True)):
        with model.set_thresholds(thresholds):
            decision = _decisions(model, sample)[stage]
        thresholds[number] = decision.threshold(total / length)
        reached.append(total / decision.chunks(thresholds[number]))
    return Applied(thresholds, [round(length, 6) for length in wanted], reached, total)


@dataclass(frozen=True)
class _Decision:
    """A stage on the sample."""

    forced: int
    """Chunks that begin whatever the threshold: one for each document."""
    descending: np.ndarray
    """(n,) float32: the probabilities of the other positions that the stage decides."""

    def chunks(self, threshold: float) -> int:
        """Chunks there are at a threshold."""
        return self.forced + self._more_than(np.float32(threshold))

    def _more_than(self, value: np.float32, side: Literal["left", "right"] = "left") -> int:
        """Number of probabilities above a value; with "right" of those equal to it too."""
        return int(np.searchsorted(-self.descending, -value, side=side))

    def threshold(self, chunks: float) -> float:
        """The threshold, of float32, with which there are nearest to so many: halfway between the probabilities of the
        last boundary and the first position that is none. Of equal probabilities all are boundaries or none."""
        p, size = self.descending, len(self.descending)
        aim = min(max(round(chunks) - self.forced, 0), size)
        near = p[max(aim - 1, 0)] if size else np.float32(0)
        candidates = []
        for number in (aim, self._more_than(near), self._more_than(near, "right")):
            above = p[number - 1] if number else np.float32(1)
            below = p[number] if number < size else np.float32(0)
            middle = np.float32((np.float64(above) + np.float64(below)) / 2)
            candidates.append(float(middle if middle < above else below))
        return min(candidates, key=lambda threshold: (abs(self.chunks(threshold) - chunks), threshold))


def _decisions(model: HNetForCausalLM, sample: Sequence[bytes]) -> list[_Decision]:
    """Per stage the probabilities on the sample, read as `windows` reads, at the model's present thresholds."""
    stages: list[list[np.ndarray]] = [[] for _ in range(model.config.num_stages)]
    documents = [Document(data, str(number), str(number)) for number, data in enumerate(sample)]
    for part in probabilities(model, documents):
        for found, values in zip(stages, part, strict=True):
            found.append(values)
    return [_Decision(len(documents), np.sort(np.concatenate(found))[::-1]) for found in stages]


def _beginning(documents: Iterable[bytes]) -> list[bytes]:
    """The first `SAMPLE_BYTES` of documents; no more of them are asked for than are needed."""
    sample, left = list[bytes](), SAMPLE_BYTES
    for document in documents:
        if part := document[:left]:
            sample.append(part)
            left -= len(part)
        if not left:
            break
    return sample
