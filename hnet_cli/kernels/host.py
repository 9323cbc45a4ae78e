"""The same operations as `reference`, for CPUs: derivatives written out, work in tiles that stay in the cache.

On a CPU the products of a small model are cheap and everything else is memory traffic: an elementwise pass over a tensor that
left the cache costs several times one that did not, and automatic differentiation keeps and re-reads all intermediates. So
each operation here is one autograd function that walks over tiles of rows and updates in place. Results equal the reference
up to rounding; `tests/test_kernels.py` compares values and all gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .packing import Blocks, Packing
from .reference import BLOCK, product_dtype, wide
from .reference import attention as reference_attention
from .reference import ssd_scan as reference_ssd_scan

TILE = 96 * 1024
"""Elements of a tile: a few float32 tiles fit the second-level cache of one core."""


def tiles(rows: int, width: int) -> Iterator[slice]:
    step = max(1, TILE // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def widest(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


# -- norms -------------------------------------------------------------------------------------------------------------


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> Any:
        rows, width = hidden.shape
        stream = hidden.new_empty(hidden.shape, dtype=widest(hidden))
        scale = stream.new_empty(rows, 1)
        normed = hidden.new_empty(hidden.shape, dtype=dtype)
        w = wide(weight)
        for tile in tiles(rows, width):
            total = stream[tile].copy_(hidden[tile])
            if residual is not None:
                total += residual[tile]
            scale[tile] = _inverse_rms(total, eps)
            normed[tile] = (total * scale[tile]).mul_(w)
        ctx.save_for_backward(stream, scale, weight)
        ctx.dtype, ctx.first = hidden.dtype, residual is None
        return normed, stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_stream: Tensor | None) -> Any:
        stream, scale, weight = ctx.saved_tensors
        rows, width = stream.shape
        out = torch.empty_like(stream)
        grad_weight = stream.new_zeros(width)
        for tile in tiles(rows, width):
            _norm_backward(wide(grad[tile]), stream[tile] * scale[tile], scale[tile], weight, out[tile], grad_weight)
            if grad_stream is not None:
                out[tile] += grad_stream[tile]
        return out.to(ctx.dtype), None if ctx.first else out, grad_weight.to(weight.dtype), None, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(grad: Tensor, unit: Tensor, scale: Tensor, weight: Tensor, out: Tensor, grad_weight: Tensor) -> None:
    """out = gradient of the vector that was normed to `unit` and weighted; adds to grad_weight."""
    w = wide(weight)
    product = grad * unit
    grad_weight += product.sum(0)
    along = torch.mv(product, w).div_(-unit.shape[-1])[:, None]
    torch.mul(grad, w, out=out).addcmul_(unit, along).mul_(scale)


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _AddNorm.apply(hidden, residual, weight, eps, product_dtype(weight))


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = torch.empty_like(y), y.new_empty(len(y), 1, dtype=widest(y))
        w = wide(weight)
        for tile in tiles(*y.shape):
            value = F.silu(wide(gate[tile])).mul_(y[tile])
            scale[tile] = _inverse_rms(value, eps)
            out[tile] = value.mul_(scale[tile]).mul_(w)
        ctx.save_for_backward(y, gate, scale, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, gate, scale, weight = ctx.saved_tensors
        grad_y, grad_gate = torch.empty_like(y), y.new_empty(y.shape)
        grad_weight = scale.new_zeros(y.shape[1])
        buffer = scale.new_empty(min(len(y), max(1, TILE // y.shape[1])), y.shape[1])
        for tile in tiles(*y.shape):
            z, v = wide(gate[tile]), wide(y[tile])
            s = F.silu(z)
            value = buffer[: len(z)]
            _norm_backward(wide(grad[tile]), (s * v).mul_(scale[tile]), scale[tile], weight, value, grad_weight)
            grad_gate[tile] = torch.ops.aten.silu_backward(value * v, z)
            grad_y[tile] = value.mul_(s)
        return grad_y, grad_gate, grad_weight.to(weight.dtype), None


def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _GatedNorm.apply(y, gate, weight, eps)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, -1)
        out = x.new_empty(value.shape)
        for tile in tiles(*value.shape):
            out[tile] = F.silu(wide(gate[tile])).mul_(value[tile])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        (value, gate), (grad_value, grad_gate) = x.chunk(2, -1), out.chunk(2, -1)
        for tile in tiles(*value.shape):
            z, g = wide(gate[tile]), wide(grad[tile])
            grad_value[tile] = F.silu(z).mul_(g)
            grad_gate[tile] = torch.ops.aten.silu_backward(g * value[tile], z)
        return out


def swiglu(x: Tensor) -> Tensor:
    return _SwiGLU.apply(x)


# -- causal convolution ------------------------------------------------------------------------------------------------


class _Conv(torch.autograd.Function):
    """Documents are laid out with K-1 zero rows before each, so that no tap ever crosses a border."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
        taps = wide(weight).T.contiguous()
        reach = len(taps) - 1
        spread = _Gaps(packing, reach)
        laid = spread.lay(x)
        rows = len(laid) - reach
        before, y = laid.new_empty(rows, x.shape[1]), laid.new_empty(rows + reach, x.shape[1])
        for tile in tiles(rows, x.shape[1]):
            z = torch.addcmul(wide(bias), laid[tile], taps[0], out=before[tile])
            for k in range(1, reach + 1):
                z.addcmul_(laid[tile.start + k : tile.stop + k], taps[k])
            torch.ops.aten.silu.out(z, out=y[tile.start + reach : tile.stop + reach])
        ctx.save_for_backward(x, before, weight)
        ctx.spread, ctx.bias_dtype = spread, bias.dtype
        return spread.collect(y, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, before, weight = ctx.saved_tensors
        taps = wide(weight).T.contiguous()
        reach = len(taps) - 1
        laid, slope = ctx.spread.lay(x), ctx.spread.lay(grad, reach)  # zero rows after the end too
        grad_taps, grad_bias = torch.zeros_like(taps), taps.new_zeros(x.shape[1])
        out = torch.empty_like(laid)
        rows = len(before)
        inner = slope[reach : reach + rows]
        for tile in tiles(rows, x.shape[1]):
            g = inner[tile]
            torch.ops.aten.silu_backward.grad_input(g, before[tile], grad_input=g)
            grad_bias += g.sum(0)
            for k in range(reach + 1):
                grad_taps[k] += (g * laid[tile.start + k : tile.stop + k]).sum(0)
        for tile in tiles(len(out), x.shape[1]):
            g = torch.mul(slope[tile], taps[reach], out=out[tile])
            for k in range(1, reach + 1):
                g.addcmul_(slope[tile.start + k : tile.stop + k], taps[reach - k])
        return ctx.spread.collect(out, x.dtype), grad_taps.T.to(weight.dtype), grad_bias.to(ctx.bias_dtype), None


class _Gaps:
    """Lays packed rows out with `gap` zero rows before each document, in float32 or wider, and collects them again."""

    def __init__(self, packing: Packing, gap: int) -> None:
        self.packing, self.gap = packing, gap
        self.length = packing.total + gap * packing.batch_size
        self.index = None if packing.equal_lengths else packing.spread(gap)

    def lay(self, x: Tensor, after: int = 0) -> Tensor:
        if self.index is not None:
            out = x.new_zeros(self.length + after, x.shape[1], dtype=widest(x))
            return out.index_copy_(0, self.index, wide(x))
        out = x.new_empty(self.length + after, x.shape[1], dtype=widest(x))
        rows = out[: self.length].unflatten(0, (self.packing.batch_size, -1))
        rows[:, : self.gap] = 0
        rows[:, self.gap :] = x.unflatten(0, (self.packing.batch_size, -1))
        out[self.length :] = 0
        return out

    def collect(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.index is not None:
            return x.index_select(0, self.index).to(dtype)
        out = x.new_empty(self.packing.total, x.shape[1], dtype=dtype)
        rows = x[: self.length].unflatten(0, (self.packing.batch_size, -1))
        out.unflatten(0, (self.packing.batch_size, -1)).copy_(rows[:, self.gap :])
        return out


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    return _Conv.apply(x, weight, bias, packing)


# -- state space duality -----------------------------------------------------------------------------------------------


class _Scan(torch.autograd.Function):
    """Per head and block: y = [scores | reads] @ [inputs ; state before the block], one product over Q + N.

    Names: *fade* exp(decay_i - decay_j) between two positions of a block; *leave* the same to the block's end; *reads* from
    its start. `decay` (n, H, Q) is the log decay summed since the block began.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, packing: Packing
    ) -> Tensor:
        blocks = packing.blocks(BLOCK)
        with without_autocast(x):
            step = F.softplus(wide(dt) + wide(dt_bias))
            decay = blocks.split(step * wide(A)).cumsum(1).transpose(1, 2).contiguous()
            xb, b, c = blocks.split(x), blocks.split(B).contiguous(), blocks.split(C).contiguous()
            n, size, heads, width = xb.shape
            values = x.new_empty(n, heads, size + b.shape[-1], width)
            inputs = values[:, :, :size]
            torch.mul(xb.transpose(1, 2), blocks.split(step).to(x.dtype).transpose(1, 2)[..., None], out=inputs)
            leave, reads = _edges(decay, blocks)
            writes = (leave[..., None] * b[:, None]).to(x.dtype)
            added = wide(torch.matmul(writes.mT, inputs))  # (n, H, N, P)
            whole = blocks.keep(decay[:, :, -1].exp())[..., None, None]  # (n, H, 1, 1)
            before = torch.zeros_like(added)
            for i in range(1, n):
                torch.addcmul(added[i - 1], before[i - 1], whole[i - 1], out=before[i])
            values[:, :, size:] = before

            scores = blocks.hide(c @ b.mT)
            y = x.new_empty(n, size, heads, width)
            fades = x.new_empty(n, heads, size, size)
            for tile in tiles(n, heads * size * size):
                # clamped: exp takes a slow path below -87; what is invisible is removed from the scores
                fade = torch.sub(decay[tile, :, :, None], decay[tile, :, None, :]).clamp_(-80, 0).exp_()
                fades[tile] = fade
                mix = _mix(fade, scores[tile], c[tile], reads[tile])
                y[tile] = torch.matmul(mix, values[tile]).transpose(1, 2)
            y = blocks.join(y, len(x)).add_(x * D.to(x.dtype)[:, None])
        ctx.save_for_backward(x, dt, A, b, c, D, dt_bias, values, decay, before, fades)
        ctx.blocks = blocks
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, dt, A, b, c, D, dt_bias, values, decay, before, fades = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        n, heads, size, _ = fades.shape
        with without_autocast(x):
            grad_y = blocks.split(grad).transpose(1, 2).contiguous()  # (n, H, Q, P)
            leave, reads = _edges(decay, blocks)
            grad_values, grad_decay = torch.empty_like(values), torch.empty_like(decay)
            scores = blocks.hide(c @ b.mT)
            grad_scores, grad_c = torch.empty_like(scores), torch.empty_like(c)
            for tile in tiles(n, heads * size * size):
                g, ct, fade = grad_y[tile], c[tile], wide(fades[tile])
                torch.matmul(_mix(fade, scores[tile], ct, reads[tile]).mT, g, out=grad_values[tile])
                grad_mix = torch.matmul(g, values[tile].mT)  # (n, H, Q, Q + N)
                grad_fade = wide(grad_mix[..., :size]) * fade
                torch.sum(grad_fade, 1, out=grad_scores[tile])
                grad_fade.mul_(scores[tile, None])  # now the derivative by the fade's logarithm
                grad_reads = wide(grad_mix[..., size:]) * reads[tile, :, :, None]
                grad_c[tile] = grad_reads.sum(1)
                grad_decay[tile] = grad_fade.sum(-1).sub_(grad_fade.sum(-2)).add_(grad_reads.mul_(ct[:, None]).sum(-1))

            grad_scores = blocks.hide(grad_scores).to(b.dtype)
            grad_b = grad_scores.mT @ c
            grad_c += grad_scores @ b
            whole = blocks.keep(decay[:, :, -1].exp())
            grad_added = torch.zeros_like(before)
            grad_before = wide(grad_values[:, :, size:])
            for i in range(n - 2, -1, -1):
                torch.addcmul(grad_before[i + 1], grad_added[i + 1], whole[i + 1, :, None, None], out=grad_added[i])
            grad_whole = (grad_added * before).sum((2, 3)).mul_(whole)
            inputs, grad_inputs = values[:, :, :size], grad_values[:, :, :size]
            grad_writes = wide(torch.matmul(inputs, grad_added.to(x.dtype).mT)).mul_(leave[..., None])
            writes = (leave[..., None] * b[:, None]).to(x.dtype)
            grad_inputs += torch.matmul(writes, grad_added.to(x.dtype))
            grad_b += grad_writes.sum(1)
            left = grad_writes.mul_(b[:, None]).sum(-1)  # (n, H, Q)
            grad_decay -= left
            grad_decay[:, :, -1] += left.sum(-1) + grad_whole

            total = len(x)
            raw = wide(dt) + wide(dt_bias)
            step = F.softplus(raw)
            grad_log = blocks.join(grad_decay.flip(-1).cumsum(-1).flip(-1).transpose(1, 2), total)  # (T, H)
            grad_step = grad_log * wide(A)
            grad_x, grad_D = torch.empty_like(grad), wide(D).new_zeros(heads)
            by_row = blocks.join(grad_inputs.transpose(1, 2), total)
            for tile in tiles(total, x[0].numel()):
                gi, xt, g = wide(by_row[tile]), wide(x[tile]), wide(grad[tile])
                grad_step[tile] += (gi * xt).sum(-1)
                grad_D += (g * xt).sum((0, 2))
                grad_x[tile] = (gi * step[tile, :, None]).addcmul_(g, wide(D)[:, None])
            grad_raw = grad_step * torch.sigmoid(raw)
            grad_A = (grad_log * step).sum(0).to(A.dtype)
            grad_b, grad_c = blocks.join(grad_b, total), blocks.join(grad_c, total)
        return (
            grad_x,
            grad_raw.to(dt.dtype),
            grad_A,
            grad_b,
            grad_c,
            grad_D.to(D.dtype),
            grad_raw.sum(0).to(dt_bias.dtype),
            None,
        )


def _edges(decay: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """How much of each position survives to the block's end, and how much of the state before reaches it: (n, H, Q)."""
    leave = (decay[:, :, -1:] - decay).exp_()
    if blocks.to_end is not None:
        leave *= blocks.to_end[:, None]
    return leave, decay.exp() * blocks.from_before[:, None]


def _mix(fade: Tensor, scores: Tensor, c: Tensor, reads: Tensor) -> Tensor:
    """[scores * fade | reads]: (n, H, Q, Q + N) in the dtype of c."""
    n, heads, size, _ = fade.shape
    mix = c.new_empty(n, heads, size, size + c.shape[-1])
    mix[..., :size] = fade * scores[:, None]
    mix[..., size:] = reads[..., None] * c[:, None]
    return mix


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
    if return_states:  # generation only: no derivative wanted, and the reference knows how
        return reference_ssd_scan(x, dt, A, B, C, D, dt_bias, packing, chunk_size, return_states=True)
    return _Scan.apply(x, dt, A, B, C, D, dt_bias, packing)


# -- attention ---------------------------------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int = -1) -> Tensor:
    return reference_attention(q, k, v, packing, window)
