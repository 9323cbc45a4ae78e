"""Learning-rate multipliers and parameter groups."""

import json

import pytest
from modelkit import PARITY, tiny_model

from hnet_cli.model import HNetConfig, lr_multipliers, parameter_groups


def test_learning_rate_multipliers():
    """The table of the facts: 2-stage XL, from widths 1024, 1536, 2048 and N = 3, 3 (paper eq 11)."""
    official = json.loads((PARITY / "official_keys/hnet_2stage_XL.json").read_text())
    config = HNetConfig.from_dict(official["config"])
    assert lr_multipliers(config, [3, 3]) == pytest.approx([3.033, 1.430, 0.715], abs=5e-4)
    own = HNetConfig.from_dict(official["config"] | {"hnet": {"target_ratios": [3, 3]}})
    assert lr_multipliers(own) == lr_multipliers(config, [3, 3])
    with pytest.raises(ValueError, match="needs 2 target ratios"):
        lr_multipliers(config)


def test_groups_for_our_trainer():
    model = tiny_model()
    groups = parameter_groups(model, [2.0, 1.5, 1.0], 0.1, lr=0.01, norm_weight_decay=False)
    where = {n: g for g in groups for n in g["names"]}
    assert sorted(where) == sorted(n for n, _ in model.named_parameters())
    assert sum(len(g["params"]) for g in groups) == len(where)
    for name, group in where.items():
        spared = name.endswith((".bias", "A_log", ".D", "dt_bias")) or "norm" in name
        assert group["weight_decay"] == (0.0 if spared else 0.1), name
        assert group["lr"] == pytest.approx(0.01 * group["lr_multiplier"])
    assert where["backbone.main_network.pad_dimension"]["lr_multiplier"] == 1.5
    assert where["backbone.main_network.main_network.main_network.layers.0.mixer.Wqkv.weight"]["lr_multiplier"] == 1.0
    assert where["backbone.routing_module.q_proj_layer.weight"]["lr_multiplier"] == 2.0
    with pytest.raises(ValueError, match="2 learning-rate multipliers for 3 levels"):
        parameter_groups(model, [1.0, 2.0])
