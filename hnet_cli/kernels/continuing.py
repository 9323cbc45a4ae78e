"""Operations that continue documents from a state, over the operations of any backend.

Each computes the new positions alone, as if their documents began there, and adds what came before: the recurrences are
linear in their state, so the past adds the state that enters, decayed until each position. Where `packing.start` is
None nothing came before and nothing is added. States are updated for the rows that the packing names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import ScanInputs, State, exact, own_states, summed, wide

if TYPE_CHECKING:
    from hnet_cli.kernels import Kernels


def pick(x: Tensor, rows: Tensor | None) -> Tensor:
    """Rows (R,) int64 of x (B, ...) -> (R, ...); None: all of them, x itself."""
    return x if rows is None else x[rows]


def put(x: Tensor, rows: Tensor | None, value: Tensor) -> None:
    """Overwrite rows (R,) int64 of x (B, ...), None: all, with value (R, ...)."""
    if rows is None:
        x.copy_(value)
    else:
        x[rows] = value.to(x.dtype)


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
        log_decay, added = own_states(scan, packing)
        rows = zip(wide(scan.C).split(packing.lengths), entering.flatten(1, 2), strict=True)
        before = torch.cat([c @ h.mT for c, h in rows]).view(y.shape)
        decay = log_decay.exp().to(before.dtype)
        y = y + (before * decay[:, :, None]).to(y.dtype)
        state.fill(entering * decay[packing.last][:, :, None, None] + added, packing.row_index)
    return y


def ema_scan(kernels: Kernels, x: Tensor, p: Tensor, packing: Packing, before: Tensor) -> Tensor:
    """`Kernels.ema_scan` from the averages `before` (R, D) of the documents: x (T, D), p (T,) -> (T, D)."""
    z = kernels.ema_scan(x, p, packing)
    if packing.start is None:
        return z
    decay = summed(torch.log1p(-p.to(exact(p.device))), packing).exp().to(z.dtype)
    return z + decay[:, None] * before[packing.document]
