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


class _Borders:
    """Where a convolution of width K over the packed axis would read from another document."""

    def __init__(self, packing: Packing, width: int) -> None:
        offset, position = torch.arange(width), packing.position
        left = packing.cu_seqlens.diff().long()[packing.document] - 1 - position
        self.early = (position < width - 1).nonzero()[:, 0]
        before = self.early[:, None] - (width - 1) + offset  # (F, K): positions that an early one reads
        self.before_inside = (width - 1 - offset <= position[self.early, None])[:, :, None]
        self.before_crossed = ~self.before_inside & (before >= 0)[:, :, None]
        self.before = before.clamp_(min=0)
        self.late = (left < width - 1).nonzero()[:, 0]
        self.after = (self.late[:, None] + offset).clamp_(max=packing.total - 1)  # (F, K): positions that read a late one
        self.after_inside = (offset <= left[self.late, None])[:, :, None]

    @staticmethod
    def of(packing: Packing, width: int) -> _Borders | None:
        if packing.batch_size == 1:
            return None
        key = ("borders", width)
        if key not in packing._cache:
            packing._cache[key] = _Borders(packing, width)
        return packing._cache[key]  # type: ignore[return-value]


class _CausalConv(torch.autograd.Function):
    """The packed axis is treated as one document; then what reads across a border is computed again."""

    @staticmethod
    @_no_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
        taps, borders = weight.to(x.dtype), _Borders.of(packing, weight.shape[1])
        before = _correlate(x, taps, bias.to(x.dtype), forward=False)
        if borders is not None:
            seen = wide(x[borders.before]) * borders.before_inside
            before[borders.early] = torch.einsum("fkd,dk->fd", seen, wide(taps)).add_(bias).to(x.dtype)
        ctx.save_for_backward(x, taps, before)
        ctx.borders, ctx.dtypes = borders, (weight.dtype, bias.dtype)
        return F.silu(before)

    @staticmethod
    @once_differentiable
    @_no_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, before = ctx.saved_tensors
        borders, width, length = ctx.borders, taps.shape[1], len(x)
        grad = torch.ops.aten.silu_backward(grad, before)
        x_grad = _correlate(grad, taps.flip(1), None, forward=True)
        taps_grad = wide(taps).new_zeros(width, len(taps))
        for shift in range(min(width, length)):
            for s in slabs(length - shift, len(taps)):
                product = grad[shift:][s] * x[: length - shift][s]
                taps_grad[width - 1 - shift] += product.sum(0, dtype=taps_grad.dtype)
        if borders is not None:
            crossed = wide(x[borders.before]) * borders.before_crossed
            taps_grad -= torch.einsum("fd,fkd->kd", wide(grad[borders.early]), crossed)
            readers = wide(grad[borders.after]) * borders.after_inside
            x_grad[borders.late] = torch.einsum("fkd,dk->fd", readers, wide(taps.flip(1))).to(x.dtype)
        weight_dtype, bias_dtype = ctx.dtypes
        return x_grad, taps_grad.T.to(weight_dtype), grad.sum(0, dtype=taps_grad.dtype).to(bias_dtype), None


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    return _CausalConv.apply(x, weight, bias, packing)


# -- state space duality -----------------------------------------------------------------------------------------------


