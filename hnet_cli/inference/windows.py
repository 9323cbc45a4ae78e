"""Beginnings of the chunks of documents of any length, in bounded memory.

A document is read in windows: window k is its bytes [kW, (k+1)W), computed with the V bytes before it as context, whose
own boundaries are thrown away. Windows depend on the position in the document only, never on how it was read; several,
of one or of many documents, make one packed pass. A document of at most W bytes is one window: exactly what the model
computes. A rule, which may have matched or counted from further back, is told where it stands (`_Rules`). Only encoders
and routing run, for nothing else decides where the boundaries are, unless the probabilities of the bytes or the vectors
of other layers are asked for.

Or the state of the model is carried from each window to the next, one document at a time: then its whole past is the
context of a byte, further back than the model saw in training.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hnet_cli import modality as modalities
from hnet_cli.distributed.workers import Workers
from hnet_cli.errors import NumericalError, UsageError
from hnet_cli.modality import Document, Modality
from hnet_cli.model import HNetConfig, HNetForCausalLM, RoutingOutput, config
from hnet_cli.model.chunking import FixedRouting
from hnet_cli.model.hidden import Layer, caught, stack_of
from hnet_cli.model.hnet import Until
from hnet_cli.model.state import GenerationState

BOS = bytes([config.BOS])
BATCH_BYTES = {"cpu": 8192}
"""Bytes of a packed pass by device: enough to keep a processor busy, few enough for its caches. Else 262,144."""
LONGEST_CHUNK = 1 << 20
"""A chunk is ended at the first window border after this many bytes, for nothing may grow with the file."""
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Stream:
    """A document too long for memory: its bytes in blocks of any size. The other fields as in `Document`."""

    blocks: Iterable[bytes]
    name: str
    source: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a document and the chunks that begin in it; n of them at the outermost stage, S stages."""

    document: Document | Stream
    index: int
    """Number of the document within its source."""
    start: int
    """Position of data[0] in the document."""
    data: bytes
    last: bool
    starts: np.ndarray
    """(n,) int64: positions in the document, ascending, where chunks of stage 0 begin."""
    probability: np.ndarray
    """(n, S) float32: p of each start at each stage; NaN where no chunk of that stage begins. Nested: a number at stage
    s implies numbers at all stages below s. 1 at the start of a document, 0 where `LONGEST_CHUNK` ended a chunk."""
    positions: np.ndarray
    """(S,) int64: how many positions of each level lie in this window."""
    probability_sums: np.ndarray
    """(S,) float64: the sum of p over them."""
    surprisal: np.ndarray | None = None
    """(len(data),) float32: bits of each byte, -log2 of its probability; NaN where nothing comes before it. None unless
    asked for."""
    vectors: tuple[Vectors, ...] = ()
    """One for each layer that is asked for."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """The output of a layer in a window."""

    places: np.ndarray
    """(n,) int64, ascending: positions in the document of the bytes, or of the first bytes of the chunks, they are of.
    The chunk that the document begins with has the vector of BOS, unless another begins with the first byte."""
    values: Tensor
    """(n, D) on the device, in the dtype of the model."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    document: Document | Stream
    index: int
    start: int
    context: bytes
    data: bytes
    last: bool
    before: Sequence[int] = ()
    """`_Rules.before` the first position."""

    def model_input(self, table: bytes | None) -> bytes:
        return BOS * self._is_whole + (self.context + self.data).translate(table)

    @property
    def skipped(self) -> int:
        """Input positions before those of `data`."""
        return len(self.context) + self._is_whole

    @property
    def _is_whole(self) -> bool:
        """The context goes back to the beginning of the document."""
        return len(self.context) == self.start


def own_modality(model: HNetForCausalLM) -> Modality | None:
    """The modality that a model's configuration names; None where it names none, as in a converted official model."""
    name = model.config.extra.get("modality")
    return modalities.get(name) if name else None


def window_of(config: HNetConfig) -> tuple[int, int]:
    """(W, V): the training length if the model's configuration tells and at least 2,048 bytes, and a quarter of it."""
    width = min(max(2048, int(config.extra.get("sequence_length") or 0)), LONGEST_CHUNK)
    return width, width // 4


