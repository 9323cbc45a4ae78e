"""The whole network: packing, padding, precision, causality, initialisation, groups, learning rates."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model, worst

from hnet_cli.model import HNetConfig, HNetForCausalLM, parameter_groups, ratio_loss

MODEL = tiny_model(config=tiny_config(window=4))
SPACEBYTE = tiny_model(config=tiny_config(window=4, network_norms=False, residual="spacebyte"))


def ids_of(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


@one_in(5)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=6),
    st.integers(0, 99),
    st.sampled_from([MODEL, SPACEBYTE]),
    st.sampled_from([0.5, 0.0, 1.0, 0.46, [0.52, 0.48]]),
)
def test_packed_equals_each_document_alone(lengths, seed, model, thresholds):
    """Longer and shorter than a block of the scans, borders anywhere, among strangers or alone: the same."""
    ids = ids_of(sum(lengths), seed=seed)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    with torch.no_grad(), model.set_thresholds(thresholds):
        packed = model(ids, cu_seqlens=cu_seqlens)
        alone = [model(part[None]) for part in ids.split(lengths)]
    assert worst(packed.logits, torch.cat([a.logits[0] for a in alone])) < 1e-10
    for s, routing in enumerate(packed.routing):
        assert torch.equal(routing.boundary_mask, torch.cat([a.routing[s].boundary_mask for a in alone]))
        lengths_here = routing.cu_seqlens.diff().tolist()
        assert [int(a.routing[s].cu_seqlens[-1]) for a in alone] == lengths_here
        assert routing.boundary_mask[routing.cu_seqlens[:-1].long()].all()


def test_thresholds_are_settings_of_the_moment():
    """Nested boundaries, one chunk per document at 1, back to what was before, and never in the weights."""
    ids, model = ids_of(3, 200), tiny_model(config=tiny_config(window=4))
    names, before = set(model.state_dict()), model(ids).routing

    def chunks(thresholds):
        with model.set_thresholds(thresholds), torch.no_grad():
            assert set(model.state_dict()) == names
            return [routing.boundary_mask for routing in model(ids).routing]

    masks = [chunks(threshold)[0] for threshold in (0.0, 0.46, 0.5, 0.54, 1.0)]
    for lower, higher in pairwise(masks):
        assert (lower | ~higher).all()
        assert lower.sum() > higher.sum()
    assert masks[2].equal(before[0].boundary_mask)
    assert [int(mask.sum()) for mask in chunks(1)] == [3, 3]
    outer, inner = chunks([0.5, 1.0])
    assert outer.equal(before[0].boundary_mask)
    assert inner.sum() == 3
    assert model.thresholds == [0.5, 0.5]
    model.set_thresholds(0.3)
    assert model.thresholds == [torch.tensor(0.3).item()] * 2


@pytest.mark.parametrize(
    ("chunker", "thresholds", "message"),
    [
        ([{"kind": "learned"}] * 2, [0.5], "1 thresholds for 2"),
        ([{"kind": "learned"}] * 2, 1.5, "0 to 1"),
        ([{"kind": "learned"}] * 2, float("nan"), "0 to 1"),
        ([{"kind": "space"}, {"kind": "learned"}], [0.5, 0.5], "2 thresholds for 1"),
        ([{"kind": "space"}, {"kind": "fixed", "k": 2}], 0.5, "no learned"),
    ],
)
def test_thresholds_that_cannot_be(chunker, thresholds, message):
    model = tiny_model(config=tiny_config(chunker=chunker))
    with pytest.raises(ValueError, match=message):
        model.set_thresholds(thresholds)


def test_a_threshold_means_the_same_to_the_device_and_the_host():
    """A float32 probability between a threshold and its rounding would be decided apart."""
    model = tiny_model(torch.float32)
    for threshold in (0.3, 0.1, 0.7):
        model.set_thresholds(threshold)
        (router, _), at = model.routers, torch.tensor(threshold)
        for p in (at, at.nextafter(torch.tensor(0.0)), at.nextafter(torch.tensor(1.0))):
            assert router.is_boundary(p[None]).item() == router.is_boundary(p.item())


@one_in(5)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_padding_changes_nothing(lengths):
    longest = max(lengths) + 2
    ids = ids_of(len(lengths), longest)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        padded = MODEL(ids, mask=mask)
        cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
        packed = MODEL(ids[mask], cu_seqlens=cu_seqlens)
    assert torch.equal(padded.logits[mask], packed.logits)
    assert padded.logits[~mask].eq(0).all()
    for a, b in zip(padded.routing, packed.routing, strict=True):  # so padding cannot count in the ratio loss
        assert ratio_loss(a, 3.0).item() == ratio_loss(b, 3.0).item()


def test_the_past_does_not_see_the_future():
    ids = ids_of(1, 150)
    changed = ids.clone()
    changed[0, 100:] = ids_of(50, seed=1)
    with torch.no_grad():
        assert worst(MODEL(ids).logits[:, :100], MODEL(changed).logits[:, :100]) < 1e-12


def test_gradients_do_not_cross_documents():
    ids = ids_of(3, 20)
    out = {}
    MODEL.embeddings.register_forward_hook(lambda m, i, o: out.update(e=o))
    logits = MODEL(ids).logits
    (grad,) = torch.autograd.grad(logits[1].square().sum(), out["e"])
    grad = grad.view(3, 20, -1)
    assert grad[1].abs().sum(-1).gt(0).all()
    assert grad[[0, 2]].abs().max() < 1e-13 * grad.abs().max()  # decays are differences of sums: rounding remains


def test_gradients_are_derivatives():
    """Finite differences in float64, with the boundaries fixed and everything else free."""
    model = tiny_model(config=tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "fixed", "k": 3}))
    ids = ids_of(2, 13)
    weights = ids_of(2, 13, 256).double() / 256 - 0.5

    def value():
        return (model(ids).logits * weights).sum()

    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(value(), parameters)
    generator = torch.Generator().manual_seed(0)
    for name, p, g in zip(names, parameters, grads, strict=True):
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        with torch.no_grad():
            p.add_(1e-5 * direction)
            above = value()
            p.sub_(2e-5 * direction)
            below = value()
            p.add_(1e-5 * direction)
        assert ((above - below) / 2e-5).item() == pytest.approx((g * direction).sum().item(), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("cast", [False, True], ids=["autocast", "cast"])
def test_bfloat16_stays_close(cast):
    """With the boundaries fixed, bfloat16 costs roundings and no more; float32 parts stay float32."""
    config = tiny_config(chunker={"kind": "fixed", "k": 3})
    model, ids = tiny_model(torch.float32, config=config), ids_of(2, 70)
    expected = model(ids).logits
    if cast:
        model.cast(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        out = model(ids)
    assert out.logits.dtype == torch.bfloat16
    assert (out.logits.float() - expected).norm() < 0.05 * expected.norm()
    out.logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_autocast_keeps_the_router_in_float32():
    model = tiny_model(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids_of(2, 30))
    assert {r.boundary_prob.dtype for r in out.routing} == {torch.float32}
    sum(ratio_loss(r, 3.0) for r in out.routing).backward()
    assert model.backbone.routing_module.q_proj_layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((ids_of(4),), {}, "need cu_seqlens"),
        ((ids_of(4),), {"cu_seqlens": torch.tensor([0, 5])}, "ends at 5"),
        ((ids_of(4),), {"cu_seqlens": torch.tensor([0, 2, 2, 4])}, "at least one position"),
        ((ids_of(4),), {"cu_seqlens": torch.tensor([1, 4])}, "start at 0"),
        ((ids_of(4),), {"cu_seqlens": torch.tensor([0.0, 4.0])}, "int32 or int64"),
        ((ids_of(2, 4),), {"cu_seqlens": torch.tensor([0, 4])}, r"\(B, L\)"),
        ((ids_of(2, 4),), {"mask": torch.ones(2, 3, dtype=torch.bool)}, "shape of input_ids"),
        ((ids_of(1, 4),), {"mask": torch.tensor([[True, False, True, True]])}, "right padding"),
        ((ids_of(1, 4),), {"mask": torch.zeros(1, 4, dtype=torch.bool)}, "at least one position"),
        ((ids_of(0, 4),), {}, "empty"),
    ],
)
def test_refusals(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODEL(*args, **kwargs)


def test_tied_embeddings():
    config = HNetConfig.from_dict(tiny_config().to_dict() | {"tie_embeddings": True})
    model = HNetForCausalLM(config)
    assert model.lm_head.weight is model.embeddings.weight
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters
    names = [n for g in parameter_groups(model) for n in g["names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())


def test_adapters_stand_around_the_innermost_network():
    """Every document alone as packed; counted; and what the main network reads is told."""
    config = tiny_config(adapter_width=24)
    model = tiny_model(config=config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters
    assert {n.partition(".fc")[0] for n, _ in model.named_parameters() if "adapter" in n} == {
        "backbone.main_network.main_network.adapter_in",
        "backbone.main_network.main_network.adapter_out",
    }
    lengths = [5, 1, 30]
    ids = ids_of(sum(lengths))
    with torch.no_grad():
        packed = model(ids, cu_seqlens=torch.tensor([0, 5, 6, 36]))
        alone = [model(part[None]) for part in ids.split(lengths)]
    assert worst(packed.logits, torch.cat([a.logits[0] for a in alone])) < 1e-10
    assert packed.embedding.shape == (int(packed.routing[1].boundary_mask.sum()), 64)
