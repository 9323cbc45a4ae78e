"""How sure a figure is: intervals of known figures."""

import numpy as np
import pytest

from hnet_cli.evaluation.resampling import FEWEST, interval, of_share, ratio


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        sizes = random.integers(50, 150, 60)
        rows = np.stack([sizes * random.normal(2.0, 0.3, 60), sizes], 1)
        low, high = interval(rows, ratio)
        hits += low <= 2.0 <= high
    assert 86 <= hits <= 100


def test_a_share_of_units_that_are_all_alike_is_not_certain():
    """Wilson's figures for 0, 8 and 32 of 32."""
    assert of_share(0, 32) == pytest.approx([0.0, 0.1072], abs=1e-4)
    assert of_share(8, 32) == pytest.approx([0.1325, 0.4211], abs=1e-4)
    assert of_share(32, 32) == pytest.approx([0.8928, 1.0], abs=1e-4)


def test_too_few_units_have_no_interval():
    assert interval(np.ones((FEWEST - 1, 2)), ratio) is None
    assert interval(np.ones((FEWEST, 2)), ratio) == [1.0, 1.0]


def test_a_share_of_nothing_is_nothing():
    assert ratio(np.array([[3.0, 1.0], [3.0, 0.5], [3.0, 0.0], [0.0, 0.0]])).tolist() == [3, 6, 0, 0]


def test_many_units_are_grouped_without_a_difference():
    rows = np.stack([np.random.default_rng(0).normal(1, 1, 10_000), np.ones(10_000)], 1)
    low, high = interval(rows, ratio)
    assert high - low == pytest.approx(2 * 1.96 / 100, rel=0.15)
