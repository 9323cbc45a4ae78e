"""Baselines as they are shown."""

import pytest

from hnet_cli.data.figures import named, to_beat


def test_the_lowest_is_what_there_is_to_beat():
    figures = {"xz": 2.2, "zstd": 2.1, "order_k": 2.05, "k": 3, "uniform": 2.0, "bytes": 100, "method": 2}
    assert named(figures) == {"xz": 2.2, "order-3": 2.05, "uniform": 2.0}
    assert to_beat(figures) == ("uniform", 2.0)
    assert to_beat({"xz": 2.2, "order_k": 1.9, "k": 11}) == ("order-11", 1.9)


@pytest.mark.parametrize("value", [None, "2.0", True, float("nan"), float("inf"), -1, 10**400, [2.0]])
def test_what_is_no_figure_is_not_shown(value):
    assert named({"xz": value, "order_k": value, "uniform": value}) == {}
