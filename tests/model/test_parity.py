"""The numbers of the official release, reproduced: logits, routing, intermediate tensors, losses, gradients,
generation."""

import json

import pytest
import torch
import torch.nn.functional as F
from modelkit import PARITY, only, parity_case, worst

from hnet_cli.model import HNetConfig, HNetForCausalLM, parameter_groups, ratio_loss

CASES = ["A", "B", "D"]
# (dtype, logits and hidden states, probabilities, gradients relative to the largest element); golden values are float32
PRECISIONS = [
    pytest.param(torch.float32, 1e-4, 1e-5, 1e-3, id="float32"),
    pytest.param(torch.float64, 2e-6, 2e-7, 1e-5, id="float64"),
]
pytestmark = pytest.mark.parametrize("name", CASES)
with_precision = pytest.mark.parametrize(("dtype", "tol", "prob_tol", "grad_tol"), PRECISIONS)


def run(case, model, kind):
    ids = case.io[f"{kind}.input_ids"]
    if kind == "ragged":
        return model(ids, cu_seqlens=case.io["ragged.cu_seqlens"])
    return model(ids, mask=case.io["padded.mask"].bool()) if kind == "padded" else model(ids)


@with_precision
@pytest.mark.parametrize("kind", ["mask", "packed", "ragged", "padded"])
def test_logits_and_routing(name, kind, dtype, tol, prob_tol, grad_tol):
    case = parity_case(name)
    with torch.no_grad():
        out = run(case, case.model(dtype), kind)
    assert worst(out.logits, case.io[f"{kind}.logits"]) < tol
    assert len(out.routing) == len(case.stages)
    for s, routing in enumerate(out.routing):
        prob, mask = (case.io[f"{kind}.stage{s}.{what}"] for what in ("boundary_prob", "boundary_mask"))
        if kind == "padded":
            valid = case.io[f"padded.stage{s}.mask"].bool()
            prob, mask = prob[valid], mask[valid]
        assert worst(routing.boundary_prob, prob.flatten()) < prob_tol
        assert torch.equal(routing.boundary_mask, mask.flatten().bool())
        if f"{kind}.stage{s}.cu_seqlens" in case.io:
            assert routing.cu_seqlens.tolist() == case.io[f"{kind}.stage{s}.cu_seqlens"].tolist()


@with_precision
def test_intermediate_tensors(name, dtype, tol, prob_tol, grad_tol):
    case = parity_case(name)
    model = case.model(dtype)
    seen = {}

    def keep(key):
        def hook(module, inputs, output):
            seen[key] = output[0] if isinstance(output, tuple) else output

        return hook

    path = "backbone"
    for s in case.stages:
        for key, part in {
            "encoder_out": "encoder",
            "residual": "residual_proj",
            "chunk_out": "chunk_layer",
            "main_out": "main_network",
            "dechunk_out": "dechunk_layer",
            "decoder_out": "decoder",
        }.items():
            only(model, f"{path}.{part}").register_forward_hook(keep(f"mask.stage{s}.{key}"))
        path += ".main_network"
    only(model, f"{path}.main_network").register_forward_hook(keep("mask.innermost.out"))
    with torch.no_grad():
        model(case.io["mask.input_ids"])
    assert len(seen) == 6 * len(case.stages) + 1
    for key, value in seen.items():
        assert worst(value, case.io[key][0]) < tol, key


@with_precision
@pytest.mark.parametrize("kind", ["mask", "packed"])
def test_loss_and_gradients(name, kind, dtype, tol, prob_tol, grad_tol):
    case = parity_case(name)
    model, ids, expected = case.model(dtype), case.io[f"{kind}.input_ids"], case.facts["training_loss"][kind]
    out = model(ids)
    cross_entropy = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    balance = [ratio_loss(r, 3.0) for r in out.routing]
    loss = cross_entropy + 0.03 * sum(balance)
    assert cross_entropy.item() == pytest.approx(expected["cross_entropy"], abs=1e-5)
    assert [b.item() for b in balance] == pytest.approx(expected["load_balancing_N3"], abs=1e-5)
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    six = [ratio_loss(r, 6.0).item() for r in out.routing]
    assert six == pytest.approx(case.facts["load_balancing_loss"][kind]["N=6"], abs=1e-5)

    loss.backward()
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters()}
    assert norms == pytest.approx(expected["grad_norm"], rel=grad_tol)
    for parameter, p in model.named_parameters():
        if f"grad.{kind}.{parameter}" in case.io:
            golden = case.io[f"grad.{kind}.{parameter}"]
            assert worst(p.grad, golden) < grad_tol * golden.abs().max().item(), parameter


@with_precision
def test_generation(name, dtype, tol, prob_tol, grad_tol):
    case = parity_case(name)
    model, ids = case.model(dtype), case.io["gen.input_ids"][0]
    state = model.allocate_state(1, 80)
    assert worst(model.prefill([ids[:40]], state)[0], case.io["gen.prefill_logits"][0, -1]) < tol
    for t in range(40):
        logits, routing = model.step(ids[40 + t : 41 + t], state)
        assert worst(logits[0], case.io["gen.step_logits"][t]) < tol
        for s, stage in enumerate(routing):
            mask = case.io["gen.step_boundary_mask"][s, t].item()
            assert stage.reached.item() == (mask >= 0)
            assert stage.boundary_mask.item() == (mask == 1)
            if mask >= 0:
                assert worst(stage.boundary_prob, case.io["gen.step_boundary_prob"][s, t]) < prob_tol
            else:
                assert stage.boundary_prob.isnan().all()


def test_parameter_groups(name):
    case = parity_case(name)
    groups = parameter_groups(case.model(), case.facts["lr_multiplier"], weight_decay=None)
    ours = [(g["lr_multiplier"], g.get("weight_decay"), g["names"]) for g in groups]
    assert ours == [(g["lr_multiplier"], g["weight_decay"], g["names"]) for g in case.facts["param_groups"]]


def test_state_dict_names_of_the_release(name):
    path = {"A": "hnet_1stage_XL", "B": "hnet_2stage_XL", "D": "hnet_2stage_XL_chinese"}[name]
    official = json.loads((PARITY / f"official_keys/{path}.json").read_text())
    with torch.device("meta"):
        model = HNetForCausalLM(HNetConfig.from_dict(official["config"]))
    ours = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert ours == [row[:2] for row in official["state_dict"]]
    cast = model.cast(torch.bfloat16).state_dict()
    assert [str(v.dtype).removeprefix("torch.") for v in cast.values()] == [row[2] for row in official["state_dict"]]
