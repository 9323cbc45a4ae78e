"""One document, block by block: what the full pass gives, with what was read before carried in the state.

`extend` continues the state that `step` continues, by many bytes at once. Of the past a layer needs little: Mamba-2 its
state and the last inputs of its convolution, attention the keys that its window sees, the router one vector, the
dechunk layer the average so far. Each is added to what the usual operations give for the block alone, so every backend
serves. Only attention without a window remembers in proportion to what was read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.kernels import Kernels
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import exact, rotate, wide
from hnet_cli.model.blocks import EPS, Attention, Isotropic, Mamba2
from hnet_cli.model.chunking import RoutingOutput, add_residual
from hnet_cli.model.hnet import HNet, HNetForCausalLM, HNetOutput
from hnet_cli.model.state import AttentionState, GenerationState, LevelState, MambaState, Now

QUERIES = 256
"""Positions whose attention is computed at once: of keys they read the window's and their own."""


@torch.inference_mode()
def extend(model: HNetForCausalLM, ids: Tensor, state: GenerationState) -> HNetOutput:
    """Reads the next bytes of the one document of `state`: ids (T,) int64 -> logits (T, V) and the routing of these
    positions, of which an inner stage may have none.

    A state that has read nothing begins a document. However a document is cut into blocks, the result is that of one
    pass over all of it, up to rounding. Raises ValueError for a state of several rows, no bytes, or too many.
    """
    _check(ids, state)
    routing: list[RoutingOutput] = []
    hidden = _level(model.backbone, model.embeddings(ids), ids, state.level, model.kernels(), routing)
    return HNetOutput(model.lm_head(hidden), routing)


@torch.inference_mode()
def extend_routing(model: HNetForCausalLM, ids: Tensor, state: GenerationState) -> list[RoutingOutput]:
    """The routing that `extend` would give, without main network and decoders: a state continued so is of no other use.

    ids (T,) int64. Raises ValueError as `extend`, and for a model without stages.
    """
    _check(ids, state)
    if model.backbone.is_innermost:
        raise ValueError("a model without stages has no routing")
    kernels, routing = model.kernels(), list[RoutingOutput]()
    net, level, hidden = model.backbone, state.level, model.embeddings(ids)
    tokens: Tensor | None = ids
    while not net.is_innermost:
        if not len(hidden):
            _none(net, routing[-1], routing)
            break
        *_, source, own = _decide(net, hidden, tokens, level, kernels)
        routing.append(own)
        _count(level, len(hidden))
        assert isinstance(net.main_network, HNet)
        assert level.inner is not None
        net, level, hidden, tokens = net.main_network, level.inner, source[own.boundary_mask], None
    return routing


def _check(ids: Tensor, state: GenerationState) -> None:
    if state.batch_size != 1 or ids.ndim != 1 or not 0 < len(ids) <= state.max_length - state.lengths[0]:
        raise ValueError(
            f"extend needs a state of one row and at least one byte, got {state.batch_size} rows, {tuple(ids.shape)} "
            f"bytes, {state.lengths[0]} of {state.max_length} read"
        )


def _level(
    net: HNet, hidden: Tensor, ids: Tensor | None, state: LevelState, kernels: Kernels, routing: list[RoutingOutput]
) -> Tensor:
    """`HNet.forward` of T > 0 further positions: (T, outer width) -> the same. Appends the routing of each stage."""
    if net.is_innermost:
        hidden, packing = _enter(net, hidden, state, kernels)
        assert isinstance(net.main_network, Isotropic)
        out = _stack(net.main_network, hidden, packing, state, "main_network", kernels)
        _count(state, len(hidden))
        return net._leave(out, kernels)
    packing, encoded, source, own = _decide(net, hidden, ids, state, kernels)
    residual = net.project_residual(encoded, kernels)
    routing.append(own)
    upsampled = _chunks(net, source, own, state, kernels, routing)
    if net.smoothing == "bytes":
        upsampled = _average(upsampled, own.boundary_prob, state.average, kernels)
        state.average = upsampled[-1:]
    if net.residual_proj is None:
        upsampled = upsampled * own.boundary_mask[:, None]
    joined = add_residual(upsampled, own, residual).to(encoded.dtype)
    out = _stack(net.decoder, joined, packing, state, "decoder", kernels)
    _count(state, len(encoded))
    return out[:, : net.outer_width]


def _enter(net: HNet, hidden: Tensor, state: LevelState, kernels: Kernels) -> tuple[Tensor, Packing]:
    hidden = net.enter(hidden, kernels)
    packing = Packing.of_lengths([len(hidden)], hidden.device)
    packing.position = packing.position + state.seen[0]
    return hidden, packing


