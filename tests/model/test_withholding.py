"""Chunks withheld: every position is handed the same, the mean of what it was handed before."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from modelkit import tiny_config, tiny_model

from hnet_cli.model.withholding import observed, withheld

IDS, OFFSETS = torch.arange(60) % 7 + 97, torch.tensor([0, 25, 60])


def handed(model, level):
    """What the level's chunks hand to positions, and a handle that ends the watching."""
    found = []
    return found, level.dechunk_layer.register_forward_hook(lambda _, arguments, out: found.append(out))


@pytest.mark.parametrize("residual", ["projection", "spacebyte"])
@torch.no_grad()
def test_positions_are_handed_the_mean_of_those_that_are_read(residual):
    model = tiny_model(config=tiny_config(residual=residual)).eval()
    inner = model.backbone.main_network
    before, handle = handed(model, inner)
    with observed(model) as sums:
        whole = [model(IDS, cu_seqlens=OFFSETS) for _ in range(2)][1]
    handle.remove()
    read = before[0] if residual == "projection" else before[0][whole.routing[1].boundary_mask]
    assert [len(each) for each in sums] == [33, 49]
    assert sums[1][-1] == 2 * len(read)
    with withheld(model, 1, sums[1]):
        after, handle = handed(model, inner)
        without = model(IDS, cu_seqlens=OFFSETS)
    handle.remove()
    assert torch.allclose(after[0], read.mean(0).expand_as(before[0]))
    assert (without.logits - whole.logits).abs().max() > 0.01
    assert torch.equal(without.routing[1].boundary_prob, whole.routing[1].boundary_prob)
    assert torch.equal(model(IDS, cu_seqlens=OFFSETS).logits, whole.logits)


@torch.no_grad()
def test_nothing_inside_the_stage_comes_through():
    """A change of the innermost network changes nothing where an outer stage is withheld."""
    model = tiny_model().eval()
    with observed(model) as sums:
        model(IDS, cu_seqlens=OFFSETS)
    with withheld(model, 0, sums[0]):
        before = model(IDS, cu_seqlens=OFFSETS).logits
        model.backbone.main_network.main_network.main_network.rmsnorm.weight.mul_(3)
        assert torch.equal(model(IDS, cu_seqlens=OFFSETS).logits, before)
    assert (model(IDS, cu_seqlens=OFFSETS).logits - before).abs().max() > 0.01


@torch.no_grad()
def test_a_model_without_stages_has_nothing_to_withhold():
    model = tiny_model(config=tiny_config(("m1",))).eval()
    with observed(model) as sums:
        model(IDS, cu_seqlens=OFFSETS)
    assert sums == []


def example(name):
    """A script of examples/starters, as a module."""
    place = Path(__file__).parents[2] / "examples" / "starters" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_two_are_joined_at_the_first_stage():
    """Every weight is that of one of the two; where nothing inside matters the model is the outer one."""
    join = example("join").join
    outer, inner = (tiny_model(seed=seed).eval() for seed in (1, 2))
    new = join(outer, inner).to(torch.float64).eval()
    inside = {name for name in new.state_dict() if name.startswith("backbone.main_network.")}
    for model, names in ((inner, inside), (outer, new.state_dict().keys() - inside)):
        assert names
        assert all(torch.equal(new.state_dict()[name], model.state_dict()[name]) for name in names)
    with observed(outer) as sums:
        outer(IDS, cu_seqlens=OFFSETS)
    with withheld(outer, 0, sums[0]), withheld(new, 0, sums[0]):
        alone, joined = (model(IDS, cu_seqlens=OFFSETS).logits for model in (outer, new))
    assert torch.equal(alone, joined)
    rules = [tiny_config(("m1", ("m1",), "m1"), chunker={"kind": kind}) for kind in ("space", "characters")]
    pair = [tiny_model(config=config) for config in rules]
    assert [join(*each).config.chunkers for each in (pair, pair[::-1])] == [config.chunkers for config in rules]
    with pytest.raises(ValueError, match="differ in smoothing"):
        join(tiny_model(config=tiny_config(smoothing="input")), inner)
    with pytest.raises(ValueError, match="need a stage"):
        join(tiny_model(config=tiny_config(("m1",))), inner)
    with pytest.raises(ValueError, match="do not fit"):
        join(outer, tiny_model(config=dataclasses.replace(inner.config, d_model=(16, 48, 64))))


@torch.no_grad()
def test_a_graft_keeps_all_but_what_varied():
    """The mean of the old main network's output moves into the bias beside the new one."""
    graft = example("graft")
    old, data = tiny_model().eval(), bytes(range(97, 123)) * 40
    with observed(old) as sums:
        old(torch.tensor(list(data[:1024]))[None])
    new = graft.graft(old, "m2", data).eval()
    assert new.config.to_dict()["arch_layout"][1][1] == ["m2"]
    with withheld(old, 1, sums[1]), withheld(new, 1, torch.zeros_like(sums[1])):
        old, new = (model(IDS, cu_seqlens=OFFSETS).logits for model in (old, new))
    assert torch.allclose(old, new, atol=1e-5)
    with pytest.raises(ValueError, match="39 bytes of text are too few"):
        graft.graft(tiny_model(), "m2", data[:39])
    with pytest.raises(ValueError, match="no main network"):
        graft.graft(tiny_model(config=tiny_config(("m1",))), "m2", data)


@torch.no_grad()
def test_a_shift_moves_layers_from_encoder_to_decoder():
    """The model stays what it was, if the residual passes on what it is given, without a norm and without chunks."""
    shift = example("shift").shift
    old = tiny_model(config=tiny_config(("m2T1", ("m1",), "m1"), network_norms=False)).eval()
    old.backbone.residual_proj.weight.copy_(torch.eye(32))
    old.backbone.residual_proj.bias.zero_()
    new = shift(old, 1).eval()
    assert new.config.to_dict()["arch_layout"] == ["m1", ["m1"], "m1T1m1"]
    nothing = torch.tensor([0.0] * 32 + [1.0], dtype=torch.float64)
    with withheld(old, 0, nothing), withheld(new, 0, nothing):
        assert torch.allclose(*(model(IDS, cu_seqlens=OFFSETS).logits for model in (old, new)), atol=1e-5)
    for kept in (0, 3):
        with pytest.raises(ValueError, match="the encoder has 3 layers"):
            shift(old, kept)
    with pytest.raises(ValueError, match="no main network"):
        shift(tiny_model(config=tiny_config(("m1",))), 1)