class _SSD(torch.autograd.Function):
    """One product per block and head: y = [S | exp(a) C] @ [x ; h], the state h entering a block being N more positions.

    a: log decay since the start of the block; S_ij = C_i . B_j exp(a_i - a_j) dt_j, plus D on the diagonal.
    Gradients of decays are sums over the same products dS * S on both sides of a difference, so that they cancel exactly.
    """

    @staticmethod
    @_no_autocast
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, packing: Packing
    ) -> Tensor:
        blocks, dtype = packing.blocks(BLOCK), x.dtype
        total, heads, width = x.shape
        n, size, state = blocks.count, blocks.size, B.shape[-1]
        raw = wide(dt) + dt_bias
        step = F.softplus(raw)  # (T, H)
        decay = blocks.split(step * A).cumsum(1).transpose(1, 2).contiguous()  # (n, H, Q)
        steps = blocks.split(step).transpose(1, 2)
        source = steps.log().clamp_(min=-80.0) - decay
        b, c = blocks.split(B).contiguous(), blocks.split(C).contiguous()  # (n, Q, N)
        overlap = torch.bmm(c, b.mT).mul_(blocks.visible)  # (n, Q, Q)

        reach = x.new_empty(n, heads, size, size)  # exp(a_i - a_j) dt_j
        mix = x.new_empty(n, heads, size, size + state)
        within = mix[..., :size]
        for s in slabs(n, heads * size * size):
            # what is not visible may be anything finite; exp is slow on what underflows
            reach[s] = (decay[s, :, :, None] + source[s, :, None]).clamp_(-80, 80).exp_()
            torch.mul(reach[s], overlap[s, None], out=within[s])
        within.diagonal(dim1=-2, dim2=-1).add_(D[:, None])
        start = decay.exp().mul_(blocks.from_before[:, None])
        torch.mul(c[:, None], start[..., None].to(dtype), out=mix[..., size:])

        values = x.new_empty(n, heads, size + state, width)
        values[:, :, :size] = blocks.split(x).transpose(1, 2)
        to_end = (decay[..., -1:] + source).exp_()
        if blocks.to_end is not None:
            to_end *= blocks.to_end[:, None]
        kept = b[:, None] * to_end[..., None].to(dtype)  # (n, H, Q, N)
        added = torch.bmm(kept.flatten(0, 1).mT, values[:, :, :size].flatten(0, 1))
        keep = decay[..., -1].exp() * (blocks.end == blocks.previous)[:, None]  # (n, H)
        entering = _pass_states(wide(added).view(n, heads, -1), keep)
        values[:, :, size:] = entering.view(n, heads, state, width)
        y = torch.bmm(mix.flatten(0, 1), values.flatten(0, 1)).view(n, heads, size, width)
        ctx.save_for_backward(raw, step, A, D, decay, b, c, overlap, reach, mix, start, values, to_end, kept, keep)
        ctx.blocks, ctx.dtypes = blocks, [t.dtype for t in (dt, A, D, dt_bias)]
        return blocks.join(y.transpose(1, 2), total)

    @staticmethod
    @once_differentiable
    @_no_autocast
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        raw, step, A, D, decay, b, c, overlap, reach, mix, start, values, to_end, kept, keep = ctx.saved_tensors
        blocks, dtype, exact = ctx.blocks, values.dtype, step.dtype
        n, heads, size = decay.shape
        state, width, total = b.shape[-1], values.shape[-1], len(step)
        y_grad = blocks.split(y_grad).transpose(1, 2).reshape(n * heads, size, width)
        mix_grad = torch.bmm(y_grad, values.flatten(0, 1).mT).view(n, heads, size, size + state)
        values_grad = torch.bmm(mix.flatten(0, 1).mT, y_grad)
        entering_grad = wide(values_grad[:, size:]).reshape(n, heads, -1)
        added_grad = _pass_states(entering_grad.flip(0), keep.flip(0)).flip(0)
        keep_grad = torch.linalg.vecdot(added_grad, wide(values[:, :, size:]).reshape(n, heads, -1))
        added_grad = added_grad.view(n * heads, state, width).to(dtype)
        kept_grad = torch.bmm(values[:, :, :size].flatten(0, 1), added_grad.mT).view(n, heads, size, state)
        x_grad = torch.baddbmm(values_grad[:, :size], kept.flatten(0, 1), added_grad).view(n, heads, size, width)
        x_grad = blocks.join(x_grad.transpose(1, 2), total)

        within_grad, start_grad = mix_grad[..., :size], mix_grad[..., size:]
        D_grad = within_grad.diagonal(dim1=-2, dim2=-1).sum((0, 2), dtype=exact)
        overlap_grad = torch.empty_like(overlap)
        late, early = torch.empty_like(decay), torch.empty_like(decay)  # of a_i and, negative, of a_j
        for s in slabs(n, heads * size * size):
            product = within_grad[s] * reach[s]
            torch.sum(product, 1, out=overlap_grad[s])
            product *= overlap[s, None]
            torch.sum(product, -1, dtype=exact, out=late[s])
            torch.sum(product, -2, dtype=exact, out=early[s])
        overlap_grad *= blocks.visible
        c_grad, b_grad = torch.bmm(overlap_grad, b), torch.bmm(overlap_grad.mT, c)
        c_grad += (start_grad * start[..., None].to(dtype)).sum(1)
        b_grad += (kept_grad * to_end[..., None].to(dtype)).sum(1)
        late += (start_grad * mix[..., size:]).sum(-1, dtype=exact)
        ended = (kept_grad * kept).sum(-1, dtype=exact)
        early += ended
        decay_grad = late - early
        decay_grad[..., -1] += ended.sum(-1) + keep_grad * keep
        log_grad = decay_grad.flip(-1).cumsum(-1).flip(-1)  # of dt * A
        log_grad, early = (blocks.join(t.transpose(1, 2), total) for t in (log_grad, early))
        step_grad = log_grad * A + early / step.clamp_min(1e-35)
        raw_grad = step_grad * torch.sigmoid(raw)
        dt_type, A_type, D_type, bias_type = ctx.dtypes
        return (
            x_grad,
            raw_grad.to(dt_type),
            (log_grad * step).sum(0).to(A_type),
            blocks.join(b_grad, total),
            blocks.join(c_grad, total),
            D_grad.to(D_type),
            raw_grad.sum(0).to(bias_type),
            None,
        )


