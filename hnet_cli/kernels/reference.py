"""Plain PyTorch: the definition of every operation, on any device and in any floating dtype.

Shapes: T packed positions, B documents, H heads, P head size, N state size, K convolution width, D channels. Everything
that accumulates (decays, states, norms) is at least float32, whatever the inputs; float64 stays float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.kernels.packing import Blocks, Packing

BLOCK = 64
"""Block length of the scans: work inside a block grows with it, work between blocks shrinks."""
EPS = 1e-5
"""Added to the mean square in the norms of a step."""
GROUP = 64
"""Blocks whose states one product passes on; longer sequences loop over groups."""
QUERIES = 256
"""Queries whose attention within a window is computed at once."""


def wide(x: Tensor) -> Tensor:
    """x upcast to float32 unless it is float32 or float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


WITHOUT_FLOAT64 = frozenset({"mps"})
"""Device types."""


def exact(device: torch.device) -> torch.dtype:
    """The dtype for long sums and for differences of large sums: float64, or float32 on devices without it."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


# -- norms -------------------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """x / rms(x) * weight over the last axis; result in `dtype` (default: that of x)."""
    x32 = wide(x)
    y = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight
    return y.to(dtype or x.dtype)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that products with this weight run in: autocast's, else its own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add `hidden` (T, D) to the residual stream and norm the sum: (normed, new residual).

    The stream is float32 or wider; `normed` has the dtype that products run in.
    """
    return add_rms_norm_to(hidden, residual, weight, eps, product_dtype(weight))


