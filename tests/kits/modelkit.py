"""Small models for the tests of the model: the official release's parity cases and one with random weights."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from hnet_cli.model import HNetConfig, HNetForCausalLM

PARITY = Path(__file__).parents[1] / "golden/parity"


@dataclass(frozen=True)
class Case:
    """One parity case of tests/golden/parity."""

    facts: dict
    weights: dict
    io: dict

    def model(self, dtype=torch.float32, **kwargs):
        model = HNetForCausalLM(HNetConfig.from_dict(self.facts["config"]), **kwargs)
        model.load_state_dict(self.weights)
        return model.to(dtype)

    @property
    def stages(self):
        return range(self.facts["chunking_stages"])


@cache
def parity_case(name):
    facts = json.loads((PARITY / f"{name}_seed0.json").read_text())
    return Case(facts, *(load_file(PARITY / f"{name}_seed0.{kind}.safetensors") for kind in ("weights", "io")))


def tiny_config(layout=("m1", ("T1m1", ("T1",), "m1"), "m1T1"), window=-1, **ours):
    levels = 1
    inner = layout
    while len(inner) == 3:
        inner, levels = inner[1], levels + 1
    fields = {
        "arch_layout": layout,
        "d_model": [32, 48, 64, 64][:levels],
        "d_intermediate": [64] * levels,
        "ssm_cfg": {"d_state": 8, "headdim": 16},
        "attn_cfg": {"num_heads": [2] * levels, "rotary_emb_dim": [8] * levels, "window_size": [window] * levels},
    }
    return HNetConfig.from_dict(fields | ({"hnet": ours} if ours else {}))


def randomised(model, seed=0):
    """Random weights far from the initialisation, so that every part matters and about half the positions are
    boundaries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("A_log", "dt_bias")):
                p.add_(0.3 * noise)
            elif p.ndim == 1:
                p.add_(0.2 * noise)
            elif "embeddings" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / p.shape[-1] ** 0.5)
    return model


def tiny_model(dtype=torch.float64, seed=0, config=None, **kwargs):
    torch.manual_seed(seed)
    return randomised(HNetForCausalLM(config or tiny_config(), **kwargs), seed).to(dtype)


def worst(a, b):
    return (a.double() - b.double()).abs().max().item()


def only(module: nn.Module, name: str):
    """The submodule or parameter called `name`."""
    return dict(module.named_modules())[name]


def nats(model, given, wanted):
    """-ln P of each wanted byte after the given ones, one at a time: the plainest definition."""
    total = []
    for at in range(len(wanted)):
        with torch.no_grad():
            logits = model(torch.tensor([list(given + wanted[:at])])).logits[0, -1]
        total.append(-float(torch.log_softmax(logits.double(), -1)[wanted[at]]))
    return total
