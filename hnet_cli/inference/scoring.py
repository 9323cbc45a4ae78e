"""Log-probabilities of every byte under a model, in windows of a stated context, batched without padding.

A document of n bytes is read in windows. The first scores its first C bytes (`context`); BOS precedes the first of all.
Every further window scores the next S bytes (`stride`) and begins C bytes before their end, so that a byte is predicted
from at most C bytes before it and, except at the beginning of its document, from at least C - S + 1. Every byte counts
once. With S = C windows do not overlap. Without C every byte sees its whole document: a long one is read in blocks with
the model's state carried from one to the next, which equals one pass.

Of a row of prompt and completion only the completion counts. One longer than C is read from C bytes before its end on,
as in training: so its completion keeps the end of its prompt. Continuations of given bytes: `continuations`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from hnet_cli.errors import NumericalError, UsageError
from hnet_cli.inference.windows import BATCH_BYTES, BOS, ids_of, window_of
from hnet_cli.model import HNetConfig, HNetForCausalLM, RoutingOutput
from hnet_cli.model.state import GenerationState

FEWEST = 8
"""Fewest units that an interval is given for."""
PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def default_context(*configs: HNetConfig) -> int:
    """2,048 bytes, or the training length if that is longer; of several models the longest."""
    return max(window_of(config)[0] for config in configs)


def check_windows(context: int, stride: int | None) -> None:
    """Raise UsageError for a stride without windows (`context` 0: the whole document) or longer than them."""
    if stride and not context:
        raise UsageError("--stride is of windows, and with --context 0 there are none", "leave one of them out")
    if stride and stride > context:
        too_long = f"--stride {stride} is longer than the context of {context}: bytes would be left out"
        raise UsageError(too_long, "give a smaller --stride or a larger --context")


def precision(model: HNetForCausalLM) -> tuple[str, AbstractContextManager[object]]:
    """The name of the precision and a context manager: that of the weights; with CUDA bf16 by autocast, as in
    training."""
    weight, device = model.embeddings.weight, model.embeddings.weight.device.type
    if device != "cuda":
        return PRECISIONS[weight.dtype], nullcontext()
    return "bf16", torch.autocast(device, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A packed sequence: the model reads `inputs` and predicts `targets`; those before `skip` do not count."""

    inputs: bytes
    targets: bytes
    skip: int
    owner: int
    """Index of the document, or of the pair of `loglikelihoods`."""
    begins: bool
    """inputs[0] is BOS, and with that a true boundary."""
    carried: bool = False
    """A block whose predecessors the model has read; otherwise nothing before inputs[0] is known."""


@dataclass(frozen=True)
class Pass:
    """One packed forward pass over B stretches, T positions in all."""

    stretches: Sequence[Stretch]
    nats: np.ndarray
    """(T,) float64: -ln P of each target."""
    likeliest: np.ndarray
    """(T,) bool: the target is the most likely byte."""
    offsets: np.ndarray
    """(B+1,) int64: where stretches begin."""
    routing: list[RoutingOutput]

    @property
    def counted(self) -> np.ndarray:
        """(T,) bool: targets that count."""
        first = self.offsets[:-1] + [stretch.skip for stretch in self.stretches]
        return np.arange(self.offsets[-1]) >= np.repeat(first, np.diff(self.offsets))


