"""Our own Triton kernels for what lies between the matrix products of a layer, forward and backward.

One pass over memory each: rotary positions in place, the causal convolution with SiLU, SwiGLU, and the two norms. Rows
of an input may lie apart, as parts of a larger product do, whose gradients are then written into that of the product
(`joint`); results are contiguous. Arithmetic is float32. Gradients of weights are summed in a fixed order, so that a
step gives the same bits every time. Imports Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from hnet_cli.kernels import joint, reference
from hnet_cli.kernels.packing import Packing

TILE = 4096
"""Elements that a program handles at once; a row of a norm may be longer."""
STRIPES = 256
"""Programs that sum the gradient of a weight, each over its own tiles of rows."""


def _rows(x: Tensor) -> Tensor:
    """x (..., D) as (T, D) with a contiguous last axis."""
    x = x.flatten(0, -2)
    return x if x.stride(-1) == 1 else x.contiguous()


def _norm_tile(width: int) -> tuple[int, int]:
    """Rows and columns of a tile that holds whole rows."""
    columns = triton.next_power_of_2(width)
    return max(1, min(32, TILE // columns)), columns


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns of a tile for work on columns that are independent of each other."""
    columns = min(128, triton.next_power_of_2(width))
    return TILE // columns // 4, columns


# -- SwiGLU ------------------------------------------------------------------------------------------------------------


@triton.jit
def _swiglu(x, y, total, width, x_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < total) & (column < width)
    value = tl.load(x + row * x_stride + column, inside, 0).to(tl.float32)
    gate = tl.load(x + row * x_stride + width + column, inside, 0).to(tl.float32)
    tl.store(y + row * width + column, value * gate * tl.sigmoid(gate), inside)


@triton.jit
def _swiglu_gradient(dy, x, dx, total, width, dy_stride, x_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < total) & (column < width)
    grad = tl.load(dy + row * dy_stride + column, inside, 0).to(tl.float32)
    value = tl.load(x + row * x_stride + column, inside, 0).to(tl.float32)
    gate = tl.load(x + row * x_stride + width + column, inside, 0).to(tl.float32)
    share = tl.sigmoid(gate)
    tl.store(dx + row * 2 * width + column, grad * gate * share, inside)
    tl.store(dx + row * 2 * width + width + column, grad * value * share * (1 + gate * (1 - share)), inside)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        rows, width = _rows(x), x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        if y.numel():
            high, wide = _tile(width)
            grid = triton.cdiv(len(rows), high), triton.cdiv(width, wide)
            _swiglu[grid](rows, y, len(rows), width, rows.stride(0), ROWS=high, COLUMNS=wide)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        rows, grad, width = _rows(x), _rows(grad), x.shape[-1] // 2
        dx = x.new_empty(x.shape)
        if dx.numel():
            high, wide = _tile(width)
            grid = triton.cdiv(len(rows), high), triton.cdiv(width, wide)
            strides = grad.stride(0), rows.stride(0)
            _swiglu_gradient[grid](grad, rows, dx, len(rows), width, *strides, ROWS=high, COLUMNS=wide)
        return dx


def swiglu(x: Tensor) -> Tensor:
    """`reference.swiglu`."""
    y: Tensor = _SwiGLU.apply(x)
    return y


# -- rotary positions --------------------------------------------------------------------------------------------------


@triton.jit
def _rotate(x, cos, sin, total, heads, width, half, stride, ROWS: tl.constexpr, HALF: tl.constexpr):
    """Turn heads in place; a thread has both coordinates of a pair, so none reads what another has written."""
    at = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, HALF)[None, :]
    row = at // heads
    inside = (row < total) & (column < half)
    place = x + row * stride + (at % heads) * width + column
    a, b = tl.load(place, inside, 0).to(tl.float32), tl.load(place + half, inside, 0).to(tl.float32)
    c = tl.load(cos + row * half + column, inside, 0).to(tl.float32)
    s = tl.load(sin + row * half + column, inside, 0).to(tl.float32)
    tl.store(place, a * c - b * s, inside)
    tl.store(place + half, b * c + a * s, inside)


