"""A step of generation on CPUs: what it costs is reading, of weights where rows are few, of states where they are many.

Results equal the reference up to rounding; `tests/test_host.py` compares them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import host, reference
from .reference import wide

FEW = range(4, 49)
"""Rows of a product that is faster the other way round."""
LARGE = 1 << 18
"""Elements of a matrix from which on it is: a megabyte in float32."""
LEAST = 1e-20
"""Of the scale of a state: what is added is divided by it, and must stay far from the largest float32."""


def step_linear(x: Tensor, weight: Tensor) -> Tensor:
    """As the reference: for a few rows as (W x^T)^T, for which MKL takes up to 40% less time than for x W^T."""
    if x.dtype in (torch.float32, torch.float64) and len(x) in FEW and weight.numel() >= LARGE:
        return torch.mm(weight, x.T).T.contiguous()
    return F.linear(x, weight)


def causal_conv_step(x: Tensor, state: Tensor, taps: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
    """As the reference, tap by tap where a window of all rows would leave the cache."""
    if rows is not None or len(taps) * x.numel() <= host.TILE:
        return reference.causal_conv_step(x, state, taps, bias, rows)
    y = torch.addcmul(bias, x, taps[-1])
    past = state.unbind(1)
    for old, tap in zip(past, taps, strict=False):
        y.addcmul_(old, tap)
    for old, later in zip(past, (*past[1:], x), strict=True):
        old.copy_(later)
    return F.silu(y, inplace=True)


def ssd_step(
    state: Tensor,
    scale: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """As the reference; where the states of all rows leave the cache, each is read once and its decay is put off.

    With h_t = s_t g_t, s_t = a_t s_(t-1) the scale and g_t the state, h_t = a_t h_(t-1) + dt_t x_t B_t becomes
    g_t = g_(t-1) + (dt_t x_t / s_t) B_t, and y_t = s_t g_t C_t + D x_t. A scale below LEAST is multiplied into the
    state and begins at 1 again. What is read in such a step is rounded as before: s_t is a factor of all of it.
    """
    count, heads, width = x.shape
    if count * state[0].numel() <= host.TILE:
        return reference.ssd_step(state, scale, x, dt, A, B, C, D, dt_bias, rows)
    step = F.softplus(wide(dt) + dt_bias)
    new = (step * A).exp_().mul_(scale if rows is None else scale[rows])
    if float(new.min()) < LEAST:
        row, head = (new < LEAST).nonzero(as_tuple=True)
        state[row if rows is None else rows[row], head] *= new[row, head, None, None]
        new[row, head] = 1
    scale[slice(None) if rows is None else rows] = new
    x32 = wide(x)
    values = (x32 * (step / new).unsqueeze(-1)).view(count, -1, 1)
    b, c, y = wide(B).unsqueeze(1), wide(C).unsqueeze(-1), torch.empty_like(values)
    flat = state.view(len(state), heads * width, -1)
    if rows is None:
        parts = [(tile, tile) for tile in host.tiles(count, flat[0].numel())]
    else:
        parts = [(slice(i, i + 1), slice(at, at + 1)) for i, at in enumerate(rows.tolist())]
    for part, where in parts:
        flat[where].baddbmm_(values[part], b[part])
        torch.bmm(flat[where], c[part], out=y[part])
    return y.view(x.shape).mul_(new.unsqueeze(-1)).addcmul_(x32, wide(D).unsqueeze(-1)).to(x.dtype)
