"""Bounds of numbers, and settings that change over a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.config.bounds import Bounds, Schedule, value_at

points = st.lists(st.tuples(st.floats(0, 1), st.floats(-1e3, 1e3)), min_size=1, max_size=5, unique_by=lambda p: p[0])


def test_linear_between_points_and_constant_outside():
    fall = [(0.2, 1.0), (0.6, 0.0)]
    assert [value_at(fall, share) for share in (0, 0.2, 0.3, 0.4, 0.6, 1)] == pytest.approx([1, 1, 0.75, 0.5, 0, 0])
    assert value_at(0.03, 0.7) == 0.03
    assert value_at([(0.5, 2.0)], 0.9) == 2


@given(points.map(sorted), st.floats(0, 1))
def test_it_goes_through_its_points_and_stays_among_their_values(schedule, share):
    assert [value_at(schedule, at) for at, _ in schedule] == pytest.approx([value for _, value in schedule])
    values = [value for _, value in schedule]
    assert min(values) - 1e-9 <= value_at(schedule, share) <= max(values) + 1e-9


@given(st.integers() | st.floats() | st.booleans() | st.text(), st.integers(-9, 9), st.integers(-9, 9))
def test_what_passes_is_a_number_within_its_bounds(value, low, high):
    for bounds, inside in (
        (Bounds(least=low, most=high), lambda n: low <= n <= high),
        (Bounds(above=low, below=high), lambda n: low < n < high),
    ):
        try:
            assert bounds.check(value) is value
        except ValueError:
            assert isinstance(value, bool | str) or not inside(value)
        else:
            assert not isinstance(value, bool | str)
            assert inside(value)


@pytest.mark.parametrize("value", [[], [[0.5, 1], [0.5, 2]], [[0, 1], [2, 2]], [[0, 1, 2]], [[0, 0.5]], 0.5, "1"])
def test_what_is_no_schedule(value):
    with pytest.raises(ValueError, match=r"must be|needs"):
        Schedule(above=1).check(value)
    assert Schedule(above=1).check([[0, 2], [1, 3]]) == [[0, 2], [1, 3]]