def _decide(
    net: HNet, hidden: Tensor, ids: Tensor | None, state: LevelState, kernels: Kernels
) -> tuple[Packing, Tensor, Tensor, RoutingOutput]:
    """As far as the boundaries: the positions, what the encoder gives, of which the inner network gets those at a
    boundary, (T, D) each, and the routing."""
    hidden, packing = _enter(net, hidden, state, kernels)
    source = encoded = _stack(net.encoder, hidden, packing, state, "encoder", kernels)
    own = _route(net, encoded, ids, packing, state, kernels)
    if net.smoothing == "input":
        average = _average(encoded, own.boundary_prob, state.average, kernels)
        source, state.average = average.to(encoded.dtype), average[-1:]
    return packing, encoded, source, own


def _count(state: LevelState, positions: int) -> None:
    state.seen, state.position = [state.seen[0] + positions], state.position + positions


def _route(
    net: HNet, encoded: Tensor, ids: Tensor | None, packing: Packing, state: LevelState, kernels: Kernels
) -> RoutingOutput:
    """The first position of a block is compared with the last one of the block before, as in a step."""
    own = net.routing_module(encoded, packing, ids, kernels)
    if state.seen[0]:
        now = Now(None, None, state.position, state.seen[0] + 1, True, state.tables)
        tokens = packing.position[:1] if ids is None else ids[:1]  # only the bytes' own level reads them
        with torch.autocast(encoded.device.type, enabled=False):
            first = encoded[:1].to(state.projection.dtype) if own.learned else encoded[:1]
            own.boundary_prob[:1] = net.routing_module.step(first, tokens, state, now)
        own.boundary_mask[:1] = own.boundary_prob[:1] > 0.5
    with torch.autocast(encoded.device.type, enabled=False):
        net.routing_module.remember(encoded[-1:], None if ids is None else ids[-1:], state)
    return own


def _chunks(
    net: HNet, source: Tensor, own: RoutingOutput, state: LevelState, kernels: Kernels, routing: list[RoutingOutput]
) -> Tensor:
    """What every position gets from its chunk, (T, D) float32 or wider; the first may be in one that began earlier."""
    assert isinstance(net.main_network, HNet)
    assert state.inner is not None
    index = own.boundary_mask.nonzero()[:, 0]
    values = state.smoothed if state.seen[0] else wide(source[:0]).new_zeros(1, source.shape[1])
    if len(index):
        new = wide(_level(net.main_network, source[index], None, state.inner, kernels, routing))
        if net.smoothing == "chunks":
            new = _average(new, own.boundary_prob[index], values, kernels)
        values = torch.cat([values, new])
    else:
        _none(net.main_network, own, routing)
    state.smoothed = values[-1:].clone()
    return values[own.boundary_mask.cumsum(0)]


def _none(net: HNet, like: RoutingOutput, routing: list[RoutingOutput]) -> None:
    """The routing of stages that have no position in this block."""
    while not net.is_innermost:
        prob, mask = like.boundary_prob[:0], like.boundary_mask[:0]
        learned = getattr(net.routing_module, "chunker", None) is None
        routing.append(RoutingOutput(prob, mask, torch.zeros_like(like.cu_seqlens), learned))
        assert isinstance(net.main_network, HNet)
        net = net.main_network


def _average(x: Tensor, prob: Tensor, before: Tensor, kernels: Kernels) -> Tensor:
    """z_t = p_t x_t + (1 - p_t) z_(t-1) from z = before (1, D), or empty for 0: (T, D) -> (T, D)."""
    prob = prob.clamp(1e-4, 1 - 1e-4)
    z: Tensor = kernels.ema_scan(x, prob, Packing.of_lengths([len(x)], x.device))
    if len(before):
        z = z + torch.log1p(-prob.to(exact(prob.device))).cumsum(0).exp().to(z.dtype)[:, None] * before
    return z


# -- layers ------------------------------------------------------------------------------------------------------------


def _stack(
    stack: Isotropic, hidden: Tensor, packing: Packing, level: LevelState, part: str, kernels: Kernels
) -> Tensor:
    residual, dtype = None, hidden.dtype
    for layer, state in zip(stack.layers, level.layers[part], strict=True):
        normed, residual = kernels.add_rms_norm(hidden, residual, layer.norm1.weight, EPS)
        if isinstance(state, MambaState):
            hidden = _mamba(layer.mixer, normed, state, kernels)
        else:
            hidden = _attention(layer.mixer, normed, packing, state, level.seen[0])
        if layer.mlp is not None and layer.norm2 is not None:
            normed, residual = kernels.add_rms_norm(hidden, residual, layer.norm2.weight, EPS)
            hidden = layer.mlp(normed, kernels)
    if stack.rmsnorm is None:
        return hidden if residual is None else (hidden + residual).to(dtype)
    normed, _ = kernels.add_rms_norm(hidden, residual, stack.rmsnorm.weight, EPS)
    return normed


