"""Our own Triton kernels for a step of generation: few launches, each bound by what it must read of memory.

A Mamba-2 layer takes three: norm, product and convolution; state and gate; norm, product and sum. A Transformer layer
takes five: norm and product; rotary positions, cache and attention; product and sum; norm, product and SwiGLU; product
and sum. Sums are float32 (float64 for float64, in Triton's interpreter). A norm needs no launch of its own: a product
reads every row in whole, so the row is scaled afterwards. Imports Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnet_cli.kernels import reference
from hnet_cli.kernels.reference import EPS, Place, ScanInputs, SSMState

MOST_ROWS = 64
"""Rows up to which weights are read as fast as memory gives them; of more, libraries make better products."""
PROGRAMS = 128
"""Programs that a GPU needs to be busy: about one for each of its processors."""
SPAN = 1 << 40
"""More positions than there are."""


def _wide(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _operand(weight: Tensor) -> Any:
    """The dtype that a product runs in; the interpreter knows no bfloat16 in products."""
    if weight.dtype == torch.bfloat16:
        return tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16
    return _wide(weight)


# -- products ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["total"])  # a program for every number of rows
def _linear(
    x,
    weight,
    norm,
    bias,
    residual,
    out,
    conv_state,
    conv_taps,
    conv_bias,
    rows,
    total,
    width,
    size,
    x_stride,
    residual_stride,
    conv_first,
    conv_width,
    eps,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    TAPS: tl.constexpr,
    SOME: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    HIGH: tl.constexpr,
    DEEP: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Some columns of the result for all rows. TAPS: of the convolution of columns from `conv_first` on; 0: none."""
    column = tl.program_id(0) * HIGH + tl.arange(0, HIGH)
    row = tl.arange(0, ROWS)
    sums = tl.zeros([HIGH, ROWS], WIDE)
    gates = tl.zeros([HIGH, ROWS], WIDE)
    squares = tl.zeros([ROWS], WIDE)
    for start in tl.range(0, size, DEEP, num_stages=STAGES):
        at = start + tl.arange(0, DEEP)
        read = (row[None, :] < total) & (at[:, None] < size)
        part = tl.load(x + row[None, :] * x_stride + at[:, None], read, 0).to(WIDE)
        if NORM:
            squares += tl.sum(part * part, 0)
            part *= tl.load(norm + at, at < size, 0).to(WIDE)[:, None]
        place = weight + column[:, None].to(tl.int64) * size + at[None, :]
        inside = (column[:, None] < width) & (at[None, :] < size)
        part = part.to(weight.dtype.element_ty).to(OPERAND)
        sums = tl.dot(tl.load(place, inside, 0).to(OPERAND), part, sums, input_precision="ieee", out_dtype=WIDE)
        if GATED:
            place += tl.cast(width, tl.int64) * size
            gates = tl.dot(tl.load(place, inside, 0).to(OPERAND), part, gates, input_precision="ieee", out_dtype=WIDE)
    if NORM:
        scale = (1 / tl.sqrt(squares / size + eps))[None, :]
        sums *= scale
        gates *= scale
    column, row = column[:, None], row[None, :]
    inside = (column < width) & (row < total)
    if BIAS:
        sums += tl.load(bias + column, column < width, 0).to(WIDE)
        if GATED:
            gates += tl.load(bias + width + column, column < width, 0).to(WIDE)
    if GATED:
        sums *= gates * tl.sigmoid(gates)
    if RESIDUAL:
        sums += tl.load(residual + row * residual_stride + column, inside, 0).to(WIDE)
    if TAPS > 0:
        channel = column - conv_first
        mixed = inside & (channel >= 0) & (channel < conv_width)
        new = sums.to(out.dtype.element_ty)
        source = row.to(tl.int64)
        if SOME:
            source = tl.load(rows + row, row < total, 0)
        place = conv_state + source * (TAPS - 1) * conv_width + channel
        tap = conv_taps + channel
        y = tl.load(conv_bias + channel, mixed, 0).to(WIDE)
        y += new.to(WIDE) * tl.load(tap + (TAPS - 1) * conv_width, mixed, 0).to(WIDE)
        for past in tl.static_range(TAPS - 1):
            old = tl.load(place + past * conv_width, mixed, 0)
            y += old.to(WIDE) * tl.load(tap + past * conv_width, mixed, 0).to(WIDE)
            if past > 0:
                tl.debug_barrier()  # whoever has a repetition of the row must have read what is overwritten
                tl.store(place + (past - 1) * conv_width, old, mixed)
        if TAPS > 1:
            tl.debug_barrier()
            tl.store(place + (TAPS - 2) * conv_width, new, mixed)
        sums = tl.where(mixed, y * tl.sigmoid(y), sums)
    tl.store(out + row * width + column, sums, inside)