def windows(
    model: HNetForCausalLM,
    documents: Iterable[Document | Stream],
    *,
    input_table: bytes | None = None,
    width: int | None = None,
    warmup: int | None = None,
    batch_bytes: int | None = None,
    longest_chunk: int = LONGEST_CHUNK,
    surprisal: bool = False,
    carried: bool = False,
    layers: Sequence[Layer] = (),
    workers: Workers | None = None,
) -> Iterator[Window]:
    """The windows of all documents in order; documents without bytes give none.

    `width` and `warmup` are W and V, by default `window_of(model.config)`. `input_table` as in `Modality`.
    `surprisal` runs the whole network, for the probabilities of the bytes; `layers`: those whose vectors are wanted.
    `carried`: the state, instead of a context. `workers` compute with copies of the model as it is now, and give the
    same windows; not for vectors or a state. Raises UsageError for a model without stages, unless for vectors;
    NumericalError where a probability of a boundary is not finite.
    """
    if model.config.num_stages == 0 and not layers:
        raise UsageError("this model has no chunking stages, so there is nothing to segment", "take an H-Net")
    default = window_of(model.config)
    width, warmup = width or default[0], default[1] if warmup is None else warmup
    batch_bytes = batch_bytes or BATCH_BYTES.get(model.embeddings.weight.device.type, 1 << 18)
    opened = np.zeros(model.config.num_stages, dtype=np.int64)  # where the last chunk of each stage began
    if carried:
        width, warmup, batch_bytes = batch_bytes, 0, 1
    stretches = _stretches(documents, width, warmup, _Rules(model if not carried else None), input_table)
    batches = (_Pack.of(batch, input_table) for batch in _batches(stretches, batch_bytes))
    found: Iterable[tuple[_Pack, _Routed]]
    if workers is None:
        network = _Network(model, surprisal, carried, layers)
        found = ((pack, network(pack.data, pack.offsets, pack.before, pack.batch[0].start == 0)) for pack in batches)
    else:
        found = _ahead(workers, _Copy.of(model, surprisal, workers.number), batches)
    for pack, routed in found:
        for window in _cut(pack, routed, layers):
            yield _limited(window, opened, longest_chunk)


@torch.no_grad()
def probabilities(model: HNetForCausalLM, documents: Iterable[Document]) -> Iterator[list[np.ndarray]]:
    """The boundary probabilities that are decided on in the windows of documents, as the model reads them: for each
    packed pass, per stage, those of the positions that are in a window and begin no document, (n,) float32."""
    device = model.embeddings.weight.device
    batch_bytes = BATCH_BYTES.get(device.type, 1 << 18)
    rules = _Rules(model)
    for batch in _batches(_stretches(documents, *window_of(model.config), rules), batch_bytes):
        pack = _Pack.of(batch, None)
        free = pack.first + [stretch.start == 0 for stretch in batch]
        counted = np.arange(len(pack.data)) >= np.repeat(free, np.diff(pack.offsets))
        found = []
        ids, offsets = ids_of(pack.data, device), torch.from_numpy(pack.offsets).to(device)
        with rules.going_on(pack.before):
            routings = model(ids, cu_seqlens=offsets, until="routing").routing
        for routing in routings:
            found.append(routing.boundary_prob.float().cpu().numpy()[counted])
            counted = counted[routing.boundary_mask.cpu().numpy()]
        yield found


def _batches(stretches: Iterable[_Stretch], batch_bytes: int) -> Iterator[list[_Stretch]]:
    """As many stretches at once as reach `batch_bytes` positions."""
    batch: list[_Stretch] = []
    size = 0
    for stretch in stretches:
        batch.append(stretch)
        size += stretch.skipped + len(stretch.data)
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Rules:
    """The rules of the outermost stages that do not learn. What they count or have matched can lie far before a window,
    so that they are followed through the document, and each window is told where they stand."""

    def __init__(self, model: HNetForCausalLM | None) -> None:
        """None: without any, for a state that is carried has its own."""
        routers = model.routers if model is not None else []
        leading = takewhile(lambda each: isinstance(each, FixedRouting), routers)
        self.routers = cast("list[FixedRouting]", list(leading))
        self.start = (0,) * len(self.routers)

    def after(self, standing: Sequence[int], data: bytes, begins: bool) -> tuple[int, ...]:
        """Their places after `data`, with which a document `begins` or goes on; one number for each."""
        count, found = len(data), list[int]()
        for rule, at in zip(self.routers, standing, strict=True):
            end, boundaries, first = rule.after(at, count, data)
            found.append(end)
            count = boundaries + (begins and not first)  # a document begins with a boundary
        return tuple(found)

    def before(self, standing: Sequence[int], first: bytes) -> tuple[int, ...]:
        """The same before a pass that begins with the byte `first` inside a document. The pass has a boundary there at
        every stage, for which room is made where the rule has none."""
        found, is_boundary = list[int](), True
        for rule, at in zip(self.routers, standing, strict=True):
            found.append(at if is_boundary else at - 1)
            is_boundary = is_boundary and rule.after(at, 1, first)[2]
        return tuple(found)

    @contextmanager
    def going_on(self, before: Sequence[Sequence[int]]) -> Iterator[None]:
        """Passes in this block begin where the rules stand `before` each of their sequences."""
        for rule, at in zip(self.routers, zip(*before, strict=True), strict=True):
            rule.before = at
        try:
            yield
        finally:
            for rule in self.routers:
                rule.before = None