def _mamba(mixer: Mamba2, x: Tensor, state: MambaState, kernels: Kernels) -> Tensor:
    """The recurrence is linear in its state: what the past adds to y_t is C_t h fade_t, where h is the state that
    enters and fade_t its decay until t."""
    gate, raw, dt = mixer.in_proj(x).split(mixer.split, dim=-1)
    past = state.conv.shape[1]
    raw = torch.cat([state.conv[0].to(raw.dtype), raw])
    packing = Packing.of_lengths([len(raw)], x.device)
    conv = kernels.causal_conv(raw, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, packing)[past:]
    value, B, C = conv.split((mixer.d_inner, mixer.d_state, mixer.d_state), dim=-1)
    value = value.unflatten(-1, (mixer.heads, mixer.headdim))
    A, packing = -wide(mixer.A_log).exp(), Packing.of_lengths([len(x)], x.device)
    y = kernels.ssd_scan(value, dt, A, B, C, mixer.D, mixer.dt_bias, packing, mixer.chunk_size)
    with torch.autocast(x.device.type, enabled=False):
        step = F.softplus(wide(dt) + wide(mixer.dt_bias))  # (T, H)
        decay = (step * A).cumsum(0, dtype=exact(x.device))
        entering = state.ssm.value[0]  # (H, P, N)
        before = torch.einsum("tn,hpn->thp", wide(C), entering)
        y = y + (before * decay.exp().to(step.dtype)[..., None]).to(y.dtype)
        weight = (decay[-1] - decay).exp().to(step.dtype) * step
        added = torch.einsum("thp,tn->hpn", wide(value) * weight[..., None], wide(B))
        state.ssm.fill((entering * decay[-1].exp().to(step.dtype)[:, None, None] + added)[None])
    state.conv = raw[len(raw) - past :].to(state.conv.dtype)[None].clone()
    return mixer.out_proj(kernels.gated_rms_norm(y.flatten(-2), gate, mixer.norm.weight, EPS))


def _attention(mixer: Attention, x: Tensor, packing: Packing, state: AttentionState, seen: int) -> Tensor:
    qk, v = mixer.Wqkv(x).unflatten(-1, (3, mixer.heads, -1)).split((2, 1), dim=-3)
    q, k = rotate(qk, *packing.rotary(mixer.rotary_dim, qk.dtype, mixer.rotary)).unbind(-3)
    keys, values = _remember(state, k, v.squeeze(-3), packing.position, seen)
    return mixer.out_proj(_attend(q, keys, values, mixer.window).flatten(-2))


def _remember(state: AttentionState, k: Tensor, v: Tensor, position: Tensor, seen: int) -> tuple[Tensor, Tensor]:
    """The keys and values of the past that a window may see, and of the block, (S, H, P) each; stores the block's.

    `seen`: the first of `position` (T,), which the host knows without waiting for the device.
    """
    low = 0 if state.window < 0 else max(0, seen - state.window)
    past = state.slot(torch.arange(low, seen, device=k.device))
    both = [torch.cat([old[0, past].to(new.dtype), new]) for old, new in ((state.keys, k), (state.values, v))]
    state.reserve(seen + len(k))
    kept = len(k) if state.window < 0 else min(len(k), state.window + 1)
    slots = state.slot(position[len(k) - kept :])
    state.keys[0, slots] = k[len(k) - kept :].to(state.keys.dtype)
    state.values[0, slots] = v[len(v) - kept :].to(state.values.dtype)
    return both[0], both[1]


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of the last T of S positions: q (T, H, P), k and v (S, H, P) -> (T, H, P)."""
    past, out = len(k) - len(q), torch.empty_like(q)
    for start in range(0, len(q), QUERIES):
        end = min(start + QUERIES, len(q))
        low = 0 if window < 0 else max(0, past + start - window)
        own = past + start - low  # the column of the first query's own key
        seen = torch.ones(end - start, past + end - low, dtype=torch.bool, device=q.device).tril(own)
        seen = seen if window < 0 else seen.triu(own - window)
        rows, keys, values = (t.transpose(0, 1)[None] for t in (q[start:end], k[low : past + end], v[low : past + end]))
        out[start:end] = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen)[0].transpose(0, 1)
    return out
