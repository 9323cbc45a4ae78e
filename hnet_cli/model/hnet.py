"""The recursive network and the language model around it (paper, section 2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnet_cli import kernels as seam
from hnet_cli.kernels import Kernels
from hnet_cli.kernels.packing import Packing, true_positions
from hnet_cli.kernels.reference import wide
from hnet_cli.model.blocks import Isotropic, SwiGLU, WideLinear
from hnet_cli.model.chunking import (
    ChunkLayer,
    DeChunkLayer,
    FixedRouting,
    RoutingModule,
    RoutingOutput,
    add_residual,
    average_over_positions,
)
from hnet_cli.model.config import HNetConfig
from hnet_cli.model.state import GenerationState, LevelState, Now, StepRouting, pick


@dataclass
class HNetOutput:
    """What the model gives for a batch."""

    logits: Tensor
    """(B, L, V) for rows, (T, V) for packed input."""
    routing: list[RoutingOutput] = field(default_factory=list)
    """One per stage, outermost first."""


class HNet(nn.Module):
    """One level: encoder, routing, chunk layer, main network (the next level), dechunk layer, decoder.

    The innermost level is its main network alone, with adapters around it where the configuration asks for them. Level
    s > 0 owns `pad_dimension`, the coordinates that `enter` adds to what the outer level hands over (paper, 2.1.2);
    what it returns is cut back to the outer width.
    """

    def __init__(self, config: HNetConfig, level: int = 0) -> None:
        super().__init__()
        stacks, d_model = config.levels[level], config.d_model[level]
        self.outer_width = config.d_model[level - 1] if level else d_model
        self.pad_dimension = (
            nn.Parameter(torch.zeros(d_model - self.outer_width)) if d_model > self.outer_width else None
        )
        self.is_innermost = stacks.is_innermost
        self.adapter_in: SwiGLU | None = None
        self.adapter_out: SwiGLU | None = None
        if self.is_innermost:
            if config.adapter_width:
                self.adapter_in, self.adapter_out = (SwiGLU(d_model, config.adapter_width) for _ in range(2))
            self.main_network: HNet | Isotropic = Isotropic(config, level, "main_network")
            return
        self.encoder = Isotropic(config, level, "encoder")
        self.main_network = HNet(config, level + 1)
        self.decoder = Isotropic(config, level, "decoder")
        chunker = config.chunkers[level]
        self.routing_module = RoutingModule(d_model, chunker) if chunker.learned else FixedRouting(chunker)
        self.smoothing = config.smoothing
        self.chunk_layer = ChunkLayer()
        self.dechunk_layer = DeChunkLayer()
        self.residual_proj: WideLinear | None = None
        if config.residual == "projection":
            self.residual_proj = WideLinear(d_model, d_model, dtype=torch.float32)
            nn.init.zeros_(self.residual_proj.weight)

    def enter(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        """What the outer level hands over, (T, outer width), as this level reads it: (T, D)."""
        if self.pad_dimension is not None:
            hidden = torch.cat([hidden, self.pad_dimension.to(hidden.dtype).expand(len(hidden), -1)], -1)
        return hidden if self.adapter_in is None else self.adapter_in(hidden, kernels)

    def _leave(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        if self.adapter_out is not None:
            hidden = self.adapter_out(hidden, kernels)
        return hidden[:, : self.outer_width]

    def forward(
        self,
        hidden: Tensor,
        packing: Packing,
        kernels: Kernels,
        input_ids: Tensor | None = None,
        state: LevelState | None = None,
        outer: RoutingOutput | None = None,
    ) -> tuple[Tensor, list[RoutingOutput]]:
        """hidden (T, outer width) -> the same, and the routing of this stage and the inner ones.

        `input_ids` (T,) is given to the outermost level only, for chunkers that read bytes. A `state` is filled with
        what each document ends with, for generation to go on from. `outer`: the routing that this level's positions
        come from, which is told what adapters make of them.
        """
        hidden = self.enter(hidden, kernels)
        if outer is not None and self.adapter_in is not None:
            outer.embedding = hidden
        stacks = state.layers if state is not None else {}
        if state is not None:
            state.seen, state.position = list(packing.lengths), packing.cu_seqlens.diff().long()
        if self.is_innermost:
            return self._leave(self.main_network(hidden, packing, kernels, stacks.get("main_network")), kernels), []
        encoded = self.encoder(hidden, packing, kernels, stacks.get("encoder"))
        residual = self.project_residual(encoded, kernels)
        routing = self.routing_module(encoded, packing, input_ids, kernels)
        average = self.chunk_source(encoded, routing, packing, kernels)
        chunks, inner, index = self.chunk_layer(average.to(encoded.dtype), routing, packing)
        chunks, deeper = self.main_network(chunks, inner, kernels, None, state and state.inner, routing)
        over_chunks = self.smoothing == "chunks"
        smoothed = self.dechunk_layer.smooth(chunks, routing, inner, index, kernels) if over_chunks else wide(chunks)
        upsampled = self.dechunk_layer(smoothed, routing)
        if self.smoothing == "bytes":
            upsampled = average = average_over_positions(upsampled, routing, packing, kernels)
        if state is not None:
            self.routing_module.remember(
                encoded[packing.last], None if input_ids is None else input_ids[packing.last], state
            )
            state.smoothed = smoothed[inner.last]
            state.average = wide(average[packing.last])
        if self.residual_proj is None:
            upsampled = upsampled * routing.boundary_mask[:, None]
        joined = add_residual(upsampled, routing, residual).to(encoded.dtype)
        out = self.decoder(joined, packing, kernels, stacks.get("decoder"))
        return out[:, : self.outer_width], [routing, *deeper]

    def chunk_source(self, encoded: Tensor, routing: RoutingOutput, packing: Packing, kernels: Kernels) -> Tensor:
        """What chunks are selected from, (T, D): the encoder's output, or float32 where that is smoothed first."""
        if self.smoothing != "input":
            return encoded
        return average_over_positions(encoded, routing, packing, kernels)

    def project_residual(self, encoded: Tensor, kernels: Kernels) -> Tensor:
        """The residual around the inner network: float32 (or wider) whatever the model's dtype."""
        return wide(encoded) if self.residual_proj is None else self.residual_proj(encoded, kernels)

    # -- generation ----------------------------------------------------------------------------------------------------

    def allocate(self, batch_size: int, kernels: Kernels) -> LevelState:
        """The state of this level and those inside, of `batch_size` documents that have not begun."""
        stacks = ("main_network",) if self.is_innermost else ("encoder", "decoder")
        layers = {name: getattr(self, name).allocate(batch_size, kernels) for name in stacks}
        position = torch.zeros(batch_size, dtype=torch.int64, device=next(self.parameters()).device)
        state = LevelState(layers, [0] * batch_size, position)
        if isinstance(self.main_network, HNet):
            state.inner = self.main_network.allocate(batch_size, kernels)
        return state

    def step(
        self, hidden: Tensor, state: LevelState, now: Now, kernels: Kernels, routing: list[StepRouting], tokens: Tensor
    ) -> Tensor:
        """One position for the R rows of `now`: hidden (R, D) -> (R, outer width). Appends the routing of each stage.

        The inner network runs only for the rows at a boundary, and not at all if there are none.
        """
        if self.is_innermost:
            return self.step_main(hidden, state, now, kernels)
        encoded, source, prob = self.step_in(hidden, state, now, kernels, tokens)
        routing.append(StepRouting.of(prob, prob > 0.5, now.rows, len(state.seen)))
        chosen = [i for i, boundary in enumerate((prob > 0.5).tolist()) if boundary]
        assert isinstance(self.main_network, HNet)
        if chosen:
            assert state.inner is not None
            some = None if len(chosen) == len(prob) else torch.tensor(chosen, device=prob.device)
            if some is None:
                inner = state.inner.begin(now.host, now.rows)
            else:
                inner = state.inner.begin(chosen if now.host is None else [now.host[i] for i in chosen])
                source, tokens = source[some], tokens[some]
            entered = self.main_network.enter(source, kernels)
            chunk = self.main_network.step(entered, state.inner, inner, kernels, routing, tokens)
            self.receive(chunk, prob if some is None else prob[some], state, inner.rows)
        else:
            self.main_network.skip(routing, len(state.seen), prob)
        return self.step_out(encoded, prob, state, now, kernels)

    def step_main(self, hidden: Tensor, state: LevelState, now: Now, kernels: Kernels) -> Tensor:
        """`step` of the innermost level."""
        assert isinstance(self.main_network, Isotropic)
        return self._leave(self.main_network.step(hidden, state.layers["main_network"], now, kernels), kernels)

    def step_in(
        self, hidden: Tensor, state: LevelState, now: Now, kernels: Kernels, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`step` as far as the boundary: what the encoder gives and what the inner network would be given, (R, D) each,
        and the probability of a boundary (R,)."""
        encoded = self.encoder.step(hidden, state.layers["encoder"], now, kernels)
        prob = self.routing_module.step(encoded, tokens, state, now)
        source = encoded
        if self.smoothing == "input":
            source = state.move(wide(encoded), _weight(prob), now.rows).to(encoded.dtype)
        return encoded, source, prob

    def receive(self, chunk: Tensor, prob: Tensor, state: LevelState, rows: Tensor | None) -> None:
        """Takes up what the inner network gives for rows at a boundary (None: all): chunk (R, D), prob (R,)."""
        new = wide(chunk)
        if self.smoothing == "chunks":
            new = torch.lerp(pick(state.smoothed, rows), new, _weight(prob))
        if rows is None:
            state.smoothed = new
        else:
            state.smoothed[rows] = new

    def step_out(self, encoded: Tensor, prob: Tensor, state: LevelState, now: Now, kernels: Kernels) -> Tensor:
        """`step` from the dechunk layer on: encoded (R, D), prob (R,) -> (R, outer width)."""
        smoothed = pick(state.smoothed, now.rows)
        if self.smoothing == "bytes":
            smoothed = state.move(smoothed, _weight(prob), now.rows)
        if self.residual_proj is None:
            smoothed = smoothed * (prob > 0.5)[:, None]
        joined = (smoothed + self.project_residual(encoded, kernels)).to(encoded.dtype)
        return self.decoder.step(joined, state.layers["decoder"], now, kernels)[:, : self.outer_width]

    def skip(self, routing: list[StepRouting], batch_size: int, like: Tensor) -> None:
        """Reports the stages from here inwards as not reached."""
        net: HNet | Isotropic = self
        while isinstance(net, HNet) and not net.is_innermost:
            routing.append(StepRouting.none(batch_size, like))
            net = net.main_network


class HNetForCausalLM(nn.Module):
    """H-Net as a language model over bytes; loads the official release's state dict by its own names.

    `backend`: "auto", "reference" or "fast", see `hnet_cli.kernels.choose`.
    """

    tokenizer: Any = None
    """A `hnet_cli.data.tokens.Tokenizer` that maps bytes to the ids this model reads; None: bytes are the ids."""

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
        return seam.choose(
            weight.device, torch.get_autocast_dtype(weight.device.type) if auto else weight.dtype, self.backend
        )

    def cast(self, dtype: torch.dtype) -> HNetForCausalLM:
        """In place, as the release is loaded: all to `dtype` but what `stays_float32`."""
        for name, parameter in self.named_parameters():
            if not stays_float32(name):
                parameter.data = parameter.data.to(dtype)
        return self

    def forward(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None, mask: Tensor | None = None) -> HNetOutput:
        """Logits of the next byte at every position.

        Either `input_ids` (B, L) int64, every row a document; or the same with `mask` (B, L) bool, true on a prefix of
        each row; or packed `input_ids` (T,) with `cu_seqlens` (B+1,) int32 or int64. Logits (B, L, V), zero where
        masked, or (T, V). Raises ValueError for shapes that do not fit.
        """
        if input_ids.ndim == 1:
            if cu_seqlens is None or mask is not None:
                raise ValueError("packed input_ids (T,) need cu_seqlens and take no mask")
            packing = Packing.of_cu_seqlens(cu_seqlens, input_ids.device)
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
        index = true_positions(mask.flatten(), packing.total)
        out = self.forward_packed(input_ids.flatten().index_select(0, index), packing)
        logits = out.logits.new_zeros(rows * length, out.logits.shape[-1]).index_copy(0, index, out.logits)
        return HNetOutput(logits.unflatten(0, (rows, length)), out.routing)

    def forward_packed(self, input_ids: Tensor, packing: Packing) -> HNetOutput:
        """input_ids (T,) -> logits (T, V)."""
        hidden, routing = self.backbone(self.embeddings(input_ids), packing, self.kernels(), input_ids)
        return HNetOutput(self.lm_head(hidden), routing)

    # -- generation ----------------------------------------------------------------------------------------------------

    def allocate_state(self, batch_size: int, max_length: int) -> GenerationState:
        """Memory for continuing `batch_size` documents up to `max_length` bytes each, prompt included.

        Caches grow with what is used. Raises ValueError for sizes below 1.
        """
        if batch_size < 1 or max_length < 1:
            raise ValueError(f"allocate_state needs sizes of at least 1, got {batch_size} rows of {max_length} bytes")
        weight = self.embeddings.weight
        kernels = seam.choose(weight.device, weight.dtype, self.backend)
        with torch.inference_mode():
            return GenerationState(
                self.config, batch_size, max_length, self.backbone.allocate(batch_size, kernels), kernels
            )

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Tensor | bytes | bytearray], state: GenerationState) -> Tensor:
        """Reads one prompt per row, 1-D int64 or bytes, and returns the logits (B, V) after each prompt's last byte.

        One packed pass, in the dtype of the weights (autocast does not apply to generation); whatever the state held
        before is forgotten. Raises ValueError for an empty prompt, one that is too long, or a wrong number of them.
        """
        device = self.embeddings.weight.device
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                return self.prefill(prompts, state)
        if len(prompts) != state.batch_size:
            raise ValueError(f"{len(prompts)} prompts for a state with {state.batch_size} rows")
        rows = [torch.tensor(list(p)) if isinstance(p, bytes | bytearray) else torch.as_tensor(p) for p in prompts]
        for i, row in enumerate(rows):
            if row.ndim != 1 or not 0 < len(row) <= state.max_length:
                raise ValueError(f"prompt {i} has shape {tuple(row.shape)}: 1 to {state.max_length} bytes are needed")
        packing = Packing.of_lengths([len(row) for row in rows], device)
        ids = torch.cat([row.to(device, torch.int64) for row in rows])
        state.level = self.backbone.allocate(state.batch_size, state.kernels)
        hidden, _ = self.backbone(self.embeddings(ids), packing, state.kernels, ids, state.level)
        return self.lm_head(hidden[packing.last])

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: GenerationState) -> tuple[Tensor, list[StepRouting]]:
        """Reads one byte per row, tokens (B,) int64: the logits (B, V) after it, and the routing of each stage.

        Equal to the full forward pass over everything the row has read. Raises ValueError before `prefill`, for a wrong
        number of tokens, and beyond `max_length`.
        """
        level, kind = state.level, tokens.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.step(tokens, state)
        if tokens.shape != (state.batch_size,):
            raise ValueError(f"tokens must be ({state.batch_size},), got {tuple(tokens.shape)}")
        if min(level.seen) < 1 or max(level.seen) >= state.max_length:
            raise ValueError(
                f"step needs a state filled by prefill, and room: {level.seen} of {state.max_length} bytes read"
            )
        now = level.begin(None)
        routing: list[StepRouting] = []
        hidden = self.backbone.step(self.embeddings(tokens), level, now, state.kernels, routing, tokens)
        return F.linear(hidden, self.lm_head.weight), routing

    @torch.no_grad()
    def init_weights(self, initializer_range: float = 0.02) -> None:
        """The official initialisation: N(0, range) for linear maps, less for those that write to the residual stream,
        N(0, 1) for embeddings. The rest keeps what its constructor gave it."""
        nn.init.normal_(self.embeddings.weight, std=1.0)
        # after the embeddings: a tied pair is an output layer first, as in the release
        nn.init.normal_(self.lm_head.weight, std=initializer_range)
        _init_level(self.backbone, initializer_range, 0)


def _weight(prob: Tensor) -> Tensor:
    """Of a new value in the smoothing: (R,) -> (R, 1)."""
    return prob.clamp(1e-4, 1 - 1e-4)[:, None]


def stays_float32(name: str) -> bool:
    """Whether a parameter is float32 whatever the dtype of the rest: the residual projections and Mamba's D."""
    return "residual_proj" in name or name.endswith(".D")


def _init_level(net: HNet, initializer_range: float, residuals: int) -> None:
    stacks = [net.main_network] if net.is_innermost else [net.encoder, net.decoder]
    residuals += sum(stack.height for stack in stacks if isinstance(stack, Isotropic))
    for stack in stacks:
        for name, parameter in stack.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                # the stream is summed over all levels, the outer ones included: its variance must not grow with depth
                nn.init.normal_(parameter, std=initializer_range / math.sqrt(residuals))
            elif name.endswith(("in_proj.weight", "Wqkv.weight", "fc1.weight")):
                nn.init.normal_(parameter, std=initializer_range)
    if isinstance(net.main_network, HNet):
        _init_level(net.main_network, initializer_range, residuals)
