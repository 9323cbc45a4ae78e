"""Routing, chunking, smoothing, the ratio loss: laws and hand-computed values."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model

from hnet_cli.checkpoints.find import load
from hnet_cli.kernels import REFERENCE, Kernels, choose
from hnet_cli.kernels import cuda as external
from hnet_cli.kernels.checking import relative
from hnet_cli.kernels.packing import Packing
from hnet_cli.model.chunking import (
    ChunkLayer,
    DeChunkLayer,
    FixedRouting,
    RoutingModule,
    RoutingOutput,
    add_residual,
    ratio_loss,
    smooth,
)
from hnet_cli.model.settings import Chunker, space_like

lengths_strategy = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def routed(lengths, seed=0, dim=8):
    torch.manual_seed(seed)
    packing = Packing.of_lengths(lengths)
    router = RoutingModule(dim).double()
    hidden = torch.randn(packing.total, dim, dtype=torch.float64)
    return packing, router, hidden, router(hidden, packing)


@given(lengths_strategy, st.integers(0, 99))
def test_routing_is_per_document(lengths, seed):
    packing, router, hidden, routing = routed(lengths, seed)
    assert routing.boundary_prob[packing.first].eq(1).all()
    assert torch.equal(routing.boundary_mask, routing.boundary_prob > 0.5)
    for b, n in enumerate(lengths):
        start = int(packing.first[b])
        alone = router(hidden[start : start + n], Packing.of_lengths([n]))
        assert torch.equal(alone.boundary_prob, routing.boundary_prob[start : start + n])


def test_routing_formula_and_letters():
    """The query comes from the position before, the key from the position itself; a tie is no boundary."""
    router = RoutingModule(2).double()
    with torch.no_grad():
        router.q_proj_layer.weight.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))  # a quarter turn
    hidden = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 1.0], [5.0, 0.0]], dtype=torch.float64)
    routing = router(hidden, Packing.of_lengths([4]))
    assert routing.boundary_prob.tolist() == pytest.approx([1.0, 0.0, 0.5, 1.0])
    assert routing.boundary_mask.tolist() == [True, False, False, True]


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.integers(0, 99))
def test_characters_stay_whole(texts, seed):
    """The probability is the learned one at the first byte of a character and 0 at its other bytes."""
    packing, router, hidden, routing = routed([len(text.encode()) for text in texts], seed)
    ids = torch.tensor(list("".join(texts).encode()))
    router.characters = True
    whole = router(hidden, packing, ids)
    begins = torch.tensor([i == 0 for text in texts for char in text for i in range(len(char.encode()))])
    assert torch.equal(whole.boundary_prob, routing.boundary_prob * begins)
    assert torch.equal(whole.allowed, begins)
    with pytest.raises(ValueError, match="bytes"):
        router(hidden, packing)


def test_split_weights_decide_as_float32_does():
    """The router's split products, as a GPU computes them, on a trained encoder's bfloat16 output for 4,096 bytes."""
    model = load("starter:text")
    text = (Path(__file__).parents[1] / "data/text/shakespeare.txt").read_bytes()[:4096]
    packing = Packing.of_lengths([3000, 1096])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = model.backbone.encoder(model.embeddings(torch.tensor(list(text))), packing, model.kernels())
    router, hidden = model.backbone.routing_module, hidden.detach().requires_grad_()
    assert hidden.dtype == torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(len(text), generator=generator)
    for parameter in router.parameters():  # the starter's are rounded to bfloat16, those in training are not
        parameter.data = parameter.float() * (1 + 2**-9 * torch.randn(parameter.shape, generator=generator))

    def routed_by(kernels):
        with torch.autocast("cpu", torch.bfloat16):
            prob = router(hidden, packing, None, kernels).boundary_prob
        return prob.detach(), torch.autograd.grad((prob * scale).sum(), [*router.parameters(), hidden])

    exact, expected = routed_by(REFERENCE)
    prob, gradients = routed_by(Kernels(wide_linear=external.wide_linear))
    assert 0.1 < (exact > 0.5).float().mean() < 0.5
    assert torch.equal(prob > 0.5, exact > 0.5)
    assert 0 < (prob - exact).abs().max() < 1e-6
    *of_weights, of_hidden = (relative(a, b) for a, b in zip(gradients, expected, strict=True))
    assert max(of_weights) < 2e-5
    assert of_hidden < 5e-3  # it is given in bfloat16


def test_no_gradient_across_documents():
    packing, router, hidden, _ = routed([3, 4])
    hidden.requires_grad_()
    router(hidden, packing).boundary_prob[:3].sum().backward()
    assert hidden.grad[3:].eq(0).all()
    assert hidden.grad[:3].abs().sum() > 0


@given(lengths_strategy, st.integers(0, 99))
def test_chunks_are_the_vectors_at_boundaries(lengths, seed):
    packing, _, hidden, routing = routed(lengths, seed)
    chunks, inner, index = ChunkLayer()(hidden, routing, packing)
    assert torch.equal(chunks, hidden[routing.boundary_mask])
    assert torch.equal(index, routing.boundary_mask.nonzero()[:, 0])
    counts = [int(m.sum()) for m in routing.boundary_mask.split(lengths)]
    assert inner.lengths == counts
    assert torch.equal(inner.document, packing.document[index])


@given(lengths_strategy, st.integers(0, 99))
def test_dechunk_is_the_recurrence(lengths, seed):
    packing, _, hidden, routing = routed(lengths, seed)
    chunks, inner, index = ChunkLayer()(hidden, routing, packing)
    layer = DeChunkLayer()
    out = layer(layer.smooth(chunks, routing, inner, index, choose("cpu", torch.float64)), routing, packing)
    expected = []
    for b, n in enumerate(lengths):
        smoothed = torch.zeros(8, dtype=torch.float64)
        for t in range(int(packing.first[b]), int(packing.first[b]) + n):
            if routing.boundary_mask[t]:
                p = routing.boundary_prob[t].clamp(1e-4, 1 - 1e-4)
                smoothed = p * hidden[t] + (1 - p) * smoothed
            expected.append(smoothed)
    torch.testing.assert_close(out, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_straight_through():
    """Forward the confidence is exactly one; backward it is itself."""
    prob = torch.tensor([1.0, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    up, residual = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = add_residual(up, residual, prob, prob > 0.5)
    assert torch.equal(out, up + residual)
    weight = torch.randn(3, 4, dtype=torch.float64)
    (out * weight).sum().backward()
    sign = torch.tensor([1.0, -1.0, 1.0])  # c = p at a boundary, 1 - p elsewhere
    torch.testing.assert_close(prob.grad, sign * (weight * up).sum(-1))
    assert torch.equal(up.grad, weight)
    assert torch.equal(residual.grad, weight)


def test_ratio_loss_values():
    prob = torch.tensor([1.0, 0.2, 0.7, 0.1], requires_grad=True)
    routing = RoutingOutput(prob, prob > 0.5, torch.tensor([0, 4]))
    n, f, g = 4.0, 0.5, 0.5
    assert ratio_loss(routing, n).item() == pytest.approx(n / (n - 1) * ((n - 1) * f * g + (1 - f) * (1 - g)))
    ratio_loss(routing, n).backward()
    assert prob.grad.tolist() == pytest.approx([n / (n - 1) * ((n - 1) * f - (1 - f)) / 4] * 4)


@given(st.integers(2, 20))
@one_in(5)
def test_ratio_loss_is_one_on_target(n):
    prob = torch.full((n,), 1 / n, dtype=torch.float64)
    mask = torch.arange(n) == 0
    assert ratio_loss(RoutingOutput(prob, mask, torch.tensor([0, n])), n).item() == pytest.approx(1.0)


@pytest.mark.parametrize("target", [1.0, 0.5, float("nan")])
def test_ratio_loss_refuses(target):
    prob = torch.ones(3)
    with pytest.raises(ValueError, match="above 1"):
        ratio_loss(RoutingOutput(prob, prob > 0.5, torch.tensor([0, 3])), target)


# -- fixed rules -------------------------------------------------------------------------------------------------------


def space_boundaries(text: bytes) -> list[bool]:
    """SpaceByte's rule, one byte at a time."""
    previous, out = True, []
    for i, byte in enumerate(text):
        char = chr(byte)
        space = not (char.isascii() and char.isalnum()) and not 0x80 <= byte < 0xC0
        out.append(i == 0 or (space and not previous))
        previous = space
    return out


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4))
def test_space_rule(documents):
    packing = Packing.of_lengths([len(d) for d in documents])
    ids = torch.tensor(list(b"".join(documents)))
    routing = FixedRouting(Chunker("space"))(torch.zeros(len(ids), 4), packing, ids)
    assert routing.boundary_mask.tolist() == [x for d in documents for x in space_boundaries(d)]
    assert torch.equal(routing.boundary_prob, routing.boundary_mask.float())


