"""Layers and stacks of layers: Mamba-2 and attention mixers, gated MLP, pre-norm blocks, `Isotropic`.

Tensors are packed: (T, D) with a `Packing`. Parameter names are those of the official release. Blocks hand on a pair
(hidden, residual): the residual stream is float32 or wider, and each norm adds `hidden` to it first.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hnet_cli.kernels import Kernels, continuing, joint
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import EPS, ScanInputs, wide
from hnet_cli.model import rotary
from hnet_cli.model.config import HNetConfig
from hnet_cli.model.settings import Rotary
from hnet_cli.model.state import AttentionState, LayerState, MambaState, Now


class RMSNorm(nn.Module):
    """The weight (D,) of a root-mean-square norm. `Kernels.add_rms_norm` norms with it, `Kernels.step_linear` in a
    step."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class Mamba2(nn.Module):
    """Mamba-2 mixer (arXiv 2405.21060) with one group of B and C. (T, D) -> (T, D)."""

    def __init__(self, config: HNetConfig, level: int) -> None:
        super().__init__()
        ssm, d_model = config.ssm_cfg, config.d_model[level]
        self.d_inner, self.d_state, self.headdim = ssm.expand * d_model, ssm.d_state, ssm.headdim
        self.heads, self.chunk_size = self.d_inner // ssm.headdim, ssm.chunk_size
        conv = self.d_inner + 2 * ssm.d_state
        self.split = (self.d_inner, conv, self.heads)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.in_proj = nn.Linear(d_model, sum(self.split), bias=False)
        self.conv1d = nn.Conv1d(conv, conv, ssm.d_conv, groups=conv)  # holds the weights; the kernel does the work
        self.norm = RMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.reset_ssm_parameters()

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Step sizes log-uniform in [0.001, 0.1], decay rates uniform in [1, 16] (the values of Mamba-2)."""
        step = torch.exp(torch.rand(self.heads) * math.log(0.1 / 0.001) + math.log(0.001)).clamp(min=1e-4)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_log.copy_(torch.empty(self.heads).uniform_(1, 16).log())
        self.D.fill_(1.0)

    def forward(self, x: Tensor, packing: Packing, kernels: Kernels, state: MambaState | None = None) -> Tensor:
        """x (T, D) -> (T, D). Documents go on from `state`, if given, which is brought to their ends."""
        gate, raw, dt = joint.split(self.in_proj(x), self.split)
        assert self.conv1d.bias is not None
        conv = (raw, self.conv1d.weight[:, 0], self.conv1d.bias, packing)
        mixed = kernels.causal_conv(*conv) if state is None else continuing.causal_conv(kernels, *conv, state.conv)
        value, B, C = mixed.split((self.d_inner, self.d_state, self.d_state), dim=-1)
        value = value.unflatten(-1, (self.heads, self.headdim))
        scan = ScanInputs(value, dt, -wide(self.A_log).exp(), B, C, self.D, self.dt_bias)
        if state is None:
            y = kernels.ssd_scan(scan, packing, self.chunk_size)
        else:
            y = continuing.ssd_scan(kernels, scan, packing, self.chunk_size, state.ssm)
        return self.out_proj(kernels.gated_rms_norm(y.flatten(-2), gate, self.norm.weight, EPS))

    def allocate(self, batch_size: int, kernels: Kernels) -> MambaState:
        """The state of `batch_size` documents that have not begun."""
        like, conv = self.in_proj.weight, self.conv1d.weight
        return MambaState(
            like.new_zeros(batch_size, conv.shape[-1] - 1, conv.shape[0]),
            kernels.ssd_state(like, batch_size, self.heads, self.headdim, self.d_state),
            kernels.step_weight(self.in_proj.weight.detach(), batch_size),
            kernels.step_weight(self.out_proj.weight.detach(), batch_size),
            -wide(self.A_log.detach()).exp(),
            conv.detach()[:, 0].T.contiguous(),
            wide(self.norm.weight.detach()),
        )

    def step(self, residual: Tensor, state: MambaState, now: Now, kernels: Kernels) -> Tensor:
        """The residual stream (R, D), float32 or wider, after this mixer and the norm before it: one position for each
        of the R rows that take part. Updates the state."""
        assert self.conv1d.bias is not None
        conv = (state.conv, state.taps, self.conv1d.bias)
        gate, mixed, dt = kernels.mamba_in_step(residual, state.in_proj, state.norms[0], *conv, self.split, now.rows)
        value, B, C = mixed.split_with_sizes((self.d_inner, self.d_state, self.d_state), -1)
        value = value.unflatten(-1, (self.heads, self.headdim))
        scan = ScanInputs(value, dt, state.A, B, C, self.D, self.dt_bias)
        y = kernels.ssd_step(state.ssm, scan, now.rows, now.once, gate)
        return kernels.step_linear(y, state.out_proj, norm=state.norm, residual=residual)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions and a window, within each document. (T, D) -> (T, D)."""

    def __init__(self, config: HNetConfig, level: int) -> None:
        super().__init__()
        d_model, attn = config.d_model[level], config.attn_cfg
        self.heads, self.rotary_dim = attn.num_heads[level], attn.rotary_emb_dim[level]
        self.window, self.rotary = attn.window_size[level], config.rotary[level] if config.rotary else Rotary()
        self.Wqkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, packing: Packing, kernels: Kernels, state: AttentionState | None = None) -> Tensor:
        """x (T, D) -> (T, D). Documents go on from `state`, if given, which is brought to their ends."""
        qkv = self.Wqkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = kernels.rotary(qkv, rotary.of_packing(packing, self.rotary_dim, qkv.dtype, self.rotary))
        if state is None:
            y = kernels.attention(q, k, v, packing, self.window)
        else:
            y = state.extend(q, k, v, packing, kernels)
        return self.out_proj(y.flatten(-2))

    def allocate(self, batch_size: int, kernels: Kernels) -> AttentionState:
        """The state of `batch_size` documents that have not begun."""
        weight = self.Wqkv.weight
        empty = weight.new_zeros(batch_size, 0, self.heads, weight.shape[1] // self.heads)
        return AttentionState(empty, empty.clone(), self.window)

    def step(self, residual: Tensor, state: AttentionState, now: Now, kernels: Kernels) -> Tensor:
        """As `Mamba2.step`."""
        state.reserve(now.longest)
        qkv = kernels.step_linear(residual, self.Wqkv.weight, True, state.norms[0]).unflatten(-1, (3, self.heads, -1))
        tables, place = now.rotary(self.rotary_dim, qkv.dtype, self.rotary), now.place(self.window)
        y = kernels.attention_step(qkv, tables, state.keys, state.values, place)
        return kernels.step_linear(y.flatten(-2), self.out_proj.weight, residual=residual)


class WideLinear(nn.Linear):
    """A linear map in float32 or wider, also where the products of the model are not."""

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:  # type: ignore[override]
        """x (T, D) of any dtype -> (T, E)."""
        y: Tensor = kernels.wide_linear(x, self.weight, self.bias)
        return y


class SwiGLU(nn.Module):
    """Gated MLP: fc2(value * silu(gate)) with (value, gate) = fc1(x). (T, D) -> (T, D), `d_hidden` units between."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * d_hidden, bias=False)
        self.fc2 = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        return self.fc2(kernels.swiglu(self.fc1(x)))


class Block(nn.Module):
    """One layer: norm, mixer, and for an upper-case letter norm and MLP."""

    def __init__(self, config: HNetConfig, level: int, letter: str) -> None:
        super().__init__()
        d_model = config.d_model[level]
        self.norm1 = RMSNorm(d_model)
        self.mixer: Any = (Mamba2 if letter in "mM" else Attention)(config, level)
        self.norm2: RMSNorm | None = None
        self.mlp: SwiGLU | None = None
        if letter.isupper():
            self.norm2 = RMSNorm(d_model)
            self.mlp = SwiGLU(d_model, config.mlp_width(level))

    def forward(
        self,
        hidden: Tensor,
        residual: Tensor | None,
        packing: Packing,
        kernels: Kernels,
        state: LayerState | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden (T, D) and residual (T, D), None in a first layer -> the same two after this layer, not added yet."""
        normed, residual = kernels.add_rms_norm(hidden, residual, self.norm1.weight, EPS)
        hidden = self.mixer(normed, packing, kernels, state)
        if self.mlp is not None and self.norm2 is not None:
            normed, residual = kernels.add_rms_norm(hidden, residual, self.norm2.weight, EPS)
            hidden = self.mlp(normed, kernels)
        return hidden, residual

    def allocate(self, batch_size: int, kernels: Kernels) -> LayerState:
        """The state of `batch_size` documents that have not begun."""
        state: LayerState = self.mixer.allocate(batch_size, kernels)
        state.norms = [wide(norm.weight.detach()) for norm in (self.norm1, self.norm2) if norm is not None]
        return state

    def step(self, residual: Tensor, state: LayerState, now: Now, kernels: Kernels) -> Tensor:
        """The residual stream (R, D), float32 or wider, after this layer."""
        residual = self.mixer.step(residual, state, now, kernels)
        if self.mlp is not None:
            inner = kernels.step_linear(residual, self.mlp.fc1.weight, norm=state.norms[1], gated=True)
            residual = kernels.step_linear(inner, self.mlp.fc2.weight, residual=residual)
        return residual


class Isotropic(nn.Module):
    """A plain stack at one level: `stack` is "encoder", "decoder" or the innermost "main_network".

    It ends in its own norm (paper, 2.3), or where the configuration has none in the residual stream as it is.
    """

    def __init__(self, config: HNetConfig, level: int, stack: str) -> None:
        super().__init__()
        self.letters: str = getattr(config.levels[level], stack)
        self.layers = cast(list[Block], nn.ModuleList(Block(config, level, letter) for letter in self.letters))
        self.rmsnorm = RMSNorm(config.d_model[level]) if config.has_norm(level, stack) else None
        self.recompute = False
        """True if a layer keeps only its input and is computed again in the backward pass."""

    @property
    def height(self) -> int:
        """Additions to the residual stream: one per mixer and one per MLP."""
        return sum(2 if letter.isupper() else 1 for letter in self.letters)

    def forward(
        self, hidden: Tensor, packing: Packing, kernels: Kernels, states: list[LayerState] | None = None
    ) -> Tensor:
        """(T, D) -> (T, D). `states`: one per layer, from which documents go on."""
        residual, dtype = None, hidden.dtype
        again = self.recompute and states is None and torch.is_grad_enabled()
        for i, layer in enumerate(self.layers):
            given = (hidden, residual, packing, kernels, None if states is None else states[i])
            if again:  # nothing in a layer is random
                hidden, residual = checkpoint(layer, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden, residual = layer(*given)
        if self.rmsnorm is None:
            return hidden if residual is None else (hidden + residual).to(dtype)
        return kernels.add_rms_norm(hidden, residual, self.rmsnorm.weight, EPS)[0]

    def allocate(self, batch_size: int, kernels: Kernels) -> list[LayerState]:
        """One state per layer, of `batch_size` documents that have not begun."""
        return [layer.allocate(batch_size, kernels) for layer in self.layers]

    def step(self, hidden: Tensor, states: list[LayerState], now: Now, kernels: Kernels) -> Tensor:
        """(R, D) -> (R, D): one position for each row that takes part. Updates the states."""
        residual = wide(hidden)
        for layer, state in zip(self.layers, states, strict=True):
            residual = layer.step(residual, state, now, kernels)
        if self.rmsnorm is None:
            return residual.to(hidden.dtype)
        return kernels.add_rms_norm(residual, None, self.rmsnorm.weight, EPS)[0]


def recompute(model: nn.Module, choice: Literal["none", "main", "all"]) -> None:
    """Activation checkpointing: layers of the innermost stack ("main") or of all keep their input only, in training.

    The gradient is the same; the layers' forward pass is done twice.
    """
    for name, module in model.named_modules():
        if isinstance(module, Isotropic):
            module.recompute = choice == "all" or (choice == "main" and name.endswith("main_network"))
