"""The recursive network and the language model around it (paper, section 2.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels as seam
from ..kernels import Kernels
from ..kernels.packing import Packing
from .blocks import Isotropic
from .chunking import ChunkLayer, DeChunkLayer, FixedRouting, RoutingModule, RoutingOutput, add_residual
from .config import HNetConfig


@dataclass
class HNetOutput:
    logits: Tensor
    """(B, L, V) for rows, (T, V) for packed input."""
    routing: list[RoutingOutput] = field(default_factory=list)
    """One per stage, outermost first."""


class HNet(nn.Module):
    """One level: encoder, routing, chunk layer, main network (the next level), dechunk layer, decoder.

    The innermost level is its main network alone. Level s > 0 owns `pad_dimension`, the coordinates it adds to what it is
    given (paper, 2.1.2); what it returns is cut back to the outer width.
    """

    def __init__(self, config: HNetConfig, level: int = 0) -> None:
        super().__init__()
        stacks, d_model = config.levels[level], config.d_model[level]
        self.outer_width = config.d_model[level - 1] if level else d_model
        self.pad_dimension = nn.Parameter(torch.zeros(d_model - self.outer_width)) if d_model > self.outer_width else None
        self.is_innermost = stacks.is_innermost
        if self.is_innermost:
            self.main_network: HNet | Isotropic = Isotropic(config, level, stacks.main_network)
            return
        self.encoder = Isotropic(config, level, stacks.encoder)
        self.main_network = HNet(config, level + 1)
        self.decoder = Isotropic(config, level, stacks.decoder)
        chunker = config.chunkers[level]
        self.routing_module = RoutingModule(d_model) if chunker.kind == "learned" else FixedRouting(chunker)
        self.chunk_layer = ChunkLayer()
        self.dechunk_layer = DeChunkLayer()
        self.residual_proj = nn.Linear(d_model, d_model, dtype=torch.float32)
        nn.init.zeros_(self.residual_proj.weight)

    def forward(
        self, hidden: Tensor, packing: Packing, kernels: Kernels, input_ids: Tensor | None = None
    ) -> tuple[Tensor, list[RoutingOutput]]:
        """hidden (T, outer width) -> the same shape, and the routing of this stage and the inner ones.

        `input_ids` (T,) is given to the outermost level only, for chunkers that read bytes.
        """
        if self.pad_dimension is not None:
            hidden = torch.cat([hidden, self.pad_dimension.to(hidden.dtype).expand(len(hidden), -1)], -1)
        if self.is_innermost:
            out = self.main_network(hidden, packing, kernels)
            return out[:, : self.outer_width], []
        encoded = self.encoder(hidden, packing, kernels)
        with torch.autocast(hidden.device.type, enabled=False):
            residual = self.residual_proj(encoded.to(self.residual_proj.weight.dtype))
        if isinstance(self.routing_module, FixedRouting):
            routing = self.routing_module(encoded, packing, input_ids)
        else:
            routing = self.routing_module(encoded, packing)
        chunks, inner, index = self.chunk_layer(encoded, routing, packing)
        chunks, deeper = self.main_network(chunks, inner, kernels)
        upsampled = self.dechunk_layer(chunks, routing, inner, index, kernels)
        joined = add_residual(upsampled, routing, residual).to(encoded.dtype)
        return self.decoder(joined, packing, kernels)[:, : self.outer_width], [routing, *deeper]


class HNetForCausalLM(nn.Module):
    """H-Net as a language model over bytes; loads the official release's state dict by its own names.

    `backend`: "auto", "reference" or "fast", see `hnet_cli.kernels.choose`.
    """

    def __init__(self, config: HNetConfig, backend: str = "auto") -> None:
        super().__init__()
        self.config, self.backend = config, backend
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model[0])
        self.backbone = HNet(config)
        self.lm_head = nn.Linear(config.d_model[0], config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embeddings.weight
        self.init_weights()

    def kernels(self) -> Kernels:
        """The operations this model runs on, for its device and the dtype its products run in now."""
        weight = self.embeddings.weight
        auto = torch.is_autocast_enabled(weight.device.type)
        return seam.choose(weight.device, torch.get_autocast_dtype(weight.device.type) if auto else weight.dtype, self.backend)

    def forward(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None, mask: Tensor | None = None) -> HNetOutput:
        """Logits of the next byte at every position.

        Either `input_ids` (B, L) int64, every row a document; or the same with `mask` (B, L) bool, true on a prefix of each
        row; or packed `input_ids` (T,) with `cu_seqlens` (B+1,) int32 or int64. Logits (B, L, V), zero where masked, or (T, V).
        Raises ValueError for shapes that do not fit.
        """
        if input_ids.ndim == 1:
            if cu_seqlens is None or mask is not None:
                raise ValueError("packed input_ids (T,) need cu_seqlens and take no mask")
            packing = Packing.of_cu_seqlens(cu_seqlens)
            if packing.total != len(input_ids):
                raise ValueError(f"cu_seqlens ends at {packing.total}, input_ids has {len(input_ids)} positions")
            return self.forward_packed(input_ids, packing)
        if input_ids.ndim != 2 or cu_seqlens is not None:
            raise ValueError("input_ids must be (B, L), or (T,) with cu_seqlens")
        rows, length = input_ids.shape
        if mask is None:
            if rows == 0 or length == 0:
                raise ValueError("input_ids is empty")
            out = self.forward_packed(input_ids.flatten(), Packing.of_lengths([length] * rows, input_ids.device))
            return HNetOutput(out.logits.unflatten(0, (rows, length)), out.routing)
        if mask.shape != input_ids.shape or mask.dtype != torch.bool:
            raise ValueError("mask must be bool and have the shape of input_ids")
        lengths = mask.sum(1)
        if not bool((mask.cummin(1).values.sum(1) == lengths).all()):
            raise ValueError("mask must be true on a prefix of each row (right padding)")
        packing = Packing.of_cu_seqlens(F.pad(lengths.cumsum(0), (1, 0)))
        index = torch.nonzero_static(mask.flatten(), size=packing.total)[:, 0]
        out = self.forward_packed(input_ids.flatten().index_select(0, index), packing)
        logits = out.logits.new_zeros(rows * length, out.logits.shape[-1]).index_copy(0, index, out.logits)
        return HNetOutput(logits.unflatten(0, (rows, length)), out.routing)

    def forward_packed(self, input_ids: Tensor, packing: Packing) -> HNetOutput:
        """input_ids (T,) -> logits (T, V)."""
        hidden, routing = self.backbone(self.embeddings(input_ids), packing, self.kernels(), input_ids)
        return HNetOutput(self.lm_head(hidden), routing)

    @torch.no_grad()
    def init_weights(self, initializer_range: float = 0.02) -> None:
        """The official initialisation: N(0, range) for linear maps, less for those that write to the residual stream, N(0, 1)
        for embeddings; norms 1, routing identity, residual projection and `pad_dimension` 0, biases PyTorch's default."""
        nn.init.normal_(self.embeddings.weight, std=1.0)
        nn.init.normal_(self.lm_head.weight, std=initializer_range)  # a tied pair is an output layer first, as officially
        _init_level(self.backbone, initializer_range, 0)


def _init_level(net: HNet, initializer_range: float, residuals: int) -> None:
    stacks = [net.main_network] if net.is_innermost else [net.encoder, net.decoder]
    residuals += sum(stack.height for stack in stacks if isinstance(stack, Isotropic))
    for stack in stacks:
        for name, parameter in stack.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                # the stream is summed over all levels, the outer ones included: keep its variance from growing with depth
                nn.init.normal_(parameter, std=initializer_range / math.sqrt(residuals))
            elif name.endswith(("in_proj.weight", "Wqkv.weight", "fc1.weight")):
                nn.init.normal_(parameter, std=initializer_range)
    if isinstance(net.main_network, HNet):
        _init_level(net.main_network, initializer_range, residuals)
