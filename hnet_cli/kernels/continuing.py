"""Operations that continue documents from a state, over the operations of any backend.

Each computes the new positions alone, as if their documents began there, and adds what came before: the recurrences are
linear in their state, so the past adds the state that enters, decayed until each position. Where `packing.start` is
None nothing came before and nothing is added. States are updated for the rows that the packing names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import ScanInputs, State, exact, pick, put, wide

if TYPE_CHECKING:
    from hnet_cli.kernels import Kernels

QUERIES = 256
"""Queries whose attention is computed at once: of the keys they read the window's and their own."""


def causal_conv(kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor, packing: Packing, state: Tensor) -> Tensor:
    """`Kernels.causal_conv` after the last inputs in `state` (B, K-1, D), which is updated: x (T, D) -> (T, D)."""
    reach = state.shape[1]
    if packing.start is None:
        y = kernels.causal_conv(x, weight, bias, packing)
        put(state, packing.row_index, packing.tails(x, reach))
        return y
    lengths = [length + reach for length in packing.lengths]
    longer = packing.cached(("longer", reach), lambda: Packing.of_lengths(lengths, x.device))
    joined = x.new_empty(longer.total, x.shape[1])
    new = torch.arange(len(x), device=x.device) + reach * (packing.document + 1)
    joined[new] = x
    joined[longer.first[:, None] + torch.arange(reach, device=x.device)] = pick(state, packing.row_index).to(x.dtype)
    put(state, packing.row_index, longer.tails(joined, reach))
    return kernels.causal_conv(joined, weight, bias, longer)[new]


def ssd_scan(kernels: Kernels, scan: ScanInputs, packing: Packing, chunk_size: int, state: State) -> Tensor:
    """`Kernels.ssd_scan` from `state`, made by `Kernels.ssd_state`, which is updated.

    The past adds C_t h_0 exp(sum of dt A until t) to y_t (T, H, P).
    """
    if packing.start is None:
        y, final = kernels.ssd_scan_states(scan, packing, chunk_size)
        state.fill(final, packing.row_index)
        return y
    y = kernels.ssd_scan(scan, packing, chunk_size)
    with torch.autocast(y.device.type, enabled=False):
        entering = pick(state.value, packing.row_index)  # (R, H, P, N)
        step = F.softplus(wide(scan.dt) + wide(scan.dt_bias))  # (T, H)
        log_decay = _summed(step * scan.A, packing)
        decay, left = log_decay.exp(), (log_decay[packing.last][packing.document] - log_decay).exp()
        scaled = (wide(scan.x) * (left.to(step.dtype) * step)[:, :, None]).flatten(1)
        parts = (t.split(packing.lengths) for t in (wide(scan.B), wide(scan.C), scaled))
        rows = list(zip(*parts, entering.flatten(1, 2), strict=True))
        before = torch.cat([c @ h.mT for _, c, _, h in rows]).view(y.shape)
        added = torch.stack([v.mT @ b for b, _, v, _ in rows]).view_as(entering)
        y = y + (before * decay.to(step.dtype)[:, :, None]).to(y.dtype)
        state.fill(entering * decay[packing.last].to(step.dtype)[:, :, None, None] + added, packing.row_index)
    return y


def ema_scan(kernels: Kernels, x: Tensor, p: Tensor, packing: Packing, before: Tensor) -> Tensor:
    """`Kernels.ema_scan` from the averages `before` (R, D) of the documents: x (T, D), p (T,) -> (T, D)."""
    z = kernels.ema_scan(x, p, packing)
    if packing.start is None:
        return z
    decay = _summed(torch.log1p(-p.to(exact(p.device))), packing).exp().to(z.dtype)
    return z + decay[:, None] * before[packing.document]


def _summed(x: Tensor, packing: Packing) -> Tensor:
    """Running sums within each document, (T, ...) -> the same, of `exact` dtype: differences of large sums follow."""
    total = x.cumsum(0, dtype=exact(x.device))
    return total - (total[packing.first] - x[packing.first])[packing.document]


def attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of the last T of the S positions of one document: q (T, H, P), k and v (S, H, P) -> (T, H, P).

    Position i sees i-window..i; -1: all before.
    """
    past, out = len(k) - len(q), torch.empty_like(q)
    for start in range(0, len(q), QUERIES):
        end = min(start + QUERIES, len(q))
        low = 0 if window < 0 else max(0, past + start - window)
        diagonal = past + start - low  # the column of the first query's own key
        seen = torch.ones(end - start, past + end - low, dtype=torch.bool, device=q.device).tril(diagonal)
        seen = seen if window < 0 else seen.triu(diagonal - window)
        queries, keys, values = (
            t.transpose(0, 1)[None] for t in (q[start:end], k[low : past + end], v[low : past + end])
        )
        y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        out[start:end] = y[0].transpose(0, 1)
    return out
