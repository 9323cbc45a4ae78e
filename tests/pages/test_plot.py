"""Charts: what is drawn is where it should be."""

import json
import math
import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from laws import one_in

from hnet_cli.pages import html
from hnet_cli.pages.plot import COLOURS, FURTHEST, Chart, Line, Mark, chart, heat_map, look, smoothed

finite = st.floats(-1e6, 1e6).map(lambda y: round(y, 6))
curve = st.lists(st.tuples(st.integers(0, 10**12), finite), min_size=1, max_size=9).map(sorted)


def line(points, label="a", style="solid"):
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Line(label, {"bytes": xs, "time": [x / 1000 for x in xs]}, ys, style=style)


def parsed(figure):
    return ElementTree.fromstring(figure)


def data(figure, plot=0):
    """The data that the page's script receives with a plot."""
    return json.loads(parsed(figure).findall("div")[plot].find("script").text)


def points(figure):
    """Label and (x, y) per point of every curve of the first plot, in thousandths of the box."""
    paths = [p for p in parsed(figure).find("div").iter("path") if "curve" in p.get("class").split()]
    for label, path in zip(data(figure)["labels"], paths, strict=True):
        yield label, [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+),([-\d.]+)", path.get("d"))]


@given(st.lists(curve, min_size=1, max_size=3), st.booleans())
@example([[(0, 1.0), (0, 1.0), (0, 1001.0)]], False)
def test_values_can_be_read_back_from_the_curves(curves, log):
    figure = chart(Chart("title", [line(c, f"c{n}") for n, c in enumerate(curves)], log=log))
    kept = {f"c{n}": [y for _, y in c if y > 0 or not log] for n, c in enumerate(curves)}
    drawn = dict(points(figure)) if figure else {}
    assert {label for label, ys in kept.items() if ys} == drawn.keys()
    if figure:
        *_, low, high = data(figure)["range"]
        log = data(figure)["log"]  # of values far apart it is chosen
        for label, found in drawn.items():
            assert all(0 <= x <= 1000 for x, _ in found)
            values = [low + (1 - y / 1000) * (high - low) for _, y in found]
            wanted = [math.log10(y) for y in kept[label]] if log else kept[label]
            assert values == pytest.approx(wanted, abs=2e-5 * (high - low) + 1e-6 * max(map(abs, wanted)))


@given(curve)
def test_figures_are_well_formed_and_have_labels(points):
    figure = parsed(chart(Chart("a <b> & c", [line(points, "x < y")], levels={"xz": 2.5})))
    assert figure.find("figcaption/b").text == "a <b> & c"
    legend = [item.text for item in figure.findall("ul/li/span")]
    assert legend == ["x < y", "xz 2.5"]
    entries = [item.get("data-n") for item in figure.findall("ul/li")]
    assert entries == sorted({path.get("data-n") for path in figure.iter("path")} - {None}) == ["0", "1"]
    assert len(figure.findall("div")) == 2  # by bytes and by time
    for plot in figure.findall("div"):
        assert plot.findall("span[@class='y']")


def test_levels_and_most_of_the_curve_are_in_view():
    ys = [8.0, *(2 + 1 / n for n in range(1, 100))]
    figure = chart(Chart("bits", [line(list(enumerate(ys)))], levels={"xz": 3.5, "order-4": 1.5, "foreign": 1e29}))
    *_, low, high = data(figure)["range"]
    assert low < 1.5
    assert 3.5 < high < 8


@given(st.floats(0, 1e12), st.integers(-7, 12), st.sampled_from(["", "bytes", "count"]))
@example(2412.0, 1, "bytes")
@example(0.0, 0, "bytes")
def test_ticks_are_told_apart(start, power, unit):
    """A steady throughput, bytes per chunk near 1: as many digits as it takes."""
    rise = max(10.0**power, 1e-9 * start)
    figure = chart(Chart("t", [line([(0, start), (3, start + rise)])], unit=unit))
    for plot in parsed(figure).findall("div"):
        for css in ("y", "x"):
            words = [label.text for label in plot.findall("span") if label.get("class").split()[0] == css]
            assert len(words) == len({*words}) > 1


