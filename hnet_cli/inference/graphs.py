"""Generation by replay: on a GPU launching the hundreds of small kernels of a step costs more than they do.

Each part of a step is recorded once, as a CUDA graph, and replayed from then on: into a level up to its boundary, out
of it again, and the innermost network. Which rows go on inwards depends on the data, so between recordings the host
reads the boundary probabilities. What one recording hands to another lies in buffers with a row per document.
Recordings exist for all rows and for 1, 2, 4, ... of them: a smaller group is filled up with repetitions of its first
row, which compute the same once more and write it to the same place.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.kernels.reference import pick, put
from hnet_cli.model.hnet import HNet, HNetForCausalLM
from hnet_cli.model.state import AttentionState, GenerationState, LevelState, Now

Run = Callable[[], None]
Capture = Callable[[Run], Run]
"""Gives a function that does again what the one given does, with the same tensors and without its Python. What is given
has run before and is not run."""


class Steps(Protocol):
    """Continues the documents of a filled `GenerationState`."""

    def step(self, tokens: Tensor) -> tuple[Tensor, list[list[float]]]:
        """`HNetForCausalLM.step`, but of the routing only, per stage and row, the probability of a boundary:
        not-a-number where the row did not reach the stage."""

    def select(self, rows: Sequence[int]) -> None:
        """Keeps the given rows, in that order, and forgets the others."""


@dataclass
class PlainSteps:
    """`HNetForCausalLM.step`, kernel by kernel."""

    model: HNetForCausalLM
    state: GenerationState

    def step(self, tokens: Tensor) -> tuple[Tensor, list[list[float]]]:
        logits, routing = self.model.step(tokens.to(self.state.level.position.device), self.state)
        return logits, [stage.boundary_prob.tolist() for stage in routing]

    def select(self, rows: Sequence[int]) -> None:
        self.state.select(list(rows))


def steps(model: HNetForCausalLM, state: GenerationState) -> Steps:
    """The fastest way to go on from `state`: recordings on a GPU unless the model's kernels are "reference"."""
    if state.level.position.device.type == "cuda" and model.backend != "reference":
        return GraphSteps(model, state, cuda_graphs())
    return PlainSteps(model, state)


def cuda_graphs() -> Capture:
    """Recordings as CUDA graphs, which share their memory: one runs at a time and keeps nothing in it."""
    pool = torch.cuda.graph_pool_handle()
    kept: list[torch.cuda.CUDAGraph] = []

    def capture(run: Run) -> Run:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # what another thread does on the device, such as NCCL's that looks after ranks, is no part of it
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                run()
        finally:
            torch.cuda.set_stream(stream)  # one that fails leaves the stream that it recorded on
        if not kept:  # a pool whose last graph is gone cannot be recorded into again
            kept.append(graph)
        return graph.replay

    return capture


@dataclass(eq=False)
class _Level:
    """Buffers and recordings of one level; rows are those of the batch."""

    net: HNet
    state: LevelState
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """`encoded` (B, D) and `prob` (B,), as `HNet.step_in` gave them. Made when first written."""
    prob: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B,): the same on the host."""
    capacity: int = 0
    """Positions that caches and tables have room for: a power of two, so that recordings are seldom made again."""
    index: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Row numbers by their count, on the host and on the device: (2, R), the second time with -1 for repetitions."""
    recorded: dict[tuple[str, int], Run | None] = field(default_factory=dict)
    """By part and number of rows (0: all); None once it has run."""


