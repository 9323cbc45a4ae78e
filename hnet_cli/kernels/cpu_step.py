"""A step of generation on CPUs: what it costs is reading, of weights where rows are few, of states where they are many.

Results equal the reference up to rounding; `tests/test_host.py` compares them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.kernels import cpu as host
from hnet_cli.kernels import reference
from hnet_cli.kernels.reference import wide

FEW = range(4, 65)
"""Rows of a product that is faster the other way round."""
MANY = 32
"""Rows for which a layer of Mamba's keeps its weights the other way round."""
LARGE = 1 << 18
"""Elements of a matrix from which on it is: a megabyte in float32."""
LATER = 16
"""Positions after which what they add to a state is added."""
CACHED = 1 << 20
"""Elements of keys up to which copying those of some rows costs less than a call for each row."""
LEAST = 1e-20
"""Of the scale of a state: what is added is divided by it, and must stay far from the largest float32."""


def step_weight(weight: Tensor, batch_size: int) -> Tensor:
    """As the reference: from MANY rows on it lies in memory as W^T, for a product in order that takes a fifth less."""
    if weight.dtype not in (torch.float32, torch.float64) or batch_size < MANY:
        return weight
    return weight.T.contiguous().T


def step_linear(x: Tensor, weight: Tensor, row_by_row: bool = False) -> Tensor:
    """As the reference: for a few rows as (W x^T)^T, for which MKL takes up to 40% less time than for x W^T.

    The result then lies in memory as W x^T, and so does what is made of it element by element, which the next product
    reads as it is. Where that is of no use, `row_by_row`, it is put in order.
    """
    few = len(x) in FEW and weight.is_contiguous() and weight.numel() >= LARGE
    if few and x.dtype in (torch.float32, torch.float64):
        y = torch.mm(weight, x.T).T
        return y.contiguous() if row_by_row else y
    return F.linear(x, weight)


def causal_conv_step(x: Tensor, state: Tensor, taps: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
    """As the reference, tap by tap where a window of all rows would leave the cache."""
    if len(taps) * x.numel() <= host.TILE:
        return reference.causal_conv_step(x, state, taps, bias, rows)
    past = (state if rows is None else state.index_select(0, rows)).unbind(1)
    y = torch.addcmul(bias, x, taps[-1])
    for old, tap in zip(past, taps, strict=False):
        y.addcmul_(old, tap)
    for own, later in zip(state.unbind(1), (*past, x)[1:], strict=True):
        if rows is None:
            own.copy_(later)
        else:
            own.index_copy_(0, rows, later)
    return F.silu(y, inplace=True)


def attention_step(q: Tensor, k: Tensor, v: Tensor, length: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
    """As the reference; where the caches of the rows are no small matter, row by row instead of from copies."""
    if length is None or k[0].numel() * len(q) <= CACHED:
        return reference.attention_step(q, k, v, length, rows)
    y = torch.empty_like(q)
    for i, (row, seen) in enumerate(
        zip(range(len(q)) if rows is None else rows.tolist(), length.tolist(), strict=True)
    ):
        keys, values = (t[row : row + 1, :seen].transpose(1, 2) for t in (k, v))
        y[i] = F.scaled_dot_product_attention(q[i : i + 1, :, None], keys, values)[0, :, 0]
    return y


@dataclass(eq=False)
class LaterState:
    """States that leave the cache: each is read once in a step, and written once in `LATER` steps.

    With h_t = s_t g_t, s_t = a_t s_(t-1) the scale, h_t = a_t h_(t-1) + dt_t x_t B_t becomes g_t = g_(t-1) +
    (dt_t x_t / s_t) B_t: a decay costs nothing, and what is added may be added later. Of the last i positions
    u_j = dt_j x_j / s_j and B_j are kept, so that y_t = s_t (g_(t-i) C_t + sum over j of u_j (B_j C_t)) + D x_t.
    A scale below LEAST is multiplied into the state and begins at 1 again.
    """

    state: Tensor
    """(B, N + LATER, H P), float32 or wider: g, transposed, so that reading it is a sum of long rows; then u."""
    keys: Tensor
    """(B, LATER, N): B of the last positions, zero where there are none."""
    count: list[int]
    """How many there are, for each of B."""
    scale: Tensor
    """(B, H)."""

    @property
    def value(self) -> Tensor:
        """(B, H, P, N), as of the reference; a copy."""
        size = self.keys.shape[2]
        g = self.state[:, :size] + self.keys.mT @ self.state[:, size:]
        return g.mT.contiguous().unflatten(1, (self.scale.shape[1], -1)) * self.scale[:, :, None, None]

    def fill(self, value: Tensor, rows: Tensor | None = None) -> None:
        """As the reference."""
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
    """As the reference."""
    if batch_size * heads * width * size <= 2 * host.TILE:
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
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    rows: Tensor | None = None,
    once: Tensor | None = None,
) -> Tensor:
    """As the reference."""
    if isinstance(state, reference.SSMState):
        return reference.ssd_step(state, x, dt, A, B, C, D, dt_bias, rows)
    x32, size = wide(x), B.shape[-1]
    everyone = slice(None) if rows is None else rows
    step = F.softplus(wide(dt) + dt_bias)
    scale = (step * A).exp_().mul_(state.scale[everyone])
    if not float(scale.min()) >= LEAST:  # not a number in one row says nothing of the others
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
        for own, first, new in ((state.state, size, added), (state.keys, 0, wide(B))):
            at = [row * own.shape[1] + first + count for row, count in zip(which, counts, strict=True)]
            own.view(-1, own.shape[2]).index_copy_(0, torch.tensor(at), new)
    keys = state.keys if rows is None else state.keys.index_select(0, rows)
    weights = torch.bmm(keys, wide(C).unsqueeze(-1)).squeeze(-1)
    reader = torch.cat([wide(C), weights], 1).unsqueeze(1)
    y = x32.new_empty(len(x), 1, added.shape[1])
    full = {row for row, count in zip(which, counts, strict=True) if count == LATER - 1}
    for mine, theirs in runs(which, full):
        torch.bmm(reader[mine], state.state[theirs], out=y[mine])
        if theirs.start in full:  # while it is in the cache
            own, own_keys = state.state[theirs.start], state.keys[theirs.start]
            own[:size].addmm_(own_keys.T, own[size:])
            own_keys.zero_()
    for row in which:
        state.count[row] = 0 if row in full else state.count[row] + 1
    return y.view(x.shape).mul_(scale.unsqueeze(-1)).addcmul_(x32, wide(D).unsqueeze(-1)).to(x.dtype)


def runs(rows: Sequence[int], alone: Container[int]) -> Iterator[tuple[slice, slice]]:
    """Rows that follow each other: where they are in the list, and which they are. Some are alone in theirs."""
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1 or rows[at] in alone or rows[at - 1] in alone:
            yield slice(start, at), slice(rows[start], rows[at - 1] + 1)
            start = at
