"""The operations of `reference` for training on a CPU, with backward passes written by hand.

What they compute is defined in `reference`; what differs is how often memory is read. A training step of a small model
on a CPU spends its time on elementwise passes, not on products, so these functions: save little and recompute the rest;
walk over slabs of rows that stay in the cache; let products do sums that would be passes of their own; and avoid
operators of PyTorch that are slow on CPUs. Double backward is not supported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import reference
from .packing import Packing
from .reference import BLOCK, wide

SLAB = 1 << 17
"""Elements of a slab: three or four float32 temporaries of this size fit in a second-level cache."""
DENSE_ATTENTION = 512
"""Longest document whose bfloat16 attention scores are written out."""

_no_autocast = torch.autocast("cpu", enabled=False)


def slabs(rows: int, width: int) -> Iterator[slice]:
    """The rows of a (rows, width) tensor in pieces of about SLAB elements."""
    size = max(1, SLAB // width)
    return (slice(start, start + size) for start in range(0, rows, size))


# -- norms -------------------------------------------------------------------------------------------------------------


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., 1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(grad: Tensor, normed: Tensor, inverse: Tensor, weight: Tensor, weight_grad: Tensor) -> Tensor:
    """Gradient of the input of `normed * weight`, normed = x * inverse. Overwrites `grad`, adds to `weight_grad`."""
    product = grad * normed
    weight_grad += product.sum(0)
    mean = (product @ weight).div_(-len(weight))
    return grad.mul_(weight).addcmul_(normed, mean[:, None]).mul_(inverse)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    @_no_autocast
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total = hidden.new_empty(hidden.shape, dtype=wide(hidden).dtype if residual is None else residual.dtype)
        normed = hidden.new_empty(hidden.shape, dtype=dtype)
        inverse = total.new_empty(len(total), 1)
        weight = weight.to(total.dtype)
        for s in slabs(*hidden.shape):
            x = total[s].copy_(hidden[s])
            if residual is not None:
                x += residual[s]
            inverse[s] = _inverse_rms(x, eps)
            normed[s] = torch.mul(x, inverse[s]).mul_(weight)
        ctx.save_for_backward(total, inverse, weight)
        ctx.has_residual, ctx.dtype = residual is not None, hidden.dtype
        ctx.set_materialize_grads(False)
        return normed, total

    @staticmethod
    @once_differentiable
    @_no_autocast
    def backward(ctx: Any, normed_grad: Tensor | None, total_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        total, inverse, weight = ctx.saved_tensors
        if normed_grad is None:
            hidden_grad = None if total_grad is None else total_grad.to(ctx.dtype)
            return hidden_grad, total_grad if ctx.has_residual else None, None, None, None
        grad, weight_grad = torch.empty_like(total), torch.zeros_like(weight)
        narrow = grad if ctx.dtype == grad.dtype else torch.empty_like(grad, dtype=ctx.dtype)
        for s in slabs(*total.shape):
            x_grad = _norm_backward(grad[s].copy_(normed_grad[s]), total[s] * inverse[s], inverse[s], weight, weight_grad)
            if total_grad is not None:
                x_grad += total_grad[s]
            if narrow is not grad:
                narrow[s] = x_grad
        return narrow, grad if ctx.has_residual else None, weight_grad, None, None


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    return _AddNorm.apply(hidden, residual, weight, eps, dtype)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    @_no_autocast
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(y)
        inverse = wide(y[..., :1]).new_empty(len(y), 1)
        weight = weight.to(inverse.dtype)
        for s in slabs(*y.shape):
            x = F.silu(wide(gate[s])).mul_(wide(y[s]))
            inverse[s] = _inverse_rms(x, eps)
            out[s] = x.mul_(inverse[s]).mul_(weight)
        ctx.save_for_backward(y, gate, inverse, weight)
        return out

    @staticmethod
    @once_differentiable
    @_no_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, inverse, weight = ctx.saved_tensors
        y_grad, gate_grad = torch.empty_like(y), torch.empty_like(gate)
        weight_grad = torch.zeros_like(weight)
        for s in slabs(*y.shape):
            z, value = wide(gate[s]), wide(y[s])
            silu = F.silu(z)
            normed = torch.mul(value, silu).mul_(inverse[s])
            slab = torch.empty_like(value).copy_(grad[s])
            x_grad = _norm_backward(slab, normed, inverse[s], weight, weight_grad)
            y_grad[s] = silu.mul_(x_grad)
            gate_grad[s] = torch.ops.aten.silu_backward(x_grad.mul_(value), z)
        return y_grad, gate_grad, weight_grad, None


def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    flat = y.reshape(-1, y.shape[-1])
    return _GatedNorm.apply(flat, gate.reshape(flat.shape), weight, eps).view(y.shape)


# -- causal convolution ------------------------------------------------------------------------------------------------


def _correlate(x: Tensor, taps: Tensor, bias: Tensor | None, forward: bool) -> Tensor:
    """sum over k of x[t - (K-1) + k] * taps[:, k], or with `forward` of x[t + k] * taps[:, k]. x (T, D), taps (D, K)."""
    length, width = x.shape
    reach = taps.shape[1] - 1
    if torch.backends.mkldnn.is_available() and x.dtype in (torch.float32, torch.bfloat16):
        # oneDNN's depthwise convolution reads (T, D) as it lies: an image in the channels-last layout
        image = x.contiguous().view(1, 1, length, width).permute(0, 3, 1, 2)
        y = F.conv2d(image, taps[:, None, None], bias, padding=(0, reach), groups=width)
        y = y.permute(0, 2, 3, 1).view(length + reach, width)
        return y[reach:] if forward else y[:length]
    y = x * taps[:, 0 if forward else reach]
    if bias is not None:
        y += bias
    for shift in range(1, min(reach, length - 1) + 1):
        if forward:
            y[:-shift].addcmul_(x[shift:], taps[:, shift])
        else:
            y[shift:].addcmul_(x[:-shift], taps[:, reach - shift])
    return y


class _CausalConv(torch.autograd.Function):
    """The packed axis is treated as one document; then what crossed a border is computed again."""

    @staticmethod
    @_no_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
        taps, near = weight.detach().to(x.dtype), packing.near_start(weight.shape[1])
        before = _correlate(x, taps, bias.to(x.dtype), forward=False)
        if near is not None:
            # (F, K, D): what the first positions of a document see of their own document
            seen = x[near.window] * near.inside[:, :, None]
            before[near.index] = torch.einsum("fkd,dk->fd", wide(seen), wide(taps)).add_(bias).to(x.dtype)
        ctx.save_for_backward(x, taps, before)
        ctx.near, ctx.dtypes = near, (weight.dtype, bias.dtype)
        return F.silu(before)

    @staticmethod
    @once_differentiable
    @_no_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, before = ctx.saved_tensors
        near, width = ctx.near, taps.shape[1]
        grad = torch.ops.aten.silu_backward(grad, before)
        x_grad = _correlate(grad, taps.flip(1), None, forward=True)
        taps_grad = wide(taps).new_zeros(width, len(taps))
        for shift in range(min(width, len(x))):
            for s in slabs(len(x) - shift, len(taps)):
                late = slice(s.start + shift, min(s.stop + shift, len(x)))
                taps_grad[width - 1 - shift] += (grad[late] * x[: len(x) - shift][s]).sum(0, dtype=taps_grad.dtype)
        if near is not None:
            crossed = torch.einsum("fd,fkd->kfd", wide(grad[near.index]), x[near.window] * ~near.inside[:, :, None])
            taps_grad -= crossed.sum(1)
            back = grad[near.window_after] * near.inside_after[:, :, None]
            x_grad[near.index_before] = torch.einsum("fkd,dk->fd", wide(back), wide(taps)).to(x.dtype)
        weight_dtype, bias_dtype = ctx.dtypes
        return x_grad, taps_grad.T.to(weight_dtype), grad.sum(0, dtype=taps_grad.dtype).to(bias_dtype), None
