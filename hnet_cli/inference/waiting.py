"""Generation in batches at different paces: a row at a boundary waits until the inner network is worth its reading.

The inner network is most of a model, and on a CPU a product with a few rows takes almost as long as one with many. In
lockstep some row is at a boundary in almost every step; here such rows wait while the others go on, until they are
many or nobody else can go on. What a row gives does not depend on when the others are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.inference.graphs import Steps, steps
from hnet_cli.kernels.reference import pick
from hnet_cli.model.hnet import HNet, HNetForCausalLM
from hnet_cli.model.state import GenerationState, LevelState

SHARE = 0.4
"""More would make the products inside larger, and those outside smaller."""
LARGE = 1 << 22
"""Parameters of an inner network that is worth waiting for: of a smaller one the calls cost more than the reading."""


@dataclass(frozen=True)
class Ready:
    """Rows that have read their byte."""

    rows: list[int]
    """Ascending."""
    logits: Tensor
    """(R, V): of the next byte."""
    depth: list[int]
    """At how many stages, from the outermost, the byte begins a chunk."""


class Pace(Protocol):
    """Continues the documents of a filled `GenerationState`, which is its own from now on."""

    def feed(self, rows: Sequence[int], tokens: Tensor) -> Ready:
        """Hands a byte to each of these rows, ascending, tokens (R,) int64, all of which were ready.

        Some rows are ready again, fed now or before, as long as any is under way. A row that was ready and is not fed
        has ended.
        """


def paces(model: HNetForCausalLM, state: GenerationState) -> Pace:
    """The fastest way to go on from `state`: rows wait for each other on a CPU, elsewhere all go in step."""
    if state.level.position.device.type == "cpu":
        return Waiting(model, state)
    return InStep(model, steps(model, state), state.batch_size)


class InStep:
    """All rows together."""

    def __init__(self, model: HNetForCausalLM, stepper: Steps, batch_size: int) -> None:
        self.routers, self.stepper, self.rows = model.routers, stepper, list(range(batch_size))

    def feed(self, rows: Sequence[int], tokens: Tensor) -> Ready:
        if not rows:
            return Ready([], tokens.new_zeros(0, 0), [])
        if len(rows) < len(self.rows):
            self.stepper.select([self.rows.index(row) for row in rows])
            self.rows = list(rows)
        logits, probs = self.stepper.step(tokens)
        depth = [0] * len(rows)
        for router, stage in zip(self.routers, probs, strict=True):
            depth = [n + router.is_boundary(p) for n, p in zip(depth, stage, strict=True)]
        return Ready(self.rows, logits, depth)


@dataclass(eq=False)
class _Level:
    net: HNet
    state: LevelState
    share: float
    """Share of the rows under way that must wait before the inner network runs."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """`encoded` (B, D) and `prob` (B,), as `HNet.step_in` gave them for each row's last position."""
    waiting: list[int] = field(default_factory=list)
    """Rows before the inner network."""

    def index(self, rows: list[int]) -> Tensor | None:
        """None: all of them."""
        everyone = len(rows) == len(self.state.seen)
        return None if everyone else torch.tensor(rows, dtype=torch.int64, device=self.state.position.device)

    def keep(self, name: str, value: Tensor, index: Tensor | None) -> None:
        if index is None:
            self.buffers[name] = value
            return
        if name not in self.buffers:
            self.buffers[name] = value.new_zeros(len(self.state.seen), *value.shape[1:])
        self.buffers[name][index] = value


class Waiting:
    """Rows go as far as they come: those at a boundary wait until many do.

    The inner network of stage s, counted from 1, runs when SHARE^s of the rows under way wait for it, if it is LARGE,
    or when otherwise no row would be ready.
    """

    def __init__(self, model: HNetForCausalLM, state: GenerationState) -> None:
        self.model, self.kernels = model, state.kernels
        self.under_way = 0
        """Rows that were fed and are not ready."""
        self.tokens = torch.zeros(state.batch_size, dtype=torch.int64, device=state.level.position.device)
        self.depth = [0] * state.batch_size
        self.levels: list[_Level] = []
        net, level = model.backbone, state.level
        while isinstance(net, HNet):
            large = sum(p.numel() for p in net.main_network.parameters()) >= LARGE
            self.levels.append(_Level(net, level, SHARE ** (len(self.levels) + 1) if large else 0))
            level = level.inner or level
            net = net.main_network  # type: ignore[assignment]

    @torch.inference_mode()
    def feed(self, rows: Sequence[int], tokens: Tensor) -> Ready:
        kind = self.tokens.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.feed(rows, tokens)
        self.under_way += len(rows)
        if not self.under_way:
            return Ready([], tokens.new_zeros(0, 0), [])
        tokens = tokens.to(self.tokens.device)
        self.tokens[torch.tensor(rows, dtype=torch.int64)] = tokens
        for row in rows:
            self.depth[row] = 0
        outermost = self.levels[0]
        hidden = self.model.embeddings.step(tokens, outermost.state.recent, outermost.index(list(rows)))
        done, hidden = self._advance(0, list(rows), hidden, True)
        self.under_way -= len(done)
        return Ready(done, F.linear(hidden, self.model.lm_head.weight), [self.depth[row] for row in done])

    def _advance(self, number: int, rows: list[int], hidden: Tensor, must: bool) -> tuple[list[int], Tensor]:
        """Takes rows into a level, hidden (R, D); gives those that come out of it, ascending, with their (R', outer
        width). `must`: at least one, if any is inside."""
        level = self.levels[number]
        net, state, index = level.net, level.state, level.index(rows)
        now = state.begin(None if index is None else rows, index) if rows else None
        if now is not None and net.is_innermost:
            return rows, net.step_main(hidden, state, now, self.kernels)
        ready: list[int] = []
        if now is not None:
            encoded, prob = net.step_in(hidden, state, now, self.kernels, pick(self.tokens, index))
            for name, value in (("encoded", encoded), ("prob", prob)):
                level.keep(name, value, index)
            for row, begins in zip(rows, net.routing_module.is_boundary(prob).tolist(), strict=True):
                (level.waiting if begins else ready).append(row)
                self.depth[row] += begins
        must = must and not ready
        if must or len(level.waiting) >= max(1, int(level.share * self.under_way)):
            ready = sorted(ready + self._descend(number, must))
        if not ready:
            return [], hidden[:0, : net.outer_width]
        if now is None or ready != rows:
            index = level.index(ready)
            now = state.now(None if index is None else ready, index)
        encoded, prob = (pick(level.buffers[name], index) for name in ("encoded", "prob"))
        return ready, net.step_out(encoded, prob, state, now, self.kernels)

    def _descend(self, number: int, must: bool) -> list[int]:
        """Takes all that wait into the inner network, and what comes out of it up again: those rows."""
        level = self.levels[number]
        rows, level.waiting = sorted(level.waiting), []
        index = level.index(rows)
        encoded = pick(level.buffers["encoded"], index)
        entering = level.net.inner_input(encoded, level.state, index, self.kernels)
        rows, chunk = self._advance(number + 1, rows, entering, must)
        if rows:
            index = level.index(rows)
            level.net.dechunk_layer.step(chunk, pick(level.buffers["prob"], index), level.state, self.kernels, index)
        return rows
