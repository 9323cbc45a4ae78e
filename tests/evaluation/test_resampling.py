"""Confidence intervals of known figures."""

import math

import numpy as np
import pytest

from hnet_cli.evaluation.resampling import FEWEST, draws, interval, over_seeds, ratio, share_interval, share_weighted


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        sizes = random.integers(50, 150, 60)
        rows = np.stack([sizes * random.normal(2.0, 0.3, 60), sizes], 1)
        low, high = interval(draws(rows, ratio))
        hits += low <= 2.0 <= high
    assert 86 <= hits <= 100


def test_a_share_of_units_that_are_all_alike_is_not_certain():
    """Wilson's figures for 0, 8 and 32 of 32."""
    assert share_interval(0, 32) == pytest.approx([0.0, 0.1072], abs=1e-4)
    assert share_interval(8, 32) == pytest.approx([0.1325, 0.4211], abs=1e-4)
    assert share_interval(32, 32) == pytest.approx([0.8928, 1.0], abs=1e-4)


def test_too_few_units_have_no_interval():
    assert interval(draws(np.ones((FEWEST - 1, 2)), ratio)) is None
    assert interval(draws(np.ones((FEWEST, 2)), ratio)) == [1.0, 1.0]


def test_a_share_of_nothing_is_nothing():
    assert ratio(np.array([[3.0, 1.0], [3.0, 0.5], [3.0, 0.0], [0.0, 0.0]])).tolist() == [3, 6, 0, 0]


def test_many_units_are_grouped_without_a_difference():
    rows = np.stack([np.random.default_rng(0).normal(1, 1, 10_000), np.ones(10_000)], 1)
    low, high = interval(draws(rows, ratio))
    assert high - low == pytest.approx(2 * 1.96 / 100, rel=0.15)


@pytest.mark.parametrize(("seeds", "documents"), [(0.05, 0.05), (0.005, 0.3)])
def test_an_interval_covers_the_truth_as_often_as_it_says(seeds, documents):
    """Documents and seeds both drawn from known spreads: the true mean is inside in about 95 of 100."""
    random, inside, rounds = np.random.default_rng(3), 0, 50
    for _ in range(rounds):
        luck = random.normal(0, seeds, (4, 1))  # of a training
        bits = 2 + luck + random.normal(0, documents, (1, 40))
        _, drawn = over_seeds(np.stack([bits, np.ones((4, 40))], 2))
        low, high = interval(drawn)
        inside += low <= 2 <= high
    assert 0.88 <= inside / rounds <= 1


def test_seeds_make_an_interval_wider_never_narrower():
    bits = np.random.default_rng(0).normal(2, 0.1, (1, 30))
    alone = interval(over_seeds(np.stack([bits, np.ones((1, 30))], 2))[1])
    for spread in (0.01, 0.1):
        both = np.concatenate([bits - spread, bits + spread])
        wider = interval(over_seeds(np.stack([both, np.ones((2, 30))], 2))[1])
        assert wider[0] <= alone[0] + 1e-3
        assert wider[1] >= alone[1] - 1e-3
    assert wider[1] - wider[0] > 2 * (alone[1] - alone[0])
    assert over_seeds(np.ones((1, 3, 2)))[1] is None  # too few to know


def test_a_mean_in_shares_is_surer_than_its_parts():
    figures = [{"bpb": 2.0, "bpb_ci95": [1.9, 2.2]}, {"bpb": 4.0, "bpb_ci95": [3.7, 4.1]}]
    mean = share_weighted("bpb", figures, [0.75, 0.25])
    assert mean["bpb"] == 2.5
    assert mean["bpb_ci95"] == pytest.approx([2.5 - 0.75 * math.hypot(0.1, 0.1), 2.5 + math.hypot(0.15, 0.025)])
    alone = share_weighted("bpb", [figures[0]], [1.0])
    assert (alone["bpb"], alone["bpb_ci95"]) == (2.0, pytest.approx([1.9, 2.2]))
    figures[1]["bpb_ci95"] = None
    assert share_weighted("bpb", figures, [0.75, 0.25]) == {"bpb": 2.5, "bpb_ci95": None}