def _pass_states(added: Tensor, keep: Tensor) -> Tensor:
    """What enters each block, h_{m+1} = added_m + keep_m h_m from h_0 = 0. added (n, H, S), keep (n, H) -> (n, H, S)."""
    entering = torch.empty_like(added)
    entering[0] = 0
    for m in range(len(added) - 1):
        torch.addcmul(added[m], entering[m], keep[m, :, None], out=entering[m + 1])
    return entering


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    packing: Packing,
    chunk_size: int = 0,
    return_states: bool = False,
) -> Any:
    if return_states:  # reading a prompt, once
        return reference.ssd_scan(x, dt, A, B, C, D, dt_bias, packing, chunk_size, return_states)
    return _SSD.apply(x, dt, A, B, C, D, dt_bias, packing)


# -- attention ---------------------------------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int = -1) -> Tensor:
    """PyTorch's fused attention is slow backward in bfloat16 on a CPU: short documents do without, long ones in float32."""
    if q.dtype != torch.bfloat16 or not q.requires_grad:
        return reference.attention(q, k, v, packing, window)
    if packing.max_length > DENSE_ATTENTION or 0 <= window < packing.max_length - 1:
        return reference.attention(q.float(), k.float(), v.float(), packing, window).to(q.dtype)
    out = None
    for bucket in packing.buckets():
        rows, length = bucket.rows, bucket.length
        qkv = (t if bucket.gather is None else t.index_select(0, bucket.gather) for t in (q, k, v))
        q_, k_, v_ = (t.view(rows, length, *t.shape[1:]).transpose(1, 2).flatten(0, 1) for t in qkv)
        unseen = torch.full((length, length), -torch.inf, dtype=q.dtype).triu_(1)
        scores = torch.baddbmm(unseen, q_, k_.mT, alpha=q.shape[-1] ** -0.5)
        y = torch.bmm(scores.softmax(-1), v_).view(rows, -1, length, q.shape[-1]).transpose(1, 2).flatten(0, 1)
        if bucket.scatter is None or bucket.target is None:
            return y
        y = y.index_select(0, bucket.scatter)
        out = (y.new_zeros(q.shape) if out is None else out).index_copy(0, bucket.target, y)
    assert out is not None
    return out


# -- gated MLP ---------------------------------------------------------------------------------------------------------


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, -1)
        out = torch.empty_like(value)
        for s in slabs(*value.shape):
            out[s] = F.silu(wide(gate[s])).mul_(wide(value[s]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        (value, gate), (value_grad, gate_grad) = x.chunk(2, -1), x_grad.chunk(2, -1)
        for s in slabs(*value.shape):
            z, g = wide(gate[s]), wide(grad[s])
            value_grad[s] = F.silu(z).mul_(g)
            gate_grad[s] = torch.ops.aten.silu_backward(g * wide(value[s]), z)
        return x_grad


def swiglu(x: Tensor) -> Tensor:
    return _SwiGLU.apply(x)