def _stretches(
    documents: Iterable[Document | Stream], width: int, warmup: int, rules: _Rules, table: bytes | None = None
) -> Iterator[_Stretch]:
    index, source = -1, None
    for document in documents:
        index = index + 1 if document.source == source else 0
        source = document.source
        base = start = 0  # positions in the document of held[0] and of the next window
        held, standing = bytearray(), rules.start

        def stretch(end: int | None, last: bool) -> _Stretch:  # called at once
            context, data = bytes(held[: start - base]), bytes(held[start - base : end])  # noqa: B023
            before = standing  # noqa: B023
            if base and rules.routers:  # noqa: B023
                before = rules.before(standing, bytes(held[:1]).translate(table))  # noqa: B023
            return _Stretch(document, index, start, context, data, last, before)  # noqa: B023

        for block in _blocks(document):
            held += block
            while base + len(held) - start > width:
                yield stretch(start - base + width, False)
                start += width
                begin = max(0, start - warmup)
                if rules.routers and begin > base:
                    passed = BOS * (base == 0) + bytes(held[: begin - base]).translate(table)
                    standing = rules.after(standing, passed, base == 0)
                del held[: begin - base]
                base = begin
        if base + len(held) > start:
            yield stretch(None, True)


def _blocks(document: Document | Stream) -> Iterable[bytes]:
    if isinstance(document, Stream):
        return document.blocks
    data = document.data
    return (data[at : at + READ_BYTES] for at in range(0, len(data), READ_BYTES))


@torch.no_grad()
def bits_per_byte(model: HNetForCausalLM, ids: Tensor, cu_seqlens: Tensor) -> tuple[np.ndarray, list[RoutingOutput]]:
    """-log2 of the probability of each of ids (T,), NaN where a sequence begins, (T,) float32; and the routing."""
    out = model(ids, cu_seqlens=cu_seqlens)
    bits = np.concatenate([[np.nan], _bits(out.logits[:-1], ids[1:])]).astype(np.float32)
    bits[cu_seqlens[:-1].cpu().numpy()] = np.nan
    return bits, out.routing


def _bits(logits: Tensor, ids: Tensor) -> np.ndarray:
    """-log2 of the probabilities of ids (T,) under logits (T, V): (T,) float32."""
    nats = torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")
    return (nats.cpu().numpy() / math.log(2)).astype(np.float32)


class _Carry:
    """A document whose state goes on from one window to the next."""

    def __init__(self, model: HNetForCausalLM) -> None:
        self.model = model
        self.state: GenerationState | None = None
        self.last: Tensor | None = None
        """Logits (1, V) after the last byte that was read."""

    def __call__(
        self, ids: Tensor, begins: bool, surprisal: bool, until: Until
    ) -> tuple[np.ndarray | None, list[RoutingOutput]]:
        """`bits_per_byte` (or None) and routing of the next bytes (T,) of the document, or of a new one."""
        if begins or self.state is None:
            self.state, self.last = self.model.allocate_state(1, sys.maxsize), None
        if not surprisal:
            return None, self.model.extend(ids, self.state, until=until).routing
        out = self.model.extend(ids, self.state)
        logits = out.logits if self.last is None else torch.cat([self.last, out.logits])
        self.last = out.logits[-1:]
        bits = _bits(logits[:-1], ids[len(ids) + 1 - len(logits) :])
        return (np.concatenate([[np.nan], bits]).astype(np.float32) if begins else bits), out.routing


