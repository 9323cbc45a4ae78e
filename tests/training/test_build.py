"""The model that a run trains: its initial weights, its frozen parts, and the precision of its products."""

from dataclasses import replace

import pytest
import torch
from runkit import TWO_STAGES, tiny

from hnet_cli.training.build import build_model, has_amx, multiplies_in_bf16, precision_context

CPU = torch.device("cpu")


def initial(*settings):
    torch.manual_seed(0)
    return dict(build_model(tiny(*settings)).named_parameters())


def test_torch_initialisation_changes_linear_layers_alone():
    """Routers, which begin as the identity, and residual projections, which begin at zero, keep theirs."""
    official, torch_like = initial("train.init=official"), initial("train.init=torch")
    kept = [name for name in official if "routing_module" in name or "residual_proj" in name]
    assert len(kept) > 2
    assert all(torch.equal(official[name], torch_like[name]) for name in kept)
    assert not torch.equal(official["lm_head.weight"], torch_like["lm_head.weight"])


def test_frozen_parts_have_no_gradient():
    parts = build_model(tiny(*TWO_STAGES, "train.frozen=[level2.main_network]")).named_parameters()
    trained = {name: parameter.requires_grad for name, parameter in parts}
    frozen = {name for name, trains in trained.items() if not trains}
    assert frozen == {name for name in trained if name.startswith("backbone.main_network.main_network.main_network.")}
    assert frozen


@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True), ("auto", has_amx())])
def test_products_have_the_precision_that_is_configured(precision, bf16):
    config = replace(tiny(), precision=precision)
    assert multiplies_in_bf16(config, CPU) is bf16
    with precision_context(config, CPU)():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if bf16 else torch.float32)
