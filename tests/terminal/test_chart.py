"""Curves as text: inside the width, every point in its place."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from rich.console import Console

from hnet_cli.terminal.chart import MARKS, MOST, POINTS, ROWS, Chart, Curve

XS, YS = [1.28, 2.56, 3.63, 5.11, 7.21, 10.24, 20.52], [2.6219, 2.6374, 2.6473, 2.6566, 2.6669, 2.6828, 2.7099]


def lines(width, *curves):
    console = Console(width=width, color_system=None)
    with console.capture() as text:
        console.print(Chart(curves, "bytes per chunk", "bits per byte", "as the model is"))
    return text.get().splitlines()


@pytest.mark.parametrize("width", [60, 120])
def test_it_is_read_off(width):
    title, *plot, axis, ticks, legend = lines(width, Curve("x", XS, YS, 3))
    assert title == "bits per byte over bytes per chunk"
    assert (len(plot), len(axis)) == (ROWS, min(width, MOST) - 1)
    assert plot[0].startswith("2.710 ┤")
    assert plot[0].endswith("●")
    assert plot[-1].startswith("2.622 ┤●")
    assert "".join(plot).count("●") == 6
    (row,) = [n for n, line in enumerate(plot) if "◆" in line]
    assert row == round((2.7099 - 2.6566) / (2.7099 - 2.6219) * (ROWS - 1))
    assert abs(plot[row].index("◆") - ticks.index("5.11") - 2) <= 1
    assert ticks.split() == ["1.28", "2.56", "3.63", "5.11", "7.21", "10.2", "20.5"]
    assert legend == "◆ as the model is: 2.657 at 5.11"


def test_a_point_in_the_same_cell_does_not_hide_what_is_set_apart():
    plot = lines(40, Curve("x", [1.0, 1.0078125, 2.0], [0.0, 0.0, 0.0], 0))[1 : ROWS + 1]
    assert sum(line.count("◆") for line in plot) == 1
    plot = lines(40, Curve("x", [1.0, 2.0], [0.0, 1.0], 0), Curve("y", [1.0, 2.0], [0.0, 1.0], 1))[1 : ROWS + 1]
    assert ["".join(plot).count(mark) for mark in "◆◇●○"] == [1, 1, 0, 0]


NUMBERS = st.lists(
    st.tuples(st.floats(1, 5000), st.floats(0, 9)), min_size=1, max_size=8, unique_by=lambda pair: pair[0]
)


@one_in(5)
@given(st.lists(NUMBERS, min_size=1, max_size=2), st.integers(40, 200))
def test_no_points_break_it(points, width):
    curves = [Curve("a\x1b[31m[red]", *zip(*sorted(each), strict=True), 0) for each in points]
    whole = lines(width, *curves)
    plot = whole[1 : ROWS + 1]
    assert all(len(line) <= min(width, MOST) for line in plot)
    assert "\x1b" not in "".join(whole)
    marks = [mark for row in plot for mark in row if mark in MARKS + POINTS]
    assert set(marks) & set(MARKS)
    assert len(marks) <= sum(map(len, points))
    lowest = min(y for each in points for _, y in each)
    assert math.isclose(float(plot[-1].partition("┤")[0]), lowest, abs_tol=1e-3)
