"""The optimizer's groups and the learning-rate schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runkit import TWO_STAGES, tiny

from hnet_cli.config.run import TrainConfig, resolve
from hnet_cli.model import lr_multipliers
from hnet_cli.training.build import build_model
from hnet_cli.training.optim import build_optimizer, schedule, set_learning_rate

shapes = st.builds(
    TrainConfig,
    steps=st.integers(1, 400),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    decay_shape=st.sampled_from(["inverse-sqrt", "linear"]),
    min_lr_ratio=st.floats(0, 1),
    target_ratios=st.just([4.0]),
)


@given(shapes)
def test_warm_up_stable_decay(train):
    rates = [schedule(step, train) for step in range(train.steps)]
    warmup, decay = round(train.warmup * train.steps), round(train.decay * train.steps)
    stable = train.steps - decay
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[:warmup] == [pytest.approx((step + 1) / warmup) for step in range(warmup)]
    assert set(rates[warmup:stable]) <= {1.0}
    assert rates[stable:] == sorted(rates[stable:], reverse=True)
    if decay:
        assert rates[-1] == pytest.approx(train.min_lr_ratio)


def test_the_decay_falls_with_the_root_of_the_progress():
    train = TrainConfig(steps=100, warmup=0.1, decay=0.2)
    assert [schedule(79, train), schedule(84, train), schedule(99, train)] == pytest.approx([1, 0.5, 0])
    linear = TrainConfig(steps=100, decay=0.2, decay_shape="linear")
    assert schedule(84, linear) == pytest.approx(0.75)
    assert {schedule(step, TrainConfig(steps=100, schedule="constant")) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("1stage-l", [2.627, 0.876]),
        ("1stage-xl", [3.033, 0.876]),
        ("2stage-l", [2.627, 1.517, 0.715]),
        ("2stage-xl", [3.033, 1.430, 0.715]),
        ("2stage-xl-chinese", [3.033, 1.430, 0.715]),
        ("dna-t15", [1.0, 0.577]),
    ],
)
def test_multipliers_of_the_papers_presets(preset, expected):
    """Paper equation 11; DNA has one base per token."""
    config = resolve(preset)
    got = lr_multipliers(config.model, config.train.target_ratios, n_gpt=config.train.lr_bytes_per_token)
    assert got == pytest.approx(expected, abs=1e-3)


def groups(*settings):
    config = tiny(*settings)
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return config, model, optimizer, names


def test_every_parameter_is_in_one_group():
    _, model, optimizer, _ = groups(*TWO_STAGES)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))


def test_levels_have_their_own_rate():
    config, _, optimizer, names = groups(*TWO_STAGES, "train.lr=1e-3", "train.lr_multipliers=[3, 2, 1]")
    assert set_learning_rate(optimizer, config.train.steps // 2, config.train) == pytest.approx(1e-3)
    rate = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate["embeddings.weight"], rate["lm_head.weight"], rate["backbone.residual_proj.weight"]} == {3e-3}
    inner = {rate[name] for name in rate if name.startswith("backbone.main_network.main_network.")}
    assert inner == {1e-3}
    assert set(rate.values()) == {3e-3, 2e-3, 1e-3}


@pytest.mark.parametrize("decays", [True, False])
def test_what_decays(decays):
    _, _, optimizer, names = groups("train.weight_decay=0.2", f"train.norm_weight_decay={str(decays).lower()}")
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay.values()) == {0.0, 0.2}
    assert all(decay[name] == 0 for name in decay if name.endswith(".bias"))
    assert all(decay[name] == 0.2 * decays for name in decay if name.endswith(("A_log", "norm1.weight")))
    assert decay["lm_head.weight"] == 0.2


def test_a_step_follows_the_rates():
    """AdamW's first step moves every parameter without decay by its group's rate."""
    config, model, optimizer, _ = groups("train.weight_decay=0", "train.lr_multipliers=[2, 1]", "train.lr=1e-3")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rate = set_learning_rate(optimizer, 0, config.train)
    optimizer.step()
    moved = {round(float((a - b.detach()).mean() / rate), 2) for a, b in zip(before, model.parameters(), strict=True)}
    assert moved == {1.0, 2.0}
    assert rate == pytest.approx(1e-3 * schedule(0, config.train))


def test_muon_moves_the_matrices_of_the_main_network_only():
    """An orthogonal update: all singular values of its step are about the same; the rest is AdamW's."""
    config, model, optimizer, names = groups("train.optimizer=muon", "train.weight_decay=0")
    torch.manual_seed(0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    rate = set_learning_rate(optimizer, config.train.steps // 2, config.train) * config.train.lr_multipliers[-1]
    optimizer.step()
    kinds = {names[parameter]: set(state) for parameter, state in optimizer.state.items()}
    by_muon = {name for name in kinds if kinds[name] == {"momentum_buffer"}}
    wanted = ("Wqkv.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    assert by_muon == {name for name in kinds if ".main_network.main_network.layers." in name and name.endswith(wanted)}
    for name, parameter in model.named_parameters():
        step = before[name] - parameter.detach()
        if name in by_muon:
            values = torch.linalg.svdvals(step / rate / (0.2 * max(step.shape) ** 0.5))
            assert 0.5 < values.min() < values.max() < 1.5, name
        else:
            assert kinds[name] == {"step", "exp_avg", "exp_avg_sq"}


def test_muon_and_adamw_share_the_gradient_of_every_parameter():
    _, model, optimizer, _ = groups("train.optimizer=muon")
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
