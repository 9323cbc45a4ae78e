"""The same operations as `reference`, for CPUs: derivatives written out, work in tiles that stay in the cache.

On a CPU the products of a small model are cheap and everything else is memory traffic: an elementwise pass over a
tensor that left the cache costs several times one that did not, and automatic differentiation keeps and re-reads all
intermediates. So each operation here is one autograd function that walks over tiles of rows and updates in place.
Results equal the reference up to rounding; `tests/kernels/test_cpu.py` compares values and all gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hnet_cli.kernels import joint
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import BLOCK, ScanInputs, own_states, product_dtype, wide, window_attention
from hnet_cli.kernels.reference import attention as reference_attention

P = ParamSpec("P")
R = TypeVar("R")
TILE = 96 * 1024
"""Elements of a tile: a few float32 tiles fit into the second-level cache of one core."""


def tiles(rows: int, width: int) -> Iterator[slice]:
    """Consecutive slices of the rows of a (rows, width) tensor, at most TILE elements each."""
    step = max(1, TILE // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def widest(x: Tensor) -> torch.dtype:
    """float64 for float64 tensors, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` with autocast off: its arguments have been cast already."""

    @wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return plain


# -- norms -------------------------------------------------------------------------------------------------------------


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> Any:
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
    """Write the gradient by the vector that was normed to `unit` into `out`; add to `grad_weight`."""
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
        ctx.room = joint.room(gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, gate, scale, weight = ctx.saved_tensors
        grad_y, grad_gate = torch.empty_like(y), ctx.room(gate)
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


# -- causal convolution ------------------------------------------------------------------------------------------------


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _correlate(x: Tensor, taps: Tensor, bias: Tensor | None, forward: bool) -> Tensor:
    """Sum over k of x[t - (K-1) + k] * taps[:, k]; with `forward`, of x[t + k] * taps[:, k]. x (T, D), taps (D, K)."""
    length, width = x.shape
    reach = taps.shape[1] - 1
    if _has_onednn(x.dtype):
        # oneDNN's depthwise convolution reads (T, D) in place, as a channels-last image. It compiles and caches a
        # program per length among the tensors' memory, which many different lengths would fragment.
        padded = x.new_empty(rounded(length), width)
        padded[:length] = x
        padded[length:] = 0
        image = padded.view(1, 1, -1, width).permute(0, 3, 1, 2)
        y = F.conv2d(image, taps[:, None, None], bias, padding=(0, reach), groups=width)
        y = y.permute(0, 2, 3, 1).view(-1, width)
        return y[reach : reach + length] if forward else y[:length]
    y = x * taps[:, 0 if forward else reach]
    if bias is not None:
        y += bias
    for shift in range(1, min(reach, length - 1) + 1):
        if forward:
            y[:-shift].addcmul_(x[shift:], taps[:, shift])
        else:
            y[shift:].addcmul_(x[:-shift], taps[:, reach - shift])
    return y


def rounded(length: int) -> int:
    """Round up to one of a few lengths, by at most a sixteenth beyond 256."""
    step = max(16, 1 << max(0, length.bit_length() - 5))
    return -(-length // step) * step


class _Borders:
    """Positions where a convolution of width K over the packed axis would read from another document."""

    def __init__(self, packing: Packing, width: int) -> None:
        offset, position = torch.arange(width), packing.position
        left = packing.cu_seqlens.diff().long()[packing.document] - 1 - position
        self.early = (position < width - 1).nonzero()[:, 0]
        before = self.early[:, None] - (width - 1) + offset  # (F, K): positions that an early one reads
        self.before_inside = (width - 1 - offset <= position[self.early, None])[:, :, None]
        self.before_crossed = ~self.before_inside & (before >= 0)[:, :, None]
        self.before = before.clamp_(min=0)
        self.late = (left < width - 1).nonzero()[:, 0]
        self.after = (self.late[:, None] + offset).clamp_(
            max=packing.total - 1
        )  # (F, K): positions that read a late one
        self.after_inside = (offset <= left[self.late, None])[:, :, None]

    @staticmethod
    def of(packing: Packing, width: int) -> _Borders | None:
        if packing.batch_size == 1:
            return None
        return packing.cached(("borders", width), lambda: _Borders(packing, width))


class _CausalConv(torch.autograd.Function):
    """Convolve the packed axis as one document, then recompute the positions that read across a border."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
        taps, borders = weight.to(x.dtype), _Borders.of(packing, weight.shape[1])
        before = _correlate(x, taps, bias.to(x.dtype), forward=False)
        if borders is not None:
            seen = wide(x[borders.before]).masked_fill_(~borders.before_inside, 0)
            before[borders.early] = torch.einsum("fkd,dk->fd", seen, wide(taps)).add_(bias).to(x.dtype)
        ctx.save_for_backward(x, taps, before)
        ctx.borders, ctx.dtypes = borders, (weight.dtype, bias.dtype)
        return F.silu(before)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, before = ctx.saved_tensors
        borders, width, length = ctx.borders, taps.shape[1], len(x)
        grad = torch.ops.aten.silu_backward(grad, before)
        x_grad = _correlate(grad, taps.flip(1), None, forward=True)
        taps_grad = wide(taps).new_zeros(width, len(taps))
        for shift in range(min(width, length)):
            for tile in tiles(length - shift, len(taps)):
                taps_grad[width - 1 - shift] += (grad[shift:][tile] * x[: length - shift][tile]).sum(0)
        if borders is not None:
            crossed = wide(x[borders.before]) * borders.before_crossed
            taps_grad -= torch.einsum("fd,fkd->kd", wide(grad[borders.early]), crossed)
            readers = wide(grad[borders.after]).masked_fill_(~borders.after_inside, 0)
            x_grad[borders.late] = torch.einsum("fkd,dk->fd", readers, wide(taps.flip(1))).to(x.dtype)
        weight_dtype, bias_dtype = ctx.dtypes
        return x_grad, taps_grad.T.to(weight_dtype), grad.sum(0).to(bias_dtype), None


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    return _CausalConv.apply(x, weight, bias, packing)


# -- state space duality -----------------------------------------------------------------------------------------------


class _Scan(torch.autograd.Function):
    """Per block and head: y = [scores | reads] @ [x ; state that enters the block], one product over Q + N positions.

    Names: `decay` (n, H, Q), the log decay summed since the block began; *fade* = exp(decay_i - decay_j) dt_j, between
    two positions; *reads*, C faded since the start of the block; *writes*, B faded until its end. The diagonal of the
    scores also holds D. The gradient of a decay is a difference of two sums of the same products, so that what cancels
    does so exactly.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, packing: Packing
    ) -> Tensor:
        blocks, dtype = packing.blocks(BLOCK), x.dtype
        total, heads, width = x.shape
        n, size, state = blocks.count, blocks.size, B.shape[-1]
        raw = wide(dt) + dt_bias
        step = F.softplus(raw)  # (T, H)
        decay = blocks.split(step * A).cumsum(1).transpose(1, 2).contiguous()
        log_step = blocks.split(step).transpose(1, 2).log().clamp_(min=-80)
        b, c = blocks.split(B).contiguous(), blocks.split(C).contiguous()  # (n, Q, N)
        overlap = torch.bmm(c, b.mT).mul_(blocks.visible)
        mix = x.new_empty(n, heads, size, size + state)
        fade = x.new_empty(n, heads, size, size)
        for tile in tiles(n, heads * size * size):
            between = (decay[tile, :, :, None] - decay[tile, :, None]).add_(log_step[tile, :, None])
            # exp is slow where it underflows. Invisible pairs are multiplied by 0, here and after the gradient in the
            # backward pass, and must stay far from infinity, float16's too. Visible pairs are at most log(dt).
            fade[tile] = between.clamp_(-80, 10).exp_()
            torch.mul(fade[tile], overlap[tile, None], out=mix[tile, ..., :size])
        mix[..., :size].diagonal(dim1=-2, dim2=-1).add_(D[:, None])
        start = decay.exp().mul_(blocks.from_before[:, None]).to(dtype)[..., None]
        torch.mul(c[:, None], start, out=mix[..., size:])

        values = x.new_empty(n, heads, size + state, width)
        values[:, :, :size] = blocks.split(x).transpose(1, 2)
        end = (decay[..., -1:] - decay).add_(log_step).exp_()
        end = (end if blocks.to_end is None else end.mul_(blocks.to_end[:, None])).to(dtype)[..., None]
        writes = b[:, None] * end  # (n, H, Q, N)
        left = wide(torch.matmul(writes.mT, values[:, :, :size]))  # (n, H, N, P): a block's contribution to the state
        keep = blocks.keep(decay[..., -1].exp())[..., None, None]
        entering = torch.zeros_like(left)
        for added, kept, old, new in zip(left, keep, entering, entering[1:], strict=False):
            torch.addcmul(added, kept, old, out=new)
        values[:, :, size:] = entering
        y = torch.matmul(mix, values)
        ctx.save_for_backward(raw, step, A, b, c, overlap, fade, mix, start, values, end, writes, keep, entering)
        ctx.blocks, ctx.dtypes = blocks, [t.dtype for t in (dt, A, D, dt_bias)]
        return blocks.join(y.transpose(1, 2), total)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        raw, step, A, b, c, overlap, fade, mix, start, values, end, writes, keep, entering = ctx.saved_tensors
        blocks, exact, total = ctx.blocks, step.dtype, len(step)
        n, heads, size, _ = fade.shape
        y_grad = blocks.split(y_grad).transpose(1, 2).contiguous()
        values_grad = torch.matmul(mix.mT, y_grad)
        decay_grad, early = start.new_empty(2, n, heads, size, dtype=exact)  # early: as a column, by log_step too
        overlap_grad, c_grad = torch.empty_like(overlap), torch.empty_like(c)
        D_grad = step.new_zeros(heads)
        for tile in tiles(n, heads * size * size):
            mix_grad = torch.matmul(y_grad[tile], values[tile].mT)
            D_grad += mix_grad[..., :size].diagonal(dim1=-2, dim2=-1).sum((0, 2), dtype=exact)
            product = mix_grad[..., :size] * fade[tile]
            torch.sum(product, 1, out=overlap_grad[tile])
            product *= overlap[tile, None]
            early[tile] = product.sum(-2, dtype=exact)
            reads_grad = mix_grad[..., size:]
            decay_grad[tile] = product.sum(-1, dtype=exact)
            decay_grad[tile] += (reads_grad * mix[tile, ..., size:]).sum(-1, dtype=exact)
            torch.sum(reads_grad * start[tile], 1, out=c_grad[tile])

        left_grad = torch.zeros_like(entering)
        entering_grad = wide(values_grad[:, :, size:])
        for m in range(n - 1, 0, -1):
            torch.addcmul(entering_grad[m], keep[m], left_grad[m], out=left_grad[m - 1])
        keep_grad = (left_grad * entering).sum((2, 3)).mul_(keep[..., 0, 0])
        left_grad = left_grad.to(b.dtype)
        writes_grad = torch.matmul(values[:, :, :size], left_grad.mT)
        x_grad = values_grad[:, :, :size] + torch.matmul(writes, left_grad)
        ended = (writes_grad * writes).sum(-1, dtype=exact)
        early += ended
        decay_grad -= early
        decay_grad[..., -1] += ended.sum(-1) + keep_grad
        overlap_grad *= blocks.visible
        c_grad += torch.bmm(overlap_grad, b)
        b_grad = torch.bmm(overlap_grad.mT, c) + (writes_grad * end).sum(1)

        log_grad = blocks.join(decay_grad.flip(-1).cumsum(-1).flip(-1).transpose(1, 2), total)  # by dt * A
        early = blocks.join(early.transpose(1, 2), total)
        raw_grad = (log_grad * A).add_(early / step.clamp_min(1e-35)).mul_(torch.sigmoid(raw))
        dt_dtype, A_dtype, D_dtype, bias_dtype = ctx.dtypes
        return (
            blocks.join(x_grad.transpose(1, 2), total),
            raw_grad.to(dt_dtype),
            (log_grad * step).sum(0).to(A_dtype),
            blocks.join(b_grad, total),
            blocks.join(c_grad, total),
            D_grad.to(D_dtype),
            raw_grad.sum(0).to(bias_dtype),
            None,
        )


def ssd_scan(inputs: ScanInputs, packing: Packing, chunk_size: int = 0) -> Tensor:
    return _Scan.apply(*inputs, packing)


@without_autocast
def ssd_scan_states(inputs: ScanInputs, packing: Packing, chunk_size: int = 0) -> tuple[Tensor, Tensor]:
    return ssd_scan(inputs, packing), own_states(inputs, packing)[1]


# -- attention ---------------------------------------------------------------------------------------------------------


SHORT = 320
"""Longest rows whose scores are materialised: PyTorch's fused attention has a slow backward in bfloat16 on CPUs."""


def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int = -1) -> Tensor:
    return reference_attention(q, k, v, packing, window, _row_attention)


def _row_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    if q.dtype in (torch.float32, torch.float64) or q.shape[2] > SHORT:
        return window_attention(q, k, v, window)
    with torch.autocast("cpu", enabled=False):
        return _ShortAttention.apply(q.contiguous(), k.contiguous(), v.contiguous(), window)


class _ShortAttention(torch.autograd.Function):
    """Causal softmax attention with materialised scores: (B, H, L, P) each."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        scores = wide(q @ k.mT).mul_(q.shape[-1] ** -0.5)
        i = torch.arange(q.shape[2], device=q.device)
        hidden = (i[:, None] < i) | ((i[:, None] - i > window) & (window >= 0))
        scores += torch.zeros_like(scores[0, 0]).masked_fill_(hidden, -1e30)  # exp is slow at -inf
        weights = scores.softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, weights = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grad_weights = wide(grad @ v.mT)
            w = wide(weights)
            product = grad_weights.mul_(w)
            grad_scores = torch.addcmul(product, w, product.sum(-1, keepdim=True), value=-1)
            grad_scores = grad_scores.mul_(q.shape[-1] ** -0.5).to(q.dtype)
            return grad_scores @ k, grad_scores.mT @ q, weights.mT @ grad, None
