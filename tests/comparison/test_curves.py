"""Curves that are known: crossings, and how much less one needs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.comparison.curves import Curve, crossover, efficiency, reached

FALLING = st.lists(st.floats(0.01, 1), min_size=2, max_size=8).map(
    lambda drops: [9 - sum(drops[:n]) for n in range(len(drops))]
)


def spaced(ys, first=1000.0, step=1.7):
    return Curve.of([first * step**n for n in range(len(ys))], ys)


@given(FALLING, st.floats(0.1, 10))
def test_a_curve_needs_as_much_as_itself_and_k_times_what_is_k_times_faster(ys, k):
    own = spaced(ys)
    assert efficiency(own, own) == pytest.approx(1)
    slower = spaced(ys, first=1000 * k)
    assert efficiency(own, slower) == pytest.approx(k)
    assert efficiency(own, slower) == pytest.approx(1 / efficiency(slower, own))


@given(FALLING, st.floats(0.001, 1))
def test_what_never_gets_there_has_no_efficiency_and_never_crosses(ys, gap):
    own, better = spaced([y + gap for y in ys]), spaced(ys)
    assert efficiency(own, better) is None
    assert crossover(own, better) == {"state": "never", "at": None}
    assert crossover(better, own) == {"state": "from the beginning", "at": None}
    assert efficiency(better, own) >= 1
    assert crossover(own, own)["state"] == "never"


@given(st.floats(1, 5), st.floats(0.1, 0.9), st.floats(1e4, 1e7), st.integers(3, 40))
def test_the_crossing_of_two_logarithmic_curves_is_where_algebra_says(level, slope, place, points):
    """a - b ln x and a' - b' ln x, that meet at `place`, at grids of points that differ."""
    low, high = place / 50, place * 20

    def line(steepness, number):
        xs = [low * (high / low) ** (n / number) for n in range(number + 1)]
        return Curve.of(xs, [level - steepness * math.log(x / place) for x in xs])

    own, other = line(slope + 0.05, points), line(slope, points + 3)
    found = crossover(own, other)
    assert found["state"] == "crosses"
    assert found["at"] == pytest.approx(place, rel=1e-6)
    assert crossover(other, own)["state"] == "never"
    assert reached(own, level) == pytest.approx(place, rel=1e-6)


def test_only_the_last_crossing_counts():
    own = Curve.of([1, 2, 4, 8, 16], [5, 3, 3, 2, 1])
    other = Curve.of([1, 2, 4, 8, 16], [4, 4, 2, 3, 2])
    found = crossover(own, other)
    assert found["state"] == "crosses"
    assert 4 < found["at"] < 8
    assert crossover(own, Curve.of([100, 200], [1, 1]))["state"] == "unknown"
    assert crossover(own, Curve.of([], []))["state"] == "unknown"
