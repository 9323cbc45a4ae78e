"""The official initialisation; a skeleton is the model but for the values."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from modelkit import PARITY, tiny_config

from hnet_cli.config.run import resolve
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.init import skeleton


def test_names_shapes_and_dtypes_are_the_models() -> None:
    config = resolve("nano").model
    real, bare = HNetForCausalLM(config).state_dict(), skeleton(HNetForCausalLM, config).state_dict()
    assert [(n, t.shape, t.dtype) for n, t in bare.items()] == [(n, t.shape, t.dtype) for n, t in real.items()]
    assert all(tensor.is_meta for tensor in bare.values())


def test_it_becomes_the_model() -> None:
    config = resolve("nano").model
    model = HNetForCausalLM(config).eval()
    copy = skeleton(HNetForCausalLM, config).to_empty(device="cpu").eval()
    copy.load_state_dict(model.state_dict())
    ids = torch.arange(64)[None]
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_it_imports_no_compiler() -> None:
    """torch._dynamo takes seconds to import, and every command that loads a model would pay for it."""
    script = """
import sys
from hnet_cli.config.run import resolve
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.init import skeleton
skeleton(HNetForCausalLM, resolve("2stage-xl").model)
print("torch._dynamo" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_initialisation_is_the_official_one():
    official = json.loads((PARITY / "official_init.json").read_text())
    torch.manual_seed(0)
    parameters = dict(HNetForCausalLM(HNetConfig.from_dict(official["config"])).named_parameters())
    assert list(parameters) == [row[0] for row in official["parameters"]]
    for name, shape, mean, std, _least, _most, *kind in official["parameters"]:
        p = parameters[name].detach()
        assert list(p.shape) == shape
        if kind == ["identity"]:
            assert torch.equal(p, torch.eye(len(p)))
        elif std == 0:
            assert p.eq(mean).all(), name
        elif p.numel() > 500:
            assert p.std().item() == pytest.approx(std, rel=0.06), name
            assert p.mean().item() == pytest.approx(mean, abs=6 * std / p.numel() ** 0.5 + abs(mean)), name
        else:  # a few numbers per layer: the range they are drawn from
            low, high = {"A_log": (0.0, 2.7726), "dt_bias": (-6.9078, -2.2520)}.get(
                name.split(".")[-1], (-0.063, 0.063)
            )
            assert low - 1e-3 <= p.min() <= p.max() <= high + 1e-3, name


def test_a_fresh_model_is_near_a_uniform_guess():
    torch.manual_seed(0)
    out = HNetForCausalLM(tiny_config())(torch.randint(0, 256, (2, 64)))
    assert out.logits.std() < 0.5
