"""Steps of generation on CPUs, bound by memory reads: of weights for few rows, of states for many.

Results equal the reference up to rounding; `tests/kernels/test_cpu_step.py` compares them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.kernels import cpu, reference
from hnet_cli.kernels.reference import Place, ScanInputs, wide

FEW = range(4, 65)
"""Batch sizes for which the transposed product is faster."""
MANY = 32
"""Batch size from which Mamba layers store transposed weights."""
LARGE = 1 << 18
"""Elements of a weight from which the transposed product is used: a megabyte in float32."""
LATER = 16
"""Positions whose contributions to a state are added together."""
CACHED = 1 << 20
"""Elements of keys up to which gathering rows costs less than one call per row."""
LEAST = 1e-20
"""Smallest scale of a state: contributions are divided by it and must stay far from the largest float32."""


def step_weight(weight: Tensor, batch_size: int) -> Tensor:
    """`reference.step_weight`: for MANY rows or more W^T, whose product in row order takes a fifth less time."""
    if weight.dtype not in (torch.float32, torch.float64) or batch_size < MANY:
        return weight
    return weight.T.contiguous().T


def _product(x: Tensor, weight: Tensor, row_by_row: bool) -> Tensor:
    """x W^T, for a few rows as (W x^T)^T, for which MKL takes up to 40% less time.

    The result is then stored as W x^T, and so are elementwise functions of it, which the next product reads in place.
    `row_by_row` makes the result contiguous, for callers that cannot use this layout.
    """
    few = len(x) in FEW and weight.is_contiguous() and weight.numel() >= LARGE
    if few and x.dtype in (torch.float32, torch.float64):
        y = torch.mm(weight, x.T).T
        return y.contiguous() if row_by_row else y
    return F.linear(x, weight)


step_linear: Any = partial(reference.step_linear, product=_product)
"""`reference.step_linear`."""


def causal_conv_step(x: Tensor, state: Tensor, taps: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
    """`reference.causal_conv_step`, tap by tap if the window of all rows would not fit into the cache."""
    if len(taps) * x.numel() <= cpu.TILE:
        return reference.causal_conv_step(x, state, taps, bias, rows)
    past = (state if rows is None else state.index_select(0, rows)).unbind(1)
    y = torch.addcmul(bias, x, taps[-1])
    for old, tap in zip(past, taps, strict=False):
        y.addcmul_(old, tap)
    for old, new in zip(state.unbind(1), (*past, x)[1:], strict=True):
        if rows is None:
            old.copy_(new)
        else:
            old.index_copy_(0, rows, new)
    return F.silu(y, inplace=True)


mamba_in_step: Any = partial(reference.mamba_in_step, linear=step_linear, conv=causal_conv_step)
"""`reference.mamba_in_step`."""


def attend_step(q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
    """`reference.attend_step`; for large caches row by row instead of from gathered copies."""
    if place.at is not None or k[0].numel() * len(q) <= CACHED:
        return reference.attend_step(q, k, v, place)
    y, rows = torch.empty_like(q), range(len(q)) if place.rows is None else place.rows.tolist()
    for i, (row, seen) in enumerate(zip(rows, place.length.tolist(), strict=True)):
        keys, values = (t[row : row + 1, :seen].transpose(1, 2) for t in (k, v))
        y[i] = F.scaled_dot_product_attention(q[i : i + 1, :, None], keys, values)[0, :, 0]
    return y


attention_step: Any = partial(reference.attention_step, attend=attend_step)
"""`reference.attention_step`."""


@dataclass(eq=False)
class LaterState:
    """States too large for the cache: each is read once per step, and written once per `LATER` steps.

    With h_t = s_t g_t, s_t = a_t s_(t-1) the scale, h_t = a_t h_(t-1) + dt_t x_t B_t becomes g_t = g_(t-1) +
    (dt_t x_t / s_t) B_t: a decay costs nothing, and additions may be deferred. For the last i positions
    u_j = dt_j x_j / s_j and B_j are stored, so that y_t = s_t (g_(t-i) C_t + sum over j of u_j (B_j C_t)) + D x_t.
    A scale below LEAST is multiplied into the state and restarts at 1.
    """

    state: Tensor
    """(B, N + LATER, H P), float32 or wider: g, transposed, so that reading it is a sum of long rows; then u."""
    keys: Tensor
    """(B, LATER, N): B of the last positions, zero beyond `count`."""
    count: list[int]
    """Number of deferred positions of each row."""
    scale: Tensor
    """(B, H): s."""

    @property
    def value(self) -> Tensor:
        """(B, H, P, N), a copy."""
        size = self.keys.shape[2]
        g = self.state[:, :size] + self.keys.mT @ self.state[:, size:]
        return g.mT.contiguous().unflatten(1, (self.scale.shape[1], -1)) * self.scale[:, :, None, None]

    def fill(self, value: Tensor, rows: Tensor | None = None) -> None:
        """The reference's operation of this name."""
        everyone = slice(None) if rows is None else rows
        self.state[everyone, : value.shape[3]] = value.flatten(1, 2).mT.to(self.state.dtype)
        self.state[everyone, value.shape[3] :] = 0  # zero keys would keep what is not finite
        self.keys[everyone], self.scale[everyone] = 0, 1
        for row in range(len(self.count)) if rows is None else rows.tolist():
            self.count[row] = 0

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows (R,) int64, in that order."""
        self.count = [self.count[row] for row in rows.tolist()]
        for name in ("state", "keys", "scale"):
            setattr(self, name, getattr(self, name)[rows])


def ssd_state(like: Tensor, batch_size: int, heads: int, width: int, size: int) -> reference.SSMState | LaterState:
    """The reference's operation of this name."""
    if batch_size * heads * width * size <= 2 * cpu.TILE:
        return reference.ssd_state(like, batch_size, heads, width, size)
    empty = wide(like[:0])
    return LaterState(
        empty.new_zeros(batch_size, size + LATER, heads * width),
        empty.new_zeros(batch_size, LATER, size),
        [0] * batch_size,
        empty.new_ones(batch_size, heads),
    )