class GraphSteps:
    """Steps as recordings. The state is its own from now on: other steps in between would move what was recorded.

    Without `capture`, or where it fails, the same parts run kernel by kernel.
    """

    def __init__(self, model: HNetForCausalLM, state: GenerationState, capture: Capture | None = None) -> None:
        self.model, self.state, self.capture = model, state, capture
        self.failure: str | None = None
        """Reason that recording was given up; None while it works."""
        self.device = state.level.position.device
        self._begin()

    def _begin(self) -> None:
        """Buffers and recordings for the rows that the state has now."""
        self.rows = list(range(self.state.batch_size))
        """The row of the state that each row of the caller is."""
        self.index: Tensor | None = None
        """The same on the device, (R,) int64; None where each is itself."""
        self.levels: list[_Level] = []
        self.tokens = torch.zeros(len(self.rows), dtype=torch.int64, device=self.device)
        self.output: dict[str, Tensor] = {}
        net, state = self.model.backbone, self.state.level
        while isinstance(net, HNet):
            self.levels.append(_Level(net, state))
            if state.inner is not None:
                state = state.inner
            net = net.main_network  # type: ignore[assignment]

    # -- for the caller ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> tuple[Tensor, list[list[float]]]:
        """tokens (B,) int64 on any device -> logits (B, V), valid until the next step, and probabilities as `Steps`.

        Raises ValueError as `HNetForCausalLM.step`.
        """
        if tokens.shape != (len(self.rows),):
            raise ValueError(f"tokens must be ({len(self.rows)},), got {tuple(tokens.shape)}")
        seen = [self.state.level.seen[row] for row in self.rows]
        if min(seen) < 1 or max(seen) >= self.state.max_length:
            raise ValueError(
                f"step needs a state filled by prefill, and room: {seen} of {self.state.max_length} bytes read"
            )
        kind = self.device.type
        with contextlib.ExitStack() as stack:
            if kind == "cuda":
                stack.enter_context(torch.cuda.device(self.device))
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
            if self.index is None:
                self.tokens.copy_(tokens)
            else:
                self.tokens[self.index] = tokens.to(self.device)
            probs: list[list[float]] = []
            self._descend(0, None, probs)
        return pick(self.output["logits"], self.index), probs

    def select(self, rows: Sequence[int]) -> None:
        """Rows that are given up go on being computed at the outermost level until they are half of all."""
        kept = [self.rows[row] for row in rows]
        if len(set(kept)) == len(kept) > self.state.batch_size // 2:
            self.rows, everyone = kept, kept == list(range(self.state.batch_size))
            self.index = None if everyone else torch.tensor(kept, device=self.device)
            return
        self.state.select(kept)
        self._begin()

    # -- one step ------------------------------------------------------------------------------------------------------

    def _descend(self, number: int, rows: list[int] | None, probs: list[list[float]]) -> None:
        """Level `number` and those inside it, for some rows of the state (None: all)."""
        level = self.levels[number]
        taking = range(self.state.batch_size) if rows is None else rows
        self._reserve(level, max(level.state.seen[row] for row in taking) + 1)
        for row in taking:
            level.state.seen[row] += 1
        if level.net.is_innermost:
            self._play(number, "main", rows)
            return
        self._play(number, "in", rows)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        prob = level.prob.tolist()
        if rows is not None:
            reached = set(rows)
            prob = [p if row in reached else math.nan for row, p in enumerate(prob)]
        own = [prob[row] for row in self.rows]
        probs.append(own)
        chosen = [row for row, p in zip(self.rows, own, strict=True) if level.net.routing_module.is_boundary(p)]
        if chosen:
            everyone = len(chosen) == self.state.batch_size
            self._descend(number + 1, None if everyone else sorted(chosen), probs)
        else:
            probs += [[math.nan] * len(self.rows) for _ in self.levels[number + 1 : -1]]
        self._play(number, "out", rows)

    def _reserve(self, level: _Level, longest: int) -> None:
        """Room for `longest` positions. What was recorded knows the caches and tables by their place."""
        if longest <= level.capacity:
            return
        level.capacity = max(64, 1 << (longest - 1).bit_length())
        for stack in level.state.layers.values():
            for layer in stack:
                if isinstance(layer, AttentionState):
                    layer.reserve(level.capacity)
        level.recorded.clear()

    def _play(self, number: int, part: str, rows: list[int] | None) -> None:
        """One part of the step of a level: as it is the first time, recorded the second, replayed from then on."""
        level = self.levels[number]
        count = 0 if rows is None else min(1 << (len(rows) - 1).bit_length(), self.state.batch_size)
        run = partial(self._in_place, number, part, None if rows is None else self._index(level, rows, count))
        key = (part, count)
        if self.capture is None:
            run()
        elif key not in level.recorded:
            run()
            level.recorded[key] = None
        else:
            again = level.recorded[key]
            if again is None:
                try:
                    again = level.recorded[key] = self.capture(run)
                except Exception as error:  # whatever the driver says: kernel by kernel the numbers are the same
                    self.capture, self.failure = None, f"{type(error).__name__}: {error}"
                    warnings.warn(f"a CUDA graph could not be recorded, generating without: {error}", stacklevel=2)
                    again = run
            again()

    def _index(self, level: _Level, rows: list[int], count: int) -> Tensor:
        if count not in level.index:
            host = torch.empty(2, count, dtype=torch.int64, pin_memory=self.device.type == "cuda")
            level.index[count] = host, torch.empty_like(host, device=self.device)
        host, there = level.index[count]
        # no copy out of `host` can be under way: the step before ended, or this one has read probabilities since
        more = count - len(rows)
        host.copy_(torch.tensor([rows + rows[:1] * more, rows + [-1] * more]))
        return there.copy_(host, non_blocking=True)[0]

    # -- what is recorded ----------------------------------------------------------------------------------------------

    def _in_place(self, number: int, part: str, rows: Tensor | None) -> None:
        """The part, after which every tensor of the state is where it was before."""
        states = [level.state for level in self.levels[max(0, number - 1) : number + 1]]
        before = [(state, f.name, getattr(state, f.name)) for state in states for f in fields(state)]
        {"in": self._into, "main": self._main, "out": self._out_of}[part](number, rows)
        for state, name, old in before:
            new = getattr(state, name)
            if isinstance(old, Tensor) and new is not old:
                old.copy_(new)
                setattr(state, name, old)

    def _into(self, number: int, rows: Tensor | None) -> None:
        level = self.levels[number]
        now = self._now(level, rows)
        tokens = pick(self.tokens, rows)
        encoded, prob = level.net.step_in(self._given(number, rows), level.state, now, self.state.kernels, tokens)
        self._put(level.buffers, "encoded", encoded, rows)
        self._put(level.buffers, "prob", prob, rows)
        if not len(level.prob):
            level.prob = torch.empty(self.state.batch_size, dtype=prob.dtype, pin_memory=self.device.type == "cuda")
        level.prob.copy_(level.buffers["prob"], non_blocking=True)

    def _main(self, number: int, rows: Tensor | None) -> None:
        level = self.levels[number]
        now = self._now(level, rows)
        hidden = level.net.step_main(self._given(number, rows), level.state, now, self.state.kernels)
        self._leave(number, hidden, now)

    def _out_of(self, number: int, rows: Tensor | None) -> None:
        level = self.levels[number]
        now = self._now(level, rows)
        encoded, prob = (pick(level.buffers[name], rows) for name in ("encoded", "prob"))
        self._leave(number, level.net.step_out(encoded, prob, level.state, now, self.state.kernels), now)

    def _now(self, level: _Level, rows: Tensor | None) -> Now:
        once = None if rows is None else level.index[len(rows)][1][1]
        return Now(None, rows, pick(level.state.position, rows), level.capacity, False, level.state.tables, once=once)

    def _given(self, number: int, rows: Tensor | None) -> Tensor:
        if number == 0:
            return self.model.embeddings.step(pick(self.tokens, rows), self.levels[0].state.recent, rows)
        outer = self.levels[number - 1]
        return outer.net.inner_input(pick(outer.buffers["encoded"], rows), outer.state, rows, self.state.kernels)

    def _leave(self, number: int, hidden: Tensor, now: Now) -> None:
        """Hands what a level gives to the outer one, and counts the position."""
        if number == 0:
            self._put(self.output, "logits", F.linear(hidden, self.model.lm_head.weight), None)
        else:
            outer = self.levels[number - 1]
            prob, kernels = pick(outer.buffers["prob"], now.rows), self.state.kernels
            outer.net.dechunk_layer.step(hidden, prob, outer.state, kernels, now.rows, now.once)
        position = self.levels[number].state.position
        if now.rows is None:
            position.add_(1)
        else:
            position[now.rows] = now.position + 1

    def _put(self, buffers: dict[str, Tensor], name: str, value: Tensor, rows: Tensor | None) -> None:
        if name not in buffers:
            buffers[name] = value.new_zeros(self.state.batch_size, *value.shape[1:])
        put(buffers[name], rows, value)
