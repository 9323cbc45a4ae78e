"""Where boundaries of the outermost stage should be, judged by how hard the bytes are to predict.

Neither loss moves a prediction, only boundary probabilities: both are beside the paper, and off in its presets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.model import RoutingOutput


def confidence_alignment(next_byte_nll: Tensor, routing: RoutingOutput) -> Tensor:
    """SOMBRERO's confidence-alignment loss (arXiv 2601.22805): mean over t of (1 - sg[P(x_{t+1})] - p_t)^2.

    It draws boundaries to positions whose next byte is hard to predict. Where they may only be at the first byte of a
    character, to characters that were: P is then that of the character which begins at t, the geometric mean over its
    bytes, and the loss a mean over characters.
    `next_byte_nll` (T,): -ln of the probability of the byte after each position.
    """
    nll, p, allowed = next_byte_nll.detach(), routing.boundary_prob, routing.allowed
    if allowed is None:
        return (1 - torch.exp(-nll) - p).square().mean()
    own = F.pad(nll[:-1], (1, 0))  # the first of a document has p = 1 whatever it holds
    character = allowed.cumsum(0) - 1
    total, length = torch.zeros_like(own), torch.zeros_like(own)
    total, length = total.index_add(0, character, own), length.index_add(0, character, torch.ones_like(own))
    surprise = 1 - torch.exp(-total / length.clamp_min(1))[character]
    return ((surprise - p).square() * allowed).sum() / allowed.sum()


def entropy_alignment(logits: Tensor, next_byte_nll: Tensor, routing: RoutingOutput, target_ratio: float) -> Tensor:
    """Boundaries where what comes is open, as many as the target ratio N asks for. Scalar.

    With H_t the entropy of the prediction of byte x_t, H' that of the position before (of the last character, where
    boundaries may only be at the first byte of one) and S_t = -ln P(x_t), the score of a position is
    s_t = H_t + (H_t - H') / 2 + S_t / 2: the uncertainty and its rise, which draw the patches of the Byte Latent
    Transformer (arXiv 2412.09871, section 2.3), and the surprise once the byte is seen. The T/N positions of highest
    score should be boundaries: mean over positions of (sigmoid((s_t - tau) / sigma) - p_t)^2, tau the score of rank T/N
    and sigma half a standard deviation. Nothing but p has a gradient.
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
