"""Settings that change over a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.config.schedules import value_at

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