def beyond(figure):
    """Side, place in percent and text of the marks of values beyond the axis, in the first plot."""
    marks = [(mark.get("class").split(), mark.get("style"), mark.get("title")) for mark in parsed(figure).iter("i")]
    return {(css[1], float(style[5:-1]), title) for css, style, title in marks if {"over", "under"} & {*css}}


@pytest.mark.parametrize("spike", [80.0, 1e29])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_spike_beyond_the_axis_is_marked_and_told(spike, sign):
    ys = [sign * (2 + (n % 7) / 10) for n in range(101)]
    ys[40] = sign * spike
    figure = chart(Chart("norm", [line(list(enumerate(ys)))]))
    side, text = ("over", "▴ up to") if sign > 0 else ("under", "▾ down to")
    assert beyond(figure) == {(side, 40.0, f"a: {sign * spike:g}")}
    assert parsed(figure).find("figcaption/small").text == f"{text} {sign * spike:g}"
    ((_, drawn),) = points(figure)
    assert max(abs(y) for _, y in drawn) <= FURTHEST
    assert sum(0 <= y <= 1000 for _, y in drawn) == 100


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=99))
def test_a_logarithmic_axis_of_three_decades_cuts_nothing(ys):
    figure = chart(Chart("norm", [line(list(enumerate(ys)))], log=True))
    assert all(0 <= y <= 1000 for _, drawn in points(figure) for _, y in drawn)
    assert not beyond(figure)


def test_a_curve_that_diverges_leaves_the_others_in_view():
    """A plain axis up to 1e9 would draw the other curve as its lower edge."""
    wild, tame = line([(n, 10.0 ** (n / 10)) for n in range(90)], "wild"), line([(n, 2 + n / 90) for n in range(90)])
    drawn = dict(points(chart(Chart("bits", [wild, tame], levels={"fixed": 0.0}))))
    assert drawn["a"][0][1] - drawn["a"][-1][1] > 10


@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan])
def test_points_without_a_place_are_left_out(x):
    odd = Line("a", {"bytes": [1, 2, 3], "time": [1, x, 3]}, [1.0, 2.0, 3.0])
    ((_, drawn),) = points(chart(Chart("t", [odd])))
    assert len(drawn) == 2
    assert len(data(heat_map("p", odd.xs, [[1]] * 3))["heat"]) == 2


def test_two_dozen_curves_look_different_and_neighbours_in_both_ways():
    looks = [look(n) for n in range(24)]
    assert len(set(looks)) == 24
    assert all(colour != other and dash != others for (colour, dash), (other, others) in pairwise(looks))


EYES = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear sRGB
    "trichromat": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanope": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranope": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanope": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
