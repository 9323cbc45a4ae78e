"""What every byte costs: the log-probabilities a model gives, in windows of a stated context, batched without padding.

A document of n bytes is read in windows. The first scores its first C bytes (`context`), the first of all predicted
from the mark BOS. Every further window scores the next S bytes (`stride`) and begins C bytes before their end, so that
a byte is predicted from at most C bytes before it and, the beginning of its document aside, from at least C - S + 1.
Every byte counts once. With S = C the windows do not overlap. With no C every byte sees its whole document: a long one
is read in blocks with the model's state carried from each to the next, which gives what one pass gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from hnet_cli.errors import NumericalError
from hnet_cli.evaluation.resampling import FEWEST
from hnet_cli.inference.windows import BATCH_BYTES, BOS
from hnet_cli.model import HNetForCausalLM, RoutingOutput
from hnet_cli.model.state import GenerationState


@dataclass(frozen=True, slots=True)
class Stretch:
    """A packed sequence: the model reads `inputs` and predicts `targets`, of which those before `skip` do not count."""

    inputs: bytes
    targets: bytes
    skip: int
    owner: int
    """What it belongs to: index of the document, or of the item of a task."""
    begins: bool
    """Whether inputs[0] is the mark before a document, a boundary in its own right."""
    carried: bool = False
    """Whether this is a block of a document whose blocks come in order, each known to the model when it reads the next;
    else it knows nothing before inputs[0]."""


@dataclass(frozen=True)
class Pass:
    """One packed forward pass over some stretches, T positions in all."""

    stretches: Sequence[Stretch]
    nats: np.ndarray
    """(T,) float64: -ln of the probability of each target."""
    likeliest: np.ndarray
    """(T,) bool: whether the target is the most likely byte."""
    offsets: np.ndarray
    """(B+1,) int64."""
    routing: list[RoutingOutput]

    @property
    def counted(self) -> np.ndarray:
        """(T,) bool."""
        skips = np.array([stretch.skip for stretch in self.stretches])
        lengths = np.diff(self.offsets)
        return np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], lengths) >= np.repeat(skips, lengths)


def stretches(
    data: bytes, owner: int, context: int | None, stride: int | None = None, block: int | None = None
) -> Iterator[Stretch]:
    """The windows of one document; see the module's docstring. `context` None: all of it, in blocks of so many bytes
    where it is longer than `block`; `stride` None: `context`."""
    if context is None and block and len(data) > block:
        for at in range(0, len(data), block):
            targets = data[at : at + block]
            before = data[at - 1 : at] if at else BOS
            yield Stretch(before + targets[:-1], targets, 0, owner, at == 0, carried=True)
        return
    context = min(context or len(data), len(data))
    stride = min(stride or context, context)
    done = 0
    while done < len(data):
        end = min(len(data), done + stride) if done else context
        begin = done + stride - context if done else 0
        inputs = data[begin - 1 : end - 1] if begin else BOS + data[: end - 1]
        yield Stretch(inputs, data[begin:end], done - begin, owner, begin == 0)
        done = end


@torch.inference_mode()
def passes(model: HNetForCausalLM, items: Iterable[Stretch], batch_bytes: int | None = None) -> Iterator[Pass]:
    """Packed passes over the stretches in order, each of about `batch_bytes` positions, at least one stretch.

    Raises NumericalError where a probability is not finite.
    """
    device = model.embeddings.weight.device
    batch_bytes = batch_bytes or BATCH_BYTES.get(device.type, 1 << 18)
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


def _forward(
    model: HNetForCausalLM, batch: list[Stretch], device: torch.device, state: GenerationState | None = None
) -> Pass:
    """One pass over the stretches; with a `state`, over the one that continues what the state has read."""
    if model.tokenizer is not None:
        return _forward_tokens(model, batch, device)

    def ids(parts: list[bytes]) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).astype(np.int64)).to(device)

    offsets = np.cumsum([0] + [len(stretch.inputs) for stretch in batch])
    targets = ids([stretch.targets for stretch in batch])
    inputs = ids([stretch.inputs for stretch in batch])
    if state is None:
        out = model(inputs, cu_seqlens=torch.from_numpy(offsets).to(device))
    else:
        out = model.extend(inputs, state)
    return Pass(batch, *_judged(out.logits.float(), targets), offsets, out.routing)


def _judged(logits: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`nats` and `likeliest` of `Pass`."""
    nats = F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
    if not np.isfinite(nats).all():
        raise NumericalError("the model gives probabilities that are not finite", "its weights are damaged or overflow")
    return nats, (logits.argmax(-1) == targets).cpu().numpy()


