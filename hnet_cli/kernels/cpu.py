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
from .packing import Blocks, Packing
from .reference import BLOCK, wide

SLAB = 1 << 17
"""Elements of a slab: three or four float32 temporaries of this size fit in a second-level cache."""
DENSE_ATTENTION = 512
"""Longest document whose bfloat16 attention scores are written out."""

RANGE = 80.0
"""Largest log decay over a block that is factored: products of the factors fit float32 and bfloat16."""

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
    """Decays factor: exp(a_i - a_j) dt_j = u_i v_j, where a is the log decay since the start of the block.

    So all heads share one product per block: y = u * ([S | C] @ [v * x ; h]), S_ij = C_i . B_j for j <= i, the state h that
    enters the block being N more positions. a is centred on the middle of the block to keep the factors in range.
    """

    @staticmethod
    @_no_autocast
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        blocks: Blocks,
        step: Tensor,
        decay: Tensor,
    ) -> Tensor:
        total, heads, width = x.shape
        n, size, state = blocks.count, blocks.size, B.shape[-1]
        whole = decay[:, -1:]  # (n, 1, H)
        u = (decay - whole / 2).exp_()  # (n, Q, H)
        u, v = (t.to(x.dtype)[..., None] for t in (u, blocks.split(step) / u))
        b, c = blocks.split(B), blocks.split(C)
        mix = x.new_empty(n, size, size + state)
        scores = torch.bmm(c, b.mT)
        own = wide(scores.diagonal(dim1=1, dim2=2))  # (n, Q): what a position says to itself knows no decay
        mix[..., :size] = scores.mul_(blocks.visible).tril_(-1)
        torch.mul(c, blocks.from_before[..., None], out=mix[..., size:])
        kept = b if blocks.to_end is None else b * blocks.to_end[..., None]

        values = x.new_empty(n, size + state, heads, width)
        torch.mul(blocks.split(x), v, out=values[:, :size])
        flat = values.flatten(2)
        half = (whole / 2).exp_()[..., None]  # (n, 1, H, 1): decay from the start to the middle, and on to the end
        left = torch.bmm(kept.mT, flat[:, :size]).view(n, state, heads, width) * half
        keep = (whole.exp() * (blocks.end == blocks.previous)[:, None, None])[..., None]  # the same document at both ends
        entering = _pass_states(left, keep, blocks)
        values[:, size:] = entering * half
        y = torch.bmm(mix, flat).view(n, size, heads, width)
        own = blocks.join(own, total)[:, None]
        direct = torch.addcmul(D, own, step).to(x.dtype)[..., None]  # (T, H, 1)
        ctx.save_for_backward(
            x, dt, A, dt_bias, step, u, v, half, keep, b, kept, c, mix, values, entering, y, own, direct
        )
        ctx.blocks, ctx.D_dtype = blocks, D.dtype
        return blocks.join(y * u, total).addcmul_(x, direct)

    @staticmethod
    @once_differentiable
    @_no_autocast
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, dt_bias, step, u, v, half, keep, b, kept, c, mix, values, entering, y, own, direct = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        n, size, heads, width = y.shape
        total, state = len(x), b.shape[-1]
        scaled = blocks.split(y_grad) * u  # gradient of the product
        mix_grad = torch.bmm(scaled.flatten(2), values.flatten(2).mT)  # (n, Q, Q + N)
        values_grad = torch.bmm(mix.mT, scaled.flatten(2))

        # left_grad: of what a block leaves, entering_{m+1} = left_m + keep_m entering_m
        left_grad = _pass_states_backward(values_grad[:, size:].unflatten(2, (heads, width)) * half, keep, blocks)
        whole_grad = wide(x).new_zeros(n, heads)
        whole_grad[:-1] = (left_grad[:-1] * entering[1:]).sum((1, 3))
        left_grad = (left_grad * half).to(x.dtype).flatten(2)
        inputs = values[:, :size].flatten(2)
        kept_grad = torch.bmm(inputs, left_grad.mT)
        inputs_grad = torch.baddbmm(values_grad[:, :size], kept, left_grad).view(n, size, heads, width)

        # of a_i as a row and, negative, as a column; the same of the last one, which scales what is left
        early = (inputs_grad * values[:, :size]).sum(-1, dtype=step.dtype)
        decay_grad = (scaled * y).sum(-1, dtype=step.dtype).sub_(early)
        decay_grad[:, -1] += whole_grad
        log_grad = blocks.join(decay_grad.flip(1).cumsum(1).flip(1), total)  # of step * A
        direct_grad = (x * y_grad).sum(-1, dtype=step.dtype)  # (T, H)
        step_grad = log_grad * A + blocks.join(early, total) / step.clamp_min(1e-35) + direct_grad * own
        raw_grad = step_grad.mul_(torch.sigmoid(wide(dt) + dt_bias))
        scores_grad = torch.where(blocks.visible, mix_grad[..., :size], 0)  # elsewhere it may have overflown
        scores_grad.diagonal(dim1=1, dim2=2).copy_(blocks.split((direct_grad * step).sum(1)))
        c_grad = torch.bmm(scores_grad, b).add_(mix_grad[..., size:] * blocks.from_before[..., None])
        b_grad = torch.bmm(scores_grad.mT, c).add_(kept_grad if blocks.to_end is None else kept_grad * blocks.to_end[..., None])
        x_grad = blocks.join(inputs_grad.mul_(v), total).addcmul_(y_grad, direct)
        return (
            x_grad,
            raw_grad.to(dt.dtype),
            (log_grad * step).sum(0).to(A.dtype),
            blocks.join(b_grad, total),
            blocks.join(c_grad, total),
            direct_grad.sum(0).to(ctx.D_dtype),
            raw_grad.sum(0).to(dt_bias.dtype),
            None,
            None,
            None,
        )


def _pass_states(left: Tensor, keep: Tensor, blocks: Blocks) -> Tensor:
    """entering_{m+1} = left_m + keep_m entering_m, zero where no document crosses the border.

    left (n, N, H, P), keep (n, 1, H, 1) -> (n, N, H, P), float32 or wider.
    """
    entering = wide(left).new_zeros(left.shape)
    for now in blocks.rounds:
        entering[now] = torch.addcmul(left[now - 1], keep[now - 1], entering[now - 1])
    return entering


def _pass_states_backward(grad: Tensor, keep: Tensor, blocks: Blocks) -> Tensor:
    """Gradient of `left`, from that of what enters each block."""
    left_grad = torch.zeros_like(grad)
    for now in reversed(blocks.rounds):
        left_grad[now - 1] = torch.addcmul(grad[now], keep[now], left_grad[now])
    return left_grad


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
    if not return_states:  # these are wanted once, after a prompt
        with torch.no_grad():
            step = F.softplus(wide(dt) + dt_bias)
            log = step * A
        for size in (BLOCK, BLOCK // 2, BLOCK // 4):
            blocks = packing.blocks(size)
            decay = blocks.split(log).cumsum(1)
            if decay[:, -1].amin() > -RANGE:
                return _SSD.apply(x, dt, A, B, C, D, dt_bias, blocks, step, decay)
    return reference.ssd_scan(x, dt, A, B, C, D, dt_bias, packing, chunk_size, return_states)


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
