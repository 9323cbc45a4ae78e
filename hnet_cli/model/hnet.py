"""The recursive network and the language model around it (paper, section 2.1)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnet_cli import kernels as seam
from hnet_cli.kernels import Kernels
from hnet_cli.kernels.packing import Packing, true_positions
from hnet_cli.kernels.reference import pick, put, wide
from hnet_cli.model import init
from hnet_cli.model.blocks import Isotropic, SwiGLU, WideLinear
from hnet_cli.model.chunking import (
    ChunkLayer,
    DeChunkLayer,
    FixedRouting,
    Router,
    RoutingModule,
    RoutingOutput,
    Shares,
    add_residual,
    smooth,
)
from hnet_cli.model.config import HNetConfig
from hnet_cli.model.embeddings import Embeddings
from hnet_cli.model.state import GenerationState, LevelState, Now, StepRouting

Until = Literal["routing"] | None
"""Extent of a forward pass: all of it, or without main network and decoders, on which no routing depends."""


@dataclass
class HNetOutput:
    """The result of a forward pass of the model."""

    logits: Tensor
    """(B, L, V) for rows, (T, V) for packed input; (0, V) of a pass until the routing."""
    routing: list[RoutingOutput] = field(default_factory=list)
    """One per stage, outermost first."""
    embedding: Tensor | None = None
    """(M, D): what a main network with adapters reads for each innermost chunk."""


class LevelOutput(NamedTuple):
    """The result of a forward pass of a level."""

    hidden: Tensor
    """(T, outer width), or none of them in a pass until the routing."""
    routing: list[RoutingOutput]
    """Routing of this stage and the inner ones, outermost first."""
    embedding: Tensor | None = None
    """`HNetOutput.embedding`."""


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
        self.routing_module: Router = RoutingModule(d_model, chunker) if chunker.learned else FixedRouting(chunker)
        self.chunk_layer = ChunkLayer()
        self.dechunk_layer = DeChunkLayer(over_chunks=config.smoothing == "chunks")
        self.residual_proj: WideLinear | None = None
        if config.residual == "projection":
            self.residual_proj = WideLinear(d_model, d_model, dtype=torch.float32)
            nn.init.zeros_(self.residual_proj.weight)

    def enter(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        """The outer level's vectors (T, outer width) at the width of this level: (T, D)."""
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
        until: Until = None,
        shares: Sequence[Shares] | None = None,
    ) -> LevelOutput:
        """hidden (T, outer width) -> the same, with the routing.

        `input_ids` (T,) is given to the outermost level only, for chunkers that read bytes. With a `state`, which made
        `packing`, documents go on from it and it is brought to their ends. `shares`: of this stage and the inner ones.
        """
        stacks = state.layers if state is not None else {}
        if state is not None:
            state.advance(packing)
        hidden = self.enter(hidden, kernels)
        if self.is_innermost:
            out = self.main_network(hidden, packing, kernels, stacks.get("main_network"))
            return LevelOutput(self._leave(out, kernels), [], None if self.adapter_in is None else hidden)
        encoded = self.encoder(hidden, packing, kernels, stacks.get("encoder"))
        residual = None if until else self.project_residual(encoded, kernels)
        routing = self.routing_module(encoded, packing, input_ids, kernels, state, shares[0] if shares else None)
        source = self.chunk_source(encoded, routing, packing, kernels, state)
        chunks, inner, index = self.chunk_layer(source, routing, packing, state)
        if state is not None:
            routing.cu_seqlens = state.offsets(packing)
        assert isinstance(self.main_network, HNet)
        if inner is None or (until and self.main_network.is_innermost):
            deeper = LevelOutput(chunks[:0], self.main_network.unreached(routing))
        else:
            inside = state.inner if state is not None else None
            deeper = self.main_network(chunks, inner, kernels, None, inside, until, shares[1:] if shares else None)
        stages = [routing, *deeper.routing]
        if residual is None:
            return LevelOutput(encoded[:0, : self.outer_width], stages)
        smoothed = wide(deeper.hidden)
        if inner is not None:
            smoothed = self.dechunk_layer.smooth(deeper.hidden, routing, inner, index, kernels, state)
        upsampled = self.dechunk_layer(smoothed, routing, packing, state)
        if state is not None and inner is not None:
            put(state.smoothed, inner.row_index, smoothed[inner.last])
        joined = self.join(upsampled, residual, routing.boundary_prob, routing.boundary_mask, encoded.dtype)
        out = self.decoder(joined, packing, kernels, stacks.get("decoder"))
        return LevelOutput(out[:, : self.outer_width], stages, deeper.embedding)

    def chunk_source(
        self, encoded: Tensor, routing: RoutingOutput, packing: Packing, kernels: Kernels, state: LevelState | None
    ) -> Tensor:
        """The vectors (T, D) that chunks are selected from: the encoder's output, or its average over positions."""
        if self.dechunk_layer.over_chunks:
            return encoded
        before = None if state is None else pick(state.average, packing.row_index)
        average = smooth(kernels, encoded, routing.boundary_prob, packing, before)
        if state is not None:
            put(state.average, packing.row_index, average[packing.last])
        return average.to(encoded.dtype)

    def unreached(self, like: RoutingOutput) -> list[RoutingOutput]:
        """The routing of this stage and the inner ones where none of their positions is reached."""
        if not isinstance(self.main_network, HNet):
            return []
        prob, mask, offsets = like.boundary_prob[:0], like.boundary_mask[:0], torch.zeros_like(like.cu_seqlens)
        routing = RoutingOutput(prob, mask, offsets, self.routing_module.learned)
        return [routing, *self.main_network.unreached(like)]

    def join(self, upsampled: Tensor, residual: Tensor, prob: Tensor, boundary: Tensor, dtype: torch.dtype) -> Tensor:
        """The decoder's input, in `dtype`: each position's chunk, upsampled (T, D), plus the residual (T, D)."""
        if self.residual_proj is None:
            upsampled = upsampled * boundary[:, None]
        if self.routing_module.learned and torch.is_grad_enabled():
            return add_residual(upsampled, residual, prob, boundary).to(dtype)
        return (upsampled + residual).to(dtype)

    def project_residual(self, encoded: Tensor, kernels: Kernels) -> Tensor:
        """The residual around the inner network: float32 (or wider) whatever the model's dtype."""
        return wide(encoded) if self.residual_proj is None else self.residual_proj(encoded, kernels)

    # -- generation ----------------------------------------------------------------------------------------------------

    def allocate(self, batch_size: int, kernels: Kernels) -> LevelState:
        """The state of this level and those inside, of `batch_size` documents that have not begun."""
        stacks = ("main_network",) if self.is_innermost else ("encoder", "decoder")
        layers = {name: getattr(self, name).allocate(batch_size, kernels) for name in stacks}
        weight = next(self.parameters())
        state = LevelState(layers, [0] * batch_size, weight.new_zeros(batch_size, dtype=torch.int64))
        if isinstance(self.main_network, HNet):
            state.inner = self.main_network.allocate(batch_size, kernels)
            state.last, state.projection = (t.to(weight.device) for t in self.routing_module.allocate(batch_size))
            state.smoothed = wide(weight[:0]).new_zeros(batch_size, self.main_network.outer_width)
            if not self.dechunk_layer.over_chunks:
                state.average = torch.zeros_like(state.smoothed)
        return state

    def step(
        self,
        hidden: Tensor,
        state: LevelState,
        now: Now,
        kernels: Kernels,
        routing: list[StepRouting],
        tokens: Tensor | None = None,
    ) -> Tensor:
        """`forward` of one position for the R rows of `now`: hidden (R, D) -> (R, outer width). Appends the routing of
        each stage. `tokens` (R,) as `input_ids`.

        The inner network runs only for the rows at a boundary, and not at all if there are none.
        """
        if self.is_innermost:
            return self.step_main(hidden, state, now, kernels)
        encoded, prob = self.step_in(hidden, state, now, kernels, tokens)
        boundary = self.routing_module.is_boundary(prob)
        routing.append(StepRouting.of(prob, boundary, now.rows, len(state.seen)))
        chosen = [i for i, begins in enumerate(boundary.tolist()) if begins]
        assert isinstance(self.main_network, HNet)
        if chosen:
            assert state.inner is not None
            some = None if len(chosen) == len(prob) else torch.tensor(chosen, device=prob.device)
            if some is None:
                inner = state.inner.begin(now.host, now.rows)
            else:
                inner = state.inner.begin(chosen if now.host is None else [now.host[i] for i in chosen])
            entered = self.inner_input(pick(encoded, some), state, inner.rows, kernels)
            chunk = self.main_network.step(entered, state.inner, inner, kernels, routing)
            self.dechunk_layer.step(chunk, pick(prob, some), state, kernels, inner.rows)
        else:
            self.main_network.skip(routing, len(state.seen), prob)
        return self.step_out(encoded, prob, state, now, kernels)

    def step_main(self, hidden: Tensor, state: LevelState, now: Now, kernels: Kernels) -> Tensor:
        """`step` of the innermost level."""
        assert isinstance(self.main_network, Isotropic)
        return self._leave(self.main_network.step(hidden, state.layers["main_network"], now, kernels), kernels)

    def step_in(
        self, hidden: Tensor, state: LevelState, now: Now, kernels: Kernels, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`step` as far as the boundary: the encoder's output (R, D) and the probability of a boundary (R,)."""
        encoded = self.encoder.step(hidden, state.layers["encoder"], now, kernels)
        prob = self.routing_module.step(encoded, tokens, state, now, kernels)
        if not self.dechunk_layer.over_chunks:
            kernels.ema_step(encoded, prob, state.average, now.rows, now.once)
        return encoded, prob

    def inner_input(self, encoded: Tensor, state: LevelState, rows: Tensor | None, kernels: Kernels) -> Tensor:
        """Input of the inner network (R, inner width) for rows at a boundary (None: all), after `step_in` gave their
        `encoded` (R, D)."""
        assert isinstance(self.main_network, HNet)
        source = encoded if self.dechunk_layer.over_chunks else pick(state.average, rows).to(encoded.dtype)
        return self.main_network.enter(source, kernels)

    def step_out(self, encoded: Tensor, prob: Tensor, state: LevelState, now: Now, kernels: Kernels) -> Tensor:
        """`step` from the dechunk layer on: encoded (R, D), prob (R,) -> (R, outer width)."""
        smoothed = pick(state.smoothed, now.rows)
        if self.residual_proj is None:
            joined = self.join(smoothed, wide(encoded), prob, self.routing_module.is_boundary(prob), encoded.dtype)
        else:
            weight, bias = self.residual_proj.weight, self.residual_proj.bias
            joined = kernels.step_linear(encoded, weight, bias=bias, residual=smoothed).to(encoded.dtype)
        return self.decoder.step(joined, state.layers["decoder"], now, kernels)[:, : self.outer_width]

    def skip(self, routing: list[StepRouting], batch_size: int, like: Tensor) -> None:
        """Append the routing of this stage and the inner ones, which no row reached."""
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
        self.embeddings = Embeddings(config.vocab_size, config.d_model[0], config.ngram_rows)
        self.backbone = HNet(config)
        self.lm_head = nn.Linear(config.d_model[0], config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embeddings.weight
        init.init_weights(self)

    def kernels(self) -> Kernels:
        """The operations this model runs on, for its device and the dtype its products run in now."""
        weight = self.embeddings.weight
        auto = torch.is_autocast_enabled(weight.device.type)
        return seam.choose(
            weight.device, torch.get_autocast_dtype(weight.device.type) if auto else weight.dtype, self.backend
        )

    @property
    def routers(self) -> list[Router]:
        """The routing of each stage, outermost first."""
        found, net = list[Router](), self.backbone
        while not net.is_innermost:
            found.append(net.routing_module)
            net = cast(HNet, net.main_network)
        return found

    @property
    def thresholds(self) -> list[float]:
        """Of each learned stage, outermost first: a position is a boundary where its probability is above."""
        return [router.threshold for router in self.routers if router.learned]

    def set_thresholds(self, thresholds: float | Sequence[float]) -> contextlib.ExitStack:
        """Decide at these thresholds from now on, one for all learned stages or one for each; as a context manager,
        until its end.

        Lower ones give shorter chunks; at 1 a document is one chunk, for its first position always begins one. They
        are rounded to float32, as probabilities are, so that every form of a pass decides alike, and saved nowhere. Set
        them before a document is begun, not while it is being continued. Raises ValueError for a number
        outside 0 to 1, a wrong count, or a model without learned stages.
        """
        learned, before = [router for router in self.routers if router.learned], self.thresholds
        if not learned:
            raise ValueError("this model has no learned boundaries: there is no threshold to choose")
        wanted = [thresholds] * len(learned) if isinstance(thresholds, int | float) else list(thresholds)
        if len(wanted) != len(learned):
            raise ValueError(f"{len(wanted)} thresholds for {len(learned)} learned stages")
        for threshold in wanted:
            if not 0 <= threshold <= 1:
                raise ValueError(f"a threshold is a probability, 0 to 1, not {threshold}")

        def apply(values: Sequence[float]) -> None:
            for router, value in zip(learned, values, strict=True):
                router.threshold = torch.tensor(value, dtype=torch.float32).item()

        apply(wanted)
        restoring = contextlib.ExitStack()
        restoring.callback(apply, before)
        return restoring

    def cast(self, dtype: torch.dtype) -> HNetForCausalLM:
        """In place, as the release is loaded: all to `dtype` but what `init.stays_float32`."""
        for name, parameter in self.named_parameters():
            if not init.stays_float32(name):
                parameter.data = parameter.data.to(dtype)
        return self

    def forward(
        self,
        input_ids: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        mask: Tensor | None = None,
        until: Until = None,
        shares: Sequence[Shares] | None = None,
    ) -> HNetOutput:
        """Logits of the next byte at every position.

        Either `input_ids` (B, L) int64, every row a document; or the same with `mask` (B, L) bool, true on a prefix of
        each row; or packed `input_ids` (T,) with `cu_seqlens` (B+1,) int32 or int64. Logits (B, L, V), zero where
        masked, or (T, V); none with `until="routing"`. `shares`, for packed documents only: per stage, how many
        boundaries there shall be in place of the thresholds. Raises ValueError for shapes that do not fit.
        """
        if input_ids.ndim == 1:
            if cu_seqlens is None or mask is not None:
                raise ValueError("packed input_ids (T,) need cu_seqlens and take no mask")
            packing = Packing.of_cu_seqlens(cu_seqlens, input_ids.device)
            if packing.total != len(input_ids):
                raise ValueError(f"cu_seqlens ends at {packing.total}, input_ids has {len(input_ids)} positions")
            return self.forward_packed(input_ids, packing, None, until, shares)
        if input_ids.ndim != 2 or cu_seqlens is not None:
            raise ValueError("input_ids must be (B, L), or (T,) with cu_seqlens")
        rows, length = input_ids.shape
        if mask is None:
            if rows == 0 or length == 0:
                raise ValueError("input_ids is empty")
            packing = Packing.of_lengths([length] * rows, input_ids.device)
            out = self.forward_packed(input_ids.flatten(), packing, until=until)
            return out if until else dataclasses.replace(out, logits=out.logits.unflatten(0, (rows, length)))
        if mask.shape != input_ids.shape or mask.dtype != torch.bool:
            raise ValueError("mask must be bool and have the shape of input_ids")
        lengths = mask.sum(1)
        if not bool((mask.cummin(1).values.sum(1) == lengths).all()):
            raise ValueError("mask must be true on a prefix of each row (right padding)")
        packing = Packing.of_cu_seqlens(F.pad(lengths.cumsum(0), (1, 0)))
        index = true_positions(mask.flatten(), packing.total)
        out = self.forward_packed(input_ids.flatten().index_select(0, index), packing, until=until)
        if until:
            return out
        logits = out.logits.new_zeros(rows * length, out.logits.shape[-1]).index_copy(0, index, out.logits)
        return dataclasses.replace(out, logits=logits.unflatten(0, (rows, length)))

    def forward_packed(
        self,
        input_ids: Tensor,
        packing: Packing,
        state: LevelState | None = None,
        until: Until = None,
        shares: Sequence[Shares] | None = None,
    ) -> HNetOutput:
        """input_ids (T,) -> logits (T, V). `state`, `until` and `shares` as `HNet.forward`."""
        hidden = self.embeddings.packed(input_ids, packing, None if state is None else state.recent)
        out = self.backbone(hidden, packing, self.kernels(), input_ids, state, until, shares)
        return HNetOutput(self.lm_head(out.hidden), out.routing, out.embedding)

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
            return GenerationState(self.config, batch_size, max_length, self._nothing(batch_size, kernels), kernels)

    def _nothing(self, batch_size: int, kernels: Kernels) -> LevelState:
        """The state of `batch_size` documents that have not begun."""
        state = self.backbone.allocate(batch_size, kernels)
        state.recent = self.embeddings.allocate(batch_size)
        return state

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
        rows = [_as_ids(prompt) for prompt in prompts]
        for i, row in enumerate(rows):
            if row.ndim != 1 or not 0 < len(row) <= state.max_length:
                raise ValueError(f"prompt {i} has shape {tuple(row.shape)}: 1 to {state.max_length} bytes are needed")
        state.level = self._nothing(state.batch_size, state.kernels)
        packing, ids = state.level.packing([len(row) for row in rows]), torch.cat(rows).to(device)
        assert packing is not None
        hidden = self.embeddings.packed(ids, packing, state.level.recent)
        out = self.backbone(hidden, packing, state.kernels, ids, state.level)
        return self.lm_head(out.hidden[packing.last])

    @torch.inference_mode()
    def extend(
        self,
        ids: Tensor | bytes | bytearray | Sequence[Tensor | bytes | bytearray],
        state: GenerationState,
        until: Until = None,
    ) -> HNetOutput:
        """Reads the next bytes of every row, any number of each: packed logits (T, V), and the routing of these
        positions with offsets of all rows, of which an inner stage may have none.

        `ids`: 1-D int64 or bytes for each row; without a list for the only one. A row that has read nothing begins a
        document. However a document is cut, the result is that of one pass over all of it, up to rounding; autocast
        applies as there. A state continued `until="routing"` must go on so. Raises ValueError for a wrong number of
        rows, for no bytes at all, or for too many.
        """
        rows = [_as_ids(row) for row in ([ids] if isinstance(ids, Tensor | bytes | bytearray) else ids)]
        lengths = [len(row) if row.ndim == 1 else -1 for row in rows]
        if len(rows) != state.batch_size or min(lengths) < 0:
            shapes = [tuple(row.shape) for row in rows]
            raise ValueError(f"extend needs the bytes of {state.batch_size} rows, got shapes {shapes}")
        after = max(n + read for n, read in zip(lengths, state.lengths, strict=True))
        packing = state.level.packing(lengths)
        if packing is None or after > state.max_length:
            raise ValueError(f"extend needs 1 to {state.max_length} bytes in all, got {lengths} after {state.lengths}")
        return self.forward_packed(torch.cat(rows).to(packing.device), packing, state.level, until)

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
        hidden = self.embeddings.step(tokens, level.recent)
        hidden = self.backbone.step(hidden, level, now, state.kernels, routing, tokens)
        return F.linear(hidden, self.lm_head.weight), routing


def _as_ids(row: Tensor | bytes | bytearray) -> Tensor:
    """Bytes as 1-D int64; a tensor as int64 of its shape."""
    return torch.as_tensor(list(row) if isinstance(row, bytes | bytearray) else row, dtype=torch.int64)