@triton.jit
def _rotate_gradient(
    dy, dx, cos, sin, total, heads, width, half, dy_stride, dx_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Turn a gradient back, from its place to that in the gradient of the product."""
    at = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    row, head = at // heads, at % heads
    inside = (row < total) & (column < width)
    turned = inside & (column < 2 * half)
    low = column < half
    source = dy + row * dy_stride + head * width
    grad = tl.load(source + column, inside, 0).to(tl.float32)
    other = tl.load(source + tl.where(low, column + half, column - half), turned, 0).to(tl.float32)
    angle = row * half + tl.where(low, column, column - half)
    c, s = tl.load(cos + angle, turned, 0).to(tl.float32), tl.load(sin + angle, turned, 0).to(tl.float32)
    result = tl.where(turned, grad * c + tl.where(low, s, -s) * other, grad)
    tl.store(dx + row * dx_stride + head * width + column, result, inside)


class _Rotary(torch.autograd.Function):
    """The product qkv is overwritten: a linear map does not keep its result, and nobody else has it."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        total, _, heads, width = qkv.shape
        half = cos.shape[-1]
        if total and half:
            columns = triton.next_power_of_2(half)
            high = max(1, TILE // columns // 4)
            grid = (triton.cdiv(total * 2 * heads, high),)
            _rotate[grid](qkv, cos, sin, total, 2 * heads, width, half, qkv.stride(0), ROWS=high, HALF=columns)
        return qkv.detach().unbind(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        total, heads, width = grads[0].shape
        half = cos.shape[-1]
        dx = grads[0].new_empty(total, 3, heads, width)
        dx[:, 2].copy_(grads[2])
        columns = triton.next_power_of_2(width)
        high = max(1, TILE // columns // 4)
        for part, grad in enumerate(grads[:2]):
            if total:
                grad = grad if grad.stride()[1:] == (width, 1) else grad.contiguous()
                grid, place = (triton.cdiv(total * heads, high),), dx[:, part]
                sizes = total, heads, width, half, grad.stride(0), dx.stride(0)
                _rotate_gradient[grid](grad, place, cos, sin, *sizes, ROWS=high, COLUMNS=columns)
        return dx, None, None


def rotary(qkv: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.rotary`, in place: q, k and v are parts of `qkv`."""
    if qkv.stride()[1:] != (qkv.shape[2] * qkv.shape[3], qkv.shape[3], 1):
        qkv = qkv.contiguous()
    return _Rotary.apply(qkv, *tables)


# -- causal convolution ------------------------------------------------------------------------------------------------


@triton.jit
def _conv(
    x, weight, bias, position, y, total, width, x_stride, TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < total) & (column < width)
    at = tl.load(position + row, row < total, -1)
    out = tl.load(bias + column, column < width, 0).to(tl.float32) + tl.zeros([ROWS, COLUMNS], tl.float32)
    for shift in tl.static_range(TAPS):
        tap = tl.load(weight + column * TAPS + (TAPS - 1 - shift), column < width, 0).to(tl.float32)
        out += tap * tl.load(x + (row - shift) * x_stride + column, inside & (at >= shift), 0).to(tl.float32)
    tl.store(y + row * width + column, out * tl.sigmoid(out), inside)


@triton.jit
def _conv_gradient(
    dy,
    x,
    weight,
    bias,
    position,
    dx,
    sums,
    total,
    width,
    dy_stride,
    x_stride,
    dx_stride,
    TAPS: tl.constexpr,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The convolution is computed again where it is needed. sums (stripes, SUMS, width): gradients of the taps, last
    one first, then of the bias."""
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    real = column < width
    added = tl.load(bias + column, real, 0).to(tl.float32)
    which = tl.arange(0, SUMS)[:, None]
    summed = tl.zeros([SUMS, COLUMNS], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(total, ROWS), tl.num_programs(0)):
        first = (tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
        result = tl.zeros([ROWS, COLUMNS], tl.float32)
        for ahead in tl.static_range(TAPS):
            row = first + ahead
            at = tl.load(position + row, row < total, -1)
            used = (at >= ahead) & real  # the position `ahead` later is of the same document
            out = added + tl.zeros([ROWS, COLUMNS], tl.float32)
            for shift in tl.static_range(TAPS):
                tap = tl.load(weight + column * TAPS + (TAPS - 1 - shift), real, 0).to(tl.float32)
                out += tap * tl.load(x + (row - shift) * x_stride + column, used & (at >= shift), 0).to(tl.float32)
            share = tl.sigmoid(out)
            grad = tl.load(dy + row * dy_stride + column, used, 0).to(tl.float32) * share * (1 + out * (1 - share))
            result += grad * tl.load(weight + column * TAPS + (TAPS - 1 - ahead), real, 0).to(tl.float32)
            if ahead == 0:
                summed += tl.where(which == TAPS, tl.sum(grad, 0)[None, :], 0)
                for shift in tl.static_range(TAPS):
                    earlier = tl.load(x + (row - shift) * x_stride + column, used & (at >= shift), 0).to(tl.float32)
                    summed += tl.where(which == shift, tl.sum(grad * earlier, 0)[None, :], 0)
        tl.store(dx + first * dx_stride + column, result, (first < total) & real)
    place = sums + tl.program_id(0).to(tl.int64) * SUMS * width + which * width + column
    tl.store(place, summed, real & (which < SUMS))


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, position)
        ctx.room = joint.room(x)
        x, taps = _rows(x), weight.shape[1]
        total, width = x.shape
        y = x.new_empty(total, width)
        if y.numel():
            high, wide = _tile(width)
            grid = triton.cdiv(total, high), triton.cdiv(width, wide)
            given = (x, weight.contiguous(), bias, position, y, total, width, x.stride(0))
            _conv[grid](*given, TAPS=taps, ROWS=high, COLUMNS=wide)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, position = ctx.saved_tensors
        dx = ctx.room(x)
        x, grad, taps = _rows(x), _rows(grad), weight.shape[1]
        total, width = x.shape
        high, wide = _tile(width)
        stripes, rows = min(STRIPES, triton.cdiv(total, high)), triton.next_power_of_2(taps + 1)
        sums = x.new_zeros(stripes, rows, width, dtype=torch.float32)
        if dx.numel():
            grid = stripes, triton.cdiv(width, wide)
            given = (grad, x, weight.contiguous(), bias, position, dx, sums)
            sizes = total, width, grad.stride(0), x.stride(0), dx.stride(0)
            _conv_gradient[grid](*given, *sizes, TAPS=taps, SUMS=rows, ROWS=high, COLUMNS=wide)
        summed = sums.sum(0)
        return dx, summed[:taps].flip(0).T.to(weight.dtype), summed[taps].to(bias.dtype), None


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    """`reference.causal_conv`."""
    y: Tensor = _Conv.apply(x, weight, bias, packing.position)
    return y


# -- norms -------------------------------------------------------------------------------------------------------------


@triton.jit
def _through_norm(grad, x, scale, width):
    """Gradient by rows from that by x, the rows times `scale`, of which every row's mean square is 1."""
    return scale * (grad - x * (tl.sum(grad * x, 1) / width)[:, None])


@triton.jit
def _add_norm(
    hidden,
    residual,
    weight,
    normed,
    added,
    scales,
    total,
    width,
    hidden_stride,
    eps,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """FIRST: there is no residual yet."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < total) & (column < width)
    x = tl.load(hidden + row * hidden_stride + column, inside, 0).to(tl.float32)
    if not FIRST:
        x += tl.load(residual + row * width + column, inside, 0)
    tl.store(added + row * width + column, x, inside)
    scale = 1 / tl.sqrt(tl.sum(x * x, 1) / width + eps)
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tl.store(scales + line, scale, line < total)
    w = tl.load(weight + column, column < width, 0).to(tl.float32)
    tl.store(normed + row * width + column, x * scale[:, None] * w, inside)


@triton.jit
def _add_norm_gradient(
    dy,
    dadded,
    added,
    weight,
    scales,
    dhidden,
    dresidual,
    sums,
    total,
    width,
    dy_stride,
    eps,
    ALONE: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """ALONE: the stream itself has no gradient. FIRST: nothing was added. sums (stripes, width): gradient of weight."""
    column = tl.arange(0, COLUMNS)[None, :]
    w = tl.load(weight + column, column < width, 0).to(tl.float32)
    summed = tl.zeros([1, COLUMNS], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(total, ROWS), tl.num_programs(0)):
        line = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        row = line[:, None]
        inside = (row < total) & (column < width)
        scale = tl.load(scales + line, line < total, 0)[:, None]
        x = tl.load(added + row * width + column, inside, 0) * scale
        grad = tl.load(dy + row * dy_stride + column, inside, 0).to(tl.float32)
        summed += tl.sum(grad * x, 0)[None, :]
        grad = _through_norm(grad * w, x, scale, width)
        if not ALONE:
            grad += tl.load(dadded + row * width + column, inside, 0)
        tl.store(dhidden + row * width + column, grad, inside)
        if not FIRST:
            tl.store(dresidual + row * width + column, grad, inside)
    tl.store(sums + tl.program_id(0).to(tl.int64) * width + column, summed, column < width)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        rows, shape = _rows(hidden), hidden.shape
        total, width = rows.shape
        normed, added = hidden.new_empty(shape, dtype=dtype), hidden.new_empty(shape, dtype=torch.float32)
        scales = hidden.new_empty(total, dtype=torch.float32)
        if total:
            high, wide = _norm_tile(width)
            stream = added if residual is None else residual.contiguous()
            given = (rows, stream, weight, normed, added, scales, total, width, rows.stride(0), eps)
            _add_norm[(triton.cdiv(total, high),)](*given, FIRST=residual is None, ROWS=high, COLUMNS=wide)
        ctx.save_for_backward(added, weight, scales)
        ctx.set_materialize_grads(False)
        ctx.given = hidden.dtype, residual is None, eps
        return normed, added

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, dadded: Tensor | None) -> tuple[Tensor | None, ...]:
        added, weight, scales = ctx.saved_tensors
        dtype, first, eps = ctx.given
        if grad is None:
            assert dadded is not None
            return dadded.to(dtype), None if first else dadded, None, None, None
        x, rows = _rows(added), _rows(grad)
        total, width = x.shape
        high, wide = _norm_tile(width)
        stripes = min(STRIPES, triton.cdiv(total, high))
        dhidden = added.new_empty(added.shape, dtype=dtype)
        dresidual = dhidden if first or dtype == torch.float32 else torch.empty_like(added)
        sums = added.new_zeros(stripes, width)
        if total:
            stream = x if dadded is None else dadded.contiguous()
            given = (rows, stream, x, weight, scales, dhidden, dresidual, sums, total, width, rows.stride(0), eps)
            same = dresidual is dhidden
            _add_norm_gradient[(stripes,)](*given, ALONE=dadded is None, FIRST=same, ROWS=high, COLUMNS=wide)
        return dhidden, None if first else dresidual, sums.sum(0).to(weight.dtype), None, None


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`reference.add_rms_norm`."""
    return _AddNorm.apply(hidden, residual, weight, eps, reference.product_dtype(weight))


@triton.jit
def _gated_norm(
    y, gate, weight, out, scales, total, width, y_stride, gate_stride, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row, column = line[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = (row < total) & (column < width)
    open_ = tl.load(gate + row * gate_stride + column, inside, 0).to(tl.float32)
    x = tl.load(y + row * y_stride + column, inside, 0).to(tl.float32) * open_ * tl.sigmoid(open_)
    scale = 1 / tl.sqrt(tl.sum(x * x, 1) / width + eps)
    tl.store(scales + line, scale, line < total)
    w = tl.load(weight + column, column < width, 0).to(tl.float32)
    tl.store(out + row * width + column, x * scale[:, None] * w, inside)


@triton.jit
def _gated_norm_gradient(
    dout,
    y,
    gate,
    weight,
    scales,
    dy,
    dgate,
    sums,
    total,
    width,
    dout_stride,
    y_stride,
    gate_stride,
    dgate_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)[None, :]
    w = tl.load(weight + column, column < width, 0).to(tl.float32)
    summed = tl.zeros([1, COLUMNS], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(total, ROWS), tl.num_programs(0)):
        line = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        row = line[:, None]
        inside = (row < total) & (column < width)
        scale = tl.load(scales + line, line < total, 0)[:, None]
        value = tl.load(y + row * y_stride + column, inside, 0).to(tl.float32)
        open_ = tl.load(gate + row * gate_stride + column, inside, 0).to(tl.float32)
        share = tl.sigmoid(open_)
        x = value * open_ * share * scale
        grad = tl.load(dout + row * dout_stride + column, inside, 0).to(tl.float32)
        summed += tl.sum(grad * x, 0)[None, :]
        grad = _through_norm(grad * w, x, scale, width)
        tl.store(dy + row * width + column, grad * open_ * share, inside)
        tl.store(dgate + row * dgate_stride + column, grad * value * share * (1 + open_ * (1 - share)), inside)
    tl.store(sums + tl.program_id(0).to(tl.int64) * width + column, summed, column < width)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        values, gates = _rows(y), _rows(gate)
        total, width = values.shape
        out, scales = y.new_empty(y.shape), y.new_empty(total, dtype=torch.float32)
        if total:
            high, wide = _norm_tile(width)
            given = (values, gates, weight, out, scales, total, width, values.stride(0), gates.stride(0), eps)
            _gated_norm[(triton.cdiv(total, high),)](*given, ROWS=high, COLUMNS=wide)
        ctx.save_for_backward(y, gate, weight, scales)
        ctx.room = joint.room(gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, weight, scales = ctx.saved_tensors
        values, gates, grad = _rows(y), _rows(gate), _rows(grad)
        total, width = values.shape
        high, wide = _norm_tile(width)
        stripes = min(STRIPES, triton.cdiv(total, high))
        dy, dgate = y.new_empty(y.shape), ctx.room(gate)
        sums = y.new_zeros(stripes, width, dtype=torch.float32)
        if total:
            strides = grad.stride(0), values.stride(0), gates.stride(0), dgate.stride(-2)
            given = (grad, values, gates, weight, scales, dy, dgate, sums, total, width, *strides)
            _gated_norm_gradient[(stripes,)](*given, ROWS=high, COLUMNS=wide)
        return dy, dgate, sums.sum(0).to(weight.dtype), None


def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.gated_rms_norm`."""
    out: Tensor = _GatedNorm.apply(y, gate, weight, eps)
    return out
