"""The loss of a micro-batch: next byte, ratio loss, alignment losses and those of a teacher.

The alignment losses judge the outermost stage's boundaries by how hard bytes are to predict. They move boundary
probabilities only. The paper has neither; its presets leave them off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.config.run import TrainConfig
from hnet_cli.distributed.world import World
from hnet_cli.model import HNetForCausalLM, RoutingOutput, ratio_loss
from hnet_cli.model.chunking import Shares

if TYPE_CHECKING:  # needs the packages that read weights, which a step without a teacher does without
    from hnet_cli.training.teacher import Lesson


@dataclass
class Losses:
    """The losses of one micro-batch; scalars unless a shape is given."""

    total: Tensor
    """The differentiated loss."""
    nll_sum: Tensor
    """Sum of -ln P over bytes that weigh anything, unweighted, in nats."""
    ratio: Tensor
    """Sum over stages, before alpha, times the share of the micro-batch."""
    alignment: Tensor
    """Times the share of the micro-batch."""
    lesson: Tensor
    """(3,): boundary loss, embedding loss and share of right boundaries, times the share of the micro-batch; zeros
    without a teacher."""


class GlobalRatio:
    """The ratio loss with F and G of a step's whole batch, as far as they are known; one object per step.

    F has no gradient and the loss is linear in G, so the gradients of parts add up to that of the whole if each knows
    F. Over ranks F and G are exact. Micro-batches run sequentially on a rank, so F covers only those computed so far,
    on all ranks, and G is the mean over micro-batches of their own. With one micro-batch per rank the loss is that of
    the whole batch; with more, only the last knows its F.
    """

    def __init__(self, world: World) -> None:
        self.world, self.counts = world, list[Tensor]()

    def __call__(self, learned: list[tuple[RoutingOutput, float]]) -> Tensor:
        """The loss from (routing, target ratio N) of each learned stage. Its mean over ranks is the loss, the mean of
        its gradient over ranks the gradient."""
        masks = [routing.by_threshold for routing, _ in learned]
        local = [torch.stack([mask.sum(), mask.new_full((), len(mask), dtype=torch.int64)]) for mask in masks]
        pass_counts = self.world.gather(torch.stack(local)).sum(0)
        self.counts.append(pass_counts)
        boundaries, positions = torch.stack(self.counts).sum(0).float().unbind(1)
        fractions, terms = boundaries / positions, []
        for s, (routing, n) in enumerate(learned):
            mean = routing.boundary_prob.sum() * self.world.size / pass_counts[s, 1]
            terms.append(ratio_loss(routing, n, fractions[s], mean))
        return torch.stack(terms).sum()


def losses(
    model: HNetForCausalLM,
    inputs: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    weights: Tensor | None,
    weight_sum: float,
    train: TrainConfig,
    step: int,
    share: float = 1.0,
    lesson: Lesson | None = None,
    global_ratio: GlobalRatio | None = None,
    shares: Sequence[Shares] | None = None,
) -> tuple[Losses, list[RoutingOutput]]:
    """Next-byte loss + alpha x ratio loss (paper equation 10) + the alignment loss + those of a teacher's `lesson`
    (appendix F), for packed bytes (T,) int64.

    `weight_sum` normalises the next-byte loss: the weights of the whole batch, so that micro-batches add up to it.
    The ratio loss is per micro-batch, as in the official code, unless there is a `global_ratio`, and averaged over the
    micro-batches. `share`: the part of a micro-batch that these bytes are, 1 unless it had to be split.
    `shares` as in the model's forward pass; the ratio loss is of what the thresholds decide.
    """
    out = model(inputs, cu_seqlens=cu_seqlens, shares=shares)
    nll = F.cross_entropy(out.logits.float(), targets, reduction="none")
    total = (nll if weights is None else nll * weights).sum() / weight_sum
    zero, ratios = nll.new_zeros(()), train.ratios(step)
    learned = [(routing, n) for routing, n in zip(out.routing, ratios, strict=True) if routing.learned]
    if global_ratio is not None and learned:
        ratio = share * global_ratio(learned)
    else:
        ratio = share * sum((ratio_loss(routing, n) for routing, n in learned), zero)
    if not (train.alignment_loss_weight > 0 and out.routing and out.routing[0].learned):
        alignment = zero
    elif train.alignment == "entropy":
        alignment = share * entropy_alignment(out.logits, nll, out.routing[0], ratios[0])
    else:
        alignment = share * confidence_alignment(nll, out.routing[0])
    extra = train.alpha(step) * ratio + train.alignment_loss_weight * alignment
    lesson_losses = nll.new_zeros(3) if lesson is None else share * lesson.losses(out.routing[0], out.embedding)
    if lesson is not None:
        extra = extra + train.boundary_loss_weight * lesson_losses[0] + train.embedding_loss_weight * lesson_losses[1]
    total = total + extra / train.pieces
    counted = nll.detach() if weights is None else nll.detach() * (weights > 0)
    parts = Losses(total, counted.sum(), ratio.detach(), alignment.detach(), lesson_losses.detach())
    return parts, out.routing


def confidence_alignment(next_byte_nll: Tensor, routing: RoutingOutput) -> Tensor:
    """SOMBRERO's confidence-alignment loss (arXiv 2601.22805): mean over t of (1 - sg[P(x_{t+1})] - p_t)^2.

    It moves boundaries to positions whose next byte is hard to predict. If only the first byte of a character may be a
    boundary, P is the probability of the character that begins at t (the geometric mean over its bytes), and the loss
    a mean over characters. Only the boundary probabilities p have a gradient. Scalar.
    `next_byte_nll` (T,): -ln of the probability of the byte after each position.
    """
    nll, p, allowed = next_byte_nll.detach(), routing.boundary_prob, routing.allowed
    if allowed is None:
        return (1 - torch.exp(-nll) - p).square().mean()
    byte_nll = F.pad(nll[:-1], (1, 0))  # a document's first byte has p = 1, whatever its likelihood
    character = allowed.cumsum(0) - 1
    total = torch.zeros_like(byte_nll).index_add(0, character, byte_nll)
    length = torch.zeros_like(byte_nll).index_add(0, character, torch.ones_like(byte_nll))
    surprise = 1 - torch.exp(-total / length.clamp_min(1))[character]
    return ((surprise - p).square() * allowed).sum() / allowed.sum()


def entropy_alignment(logits: Tensor, next_byte_nll: Tensor, routing: RoutingOutput, target_ratio: float) -> Tensor:
    """Boundaries at the T/N most uncertain positions, N the target ratio. Scalar.

    With H_t the entropy of the prediction of byte x_t, H' that of the previous position (of the previous character, if
    only the first byte of a character may be a boundary) and S_t = -ln P(x_t), the score of a position is
    s_t = H_t + (H_t - H') / 2 + S_t / 2: the uncertainty and its rise, by which the Byte Latent Transformer (arXiv
    2412.09871, section 2.3) draws patches, and the surprise. The loss is the mean over positions of
    (sigmoid((s_t - tau) / sigma) - p_t)^2, tau the score of rank T/N and sigma half a standard deviation. Only the
    boundary probabilities p have a gradient.
    `logits` (T, V) and `next_byte_nll` (T,): of the byte after each position.
    """
    with torch.no_grad():
        ln = F.log_softmax(logits.float(), -1)
        entropy = F.pad(-(ln.exp() * ln).sum(-1)[:-1], (1, 0))
        surprise = F.pad(next_byte_nll.detach()[:-1], (1, 0))
        allowed = torch.ones_like(routing.boundary_mask) if routing.allowed is None else routing.allowed
        unit = allowed.cumsum(0) - 1
        before = F.pad(torch.zeros_like(entropy).index_add(0, unit, entropy * allowed)[:-1], (1, 0))[unit]
        score = entropy + (entropy - before) / 2 + surprise / 2
        count = allowed.sum()
        mean = (score * allowed).sum() / count
        deviation = (((score - mean).square() * allowed).sum() / count).sqrt().clamp_min(1e-6)
        ranked = score.masked_fill(~allowed, -torch.inf).sort(descending=True).values
        wanted = torch.sigmoid(2 * (score - ranked[int(len(score) / target_ratio)]) / deviation)
    return ((wanted - routing.boundary_prob).square() * allowed).sum() / count