class _Blocks:
    """The bytes of a document that comes in blocks; those before a position can be dropped."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.blocks, self.held, self.base = iter(blocks), bytearray(), 0
        """`held` begins at position `base`."""

    def reach(self, end: int) -> int:
        """Read up to position `end`. Returns it, or the length of the document if that is less."""
        while self.base + len(self.held) < end and (block := next(self.blocks, None)) is not None:
            self.held += block
        return min(end, self.base + len(self.held))

    def drop(self, before: int) -> None:
        if before > self.base:
            del self.held[: before - self.base]
            self.base = before

    def __getitem__(self, part: slice) -> bytes:
        return bytes(memoryview(self.held)[part.start - self.base : part.stop - self.base])


def stretches(
    data: bytes | Iterable[bytes],
    owner: int,
    context: int | None,
    stride: int | None = None,
    block: int | None = None,
    prompt: int = 0,
) -> Iterator[Stretch]:
    """The windows of one document, as the module's docstring defines them.

    `data`: its bytes, or blocks of them, of which no more is held than a window. `context` None: all of it, in blocks
    of `block` bytes where it is longer; `stride` None: `context`. `prompt`: bytes at the beginning that do not count,
    of a document that is given whole.
    """
    text = _Blocks([data] if isinstance(data, bytes) else data)
    done = begin = 0
    if context is None and block and text.reach(block + 1) > block:
        while (end := text.reach(done + block)) > done:
            targets, skip = text[done:end], min(max(0, prompt - done), end - done)
            before = text[done - 1 : done] if done else BOS
            yield Stretch(before + targets[:-1], targets, skip, owner, done == 0, carried=True)
            text.drop(end - 1)
            done = end
        return
    context = end = text.reach(context or sys.maxsize)
    if prompt and isinstance(data, bytes):
        for end in range(len(data) - (len(data) - prompt - 1) // context * context, len(data) + 1, context):
            begin = max(0, end - context)
            yield Stretch(BOS + data[begin : end - 1], data[begin:end], max(0, prompt - begin), owner, True)
        return
    stride = min(stride or context, context)
    while end > done:
        inputs = text[begin - 1 : end - 1] if begin else BOS + text[0 : end - 1]
        yield Stretch(inputs, text[begin:end], done - begin, owner, begin == 0)
        done, begin, end = end, end + stride - context, text.reach(end + stride)
        text.drop(begin - 1)


@torch.inference_mode()
def passes(model: HNetForCausalLM, items: Iterable[Stretch], batch_bytes: int | None = None) -> Iterator[Pass]:
    """Packed passes over the stretches in order, each of about `batch_bytes` positions, at least one stretch.

    Raises NumericalError where a probability is not finite.
    """
    device = model.embeddings.weight.device
    batch_bytes = batch_bytes or batch_bytes_of(model)
    batch: list[Stretch] = []
    size = 0
    state: GenerationState | None = None
    for item in items:
        if batch and (item.carried or size + len(item.inputs) > batch_bytes):
            yield _forward(model, batch, device)
            batch, size = [], 0
        if item.carried:
            state = model.allocate_state(1, sys.maxsize) if item.begins or state is None else state
            yield _forward(model, [item], device, state)
            continue
        batch.append(item)
        size += len(item.inputs)
    if batch:
        yield _forward(model, batch, device)


def batch_bytes_of(model: HNetForCausalLM) -> int:
    """Bytes of a pass."""
    return BATCH_BYTES.get(model.embeddings.weight.device.type, 1 << 18)


def carried_block(model: HNetForCausalLM) -> int | None:
    """Bytes per block of a document whose state is carried; None for a model of tokens, which reads it at once."""
    return None if model.tokenizer is not None else batch_bytes_of(model)


def _forward(
    model: HNetForCausalLM, batch: list[Stretch], device: torch.device, state: GenerationState | None = None
) -> Pass:
    """One pass over the stretches; with a `state`, over the one stretch that continues it."""
    if model.tokenizer is not None:
        return _forward_tokens(model, batch, device)
    offsets = np.cumsum([0] + [len(stretch.inputs) for stretch in batch])
    targets = ids_of(b"".join(stretch.targets for stretch in batch), device)
    inputs = ids_of(b"".join(stretch.inputs for stretch in batch), device)
    if state is None:
        out = model(inputs, cu_seqlens=torch.from_numpy(offsets).to(device))
    else:
        out = model.extend(inputs, state)
    return Pass(batch, *judge(out.logits.float(), targets), offsets, out.routing)


def judge(logits: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """-ln P of each target (T,) under logits (T, V), float64, and whether it is the likeliest byte. Raises
    NumericalError."""
    nats = F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
    if not np.isfinite(nats).all():
        raise NumericalError("the model gives probabilities that are not finite", "its weights are damaged or overflow")
    return nats, (logits.argmax(-1) == targets).cpu().numpy()


def _forward_tokens(model: HNetForCausalLM, batch: list[Stretch], device: torch.device) -> Pass:
    """One pass of a model of tokens; the first byte of a token carries all its nats. Bytes that do not count are
    tokenised apart from those that do, so that no token is in both; every sequence begins with the tokenizer's BOS."""
    before = [
        (b"" if stretch.begins or not stretch.skip else stretch.inputs[:1]) + stretch.targets[: stretch.skip]
        for stretch in batch
    ]
    encoded = model.tokenizer.encode([*before, *(stretch.targets[stretch.skip :] for stretch in batch)])
    pairs = list(zip(encoded[: len(batch)], encoded[len(batch) :], strict=True))
    targets = torch.from_numpy(np.concatenate([tokens for pair in pairs for tokens in pair])).to(device)
    ends = np.cumsum([0] + [len(context) + len(scored) for context, scored in pairs])
    starts = torch.from_numpy(ends[:-1]).to(device)
    inputs = targets.roll(1).index_fill(0, starts, model.tokenizer.bos)
    nats, likeliest = judge(model(inputs, cu_seqlens=torch.from_numpy(ends).to(device)).logits.float(), targets)

    offsets = np.cumsum([0] + [len(stretch.targets) for stretch in batch])
    by_byte, best = np.zeros(offsets[-1]), np.ones(offsets[-1], bool)
    for (_, scored), end, low, stretch in zip(pairs, ends[1:], offsets[:-1], batch, strict=True):
        lengths = model.tokenizer.lengths[scored]
        by_byte[low + stretch.skip + np.cumsum(lengths) - lengths] = nats[end - len(scored) : end]
        best[low + stretch.skip : low + len(stretch.targets)] = np.repeat(likeliest[end - len(scored) : end], lengths)
    return Pass(batch, by_byte, best, offsets, [])