def add_rms_norm_to(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` with `normed` in `dtype`."""
    residual = wide(hidden) if residual is None else residual + hidden
    return rms_norm(residual, weight, eps, dtype), residual


def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm(y * silu(gate)): the norm inside a Mamba-2 mixer. (..., D) -> (..., D) in the dtype of y."""
    return rms_norm(wide(y) * F.silu(wide(gate)), weight, eps, y.dtype)


def swiglu(x: Tensor) -> Tensor:
    """(..., 2F) -> (..., F): the first half times silu of the second (the official order)."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.silu(gate)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map whatever dtype products run in: x (T, D), weight (E, D) -> (T, E), float32 or wider.

    It runs in the dtype of the weight, also under autocast: cosines near 0 decide about boundaries.
    """
    x = x.to(weight.dtype)
    if not torch.is_autocast_enabled(x.device.type):  # entering a context costs a step as much as the product
        return wide(F.linear(x, weight, bias))
    with torch.autocast(x.device.type, enabled=False):
        return wide(F.linear(x, weight, bias))


def step_weight(weight: Tensor, batch_size: int) -> Tensor:
    """A weight (E, D) in the layout that `step_linear` prefers at this batch size; may be a copy."""
    return weight


def step_linear(
    x: Tensor,
    weight: Tensor,
    row_by_row: bool = False,
    norm: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    product: Callable[[Tensor, Tensor, bool], Tensor] = lambda x, weight, row_by_row: F.linear(x, weight),
) -> Tensor:
    """The linear map of a step with what lies around it: x (R, D), weight (E, D) -> (R, E), or `gated` (R, E/2).

    `norm` (D,) in the dtype of x: the weight of a norm of x before; `bias` (E,); `gated`: `swiglu` of the result;
    `residual` (R, E), float32 or wider: added at the end. Without a residual the result has the dtype of the weight;
    it is surely contiguous only if `row_by_row`. `product` (x, weight, row_by_row) is the map itself.
    """
    if norm is not None:
        x = F.rms_norm(x, norm.shape, norm, EPS)
    y = product(x.to(weight.dtype), weight, row_by_row)
    y = y if bias is None else y + bias
    y = swiglu(y) if gated else y
    return y if residual is None else residual + y


def mamba_in_step(
    x: Tensor,
    weight: Tensor,
    norm: Tensor,
    state: Tensor,
    taps: Tensor,
    bias: Tensor,
    split: tuple[int, int, int],
    rows: Tensor | None = None,
    linear: Callable[..., Tensor] = step_linear,
    conv: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """The first part of a Mamba-2 layer: `step_linear` of the norm of x (R, D), then `causal_conv_step` of the middle.

    Returns gate, convolved, and dt, (R, n) for each n of `split`. `norm`, `state`, `taps`, `bias` and `rows` as for
    those two, which `linear` and `conv` are.
    """
    gate, middle, dt = linear(x, weight, True, norm).split_with_sizes(split, -1)
    return gate, (conv or causal_conv_step)(middle, state, taps, bias, rows), dt


# -- rotary positions --------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first 2 * cos.shape[-1] coordinates, half-split. x (..., H, P); cos, sin (..., 1, R)."""
    half = cos.shape[-1]
    if half == 0:
        return x
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def rotary(qkv: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (T, H, P) from qkv (T, 3, H, P), which may be overwritten: q and k turned by `tables`,
    cos and sin (T, 1, 1, R)."""
    qk, v = qkv.split((2, 1), dim=1)
    q, k = rotate(qk, *tables).unbind(1)
    return q, k, v.squeeze(1)


# -- causal convolution ------------------------------------------------------------------------------------------------


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    """SiLU of a depthwise causal convolution within each document: x (T, D), weight (D, K), bias (D,) -> (T, D)."""
    taps = weight.to(x.dtype).unbind(1)
    y = torch.addcmul(bias.to(x.dtype), x, taps[-1])
    for shift, tap in enumerate(taps[-2::-1][: len(x) - 1], start=1):
        inside = (packing.position[shift:] >= shift).to(x.dtype)[:, None]
        y = y + F.pad(x[:-shift] * inside * tap, (0, 0, shift, 0))
    return F.silu(y)


def causal_conv_step(x: Tensor, state: Tensor, taps: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
    """One position of `causal_conv` for R rows (None: all): x (R, D), taps (K, D); updates state (B, K-1, D)."""
    window = torch.cat([state if rows is None else state[rows], x.unsqueeze(1)], 1)
    if rows is None:
        state.copy_(window[:, 1:])
    else:
        state[rows] = window[:, 1:]
    return F.silu((window * taps).sum(1).add_(bias), inplace=True)


# -- state space duality -----------------------------------------------------------------------------------------------


def pass_states(states: Tensor, log_decay: Tensor, blocks: Blocks) -> Tensor:
    """States at the start of each block, from each block's contribution.

    states (n, H, S): state that block m alone leaves at its end; log_decay (n, H): decay over a whole block. Returns
    (n, H, S) for the document that crosses into the block (other documents must ignore it). Each group of blocks is one
    product.
    """
    outs: list[Tensor] = []
    carry = None
    for start in range(0, blocks.count, GROUP):
        stop = min(start + GROUP, blocks.count)
        previous, end = blocks.previous[start:stop], blocks.end[start:stop]
        # (H, g): from the start of the group; exact, for what follows are differences of large sums
        decay = F.pad(log_decay[start : stop - 1], (0, 0, 1, 0)).cumsum(0, dtype=exact(log_decay.device)).T
        alive = (previous[:, None] == end[:-1]).tril(-1)
        between = (decay[:, :, None] - decay[:, None, 1:]).to(log_decay.dtype)
        out = torch.einsum("hnm,mhs->nhs", between.masked_fill(~alive, -torch.inf).exp(), states[start : stop - 1])
        if carry is not None:
            from_start = decay.T.to(log_decay.dtype).exp() * (previous == previous[0])[:, None]
            out = out + from_start[:, :, None] * carry
        keep = log_decay[stop - 1].exp() * (end[-1] == previous[-1])
        carry = out[-1] * keep[:, None] + states[stop - 1]
        outs.append(out)
    return outs[0] if len(outs) == 1 else torch.cat(outs)


class ScanInputs(NamedTuple):
    """The operands of a scan over T packed positions, or of one step of T rows."""

    x: Tensor
    """(T, H, P)."""
    dt: Tensor
    """(T, H), the step size before softplus(dt + dt_bias)."""
    A: Tensor
    """(H,), negative."""
    B: Tensor
    """(T, N), one group for all heads."""
    C: Tensor
    """(T, N)."""
    D: Tensor
    """(H,), weight of the skip connection."""
    dt_bias: Tensor
    """(H,)."""


def ssd_scan(inputs: ScanInputs, packing: Packing, chunk_size: int = 0) -> Tensor:
    """Mamba-2's scan (arXiv 2405.21060, section 6): h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t.

    Returns y (T, H, P) in the dtype of x; products run in that dtype, decays and states in float32 or wider.
    `chunk_size` is a hint for accelerators; here the block length is BLOCK.
    """
    return _scan(inputs, packing, states=False)[0]


def ssd_scan_states(inputs: ScanInputs, packing: Packing, chunk_size: int = 0) -> tuple[Tensor, Tensor]:
    """`ssd_scan`, and the final state (B, H, P, N) of each document."""
    y, final = _scan(inputs, packing, states=True)
    assert final is not None
    return y, final


def _scan(inputs: ScanInputs, packing: Packing, states: bool) -> tuple[Tensor, Tensor | None]:
    x, dt, A, B, C, D, dt_bias = inputs
    blocks = packing.blocks(BLOCK)
    total, heads, width = x.shape
    with torch.autocast(x.device.type, enabled=False):
        dt = F.softplus(wide(dt) + wide(dt_bias))
        decay = blocks.split(dt * wide(A)).cumsum(1)  # (n, Q, H), log
        scaled = blocks.split(x * dt[:, :, None].to(x.dtype))  # (n, Q, H, P)
        b, c = blocks.split(B), blocks.split(C)  # (n, Q, N)

        by_head = decay.transpose(1, 2)  # (n, H, Q)
        between = by_head[:, :, :, None] - by_head[:, :, None, :]
        between = between.clamp(-80, 0).exp() * blocks.visible[:, None]  # clamped: exp is slow where it underflows
        scores = (c @ b.mT)[:, None] * between.to(x.dtype)  # (n, H, Q, Q)
        y = (scores @ scaled.transpose(1, 2)).transpose(1, 2)  # (n, Q, H, P)

        to_end = (decay[:, -1:] - decay).exp()
        if blocks.to_end is not None:
            to_end = to_end * blocks.to_end[:, :, None]
        added = b.mT @ (scaled * to_end[..., None].to(x.dtype)).flatten(2)  # (n, N, H*P)
        added = wide(added).view(blocks.count, -1, heads, width).transpose(1, 2)
        before = pass_states(added.flatten(2), decay[:, -1], blocks).view(added.shape)  # (n, H, N, P)
        from_start = decay.exp() * blocks.from_before[:, :, None]
        old = c @ before.transpose(1, 2).flatten(2).to(x.dtype)  # (n, Q, H*P)
        y = y + old.view_as(scaled) * from_start[..., None].to(x.dtype)
        y = blocks.join(y, total) + x * D.to(x.dtype)[:, None]
        if not states:
            return y, None

        block, row = packing.last // BLOCK, packing.last % BLOCK
        weight = between[block, :, row].transpose(1, 2)  # (B, Q, H): from each position of the last block to its end
        final = torch.einsum("bqn,bqhp->bhpn", wide(b[block]), wide(scaled[block]) * weight[..., None])
        final = final + before[block].mT * from_start[block, row][:, :, None, None]
        return y, final


def own_states(inputs: ScanInputs, packing: Packing) -> tuple[Tensor, Tensor]:
    """The log decay from the first position of each document to every other (T, H), of `exact` dtype, and the states
    (B, H, P, N) that the documents would end with had they begun there."""
    step = F.softplus(wide(inputs.dt) + wide(inputs.dt_bias))  # (T, H)
    log_decay = summed(step * inputs.A, packing)
    left = (log_decay[packing.last][packing.document] - log_decay).exp().to(step.dtype)
    scaled = wide(inputs.x) * (left * step)[:, :, None]  # (T, H, P)
    parts = zip(scaled.flatten(1).split(packing.lengths), wide(inputs.B).split(packing.lengths), strict=True)
    states = torch.stack([values.mT @ keys for values, keys in parts])
    return log_decay, states.unflatten(1, scaled.shape[1:])


def summed(x: Tensor, packing: Packing) -> Tensor:
    """Running sums within each document, (T, ...) -> the same, of `exact` dtype: differences of large sums follow."""
    total = x.cumsum(0, dtype=exact(x.device))
    return total - (total[packing.first] - x[packing.first])[packing.document]


class State(Protocol):
    """The recurrent state of `ssd_step` for B documents."""

    @property
    def value(self) -> Tensor:
        """(B, H, P, N), float32 or wider; zero at the beginning of a document."""

    def fill(self, value: Tensor, rows: Tensor | None = None) -> None:
        """Overwrite the given rows (R,) int64 (None: all) with the states (R, H, P, N) that documents end with."""

    def select(self, rows: Tensor) -> None:
        """Keep the given rows (R,) int64, in that order."""


@dataclass(eq=False)
class SSMState:
    """The state of `ssd_step` for B documents."""

    value: Tensor
    """(B, H, P, N), float32 or wider; zero at the beginning of a document."""

    def fill(self, value: Tensor, rows: Tensor | None = None) -> None:
        """Overwrite the given rows (R,) int64 (None: all) with the states (R, H, P, N) that documents end with."""
        self.value[slice(None) if rows is None else rows] = value.to(self.value.dtype)

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows (R,) int64, in that order."""
        self.value = self.value[rows]


def ssd_state(like: Tensor, batch_size: int, heads: int, width: int, size: int) -> SSMState:
    """A zero state for `ssd_step`, on the device of `like`, in its dtype or float32 if that is wider."""
    return SSMState(wide(like[:0]).new_zeros(batch_size, heads, width, size))


def ssd_step(
    state: SSMState,
    inputs: ScanInputs,
    rows: Tensor | None = None,
    once: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """One position of `ssd_scan` for R rows (None: all): returns y (R, H, P) and updates the state.

    `rows` (R,) int64 may repeat its first row, with the same inputs. `once` is then the same with -1 for repetitions,
    for kernels that update the state in place; without it no row is repeated. With a `gate` (R, H P) the result is y
    times its silu, (R, H P), float32 or wider.
    """
    x, dt, A, B, C, D, dt_bias = inputs
    count, heads, width = x.shape
    old = state.value if rows is None else state.value[rows]
    dt = F.softplus(wide(dt) + dt_bias)
    x32 = wide(x)
    values = (x32 * dt.unsqueeze(-1)).view(count, -1, 1)
    decay = (dt * A).exp_().unsqueeze(-1)
    new = old.view(count, heads, -1).mul_(decay).view(count, heads * width, -1)
    new.baddbmm_(values, wide(B).unsqueeze(1))
    if rows is not None:
        state.value[rows] = new.view(old.shape)
    y = torch.bmm(new, wide(C).unsqueeze(-1)).view(x.shape)
    return gated(y.addcmul_(x32, wide(D).unsqueeze(-1)).to(x.dtype), gate)


def gated(y: Tensor, gate: Tensor | None) -> Tensor:
    """The result of `ssd_step` from y (R, H, P)."""
    return y if gate is None else F.silu(wide(gate)).mul_(y.view(gate.shape))


# -- smoothing of the dechunk layer ------------------------------------------------------------------------------------


def ema_scan(x: Tensor, p: Tensor, packing: Packing) -> Tensor:
    """z_t = p_t x_t + (1 - p_t) z_{t-1} per document, starting from 0 (paper eq 5). x (T, D), p (T,) in (0, 1).

    Float32 or wider whatever the inputs: in bfloat16 the sum would lose earlier terms.
    """
    blocks = packing.blocks(BLOCK)
    with torch.autocast(x.device.type, enabled=False):
        x, p = wide(x), wide(p)
        decay = torch.cumsum(blocks.split(torch.log1p(-p.to(exact(p.device)))), 1)  # differences of large sums
        between = (decay[:, :, None] - decay[:, None, :]).to(x.dtype)
        mix = between.clamp(-80, 0).exp() * blocks.visible * blocks.split(p)[:, None]  # (n, Q, Q)
        z = mix @ blocks.split(x)
        # a block's end state is its last row, whose mask keeps only the document at its end
        before = pass_states(z[:, -1:], decay[:, -1:].to(x.dtype), blocks)  # (n, 1, D)
        from_start = decay.to(x.dtype).exp() * blocks.from_before
        return blocks.join(z + from_start[:, :, None] * before, packing.total)


def ema_step(x: Tensor, prob: Tensor, average: Tensor, rows: Tensor | None = None, once: Tensor | None = None) -> None:
    """`ema_scan` of one position for R rows (None: all), from and into `average` (B, D), float32 or wider: x (R, D),
    prob (R,), which is kept a little away from 0 and 1. `rows` and `once` as for `ssd_step`."""
    put(average, rows, torch.lerp(pick(average, rows), wide(x), kept_away(wide(prob))[:, None]))


def kept_away(prob: Tensor) -> Tensor:
    """The weight of a new value in the average of the dechunk layer."""
    return prob.clamp(1e-4, 1 - 1e-4)


def router_step(
    hidden: Tensor, projection: Tensor, last: Tensor, rows: Tensor | None = None, once: Tensor | None = None
) -> Tensor:
    """The probability (R,) of a boundary (paper eq 4): hidden (R, D), projection (2D, D) of keys and queries, and the
    queries `last` (B, D) of each row's position before, which those of this one replace. `rows`, `once` as above."""
    key, query = F.linear(hidden.to(projection.dtype), projection).chunk(2, -1)
    prob = boundary(pick(last, rows), key)
    put(last, rows, query)
    return prob


def boundary(query: Tensor, key: Tensor) -> Tensor:
    """(R, D) each -> p (R,) of paper eq 4."""
    return ((1 - F.cosine_similarity(wide(query), wide(key), dim=-1)) / 2).clamp(0, 1)


# -- attention ---------------------------------------------------------------------------------------------------------


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    window: int = -1,
    rows: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Causal attention within each document. q, k, v (T, H, P) -> (T, H, P).

    Position i sees i-window..i; -1: all before. `rows` computes rows of equal length, by default `window_attention`.
    """
    out = None
    for bucket in packing.buckets():
        qkv = [t if bucket.gather is None else t.index_select(0, bucket.gather) for t in (q, k, v)]
        q_rows, k_rows, v_rows = (t.view(bucket.rows, bucket.length, *t.shape[1:]).transpose(1, 2) for t in qkv)
        y = (rows or window_attention)(q_rows, k_rows, v_rows, window).transpose(1, 2).flatten(0, 1)
        if bucket.scatter is None or bucket.target is None:
            return y
        valid = y.index_select(0, bucket.scatter)
        out = (valid.new_zeros(q.shape) if out is None else out).index_copy(0, bucket.target, valid)
    assert out is not None
    return out


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of the last T of S positions: q (B, H, T, P), k and v (B, H, S, P) -> (B, H, T, P).

    Right padding needs no mask: a causal query never sees what comes after it. With a window some queries at a time
    read the keys they see and few others, so that time and memory are linear in the length.
    """
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    if not past and (window < 0 or length <= window + 1):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    size = QUERIES if q.device.type == "cpu" else max(QUERIES, window)
    parts, masks = list[Tensor](), dict[tuple[int, int], Tensor]()
    for start in range(0, length, size):
        end = min(start + size, length)
        low = 0 if window < 0 else max(0, past + start - window)
        shape = end - start, past + end - low
        if shape not in masks:
            diagonal = shape[1] - shape[0]  # the column of the first query's own key
            seen = torch.ones(shape, dtype=torch.bool, device=q.device).tril(diagonal)
            seen = seen if window < 0 else seen.triu(diagonal - window)
            masks[shape] = q.new_zeros(shape).masked_fill_(~seen, -torch.inf)  # torch makes it of a bool at each call
        keys, values = k[:, :, low : past + end], v[:, :, low : past + end]
        parts.append(F.scaled_dot_product_attention(q[:, :, start:end], keys, values, attn_mask=masks[shape]))
    return torch.cat(parts, 2)


@dataclass(eq=False)
class Place:
    """Positions of the rows of a step in the caches of a level: what depends on them is computed once for its layers.
    Position i of a document lies in slot i, or i modulo (window + 1) with a window."""

    position: Tensor
    """(R,) int64: the position being read."""
    window: int
    used: int
    """Slots that the longest row uses."""
    rows: Tensor | None = None
    """(R,) int64: the rows that take part; None: all."""
    at: int | None = None
    """The position, where all rows take part and it is that of each."""
    _counters: Tensor | None = None

    def slot_of(self, position: Any) -> Any:
        """Of a number or a tensor of them."""
        return position if self.window < 0 else position % (self.window + 1)

    @functools.cached_property
    def index(self) -> tuple[Tensor, Tensor]:
        """Rows and slots of the new keys, (R,) each."""
        rows = torch.arange(len(self.position), device=self.position.device) if self.rows is None else self.rows
        return rows, self.slot_of(self.position)

    @functools.cached_property
    def length(self) -> Tensor:
        """(R,) int64: positions that a row sees, those that have left the window included."""
        return self.position + 1

    @functools.cached_property
    def visible(self) -> Tensor:
        """(R, 1, 1, used) bool."""
        return (torch.arange(self.used, device=self.position.device) < self.length[:, None])[:, None, None]

    def counters(self, count: int) -> Tensor:
        """(count,) int32, zero: kernels leave them so."""
        if self._counters is None or len(self._counters) < count:
            self._counters = self.position.new_zeros(count, dtype=torch.int32)
        return self._counters


def attention_step(
    qkv: Tensor,
    tables: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    place: Place,
    attend: Callable[[Tensor, Tensor, Tensor, Place], Tensor] | None = None,
) -> Tensor:
    """One query for each of R rows: qkv (R, 3, H, P), `tables` as for `rotary`, caches (B, S, H, P) -> (R, H, P).

    The new keys and values are stored; a row sees all up to its own, as far as the window reaches. `attend`: by
    default `attend_step`.
    """
    q, k = rotate(qkv[:, :2], *tables).unbind(1)
    keys, values = keys[:, : place.used], values[:, : place.used]
    at = place.index if place.at is None else (slice(None), place.slot_of(place.at))
    keys[at], values[at] = k.to(keys.dtype), qkv[:, 2].to(values.dtype)
    return (attend or attend_step)(q, keys, values, place)


def attend_step(q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
    """q (R, H, P), caches (B, S, H, P) -> (R, H, P)."""
    if place.rows is not None:
        k, v = k.index_select(0, place.rows), v.index_select(0, place.rows)
    seen = None if place.at is not None else place.visible
    y = F.scaled_dot_product_attention(q[:, :, None], k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen)
    return y[:, :, 0]


# -- rows of a state ---------------------------------------------------------------------------------------------------


def pick(x: Tensor, rows: Tensor | None) -> Tensor:
    """Rows (R,) int64 of x (B, ...) -> (R, ...); None: all of them, x itself."""
    return x if rows is None else x[rows]


def put(x: Tensor, rows: Tensor | None, value: Tensor) -> None:
    """Overwrite rows (R,) int64 of x (B, ...), None: all, with value (R, ...)."""
    if rows is None:
        x.copy_(value)
    else:
        x[rows] = value.to(x.dtype)