def ssd_step(
    state: reference.SSMState | LaterState,
    inputs: ScanInputs,
    rows: Tensor | None = None,
    once: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """The reference's operation of this name."""
    if isinstance(state, reference.SSMState):
        return reference.ssd_step(state, inputs, rows, once, gate)
    x, dt, A, B, C, D, dt_bias = inputs
    x32, size = wide(x), B.shape[-1]
    everyone = slice(None) if rows is None else rows
    step = F.softplus(wide(dt) + dt_bias)
    scale = (step * A).exp_().mul_(state.scale[everyone])
    if not float(scale.min()) >= LEAST:  # a NaN in one row must not hide the others
        small, head = (scale < LEAST).nonzero(as_tuple=True)
        by_head = state.state.unflatten(2, x.shape[1:])
        by_head[small if rows is None else rows[small], :, head] *= scale[small, head, None, None]
        scale[small, head] = 1
    state.scale[everyone] = scale
    added = (x32 * (step / scale).unsqueeze(-1)).flatten(1)
    which = range(len(x)) if rows is None else rows.tolist()
    counts = [state.count[row] for row in which]
    if rows is None and min(counts) == max(counts):
        state.state[:, size + counts[0]], state.keys[:, counts[0]] = added, wide(B)
    else:
        for buffer, first, new in ((state.state, size, added), (state.keys, 0, wide(B))):
            at = [row * buffer.shape[1] + first + count for row, count in zip(which, counts, strict=True)]
            buffer.view(-1, buffer.shape[2]).index_copy_(0, torch.tensor(at), new)
    keys = state.keys if rows is None else state.keys.index_select(0, rows)
    weights = torch.bmm(keys, wide(C).unsqueeze(-1)).squeeze(-1)
    reader = torch.cat([wide(C), weights], 1).unsqueeze(1)
    y = x32.new_empty(len(x), 1, added.shape[1])
    full = {row for row, count in zip(which, counts, strict=True) if count == LATER - 1}
    for inputs_slice, states_slice in runs(which, full):
        torch.bmm(reader[inputs_slice], state.state[states_slice], out=y[inputs_slice])
        if states_slice.start in full:  # while the row is in the cache
            row_state, row_keys = state.state[states_slice.start], state.keys[states_slice.start]
            row_state[:size].addmm_(row_keys.T, row_state[size:])
            row_keys.zero_()
    for row in which:
        state.count[row] = 0 if row in full else state.count[row] + 1
    y = y.view(x.shape).mul_(scale.unsqueeze(-1)).addcmul_(x32, wide(D).unsqueeze(-1))
    return reference.gated(y.to(x.dtype), gate)


def runs(rows: Sequence[int], alone: Container[int]) -> Iterator[tuple[slice, slice]]:
    """Runs of consecutive rows, as slices of the list and of the rows; rows in `alone` are runs of their own."""
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1 or rows[at] in alone or rows[at - 1] in alone:
            yield slice(start, at), slice(rows[start], rows[at - 1] + 1)
            start = at