def _forward_tokens(model: HNetForCausalLM, batch: list[Stretch], device: torch.device) -> Pass:
    """Of a model of tokens: the first byte of a token bears all its nats. What does not count is tokenised apart from
    what does, so that no token is in both; a sequence begins with the tokenizer's mark wherever it begins."""
    before = [
        (b"" if stretch.begins or not stretch.skip else stretch.inputs[:1]) + stretch.targets[: stretch.skip]
        for stretch in batch
    ]
    encoded = model.tokenizer.encode([*before, *(stretch.targets[stretch.skip :] for stretch in batch)])
    pairs = list(zip(encoded[: len(batch)], encoded[len(batch) :], strict=True))
    targets = torch.from_numpy(np.concatenate([each for pair in pairs for each in pair])).to(device)
    ends = np.cumsum([0] + [len(context) + len(scored) for context, scored in pairs])
    starts = torch.from_numpy(ends[:-1]).to(device)
    inputs = targets.roll(1).index_fill(0, starts, model.tokenizer.bos)
    nats, likeliest = _judged(model(inputs, cu_seqlens=torch.from_numpy(ends).to(device)).logits.float(), targets)

    offsets = np.cumsum([0] + [len(stretch.targets) for stretch in batch])
    by_byte, best = np.zeros(offsets[-1]), np.ones(offsets[-1], bool)
    for (_, scored), end, low, stretch in zip(pairs, ends[1:], offsets[:-1], batch, strict=True):
        lengths = model.tokenizer.lengths[scored]
        by_byte[low + stretch.skip + np.cumsum(lengths) - lengths] = nats[end - len(scored) : end]
        best[low + stretch.skip : low + len(stretch.targets)] = np.repeat(likeliest[end - len(scored) : end], lengths)
    return Pass(batch, by_byte, best, offsets, [])


COLUMNS = ("positions", "boundaries", "probability", "nats_after", "nats_first", "firsts")
"""Of a level: positions that count (the forced boundary of a window that continues a document does not), boundaries
among them, the sum of p, the nats of the bytes predicted from the boundaries, those of the bytes that begin the chunks,
and how many of these were scored in the same window."""


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
    def documents(self) -> int:
        return int(self.owner[-1]) + 1 if len(self.owner) else 0

    @property
    def unit(self) -> str:
        """What is drawn again to see how sure a figure is: documents, or windows where there are too few of these."""
        return "document" if self.documents >= FEWEST else "window"

    def per_document(self, values: np.ndarray) -> np.ndarray:
        """Sums of (R, ...) over the windows of each document, (D, ...)."""
        starts = np.searchsorted(self.owner, np.arange(self.documents))
        summed: np.ndarray = np.add.reduceat(values, starts, axis=0) if len(values) else values
        return summed

    def by_document(self) -> Scores:
        """The same sums, as if every document had been one window."""
        sums = (self.per_document(each) for each in (self.bytes, self.nats, self.stages))
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
) -> Scores:
    """Score documents (as the model reads them). `progress` is told the bytes done. `block`: bytes of a longer document
    that are read at once where the state is carried, by default those of a pass; a model of tokens reads all at once.
    """
    block = block or BATCH_BYTES.get(model.embeddings.weight.device.type, 1 << 18)
    block = None if model.tokenizer is not None else block
    items = (
        each
        for n, document in enumerate(filter(None, documents))
        for each in stretches(document, n, context, stride, block)
    )
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    done = 0
    for each in passes(model, items):
        owners = np.array([stretch.owner for stretch in each.stretches])
        rows.append((owners, _sums(each)))
        done += int(rows[-1][1][:, 0].sum())
        progress(done)
    levels = model.config.num_stages
    owner = np.concatenate([part for part, _ in rows]) if rows else np.empty(0, np.int64)
    table = np.concatenate([part for _, part in rows]) if rows else np.empty((0, 2 + 6 * levels))
    return Scores(
        owner, table[:, 0].astype(np.int64), table[:, 1], table[:, 2:].reshape(len(table), levels, len(COLUMNS))
    )


def _sums(each: Pass) -> np.ndarray:
    """(B, 2 + 6 S): bytes, nats and the columns of every stage, per stretch."""
    counted = each.counted
    stretch = np.repeat(np.arange(len(each.stretches)), np.diff(each.offsets))
    size = len(each.stretches)

    def total(at: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(stretch[at], weights, minlength=size)

    here = np.flatnonzero(counted)
    columns = [total(here), total(here, each.nats[here])]
    forced = np.zeros(len(counted), bool)
    cut = [not (item.begins or item.carried) for item in each.stretches]
    forced[each.offsets[:-1][cut]] = True
    at = np.arange(len(counted))
    for routing in each.routing:
        prob, mask = routing.boundary_prob.double().cpu().numpy(), routing.boundary_mask.cpu().numpy()
        kept = counted[at] & ~forced[at]
        boundary = at[kept & mask]
        began = boundary[(boundary > 0) & ~np.isin(boundary, each.offsets)]
        began = began[counted[began - 1]]
        columns += [
            *(total(at[kept]), total(boundary), total(at[kept], prob[kept])),
            *(total(boundary, each.nats[boundary]), total(began, each.nats[began - 1]), total(began)),
        ]
        at = at[mask]
    return np.stack(columns, 1)


def loglikelihoods(model: HNetForCausalLM, pairs: Iterable[tuple[bytes, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """ln P(continuation | before) of every pair, and whether greedy decoding would give it: (n,) float64, (n,) bool.

    `before` is what the model has read, beginning with BOS where that is the beginning of a document; never empty. An
    empty continuation has ln P = 0.
    """
    logs: list[float] = []
    greedy: list[bool] = []

    def items() -> Iterator[Stretch]:
        for before, continuation in pairs:
            logs.append(0.0)
            greedy.append(True)
            if continuation:
                whole = before + continuation
                yield Stretch(whole[:-1], whole[1:], len(before) - 1, len(logs) - 1, before[:1] == BOS)

    for each in passes(model, items()):
        for stretch, low, high in zip(each.stretches, each.offsets[:-1], each.offsets[1:], strict=True):
            logs[stretch.owner] = -float(each.nats[low + stretch.skip : high].sum())
            greedy[stretch.owner] = bool(each.likeliest[low + stretch.skip : high].all())
    return np.array(logs), np.array(greedy)