def test_space_like_bytes():
    ids = torch.arange(256)
    legal = [chr(i).isascii() and chr(i).isalnum() for i in range(256)]
    assert space_like(ids).tolist() == [not legal[i] and not 0x80 <= i < 0xC0 for i in range(256)]


@one_in(5)
@given(lengths_strategy, st.integers(0, 99))
def test_smoothing_is_the_recurrence(lengths, seed):
    """Equation 5 at every position of a document, from nothing or from an average, at once or step by step."""
    packing, _, hidden, routing = routed(lengths, seed)
    kernels, prob, start = choose("cpu", torch.float64), routing.boundary_prob, torch.randn(len(lengths), 8).double()
    fresh, packing.start = smooth(kernels, hidden, prob, packing), [1] * len(lengths)
    for before, got in ((torch.zeros_like(start), fresh), (start, smooth(kernels, hidden, prob, packing, start))):
        parts = zip(*(t.split(lengths) for t in (hidden, prob.clamp(1e-4, 1 - 1e-4), got)), before, strict=True)
        for rows, weights, expected, average in parts:
            for h, p, e in zip(rows, weights, expected, strict=True):
                average = p * h + (1 - p) * average
                torch.testing.assert_close(e, average, rtol=1e-9, atol=1e-9)


def test_smoothing_of_the_input_is_that_of_chunks_for_certain_boundaries():
    """With p of 0 or 1 both averages are the same; with learned p they differ."""
    ids = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(1))
    away = {}
    for kind in ({"kind": "fixed", "k": 3}, {"kind": "learned"}):
        one, other = (
            tiny_model(config=tiny_config(("m1", ("T1",), "m1"), chunker=kind, smoothing=name))(ids).logits
            for name in ("chunks", "input")
        )
        away[kind["kind"]] = (one - other).abs().max() / one.abs().max()
    assert away["fixed"] < 0.01 < 0.1 < away["learned"]


