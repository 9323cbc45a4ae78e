"""Training for several budgets: every sequence has the boundaries of its own, wherever it is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from runkit import TWO_STAGES, dataset, metrics, sending, tiny, weights, when
from stepkit import batch, gradient

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.errors import Stopped, UsageError
from hnet_cli.model import ratio_loss
from hnet_cli.training.budget import chunk_fractions
from hnet_cli.training.build import build_model
from hnet_cli.training.elastic import boundary_shares, drawn_budgets
from hnet_cli.training.loop import train
from hnet_cli.training.losses import losses
from hnet_cli.training.validation import to_device, validation

BUDGETS = "train.budgets=[0.5, 1, 2]"


def test_a_sequence_draws_alike_wherever_it_is_computed():
    config, whole = tiny(BUDGETS).train, batch([5] * 60)
    drawn = drawn_budgets(whole, config, 3)
    assert np.concatenate([drawn_budgets(half, config, 3) for half in whole.halves()]).tolist() == drawn.tolist()
    assert min((drawn == budget).sum() for budget in (0.5, 1, 2)) > 8
    for other in (drawn_budgets(whole, config, 4), drawn_budgets(whole, replace(config, seed=1), 3)):
        assert (other != drawn).any()


def test_stages_share_a_budget():
    config = tiny(*TWO_STAGES, "train.target_ratios=[3, 4]", "train.budgets=[1, 4]").train
    some = batch([5] * 20)
    outer, inner = boundary_shares(some, config, [True, True], 0)
    drawn = drawn_budgets(some, config, 0)
    assert outer == [None if budget == 1 else pytest.approx(1 / 6) for budget in drawn]
    assert inner == [None if budget == 1 else pytest.approx(1 / 8) for budget in drawn]
    fixed, learned = boundary_shares(some, config, [False, True], 0)
    assert fixed == [None] * 20
    assert learned == [None if budget == 1 else pytest.approx(1 / 16) for budget in drawn]
    assert boundary_shares(some, tiny().train, [True], 0) is None


def test_the_ratio_loss_is_of_what_the_threshold_decides():
    config, data = tiny(BUDGETS), batch([64] * 12, weighted=False)
    torch.manual_seed(0)
    model = build_model(config)
    shares = boundary_shares(data, config.train, [True], 0)
    tensors = to_device(data, torch.device("cpu"))
    part, (routing,) = losses(model, *tensors, 1.0, config.train, 0, shares=shares)
    usual, (same,) = losses(model, *tensors, 1.0, config.train, 0)
    assert torch.equal(routing.by_threshold, same.boundary_mask)
    assert part.ratio == usual.ratio == ratio_loss(same, 4.0)
    assert part.nll_sum != usual.nll_sum
    drawn = drawn_budgets(data, config.train, 0)
    for budget in (0.5, 2):
        own = np.flatnonzero(drawn == budget)
        made = sum(int(routing.boundary_mask[64 * n : 64 * n + 64].sum()) for n in own)
        assert made == pytest.approx(64 * len(own) / (4 * budget), abs=len(own) + 1)


def test_a_step_has_a_gradient_of_every_part():
    grads, _, _ = gradient(tiny(BUDGETS), [batch([64] * 4)])
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())


def test_a_validation_at_a_budget_knows_no_micro_batches(tmp_path):
    model, held_out = build_model(tiny()), Windows(Dataset.open(dataset(tmp_path)), "val", 64, 1024)
    usual, *others = (
        validation(model, held_out, [4], piece, budget=b)["bpb"] for b, piece in ((1, 64), (2, 64), (2, 512))
    )
    assert others[0] == others[1] != pytest.approx(usual)


def test_stopped_and_resumed_is_never_stopped(tmp_path):
    data, settings = dataset(tmp_path), (BUDGETS, "train.steps=3", "train.micro_batches=2", "train.eval_every=0")
    train(tiny(*settings), data, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tiny(*settings), data, tmp_path / "run", listen=when("step", 2, sending("SIGTERM")))
    train(tiny(*settings), data, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    *_, last = metrics(tmp_path / "run")
    assert len({last["val_bpb"], last["val_bpb_at_0.5"], last["val_bpb_at_2"]}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.budgets=[0.5, 2]"], "1 among them"),
        (["train.budgets=[1, 2, 2]"], "different numbers"),
        (["train.budgets=[1, 0]"], "above 0"),
        (["train.budgets=[1, 0.2]"], "0.80 positions"),
        (["train.budgets=[1, 0.5]", "train.target_ratios=[[[0, 1.5], [1, 4]]]"], "0.75 positions"),
        (["train.budgets=[1, 2]", "model.chunker=space"], "learns no boundaries"),
    ],
)
def test_budgets_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message):
        tiny(*settings)


def test_the_cost_is_that_of_all_budgets():
    assert chunk_fractions(tiny(BUDGETS)) == [pytest.approx((2 + 1 + 0.5) / 3 / 4)]
    both = tiny(*TWO_STAGES, "train.budgets=[1, 4]")
    # a sequence has one budget for both stages: a mean of products
    assert chunk_fractions(both) == pytest.approx([(1 + 1 / 2) / 2 / 3, (1 + 1 / 4) / 2 / 6])
    assert chunk_fractions(tiny()) == [0.25]