def _launch_linear(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    conv: tuple[Tensor, Tensor, Tensor, int] | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """`conv`: state, taps, bias, first column."""
    assert x.stride(1) == 1
    assert weight.is_contiguous()
    (total, size), width = x.shape, weight.shape[0] // (2 if gated else 1)
    residual = residual if residual is None or residual.stride(1) == 1 else residual.contiguous()
    out = torch.empty(total, width, dtype=(weight if residual is None else residual).dtype, device=x.device)
    state, taps, added, first = conv or (out, out[:0], out, 0)
    high = max(16, triton.next_power_of_2(total))
    deep = 256 // min(weight.element_size(), 4) // (1 if high == 16 else 2)
    _linear[(triton.cdiv(width, 16 if high == 16 else 32),)](
        *(x, weight, *(out if each is None else each for each in (norm, bias, residual))),
        *(out, state, taps, added, out if rows is None else rows),
        *(total, width, size, x.stride(0), 0 if residual is None else residual.stride(0)),
        *(first, taps.shape[1], EPS),
        NORM=norm is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=gated,
        TAPS=len(taps),
        SOME=rows is not None,
        WIDE=_wide(x),
        OPERAND=_operand(weight),
        HIGH=16 if high == 16 else 32,
        DEEP=deep,
        ROWS=high,
        STAGES=4 if high == 16 else 3,
    )
    return out


def step_linear(
    x: Tensor,
    weight: Tensor,
    row_by_row: bool = False,
    norm: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """`reference.step_linear`; one launch."""
    if len(x) > MOST_ROWS:
        return reference.step_linear(x, weight, row_by_row, norm, bias, residual, gated)
    return _launch_linear(x, weight, norm, bias, residual, gated)


def mamba_in_step(
    x: Tensor,
    weight: Tensor,
    norm: Tensor,
    state: Tensor,
    taps: Tensor,
    bias: Tensor,
    split: tuple[int, int, int],
    rows: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`reference.mamba_in_step`; one launch."""
    if len(x) > MOST_ROWS:
        return reference.mamba_in_step(x, weight, norm, state, taps, bias, split, rows)
    return _launch_linear(x, weight, norm, conv=(state, taps, bias, split[0]), rows=rows).split_with_sizes(split, -1)


# -- state space -------------------------------------------------------------------------------------------------------


@triton.jit
def _softplus(x):
    """log(1 + e^x), also where e^x is small beside 1."""
    small = tl.exp(-tl.abs(x))
    more = 1 + small
    exact = tl.where(more == 1, small, tl.log(more) * (small / tl.where(more == 1, 1, more - 1)))
    return tl.maximum(x, 0) + exact


@triton.jit(do_not_specialize=["total"])
def _ssd(
    state,
    x,
    dt,
    decay,
    keys,
    queries,
    skip,
    dt_bias,
    gate,
    out,
    source,
    total,
    heads,
    width,
    size,
    x_stride,
    dt_stride,
    keys_stride,
    queries_stride,
    gate_stride,
    GATED: tl.constexpr,
    SOME: tl.constexpr,
    REPEATED: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Some coordinates of a head of a row. REPEATED: `source` is -1 for repetitions of the first row, which writes
    their results: a program of their own would read what it has updated."""
    row, head = tl.program_id(0), tl.program_id(1)
    of = row.to(tl.int64)
    if SOME:
        of = tl.load(source + row)
    at = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, SIZE)
    alive = at < tl.where(of < 0, 0, width)
    step = _softplus(tl.load(dt + row * dt_stride + head).to(WIDE) + tl.load(dt_bias + head).to(WIDE))
    value = tl.load(x + row * x_stride + head * width + at, alive, 0).to(WIDE)
    key = tl.load(keys + row * keys_stride + n, n < size, 0).to(WIDE)
    query = tl.load(queries + row * queries_stride + n, n < size, 0).to(WIDE)
    place = state + ((of * heads + head) * width + at)[:, None] * size + n[None, :]
    inside = alive[:, None] & (n < size)[None, :]
    new = tl.load(place, inside, 0).to(WIDE) * tl.exp(step * tl.load(decay + head).to(WIDE))
    new += (value * step)[:, None] * key[None, :]
    tl.debug_barrier()  # threads may share what is read
    tl.store(place, new, inside)
    y = tl.sum(new * query[None, :], 1) + value * tl.load(skip + head).to(WIDE)
    if GATED:
        opened = tl.load(gate + row * gate_stride + head * width + at, alive, 0).to(WIDE)
        y *= opened * tl.sigmoid(opened)
    result = out + head * width + at
    tl.store(result + row * heads * width, y, alive)
    if REPEATED:
        for other in range(1, tl.where(row == 0, total, 1)):
            again = at < tl.where(tl.load(source + other) < 0, width, 0)
            tl.store(result + other * heads * width, y, again)


def ssd_step(
    state: SSMState,
    inputs: ScanInputs,
    rows: Tensor | None = None,
    once: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`reference.ssd_step`; one launch."""
    x, dt, A, B, C, D, dt_bias = inputs
    total, heads, width = x.shape
    size, value = B.shape[1], state.value
    x = x if x.stride()[1:] == (width, 1) else x.contiguous()
    out = x.new_empty(total, heads * width, dtype=x.dtype if gate is None else value.dtype)
    source = rows if once is None else once
    high = min(16, triton.next_power_of_2(width))
    _ssd[(total, heads, triton.cdiv(width, high))](
        *(value, x, dt, A, B, C, D, dt_bias, x if gate is None else gate, out, x if source is None else source),
        *(total, heads, width, size, x.stride(0), dt.stride(0), B.stride(0), C.stride(0)),
        0 if gate is None else gate.stride(0),
        GATED=gate is not None,
        SOME=source is not None,
        REPEATED=once is not None,
        WIDE=_wide(value),
        WIDTH=high,
        SIZE=triton.next_power_of_2(size),
    )
    return out.view(x.shape) if gate is None else out


# -- attention ---------------------------------------------------------------------------------------------------------


@triton.jit
def _turned(x, cos, sin, at, width, half, WIDE: tl.constexpr):
    """A head with its rotary position."""
    value = tl.load(x + at, at < width, 0).to(WIDE)
    low, turned = at < half, at < 2 * half
    other = tl.load(x + tl.where(low, at + half, at - half), turned, 0).to(WIDE)
    angle = tl.where(low, at, at - half)
    c, s = tl.load(cos + angle, turned, 0).to(WIDE), tl.load(sin + angle, turned, 0).to(WIDE)
    return tl.where(turned, value * c + tl.where(low, -s, s) * other, value)


@triton.jit
def _attend(
    qkv,
    cos,
    sin,
    keys,
    values,
    position,
    rows,
    out,
    partial,
    weights,
    arrived,
    heads,
    width,
    half,
    span,
    used,
    cache_row,
    cache_position,
    scale,
    SOME: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One head of a row over a share of its positions; whoever is the last to be done puts the shares together.

    The new key and value are those of the first share, so that none reads what another writes. partial (R H, SPLITS,
    WIDTH) and weights (R H, SPLITS, 2): sums of each share, its largest score and its sum of exponentials.
    """
    line, split = tl.program_id(0), tl.program_id(1)
    row, head = line // heads, line % heads
    of = row.to(tl.int64)
    if SOME:
        of = tl.load(rows + row)
    seen = tl.load(position + row)
    slot = seen % span
    length = tl.minimum(seen + 1, used)
    at = tl.arange(0, WIDTH)
    whole = at < width
    first = qkv + row * 3 * heads * width + head * width
    query = _turned(first, cos + row * half, sin + row * half, at, width, half, WIDE) * scale
    place = of * cache_row + head * width + at
    most = tl.full([], -1e30, WIDE)
    summed = tl.full([], 0, WIDE)
    y = tl.zeros([WIDTH], WIDE)
    if split == 0:
        key = _turned(first + heads * width, cos + row * half, sin + row * half, at, width, half, WIDE)
        key = key.to(keys.dtype.element_ty)
        value = tl.load(first + 2 * heads * width + at, whole, 0).to(values.dtype.element_ty)
        tl.store(keys + place + slot * cache_position, key, whole)
        tl.store(values + place + slot * cache_position, value, whole)
        most = tl.sum(query * key.to(WIDE), 0)
        summed = tl.full([], 1, WIDE)
        y = value.to(WIDE)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    end = tl.minimum(length, (split + 1) * share)
    for start in range(split * share, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        old = (index < end) & (index != slot)
        there = index[:, None] * cache_position + place[None, :]
        inside = old[:, None] & whole[None, :]
        score = tl.sum(tl.load(keys + there, inside, 0).to(WIDE) * query[None, :], 1)
        score = tl.where(old, score, float("-inf"))
        higher = tl.maximum(most, tl.max(score, 0))
        share_of = tl.exp(score - higher)
        fade = tl.exp(most - higher)
        y = y * fade + tl.sum(share_of[:, None] * tl.load(values + there, inside, 0).to(WIDE), 0)
        summed = summed * fade + tl.sum(share_of, 0)
        most = higher
    if SPLITS == 1:
        tl.store(out + line * width + at, y / summed, whole)
    else:
        mine = line * SPLITS + split
        tl.store(partial + mine * WIDTH + at, y)
        tl.store(weights + mine * 2, most)
        tl.store(weights + mine * 2 + 1, summed)
        tl.debug_barrier()  # all threads have stored before one of them says so
        if tl.atomic_add(arrived + line, 1, sem="acq_rel") == SPLITS - 1:
            every = line * SPLITS + tl.arange(0, SPLITS)
            largest = tl.load(weights + every * 2, cache_modifier=".cg")
            part_of = tl.exp(largest - tl.max(largest, 0))
            divisor = tl.sum(part_of * tl.load(weights + every * 2 + 1, cache_modifier=".cg"), 0)
            parts = tl.load(partial + every[:, None] * WIDTH + at[None, :], cache_modifier=".cg")
            tl.store(out + line * width + at, tl.sum(part_of[:, None] * parts, 0) / divisor, whole)
            tl.store(arrived + line, 0)


def attention_step(qkv: Tensor, tables: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, place: Place) -> Tensor:
    """`reference.attention_step`; one launch. Shares of the positions are as many as fill a GPU; the host knows the
    longest row only by `place.used`, so that a recording is right for every length."""
    total, _, heads, width = qkv.shape
    out, lines, block = qkv.new_empty(total, heads, width), total * heads, 64
    columns = triton.next_power_of_2(width)
    most = triton.next_power_of_2(triton.cdiv(place.used, block))
    splits = min(most, max(1, PROGRAMS // triton.next_power_of_2(lines)), 64)
    high = torch.promote_types(qkv.dtype, torch.float32)
    partial, weights, arrived = out, out, out
    if splits > 1:
        partial, weights = (qkv.new_empty(lines, splits, n, dtype=high) for n in (columns, 2))
        arrived = place.counters(lines)
    assert qkv.is_contiguous()
    assert keys.stride()[2:] == (width, 1)
    assert keys.stride() == values.stride()
    _attend[(lines, splits)](
        *(qkv, *tables, keys, values, place.position, out if place.rows is None else place.rows),
        *(out, partial, weights, arrived, heads, width, tables[0].shape[-1]),
        *(SPAN if place.window < 0 else place.window + 1, place.used, keys.stride(0), keys.stride(1), width**-0.5),
        SOME=place.rows is not None,
        SPLITS=splits,
        BLOCK=block,
        WIDE=_wide(qkv),
        WIDTH=columns,
    )
    return out


# -- chunking ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["total"])
def _boundary(
    both,
    last,
    prob,
    source,
    total,
    width,
    SOME: tl.constexpr,
    REPEATED: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """SOME and REPEATED as for `_ssd`."""
    row = tl.program_id(0)
    of = row.to(tl.int64)
    if SOME:
        of = tl.load(source + row)
    at = tl.arange(0, COLUMNS)
    alive = at < tl.where(of < 0, 0, width)
    key = tl.load(both + row * 2 * width + at, alive, 0).to(WIDE)
    query = tl.load(both + row * 2 * width + width + at, alive, 0).to(WIDE)
    before = tl.load(last + of * width + at, alive, 0).to(WIDE)
    length = tl.maximum(tl.sqrt(tl.sum(key * key, 0)), 1e-8) * tl.maximum(tl.sqrt(tl.sum(before * before, 0)), 1e-8)
    p = tl.minimum(tl.maximum((1 - tl.sum(key * before, 0) / length) / 2, 0), 1)
    tl.store(last + of * width + at, query, alive)
    tl.store(prob + row, p, of >= 0)
    if REPEATED:
        for other in range(1, tl.where(row == 0, total, 1)):
            tl.store(prob + other, p, tl.load(source + other) < 0)


def router_step(
    hidden: Tensor, projection: Tensor, last: Tensor, rows: Tensor | None = None, once: Tensor | None = None
) -> Tensor:
    """`reference.router_step`; two launches."""
    both = step_linear(hidden, projection)
    prob, source = both.new_empty(len(both)), rows if once is None else once
    _boundary[(len(both),)](
        *(both, last, prob, both if source is None else source, len(both), last.shape[1]),
        SOME=source is not None,
        REPEATED=once is not None,
        WIDE=_wide(both),
        COLUMNS=triton.next_power_of_2(last.shape[1]),
    )
    return prob


@triton.jit
def _average(x, prob, average, source, width, x_stride, SOME: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0)
    of = row.to(tl.int64)
    if SOME:
        of = tl.load(source + row)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    alive = at < tl.where(of < 0, 0, width)
    weight = tl.minimum(tl.maximum(tl.load(prob + row).to(WIDE), 1e-4), 1 - 1e-4)
    old = tl.load(average + of * width + at, alive, 0).to(WIDE)
    new = tl.load(x + row * x_stride + at, alive, 0).to(WIDE)
    tl.store(average + of * width + at, old + weight * (new - old), alive)


def ema_step(x: Tensor, prob: Tensor, average: Tensor, rows: Tensor | None = None, once: Tensor | None = None) -> None:
    """`reference.ema_step`; one launch."""
    source = rows if once is None else once
    width, columns = average.shape[1], 256
    assert x.stride(1) == 1
    _average[(len(x), triton.cdiv(width, columns))](
        *(x, prob, average, x if source is None else source, width, x.stride(0)),
        SOME=source is not None,
        WIDE=_wide(average),
        COLUMNS=columns,
    )
