"""Dynamic chunking: where to cut, what to keep, how to come back (paper, section 2.2).

At every stage: `RoutingModule` gives each position a boundary probability, `ChunkLayer` keeps the vectors at
boundaries, `DeChunkLayer` smooths what comes back from the inner network and hands every position the vector of its own
chunk. All tensors are packed over documents, (T, D) with a `Packing`; the first position of a document is always a
boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnet_cli.kernels import REFERENCE, Kernels, continuing
from hnet_cli.kernels.packing import Packing, send, true_positions
from hnet_cli.kernels.reference import boundary, kept_away, pick, put, wide
from hnet_cli.model.automaton import Automaton
from hnet_cli.model.blocks import WideLinear
from hnet_cli.model.settings import Chunker, continuation, space_like
from hnet_cli.model.state import LevelState, Now

Probability = TypeVar("Probability", Tensor, float)
Shares = Sequence[float | None]
"""For each document the share of its positions that shall be boundaries; None: those above the threshold."""
THRESHOLD = 0.5
"""The probability above which a position is a boundary (paper eq 5), unless a model is told another."""


@dataclass
class RoutingOutput:
    """The decisions of a stage, for the T_s positions of level s of all B documents."""

    boundary_prob: Tensor
    """(T_s,) float32 or wider: p of paper eq 4; the first position of a document has 1."""
    boundary_mask: Tensor
    """(T_s,) bool: b, see `Routing.is_boundary`."""
    cu_seqlens: Tensor
    """(B+1,): document offsets at level s, that is the level these positions belong to (not of the chunks)."""
    learned: bool = True
    """False for fixed rules, whose probabilities are the mask and carry no loss."""
    allowed: Tensor | None = None
    """(T_s,) bool: where a boundary may be, of the `characters` chunker; elsewhere p is 0. None: anywhere."""
    above_threshold: Tensor | None = None
    """(T_s,) bool: b as the threshold decides, where shares decided `boundary_mask`. None: the same."""

    @property
    def by_threshold(self) -> Tensor:
        """(T_s,) bool: b as the threshold decides, whatever shares there are."""
        return self.boundary_mask if self.above_threshold is None else self.above_threshold


class Routing(nn.Module):
    """The decisions of a stage."""

    learned: bool
    threshold: float = THRESHOLD
    """A setting of the moment, no weight: see `HNetForCausalLM.set_thresholds`."""

    def is_boundary(self, prob: Probability) -> Any:
        """b of paper eq 5, p > threshold: a bool for a float, a bool tensor for a tensor; False for not-a-number.

        Not for the first position of a document, which is a boundary whatever the threshold.
        """
        return prob > self.threshold


class RoutingModule(Routing):
    """p_t = (1 - cos(W_q h_{t-1}, W_k h_t)) / 2 (paper eq 4, with the letters of the official code)."""

    learned = True

    def __init__(self, d_model: int, chunker: Chunker | None = None) -> None:
        super().__init__()
        self.characters = chunker is not None and chunker.kind == "characters"
        self.q_proj_layer = WideLinear(d_model, d_model, bias=False)
        self.k_proj_layer = WideLinear(d_model, d_model, bias=False)
        nn.init.eye_(self.q_proj_layer.weight)  # similar neighbours start as one chunk
        nn.init.eye_(self.k_proj_layer.weight)

    def forward(
        self,
        hidden: Tensor,
        packing: Packing,
        input_ids: Tensor | None = None,
        kernels: Kernels = REFERENCE,
        state: LevelState | None = None,
        shares: Shares | None = None,
    ) -> RoutingOutput:
        """hidden (T, D): the encoder's output. The comparison across a document border is overwritten: no gradient.

        `shares` as in `most_likely`, in place of the threshold. Raises ValueError if the `characters` chunker is not
        given the bytes `input_ids` (T,).
        """
        q, k = self.q_proj_layer(hidden[:-1], kernels), self.k_proj_layer(hidden[1:], kernels)
        with torch.autocast(hidden.device.type, enabled=False):
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            prob = F.pad(((1 - (q * k).sum(-1)) / 2).clamp(0, 1), (1, 0))
            if state is not None:
                if packing.start is not None:
                    keys = self.k_proj_layer(hidden[packing.first], kernels)
                    prob[packing.first] = boundary(pick(state.last, packing.row_index), keys)
                put(state.last, packing.row_index, self.q_proj_layer(hidden[packing.last], kernels))
            allowed = None
            if self.characters:
                if input_ids is None:
                    raise ValueError("the 'characters' chunker needs the input bytes")
                allowed = ~continuation(input_ids)
                prob = prob.masked_fill(~allowed, 0)
                allowed = allowed.index_fill(0, packing.begins, True)
            prob = prob.index_fill(0, packing.begins, 1.0)
            mask = self.is_boundary(prob).index_fill(0, packing.begins, True)
            chosen = mask if shares is None else most_likely(prob, mask, packing, shares)
        return RoutingOutput(prob, chosen, packing.cu_seqlens, True, allowed, None if shares is None else mask)

    def allocate(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """`last` and `projection` of a `LevelState`."""
        projection = torch.cat([self.k_proj_layer.weight, self.q_proj_layer.weight]).detach()
        return projection.new_zeros(batch_size, projection.shape[1]), projection

    def step(self, hidden: Tensor, tokens: Tensor | None, state: LevelState, now: Now, kernels: Kernels) -> Tensor:
        """hidden (R, D), tokens (R,) -> boundary probabilities (R,)."""
        prob = kernels.router_step(hidden, state.projection, state.last, now.rows, now.once)
        return prob.masked_fill(continuation(tokens), 0) if self.characters and tokens is not None else prob


class FixedRouting(Routing):
    """A rule without parameters: every k-th position of a document; or, on the bytes (level 0 only), SpaceByte's rule
    or an automaton. The automaton of a packed pass runs on the host, whatever the device."""

    learned = False
    following: Tensor
    boundary: Tensor
    before: Sequence[int] | None = None
    """The rule's place as each document of a pass without a state begins, as `after` tells. None: 0."""

    def __init__(self, chunker: Chunker) -> None:
        super().__init__()
        self.chunker, self.automaton = chunker, chunker.automaton()
        if self.automaton is not None:
            self.register_buffer("following", torch.from_numpy(self.automaton.following), persistent=False)
            self.register_buffer("boundary", torch.from_numpy(self.automaton.boundary), persistent=False)

    def forward(
        self,
        hidden: Tensor,
        packing: Packing,
        input_ids: Tensor | None = None,
        kernels: Kernels = REFERENCE,
        state: LevelState | None = None,
        shares: Shares | None = None,
    ) -> RoutingOutput:
        """hidden (T, D) gives the dtype only; a rule heeds no shares.

        Raises ValueError if the `space` chunker is not given the bytes (T,).
        """
        if self.chunker.k is not None:
            position = packing.absolute
            if state is None and self.before is not None:
                position = position + torch.tensor(self.before, device=position.device)[packing.document]
            mask = (position % self.chunker.k == 0).index_fill(0, packing.begins, True)
        else:
            if input_ids is None:
                raise ValueError(f"the {self.chunker.kind!r} chunker needs the input bytes")
            if self.automaton is not None:
                mask = self._run(self.automaton, input_ids, packing, state).index_fill(0, packing.begins, True)
                prob = mask.to(torch.promote_types(hidden.dtype, torch.float32))
                return RoutingOutput(prob, mask, packing.cu_seqlens, learned=False)
            space = space_like(input_ids)
            mask = space & ~F.pad(space[:-1], (1, 0))
            if state is not None:
                mask[packing.first] = space[packing.first] & ~pick(state.last, packing.row_index)
                put(state.last, packing.row_index, space[packing.last])
            mask = mask.index_fill(0, packing.begins, True)
        prob = mask.to(torch.promote_types(hidden.dtype, torch.float32))
        return RoutingOutput(prob, mask, packing.cu_seqlens, learned=False)

    def _run(self, automaton: Automaton, input_ids: Tensor, packing: Packing, state: LevelState | None) -> Tensor:
        """The automaton's boundaries (T,) bool; moves the states of the documents, if there are any."""
        before = self.before or [0] * packing.batch_size
        if state is not None:
            before = pick(state.last, packing.row_index).tolist()
        data, masks, after, at = input_ids.to(torch.uint8).cpu().numpy().tobytes(), [], [], 0
        for length, start in zip(packing.lengths, before, strict=True):
            mask, end = automaton.run(data[at : at + length], start)
            masks.append(torch.from_numpy(mask))
            after.append(end)
            at += length
        if state is not None:
            put(state.last, packing.row_index, torch.tensor(after, device=state.last.device))
        return torch.cat(masks).to(input_ids.device)

    def after(self, before: int, count: int, data: bytes) -> tuple[int, int, bool]:
        """The rule's place after `count` positions more of a document, `data` where it reads bytes; the number of
        boundaries among them, and whether the first is one. Its place is 0 where a document begins."""
        if (k := self.chunker.k) is not None:
            return (before + count) % k, -(-(before + count) // k) - -(-before // k), before % k == 0
        if self.automaton is not None:
            found, end = self.automaton.run(data, before)
        else:
            space = space_like(np.frombuffer(data, np.uint8).astype(np.int64))
            found, end = space & ~np.concatenate([[bool(before)], space[:-1]]), int(space[-1]) if len(data) else before
        return end, int(found.sum()), bool(found[:1].any())

    def allocate(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """`last` and `projection` of a `LevelState`, on the default device."""
        dtype = torch.bool if self.automaton is None else torch.int64
        return torch.zeros(batch_size, dtype=dtype), torch.empty(0)

    def step(self, hidden: Tensor, tokens: Tensor | None, state: LevelState, now: Now, kernels: Kernels) -> Tensor:
        """tokens (R,) -> the mask (R,) as numbers."""
        if self.chunker.k is not None:
            mask = now.position % self.chunker.k == 0
        else:
            assert tokens is not None
            last = pick(state.last, now.rows)
            if self.automaton is None:
                read = space_like(tokens)
                mask = read & ~last
            else:
                read, mask = self.following[last, tokens].long(), self.boundary[last, tokens]
            put(state.last, now.rows, read)
        return mask.to(torch.promote_types(hidden.dtype, torch.float32))


Router = RoutingModule | FixedRouting


@torch.no_grad()
def most_likely(prob: Tensor, mask: Tensor, packing: Packing, shares: Shares) -> Tensor:
    """Boundaries by rank, (T,) bool: of the positions of all documents with the same share together, that share, those
    with the highest `prob` (T,); somewhat fewer where some are equal. `mask` (T,) where the share is None.

    Documents begin with a boundary. The rank within a pass stands for a threshold: its sampling error is that of the
    quantile.
    """
    groups: dict[float, list[int]] = {}
    for document, share in enumerate(shares):
        if share is not None:
            groups.setdefault(share, []).append(document)
    for share, documents in groups.items():
        member = torch.zeros(packing.batch_size, dtype=torch.bool)
        member[documents] = True
        own = send(member, prob.device)[packing.document]
        wanted = round(share * sum(packing.lengths[document] for document in documents))
        ranked = prob.masked_fill(~own, -1).sort(descending=True).values
        chosen = (prob > ranked[min(max(1, wanted), len(ranked) - 1)]).index_fill(0, packing.begins, True)
        mask = torch.where(own, chosen, mask)
    return mask


class ChunkLayer(nn.Module):
    """Direct selection: keep the vectors at boundaries (paper, 2.2.1)."""

    def forward(
        self, hidden: Tensor, routing: RoutingOutput, packing: Packing, state: LevelState | None = None
    ) -> tuple[Tensor, Packing | None, Tensor]:
        """hidden (T, D) -> chunks (M, D), their packing, and the index (M,) of each chunk's first position.

        With a `state` the chunks continue its inner level; there may be none, then the packing is None. Reads the chunk
        counts on the host: the one synchronisation of a stage.
        """
        counted = F.pad(routing.boundary_mask.cumsum(0), (1, 0))[packing.cu_seqlens.long()]
        inner: Packing | None
        if state is None:
            inner = Packing.of_cu_seqlens(counted.to(packing.cu_seqlens.dtype))
        else:
            assert state.inner is not None
            lengths = [b - a for a, b in pairwise(counted.tolist())]
            inner = state.inner.packing(lengths, packing.rows)
        index = true_positions(routing.boundary_mask, inner.total if inner else 0)
        return hidden.index_select(0, index), inner, index


def smooth(kernels: Kernels, x: Tensor, prob: Tensor, packing: Packing, before: Tensor | None = None) -> Tensor:
    """The moving average of paper eq 5: x (T, D), prob (T,) -> (T, D), float32 or wider.

    `before` (B, D): the averages that the documents go on from.
    """
    if before is None:
        return kernels.ema_scan(x, kept_away(prob), packing)
    return continuing.ema_scan(kernels, x, kept_away(prob), packing, before)


class DeChunkLayer(nn.Module):
    """Smoothing and upsampling (paper eq 5 and 8): average over chunks, then each position gets its chunk's vector.

    Without `over_chunks` the chunks stay as they are; the average was taken before they were selected.
    """

    def __init__(self, over_chunks: bool = True) -> None:
        super().__init__()
        self.over_chunks = over_chunks

    def smooth(
        self,
        chunks: Tensor,
        routing: RoutingOutput,
        inner: Packing,
        index: Tensor,
        kernels: Kernels,
        state: LevelState | None = None,
    ) -> Tensor:
        """The average over chunks (M, D) -> (M, D), float32 or wider. `index` (M,): where each chunk begins."""
        if not self.over_chunks:
            return wide(chunks)
        prob = routing.boundary_prob.index_select(0, index)
        return smooth(kernels, chunks, prob, inner, None if state is None else pick(state.smoothed, inner.row_index))

    def step(
        self,
        chunk: Tensor,
        prob: Tensor,
        state: LevelState,
        kernels: Kernels,
        rows: Tensor | None,
        once: Tensor | None = None,
    ) -> None:
        """`smooth` of one chunk for each of some rows (None: all), chunk (R, D), prob (R,): moves `state.smoothed`.
        `once` as in `Now`."""
        if self.over_chunks:
            kernels.ema_step(chunk, prob, state.smoothed, rows, once)
        else:
            put(state.smoothed, rows, chunk)

    def forward(
        self, smoothed: Tensor, routing: RoutingOutput, packing: Packing, state: LevelState | None = None
    ) -> Tensor:
        """Every position gets the vector of the chunk it is in: (M, D) -> (T, D).

        With a `state` that may be a chunk which began before; `state.smoothed` is still what it was then.
        """
        chunk = routing.boundary_mask.cumsum(0) - 1
        if state is None or packing.start is None:
            return smoothed.index_select(0, chunk)
        before = pick(state.smoothed, packing.row_index)
        first = F.pad(chunk + 1, (1, 0))[packing.first][packing.document]  # the first chunk that begins in the document
        index = torch.where(chunk < first, packing.document, len(before) + chunk)
        return torch.cat([before, smoothed]).index_select(0, index)


class _StraightThrough(torch.autograd.Function):
    """upsampled * STE(c) + residual (paper eq 7 and 9): STE is exactly 1 forward and passes its gradient on to c."""

    @staticmethod
    def forward(ctx: Any, upsampled: Tensor, confidence: Tensor, residual: Tensor) -> Tensor:
        ctx.save_for_backward(upsampled)
        return upsampled + residual

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (upsampled,) = ctx.saved_tensors
        return grad, torch.linalg.vecdot(grad, upsampled), grad


def add_residual(upsampled: Tensor, residual: Tensor, prob: Tensor, mask: Tensor) -> Tensor:
    """(T, D) + (T, D), with the gradient of the confidence c = p at a boundary, 1 - p elsewhere (paper eq 6)."""
    return _StraightThrough.apply(upsampled, torch.where(mask, prob, 1 - prob), residual)


def ratio_loss(
    routing: RoutingOutput, target_ratio: float, fraction: Tensor | None = None, mean: Tensor | None = None
) -> Tensor:
    """N/(N-1) * ((N-1) F G + (1-F)(1-G)) (paper eq 10): F = fraction of boundaries, G = mean probability. Scalar.

    `target_ratio` N > 1: positions per chunk aimed at. At F = G = 1/N the value is 1. Padding never counts: there is
    none in a packed tensor. `fraction` and `mean`: F and G where they are counted over more than this routing. Raises
    ValueError for N <= 1 or a routing that is not learned.
    """
    if not target_ratio > 1:
        raise ValueError(f"target_ratio must be above 1, got {target_ratio}")
    if not routing.learned:
        raise ValueError("a chunker that is not learned has no ratio loss")
    n, prob = target_ratio, routing.boundary_prob
    fraction = routing.by_threshold.to(prob.dtype).mean() if fraction is None else fraction
    mean = prob.mean() if mean is None else mean
    return n / (n - 1) * ((n - 1) * fraction * mean + (1 - fraction) * (1 - mean))