def ids_of(data: bytes, device: torch.device) -> Tensor:
    """(len(data),) int64 on the device."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.int64)).to(device)


@dataclass(frozen=True, slots=True)
class _Pack:
    """Stretches that make one packed pass."""

    batch: Sequence[_Stretch]
    data: bytes
    """What the model reads, T bytes."""
    offsets: np.ndarray
    """(B+1,) int64: where its sequences begin."""
    first: np.ndarray
    """(B,) int64: the first position of each that is kept."""
    before: Sequence[Sequence[int]]
    """(B, R): `_Rules.before` each sequence."""

    @classmethod
    def of(cls, batch: Sequence[_Stretch], table: bytes | None) -> _Pack:
        inputs = [stretch.model_input(table) for stretch in batch]
        offsets = np.cumsum([0] + [len(each) for each in inputs])
        skipped, before = [stretch.skipped for stretch in batch], [stretch.before for stretch in batch]
        return cls(batch, b"".join(inputs), offsets, offsets[:-1] + skipped, before)


@dataclass(frozen=True, slots=True)
class _Routed:
    """The result of a pass over a pack."""

    stages: list[tuple[np.ndarray, np.ndarray]]
    """Probabilities, (T_s,) float32, and boundaries, (T_s,) bool, of the positions of each level."""
    bits: np.ndarray | None
    """`Window.surprisal` of all T positions."""
    outputs: list[Tensor]
    """Of the layers that were asked for."""


class _Network:
    """The model and what is wanted of it."""

    def __init__(self, model: HNetForCausalLM, surprisal: bool, carried: bool = False, layers: Sequence[Layer] = ()):
        self.model, self.surprisal = model, surprisal
        self.carry, self.layers = _Carry(model) if carried else None, layers
        self.stacks = [stack_of(model, layer) for layer in layers]
        self.rules = _Rules(None if carried else model)

    @torch.no_grad()
    def __call__(self, data: bytes, offsets: np.ndarray, before: Sequence[Sequence[int]], begins: bool) -> _Routed:
        """One packed pass. `before` as in `_Pack`. `begins`: what it reads is no continuation, for a carried state.
        Raises NumericalError."""
        model, bits = self.model, None
        ids = ids_of(data, model.embeddings.weight.device)
        cu_seqlens = torch.from_numpy(offsets).to(ids.device)
        until: Until = "routing" if all(layer.name == "encoder" for layer in self.layers) else None
        with caught(self.stacks) as outputs, self.rules.going_on(before):
            if self.carry is not None:
                bits, routing = self.carry(ids, begins, self.surprisal, until)
            elif self.surprisal:
                bits, routing = bits_per_byte(model, ids, cu_seqlens)
            else:
                routing = model(ids, cu_seqlens=cu_seqlens, until=until).routing
        pairs = ((each.boundary_prob.float(), each.boundary_mask) for each in routing)
        stages = [(prob.cpu().numpy(), mask.cpu().numpy()) for prob, mask in pairs]
        if not all(np.isfinite(prob).all() for prob, _ in stages):  # no boundary either: all would pass for one chunk
            raise NumericalError(
                "the model gives probabilities that are not finite", "its weights are damaged or overflow"
            )
        width, none = model.config.d_model, model.embeddings.weight.new_empty
        return _Routed(  # a carried pass may not come as far as an inner stack
            stages,
            bits,
            [
                outputs.get(stack, none(0, width[layer.level]))
                for layer, stack in zip(self.layers, self.stacks, strict=True)
            ],
        )


@dataclass(frozen=True)
class _Copy:
    """A model to compute with in another process, where a call makes it `_network`."""

    config: HNetConfig
    backend: str
    weights: dict[str, tuple[np.ndarray, torch.dtype, torch.Size]]
    """By name: the bytes of each. Tensors would travel through shared memory, of which a container has little."""
    thresholds: Sequence[float]
    surprisal: bool
    threads: int

    @classmethod
    def of(cls, model: HNetForCausalLM, surprisal: bool, number: int) -> _Copy:
        """One of `number`, which share the threads that this process has."""
        weights = {
            name: (weight.detach().flatten().view(torch.uint8).numpy(), weight.dtype, weight.shape)
            for name, weight in model.state_dict().items()
        }
        threads = max(1, torch.get_num_threads() // number)
        return cls(model.config, model.backend, weights, model.thresholds, surprisal, threads)

    def __call__(self) -> None:
        global _network
        torch.set_num_threads(self.threads)
        model = HNetForCausalLM(self.config, self.backend)
        weights = {
            name: torch.from_numpy(data).view(dtype).view(shape) for name, (data, dtype, shape) in self.weights.items()
        }
        model.load_state_dict(weights, assign=True)
        if self.thresholds:
            model.set_thresholds(self.thresholds)
        _network = _Network(model.eval(), self.surprisal)


_network: _Network | None = None
"""That of this process, if it is a worker."""


def _compute(data: bytes, offsets: np.ndarray, before: Sequence[Sequence[int]]) -> _Routed:
    """In a worker."""
    assert _network is not None
    return _network(data, offsets, before, False)


def _ahead(workers: Workers, copy: _Copy, packs: Iterable[_Pack]) -> Iterator[tuple[_Pack, _Routed]]:
    """The packs in order, with what workers computed of them."""
    waiting: deque[_Pack] = deque()

    def calls() -> Iterator[Callable[[], _Routed]]:
        for pack in packs:
            waiting.append(pack)
            yield partial(_compute, pack.data, pack.offsets, pack.before)

    for routed in workers.in_order(calls(), copy):
        assert routed is not None
        yield waiting.popleft(), routed


def _cut(pack: _Pack, routed: _Routed, layers: Sequence[Layer]) -> Iterator[Window]:
    """The windows of a pack. All arrays are made for the whole pack and then cut, so that the cost is the network's."""
    batch, offsets, first, bits = pack.batch, pack.offsets, pack.first, routed.bits
    at = np.arange(len(pack.data))  # where the positions of the current level stand in the pack
    rows = np.empty(0, dtype=np.int64)  # which starts of stage 0 they are
    positions: list[np.ndarray] = []
    totals: list[np.ndarray] = []
    ranges = np.zeros((len(batch), 2), dtype=np.int64)
    starts, probability = at, np.empty((0, 0), dtype=np.float32)
    levels = [at]
    stages = len(routed.stages)
    for stage, (prob, mask) in enumerate(routed.stages):
        inside = np.stack([np.searchsorted(at, first), np.searchsorted(at, offsets[1:])], 1)
        running = np.concatenate([[0.0], np.cumsum(prob, dtype=np.float64)])
        positions.append(inside[:, 1] - inside[:, 0])
        totals.append(running[inside[:, 1]] - running[inside[:, 0]])
        at = at[mask]
        levels.append(at)
        if stage == 0:
            starts, rows = at, np.arange(len(at))
            probability = np.full((len(at), stages), np.nan, dtype=np.float32)
            ranges = np.stack([np.searchsorted(at, first), np.searchsorted(at, offsets[1:])], 1)
        else:
            rows = rows[mask]
        probability[rows, stage] = prob[mask]

    none = np.empty((len(batch), 0))
    counts, sums = (np.stack(each, 1) if each else none for each in (positions, totals))
    wanted = [
        (levels[layer.level], values, layer.level > 0) for layer, values in zip(layers, routed.outputs, strict=True)
    ]
    for number, (stretch, (low, high)) in enumerate(zip(batch, ranges, strict=True)):
        own = starts[low:high] - first[number] + stretch.start
        p = probability[low:high]
        if stretch.start == 0:  # the chunk of BOS begins with the document's first byte
            more = int(len(own) > 0 and own[0] == 0)
            own = np.concatenate([[0], own[more:]])
            p = np.concatenate([np.ones((1, stages), dtype=np.float32), p[more:]])
        yield Window(
            stretch.document,
            stretch.index,
            stretch.start,
            stretch.data,
            stretch.last,
            own,
            p,
            counts[number],
            sums[number],
            None if bits is None else bits[first[number] : offsets[number + 1]],
            tuple(
                _vectors(*each, int(offsets[number]), int(first[number]), int(offsets[number + 1]), stretch.start)
                for each in wanted
            ),
        )