OKLAB = (  # Ottosson 2020: to the cones, and from their cube roots
    (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ),
    (
        (0.2104542553, 0.793617785, -0.0040720468),
        (1.9779984951, -2.428592205, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.808675766),
    ),
)


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def linear(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_differ_for_every_kind_of_eye(scheme):
    """By 0.1 of Oklab, some five times what is just noticed; and each stands out from the card by 3:1."""
    block = re.findall(r":root \{(.*?)\}", html._asset("page.css"), re.DOTALL)[scheme]
    colours = [linear(colour) for colour in re.findall(r"--s\d: (#[0-9a-f]{6})", block)]
    assert len(colours) == COLOURS
    for eye, matrix in EYES.items():
        seen = [[min(1, max(0, part)) for part in times(matrix, colour)] for colour in colours]
        places = [times(OKLAB[1], [part ** (1 / 3) for part in times(OKLAB[0], colour)]) for colour in seen]
        assert min(math.dist(*pair) for pair in combinations(places, 2)) >= 0.1, eye
    card = linear({"#fff": "#ffffff"}.get(word := re.search(r"--card: (#\w+)", block)[1], word))
    ground, *lights = (times([(0.2126, 0.7152, 0.0722)], colour)[0] for colour in (card, *colours))
    for light in lights:
        assert (max(ground, light) + 0.05) / (min(ground, light) + 0.05) >= 3


def test_long_curves_are_thinned_and_keep_their_extremes():
    ys = [math.sin(n / 999) for n in range(40_000)]
    ys[12_345], ys[23_456] = 9.0, -9.0
    ((_, drawn),) = points(chart(Chart("t", [line(list(enumerate(ys)))])))
    assert len(drawn) <= 700
    assert min(y for _, y in drawn) < -500  # 9 lies far above what is shown
    assert max(y for _, y in drawn) > 900  # and -9 at the very bottom


def test_marks_tell_what_happened():
    mark = Mark({"bytes": 5.0, "time": 1.0}, 'step 3: "<NaN>"', "skipped")
    figure = parsed(chart(Chart("t", [line([(0, 1), (10, 2)])], marks=[mark])))
    first, second = (plot.find("i") for plot in figure.findall("div"))
    assert first.get("title") == 'step 3: "<NaN>"'
    assert first.get("style") == "left:50.00%"
    assert second.get("style") == "left:100.00%"


@pytest.mark.parametrize("lines", [[], [line([])], [line([(1, -1), (2, 0)])]])
def test_nothing_to_draw_is_no_figure(lines):
    assert chart(Chart("t", lines, log=True)) == ""
    assert heat_map("t", {"bytes": []}, []) == heat_map("t", {"bytes": [1, 2]}, [[0, 0], [0, 0]]) == ""


@one_in(5)
@given(st.lists(st.lists(st.integers(0, 10**9), min_size=20, max_size=20), min_size=1, max_size=200))
def test_a_heat_map_holds_every_share_it_draws(columns):
    figure = heat_map("p", {"bytes": [100.0 * (n + 1) for n in range(len(columns))]}, columns)
    if not figure:
        assert not any(map(sum, columns))
        return
    told = data(figure)["heat"]
    assert len(told) <= 120
    assert all(sum(shares) == pytest.approx(1, abs=0.002) for _, *shares in told)
    assert [x for x, *_ in told] == sorted(x for x, *_ in told)
    assert all(0 <= x < 1000 for x, *_ in told)


@pytest.mark.parametrize(
    ("ends", "starts"),
    [((500.0, 600.0, 700.0), (400, 500, 600)), ((100.0, 200.0), (0, 100)), ((300.0,), (0,)), ((0.0,), (0,))],
)
def test_a_heat_map_is_as_wide_as_what_was_seen(ends, starts):
    """A record's column ends at its place; the first reaches back by a column, not to the beginning of a run that
    recorded nothing then."""
    figure = heat_map("p", {"bytes": ends, "time": [x / 50 for x in ends]}, [[1] * 20] * len(ends))
    for plot, unit in ((0, 1), (1, 50)):
        given = data(figure, plot)
        right = given["range"][1]
        assert right == (ends[-1] / unit or 1)
        assert [x for x, *_ in given["heat"]] == pytest.approx([1000 * x / unit / right for x in starts], abs=0.1)
    path = "".join(path.get("d") for path in parsed(figure).find("div").iter("path") if path.get("class") == "heat")
    assert max(float(x) for x in re.findall(r"H([\d.]+)", path)) == (1000 if ends[-1] else 0.4)


@given(st.lists(st.floats(0, 1e6), max_size=200))
def test_smoothing_keeps_length_range_and_straight_lines(ys):
    assert len(smoothed(ys)) == len(ys)
    if ys:
        assert min(ys) - 1e-6 <= min(smoothed(ys))
        assert max(smoothed(ys)) <= max(ys) + 1e-6
    assert smoothed(range(len(ys))) == pytest.approx(list(range(len(ys))))


@pytest.mark.parametrize("spike", [9.0, 1e29, -1e29])
def test_smoothing_leaves_no_trace_of_a_spike(spike):
    """Neither a plateau around it, nor lost digits after it."""
    ys = [2.0] * 400
    ys[200] = spike
    assert smoothed(ys) == [2.0] * 400