@one_in(5)
@given(lengths_strategy, st.integers(1, 7))
def test_fixed_rule(lengths, k):
    packing = Packing.of_lengths(lengths)
    routing = FixedRouting(Chunker("fixed", k))(torch.zeros(packing.total, 4), packing)
    assert routing.boundary_mask.tolist() == [t % k == 0 for n in lengths for t in range(n)]


@pytest.mark.parametrize("chunker", [[{"kind": "space"}, {"kind": "fixed", "k": 2}], {"kind": "fixed", "k": 3}])
def test_rules_carry_no_parameters_and_no_loss(chunker):
    model = tiny_model(config=tiny_config(chunker=chunker))
    assert not any("routing" in name for name, _ in model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters
    out = model(torch.randint(0, 256, (2, 20)))
    with pytest.raises(ValueError, match="not learned"):
        ratio_loss(out.routing[0], 3.0)
    out.logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([None, 0.2, 0.5])), min_size=1, max_size=8))
def test_shares_of_the_likeliest(documents):
    """All documents of a share together have that share of boundaries, the likeliest of theirs and each its first."""
    lengths, shares = zip(*documents, strict=True)
    packing, router, hidden, usual = routed(list(lengths), len(lengths))
    routing = router(hidden, packing, shares=shares)
    assert torch.equal(routing.boundary_prob, usual.boundary_prob)
    assert torch.equal(routing.by_threshold, usual.boundary_mask)
    assert routing.boundary_mask[packing.first].all()
    for share in {*shares}:
        own = torch.tensor([each == share for each in shares])[packing.document]
        mask, prob = routing.boundary_mask[own], routing.boundary_prob[own]
        if share is None:
            assert torch.equal(mask, usual.boundary_mask[own])
            continue
        wanted = max(round(share * len(prob)), shares.count(share))
        assert mask.sum() == min(wanted, len(prob)) or mask.all()
        assert mask.all() or prob[mask].min() > prob[~mask].max()