def _vectors(at: np.ndarray, values: Tensor, of_chunks: bool, begin: int, first: int, end: int, start: int) -> Vectors:
    """Of values (n, D) at the positions `at` (n,) of a pack, those in [first, end), whose first is at `start` in its
    document. Where a document begins, at `begin` in the pack, its first chunk is that of BOS."""
    low, high = np.searchsorted(at, [begin if of_chunks and not start else first, end])
    if of_chunks and not start and first in at[low + 1 : low + 2]:
        low += 1
    return Vectors(np.maximum(at[low:high] - first, 0) + start, values[low:high])


def _limited(window: Window, opened: np.ndarray, longest: int) -> Window:
    """The window with a forced start where a chunk grew too long; `opened` (S,) is brought up to date."""
    starts, p = window.starts, window.probability
    if window.start == 0:
        opened[:] = 0
    long = np.flatnonzero(window.start - opened >= longest)
    if len(long):  # nested: a start at a stage is one at all outer stages
        if not (len(starts) and starts[0] == window.start):
            starts = np.concatenate([[window.start], starts])
            p = np.concatenate([np.full((1, p.shape[1]), np.nan, dtype=np.float32), p])
        row = p[0].copy()
        row[: long[-1] + 1][np.isnan(row[: long[-1] + 1])] = 0.0
        p = np.concatenate([row[None], p[1:]])
        window = replace(window, starts=starts, probability=p)
    for stage in range(p.shape[1]):
        own = starts[~np.isnan(p[:, stage])]
        if len(own):
            opened[stage] = own[-1]
    return window