COLUMNS = ("positions", "boundaries", "probability", "nats_after", "nats_first", "firsts")
"""Sums per level: positions that count (the forced boundary of a window inside a document does not), boundaries among
them, boundary probabilities, nats of the bytes predicted from the boundaries, nats of the bytes that begin the chunks,
and the number of those scored in the same window."""


@dataclass(frozen=True)
class Scores:
    """Sums per window; R windows of D documents, S stages."""

    owner: np.ndarray
    """(R,) int64: the document of each window, ascending from 0 to D - 1."""
    bytes: np.ndarray
    """(R,) int64: bytes that count."""
    nats: np.ndarray
    """(R,) float64."""
    stages: np.ndarray
    """(R, S, 6) float64, in the order of `COLUMNS`."""

    @property
    def bits(self) -> np.ndarray:
        """(R,) float64."""
        bits: np.ndarray = self.nats / math.log(2)
        return bits

    @property
    def documents(self) -> int:
        return int(self.owner[-1]) + 1 if len(self.owner) else 0

    @property
    def unit(self) -> str:
        """The unit of the bootstrap: the document, or the window where there are too few documents."""
        return "document" if self.documents >= FEWEST else "window"

    def per_document(self, values: np.ndarray) -> np.ndarray:
        """Sums of (R, ...) over the windows of each document, (D, ...)."""
        starts = np.searchsorted(self.owner, np.arange(self.documents))
        summed: np.ndarray = np.add.reduceat(values, starts, axis=0) if len(values) else values
        return summed

    def grouped(self, owners: Sequence[int] | np.ndarray | None) -> Scores:
        """The same windows, where what was scored are stretches: `owners` are the documents of these, ascending."""
        return self if owners is None else replace(self, owner=np.asarray(owners, np.int64)[self.owner])

    def by_document(self) -> Scores:
        """The same sums with one window per document."""
        sums = (self.per_document(column) for column in (self.bytes, self.nats, self.stages))
        return Scores(np.arange(self.documents), *sums)

    def units(self, *columns: np.ndarray) -> np.ndarray:
        """(U, K) float64 of K columns (R,), for `resampling`."""
        table = np.stack(columns, 1).astype(np.float64)
        return self.per_document(table) if self.unit == "document" else table


def score(
    model: HNetForCausalLM,
    documents: Iterable[bytes],
    context: int | None,
    stride: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    block: int | None = None,
    prompts: Iterable[int] = (),
) -> Scores:
    """Score documents, translated as the model reads them; empty ones are left out. `progress` gets the bytes done.
    `prompts`: bytes at the beginning of each that do not count; none: all count.

    `block`: bytes per block of a document whose state is carried, by default those of a pass. A model of tokens reads
    a document at once. Raises NumericalError.
    """
    block = None if model.tokenizer is not None else block or batch_bytes_of(model)
    items = (
        stretch
        for number, (document, prompt) in enumerate(_with_prompts(documents, prompts))
        for stretch in stretches(document, number, context, stride, block, prompt)
    )
    levels, done = model.config.num_stages, 0
    owners = [np.empty(0, np.int64)]
    sums = [np.empty((0, 2 + len(COLUMNS) * levels))]
    for part in passes(model, items):
        owners.append(np.array([stretch.owner for stretch in part.stretches]))
        sums.append(_sums(part))
        done += int(sums[-1][:, 0].sum())
        progress(done)
    table = np.concatenate(sums)
    by_stage = table[:, 2:].reshape(len(table), levels, len(COLUMNS))
    return Scores(np.concatenate(owners), table[:, 0].astype(np.int64), table[:, 1], by_stage)


def _with_prompts(documents: Iterable[bytes], prompts: Iterable[int]) -> Iterator[tuple[bytes, int]]:
    """Documents that are not empty, each with its bytes that do not count."""
    given = iter(prompts)
    return ((document, next(given, 0)) for document in documents if document)


def _sums(part: Pass) -> np.ndarray:
    """(B, 2 + 6 S): bytes, nats and `COLUMNS` of every stage, per stretch."""
    counted, size = part.counted, len(part.stretches)
    stretch = np.repeat(np.arange(size), np.diff(part.offsets))

    def total(at: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(stretch[at], weights, minlength=size)

    here = np.flatnonzero(counted)
    columns = [total(here), total(here, part.nats[here])]
    forced = np.zeros(len(counted), bool)
    cut = [not (item.begins or item.carried) for item in part.stretches]
    forced[part.offsets[:-1][cut]] = True
    at = np.arange(len(counted))
    for routing in part.routing:
        prob, mask = routing.boundary_prob.double().cpu().numpy(), routing.boundary_mask.cpu().numpy()
        counting = counted[at] & ~forced[at]
        boundary = at[counting & mask]
        began = boundary[(boundary > 0) & ~np.isin(boundary, part.offsets)]
        began = began[counted[began - 1]]
        columns += [
            *(total(at[counting]), total(boundary), total(at[counting], prob[counting])),
            *(total(boundary, part.nats[boundary]), total(began, part.nats[began - 1]), total(began)),
        ]
        at = at[mask]
    return np.stack(columns, 1)
