"""The alignment losses: what they ask of each position, and that they move boundary probabilities only."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from rowkit import rows_dataset
from runkit import tiny

from hnet_cli.data.loader import Batches
from hnet_cli.model import RoutingOutput
from hnet_cli.model.config import BOS, EOS
from hnet_cli.training.build import build_model
from hnet_cli.training.losses import confidence_alignment, entropy_alignment, losses
from hnet_cli.training.validation import to_device


def test_confidence_alignment_moves_probabilities_only():
    nll = torch.tensor([0.0, 3.0, 100.0], requires_grad=True)
    prob = torch.tensor([1.0, 0.5, 0.25], requires_grad=True)
    loss = confidence_alignment(nll, RoutingOutput(prob, prob > 0.5, torch.tensor([0, 3])))
    wanted = 1 - torch.exp(-nll.detach())
    assert loss.item() == pytest.approx(((wanted - prob.detach()) ** 2).mean().item())
    loss.backward()
    assert nll.grad is None
    torch.testing.assert_close(prob.grad, 2 * (prob.detach() - wanted) / 3)


def test_confidence_alignment_of_whole_characters():
    """Two characters of three bytes, one of one: each is as surprising as its bytes are on average."""
    nll = torch.tensor([1.0, 2.0, 3.0, 0.1, 0.2, 0.3, 0.7, 9.0])  # of the byte after each position
    allowed = torch.tensor([True, True, False, False, True, False, False, True])
    prob = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.25, 0.0, 0.0, 0.75], requires_grad=True)
    loss = confidence_alignment(nll, RoutingOutput(prob, prob > 0.5, torch.tensor([0, 8]), allowed=allowed))
    surprise = 1 - torch.exp(-torch.tensor([0.0, 2.0, 0.2, 0.7]))
    expected = (surprise - torch.tensor([1.0, 0.5, 0.25, 0.75])).square().mean()
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert prob.grad[~allowed].eq(0).all()


def drawn(scores: torch.Tensor, share: float) -> torch.Tensor:
    """sigmoid((s - tau) / sigma) as the docstring has it."""
    tau = scores.sort(descending=True).values[int(share)]
    return torch.sigmoid((scores - tau) / (scores.std(unbiased=False) / 2))


def test_entropy_alignment_is_its_equation():
    torch.manual_seed(0)
    logits, nll = (torch.randn(12, 7) * torch.rand(12, 1) * 4).requires_grad_(), (torch.rand(12) * 5).requires_grad_()
    prob = torch.rand(12, requires_grad=True)
    loss = entropy_alignment(logits, nll, RoutingOutput(prob, prob > 0.5, torch.tensor([0, 12])), 3.0)
    predicted = logits.detach().softmax(-1)
    entropy = torch.cat([torch.zeros(1), -(predicted * predicted.log()).sum(-1)[:-1]])
    rise = entropy - torch.cat([torch.zeros(1), entropy[:-1]])
    wanted = drawn(entropy + rise / 2 + F.pad(nll.detach()[:-1], (1, 0)) / 2, 12 / 3)
    assert loss.item() == pytest.approx((wanted - prob.detach()).square().mean().item(), rel=1e-5)
    loss.backward()
    assert logits.grad is None
    assert nll.grad is None
    torch.testing.assert_close(prob.grad, 2 * (prob.detach() - wanted) / 12)


def test_entropy_alignment_of_whole_characters_compares_a_character_with_the_one_before():
    allowed = torch.tensor([True, False, False, True, True, False, False, True])
    torch.manual_seed(1)
    logits, nll = torch.randn(8, 5) * 3, torch.rand(8) * 5
    prob = (torch.rand(8) * allowed).requires_grad_()
    loss = entropy_alignment(logits, nll, RoutingOutput(prob, prob > 0.5, torch.tensor([0, 8]), allowed=allowed), 4.0)
    of_byte = torch.distributions.Categorical(logits=logits).entropy()
    entropy = torch.stack([torch.zeros(()), of_byte[2], of_byte[3], of_byte[6]])
    rise = entropy - torch.cat([torch.zeros(1), entropy[:-1]])
    wanted = drawn(entropy + rise / 2 + torch.stack([torch.zeros(()), nll[2], nll[3], nll[6]]) / 2, 8 / 4)
    assert loss.item() == pytest.approx((wanted - prob[allowed].detach()).square().mean().item(), rel=1e-5)
    loss.backward()
    assert prob.grad[~allowed].eq(0).all()


def test_entropy_alignment_alone_leads_to_the_target_number_of_boundaries():
    """Following its gradient, one position in N is a boundary, and those are the open ones."""
    torch.manual_seed(2)
    logits, nll = torch.randn(600, 16) * torch.rand(600, 1) * 6, torch.rand(600)
    cu = torch.tensor([0, 600])
    prob = torch.full((600,), 0.5, requires_grad=True)
    for _ in range(50):
        loss = entropy_alignment(logits, nll, RoutingOutput(prob, prob > 0.5, cu), 5.0)
        (gradient,) = torch.autograd.grad(loss, prob)
        prob = (prob - 100 * gradient).detach().requires_grad_()
    mask = prob > 0.5
    assert mask.sum() == 120
    entropy = F.pad(torch.distributions.Categorical(logits=logits).entropy()[:-1], (1, 0))
    assert entropy[mask].mean() > entropy[~mask].mean() + 0.5


def test_a_target_beyond_what_is_allowed_asks_for_every_allowed_boundary():
    allowed = torch.tensor([True, False, False] * 4)
    prob = (0.5 * allowed).requires_grad_()
    routing = RoutingOutput(prob, prob > 0.5, torch.tensor([0, 12]), allowed=allowed)
    loss = entropy_alignment(torch.randn(12, 5), torch.rand(12), routing, 1.5)
    assert loss.item() == pytest.approx(0.25)


# -- rows of prompt and completion -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_dataset(tmp_path_factory.mktemp("rows"))


def gradient(model, batch, train, targets=None):
    """The loss of a batch, perhaps with other `targets`, and its gradient by parameter."""
    model.zero_grad()
    inputs, own, cu_seqlens, weights = to_device(batch, torch.device("cpu"))
    found, _ = losses(model, inputs, own if targets is None else targets, cu_seqlens, weights, weights.sum(), train, 0)
    found.total.backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_the_loss_of_rows_is_the_sum_over_the_bytes_of_completions(rows):
    """By hand, every row alone: packing changes nothing, and prompts have a gradient through the context only."""
    config = tiny("train.ratio_loss_weight=0", "train.alignment_loss_weight=0")
    torch.manual_seed(0)
    model = build_model(config)
    batch = Batches(rows, sequence_length=64, rows=3).batch(0)
    found, by_packing = gradient(model, batch, config.train)
    model.zero_grad()
    nats, count = torch.zeros(()), 0
    for low, high in pairwise(batch.cu_seqlens.tolist()):
        row = batch.targets[low:high].tobytes()
        prompt = row.index(b"\n") + 1
        logits = model(torch.tensor([[BOS, *row[:-1]]])).logits[0, prompt:]
        nats = nats + F.cross_entropy(logits, torch.tensor(list(row[prompt:])), reduction="sum")
        count += len(row) - prompt
        assert row[-1] == EOS
    (nats / count).backward()
    assert batch.counted == count
    assert found.total.item() == pytest.approx((nats / count).item(), rel=1e-5)
    assert found.nll_sum.item() == pytest.approx(nats.item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(by_packing[name], p.grad, atol=1e-6, rtol=1e-4)
    other = torch.where(torch.from_numpy(batch.weights) > 0, torch.from_numpy(batch.targets).long(), 65)
    again, same = gradient(model, batch, config.train, other)
    assert again.total.item() == found.total.item()
    assert all(torch.equal(same[name], value) for name, value in by_packing.items())
