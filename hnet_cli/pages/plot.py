"""Charts as HTML and SVG of our own: curves that stretch with the page, words that do not, values under the pointer.

A chart is drawn once for every axis it has; the page's choice hides the others. Colours are those of `page.css`. What
the script needs lies beside each plot as JSON; it reads the curves themselves back from their paths, zooms by the view
box, and hides by `data-n`, the number of an entry of the legend.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from markupsafe import Markup

from hnet_cli.modality import escape
from hnet_cli.pages.html import macro
from hnet_cli.terminal.console import count, size

MOST_POINTS = 600
"""Points that a curve is drawn with at most, about; its extremes are kept."""
MOST_COLUMNS = 120
"""Columns of a heat map at most."""
FEW, REACH, DECADES = 0.03, 2.0, 3.0
"""Share of the values at either end that may lie beyond the vertical axis, if they are further from the others than
`REACH` times the range of these, and on a logarithmic axis than so many powers of ten."""
FURTHEST = 1e5
"""Place of a point far beyond the axis, in thousandths of the box: no renderer is asked for more."""
SHADES = 16
COLOURS, DASHES = 6, ("solid", "dashed", "dotted", "dashdot")
AXES = ("bytes", "time")
"""Bytes of training data seen, and seconds of training."""
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five points of the colour map (van der Walt and Smith): even to the eye and to the colour-blind."""


@dataclass(frozen=True)
class Line:
    """One curve: ys (n,) over xs (n,) ascending, for every axis by name. Without a label it only joins points."""

    label: str
    xs: Mapping[str, Sequence[float]]
    ys: Sequence[float]
    colour: int = 0
    style: str = "solid"
    """One of `DASHES`, "faint", or "dots" (points alone)."""
    of: str = ""
    """Label of the curve that this one belongs to, and is hidden with; "": its own."""


def look(n: int) -> tuple[int, str]:
    """Colour and dashes of the n-th curve of many: 24 pairs, neighbours differing in both."""
    return n % COLOURS, DASHES[(n - n // COLOURS * 3) % len(DASHES)]


@dataclass(frozen=True)
class Mark:
    """An event at a place of each axis."""

    at: Mapping[str, float]
    label: str
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """Curves over common axes, levels drawn across them, marks on top."""

    title: str
    lines: Sequence[Line]
    note: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    """Horizontal lines by label: references for the curves."""
    unit: str = ""
    """"bytes" where the values are bytes."""
    log: bool = False
    """Logarithmic values; those <= 0 are left out."""
    marks: Sequence[Mark] = ()
    ends: Mapping[str, float] = field(default_factory=dict)
    """Least end of every axis, so that the charts of a page have one scale."""


class Shape(NamedTuple):
    """A path of a plot, in thousandths of its box; of the class "curve" where the pointer reads its values."""

    css: str
    path: str
    colour: str = ""
    n: int | None = None
    """Its entry of the legend."""


class Entry(NamedTuple):
    """A line of a legend."""

    label: str
    style: str
    colour: int
    value: str = ""
    """The last one of the curve."""


class Label(NamedTuple):
    """A word at an axis, `place` in percent."""

    css: str
    place: str
    text: str


class Plot(NamedTuple):
    """One box of curves."""

    spoken: str
    shapes: list[Shape]
    labels: list[Label]
    data: dict[str, Any]
    """For the script: "range" (left, right, bottom, top), "labels" of the curves, "unit", "log" or "heat"."""
    axis: str = ""
    marks: Sequence[tuple[str, str, str]] = ()
    """Kind, place in percent, text."""


def chart(given: Chart) -> Markup:
    """A chart as a `<figure>`; empty if nothing can be drawn."""
    given = replace(given, log=given.log or _diverges([sorted(line.ys) for line in given.lines if line.ys]))
    lines = [line for line in (_drawable(line, given.log) for line in given.lines) if line.ys]
    if not lines:
        return Markup()
    low, high = _bounds(lines, given)
    legend = {
        line.label: Entry(line.label, line.style, line.colour % COLOURS, _told(line.ys[-1], given))
        for line in lines
        if line.label and line.style != "faint"
    }
    levels = [Entry(f"{label} {_value(y)}", style, 5) for label, y, style in _levels(given)]
    numbers = {label: n for n, label in enumerate(legend)}
    plots = [_plot(axis, given, lines, low, high, numbers) for axis in AXES if all(axis in line.xs for line in lines)]
    most, least = max(y for line in lines for y in line.ys), min(y for line in lines for y in line.ys)
    beyond = [f"▴ up to {_told(most, given)}"] * (most > high) + [f"▾ down to {_told(least, given)}"] * (least < low)
    note = "; ".join(filter(None, [given.note, *beyond]))
    return macro("charts.html", "chart")(given.title, note, [*legend.values(), *levels], plots)


def _diverges(curves: list[list[float]]) -> bool:
    """True for positive values, sorted, of which more than a few are `DECADES` above one curve's median: a plain axis
    would flatten that curve."""
    ys = sorted(y for curve in curves for y in curve)
    medians = (curve[len(curve) // 2] for curve in curves)
    return bool(ys) and ys[0] > 0 and ys[-1 - int(FEW * len(ys))] > 10**DECADES * min(medians)


def _drawable(line: Line, log: bool) -> Line:
    """The points of a line that have a place: finite, and positive where logarithms are drawn."""
    known = [n for n, y in enumerate(line.ys) if all(map(math.isfinite, (y, *(xs[n] for xs in line.xs.values()))))]
    known = [n for n in known if line.ys[n] > 0 or not log]
    xs = {axis: [values[n] for n in known] for axis, values in line.xs.items()}
    return replace(line, xs=xs, ys=[math.log10(line.ys[n]) if log else line.ys[n] for n in known])


def _levels(given: Chart) -> Iterator[tuple[str, float, str]]:
    known = {label: y for label, y in given.levels.items() if y > 0 or not given.log}
    for n, (label, y) in enumerate(known.items()):
        yield label, y, "level other" if n % 2 else "level"


def _bounds(lines: Sequence[Line], given: Chart) -> tuple[float, float]:
    """The range of the vertical axis: of all values but those few (`FEW`) that would flatten the others, and of the
    levels that would not."""
    ys = sorted(y for line in lines for y in line.ys)
    few = int(FEW * len(ys))
    low, high = ys[few], ys[-1 - few]
    reach = max(REACH * (high - low), DECADES * given.log)
    low, high = next(y for y in ys if y >= low - reach), next(y for y in reversed(ys) if y <= high + reach)
    levels = [math.log10(y) if given.log else y for _, y, _ in _levels(given)]
    reach = 10 * max(high - low, abs(low), abs(high), DECADES * given.log) or math.inf
    levels = [y for y in levels if low - reach <= y <= high + reach]
    low, high = min([low, *levels]), max([high, *levels])
    pad = 0.06 * (high - low) or max(1e-3, 0.05 * abs(high))
    return (max(low - pad, 0.0) if low >= 0 and not given.log else low - pad), high + pad


def _scale(start: float, end: float, full: float = 1000) -> Callable[[float], float]:
    """The map of [start, end] to [0, full]."""
    return lambda value: full * (value - start) / ((end - start) or 1)


def _plot(axis: str, given: Chart, lines: Sequence[Line], low: float, high: float, numbers: Mapping[str, int]) -> Plot:
    """The curves on one axis; `numbers`: of the legend's entries by label, before the levels'."""
    xs = [*(x for line in lines for x in line.xs[axis]), *filter(math.isfinite, [given.ends.get(axis, 0.0)])]
    left, right = min(0.0, min(xs)), max(xs) or 1.0
    across, down = _scale(left, right), _scale(high, low)
    ticks = _log_ticks(low, high) if given.log else _ticks(low, high)
    shapes = [Shape("rule", "".join(f"M0 {down(y):.1f}H1000" for y in ticks))]
    for n, (_, y, style) in enumerate(_levels(given), len(numbers)):
        shapes.append(Shape(f"{style} s5", f"M0 {down(math.log10(y) if given.log else y):.2f}H1000", n=n))
    marks = [(m.kind, f"{min(across(m.at[axis]), 1000) / 10:.2f}", m.label) for m in given.marks if axis in m.at]
    beyond: dict[tuple[str, int], tuple[float, str]] = {}  # by side and percent of the width, the furthest there
    for line in lines:
        places = [(across(line.xs[axis][n]), down(line.ys[n]), line.ys[n]) for n in _thinned(line.ys)]
        for x, place, y in places:
            if line.label and not 0 <= place <= 1000:
                key = "over" if place < 0 else "under", round(x / 10)
                beyond[key] = max(beyond.get(key, (0.0, "")), (abs(place - 500), f"{line.label}: {_told(y, given)}"))
        points = [f"{x:.2f},{min(max(place, -FURTHEST), FURTHEST):.2f}" for x, place, _ in places]
        dots = line.style == "dots" or len(points) == 1
        css = f"{'dots' if dots else line.style} s{line.colour % COLOURS}{' curve' * bool(line.label)}"
        path = "".join(f"M{point}h0" for point in points) if dots else f"M{' '.join(points)}"
        shapes.append(Shape(css, path, n=numbers.get(line.of or line.label)))
    words = _tick_words([10**y if given.log else y for y in ticks], given.unit)
    labels = [Label("y", f"{down(y) / 10:.2f}", word) for y, word in zip(ticks, words, strict=True)]
    ends = (f"{line.label} {_told(line.ys[-1], given)}" for line in lines if line.label)
    return Plot(
        f"{given.title}. At the end: {', '.join(dict.fromkeys(ends))}",
        shapes,
        labels + _x_labels(axis, left, right),
        {
            "range": [left, right, low, high],
            "unit": given.unit,
            "log": given.log,
            "labels": [escape(line.label) for line in lines if line.label],
        },
        axis,
        [*marks, *((side, str(at), label) for (side, at), (_, label) in beyond.items())],
    )


def _x_labels(axis: str, left: float, right: float) -> list[Label]:
    unit, name = 1, ""
    if axis == "time":
        unit, name = (3600, " h") if right >= 7200 else (60, " min") if right >= 120 else (1, " s")
    labels, across = [], _scale(left, right, 100)
    ticks = _ticks(left / unit, right / unit)
    words = [f"{x:g}{name}" for x in ticks] if name else _tick_words(ticks, "bytes")
    for x, word in zip(ticks, words, strict=True):
        place = across(x * unit)
        css = "x last" if place > 93 else "x first" if place < 2 else "x"
        labels.append(Label(css, f"{place:.2f}", word))
    return labels


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, three to five or so."""
    if not high > low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((s * power for s in (1, 2, 5) if s * power >= rough), 10 * power)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between 10**low and 10**high, with digits between them where those are few; logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [n + math.log10(d) for n in powers for d in digits if low <= n + math.log10(d) <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, math.ceil(len(ticks) / 6))]


def _told(y: float, given: Chart) -> str:
    """A value of a chart, given as it is drawn."""
    return _value(10**y if given.log else y, given.unit)


def _value(value: float, unit: str = "") -> str:
    if unit == "bytes":
        number, name = size(value).split(" ")
        return f"{float(number):g} {'B' if name == 'bytes' else name}"
    if unit == "count":
        return count(value)
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{float(f'{value:.4g}'):g}"


def _tick_words(values: Sequence[float], unit: str = "") -> list[str]:
    """Words for ascending ticks; with as many decimals as tell them apart where `_value` has too few."""
    words = [_value(value, unit) for value in values]
    steps = [b - a for a, b in pairwise(values) if b > a]
    if len({*words}) == len(words) or not steps:
        return words
    names = {"bytes": (" B", " kB", " MB", " GB"), "count": ("", "k", "M", "G")}.get(unit, ("",))
    power = min(len(names) - 1, max(0, math.floor(math.log10(max(map(abs, values)))) // 3))
    decimals = min(15, max(0, math.ceil(-math.log10(min(steps) / 1000**power) - 1e-9)))
    return [f"{value / 1000**power:.{decimals}f}{names[power]}" for value in values]


def _thinned(ys: Sequence[float]) -> list[int]:
    """Indices of the points to draw: all, or of each stretch the smallest and the largest, and the last."""
    width = math.ceil(2 * len(ys) / MOST_POINTS)
    if width <= 2:
        return list(range(len(ys)))
    chosen = {0, len(ys) - 1}
    for start in range(0, len(ys), width):
        stretch = range(start, min(start + width, len(ys)))
        chosen |= {min(stretch, key=ys.__getitem__), max(stretch, key=ys.__getitem__)}
    return sorted(chosen)


def smoothed(ys: Sequence[float]) -> list[float]:
    """The mean of the middle half of the values within about a twentieth of the curve, centred, narrower at the ends;
    so that a spike leaves no plateau."""
    reach, window, means = len(ys) // 40, list[float](), list[float]()
    every = math.ceil(len(ys) / (20 * MOST_POINTS))  # more than are drawn are not worth their sums
    start = end = 0
    for n in range(len(ys)):
        radius = min(reach, n, len(ys) - 1 - n)
        for y in ys[end : n + radius + 1]:
            insort(window, y)
        for y in ys[start : n - radius]:
            del window[bisect_left(window, y)]
        start, end = n - radius, n + radius + 1
        if n % every:
            means.append(means[-1])
            continue
        middle = window[len(window) // 4 : len(window) - len(window) // 4]
        means.append(sum(middle) / len(middle))
    return means


@dataclass(frozen=True)
class Bar:
    """One value with its interval, where that is known."""

    label: str
    value: float
    text: str
    """The value in words."""
    ci95: Sequence[float] | None = None
    colour: int = 0


def bars(title: str, rows: Sequence[Bar], note: str = "", unit: str = "", origin: bool = False) -> Markup:
    """Horizontal bars with intervals as a `<figure>`; empty for none. They begin at 0; without `origin`, values
    that are all far from it are dots."""
    if not rows:
        return Markup()
    ends = [end for row in rows for end in (row.value, *(row.ci95 or ()))]
    low, high = min(ends), max(ends)
    far = not origin and low > 0 and low > 0.5 * high  # a difference of a few per cent would not be seen from 0
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    left, right = (low - pad if far else min(0.0, low - pad * (low < 0))), (high + pad if high > 0 else 0.0)
    across = _scale(left, right, 100)

    def span(start: float, end: float) -> str:
        start, end = sorted((across(start), across(end)))
        return f"left:{start:.2f}%;width:{end - start:.2f}%"

    at = _ticks(left, right)
    ticks = [Label("", f"{across(x):.2f}", word) for x, word in zip(at, _tick_words(at, unit), strict=True)]
    zero = f"{across(0):.2f}" if left < 0 < right else None
    return macro("charts.html", "bars")(title, note, rows, far, span, ticks, zero)


def heat_map(
    title: str,
    xs: Mapping[str, Sequence[float]],
    columns: Sequence[Sequence[float]],
    note: str = "",
    until: Mapping[str, float] | None = None,
) -> Markup:
    """Histograms over [0, 1] as a `<figure>`: one column each, from the place of the record before it on every axis to
    its own.

    The first reaches back by the width of the next, for nothing was recorded in that stretch before it. A column's
    shares of its sum are drawn on a logarithmic scale from 0.1% to 100%, for most of p is near 0. `until`: where every
    axis ends at the least.
    """
    drawn = [n for n, column in enumerate(columns) if sum(column) > 0 and all(math.isfinite(x[n]) for x in xs.values())]
    drawn = drawn[::-1][:: max(1, math.ceil(len(drawn) / MOST_COLUMNS))][::-1]
    if not drawn:
        return Markup()
    sums = {n: sum(columns[n]) for n in drawn}
    shares = [[number / sums[n] for number in columns[n]] for n in drawn]
    ends = until or {}
    plots = [_heat(title, axis, [x[n] for n in drawn], shares, ends.get(axis, 0.0)) for axis, x in xs.items()]
    return macro("charts.html", "heat_map")(title, note, [_viridis(n / 7) for n in range(8)], plots)


def _heat(title: str, axis: str, ends: Sequence[float], shares: Sequence[Sequence[float]], until: float) -> Plot:
    right = max(*ends, until if math.isfinite(until) else 0.0) or 1.0
    first = max(0.0, 2 * ends[0] - ends[1]) if len(ends) > 1 else 0.0
    across = _scale(0, right)
    places = [min(max(across(x), 0.0), 1000.0) for x in (first, *ends)]
    cells: dict[int, list[str]] = defaultdict(list)
    for (left, end), column in zip(pairwise(places), shares, strict=True):
        height, edge = 1000 / len(column), min(end + 0.4, 1000)
        for n, share in enumerate(column, start=1):
            if share >= 1e-3:
                shade = min(SHADES - 1, int((math.log10(share) + 3) / 3 * SHADES))
                cells[shade].append(f"M{left:.1f} {1000 - n * height:.0f}H{edge:.1f}v{height:.0f}H{left:.1f}z")
    shapes = [Shape("heat", "".join(cells[shade]), _viridis(shade / (SHADES - 1))) for shade in sorted(cells)]
    heat = [
        [round(place, 1), *(round(share, 4) for share in column)] for place, column in zip(places, shares, strict=False)
    ]
    return Plot(
        title,
        [*shapes, Shape("level", "M0 500H1000")],
        [Label("y", f"{100 - 100 * p:.0f}", f"{p:g}") for p in (0, 0.25, 0.5, 0.75, 1)] + _x_labels(axis, 0, right),
        {"range": [0, right, 0, 1], "heat": heat},
        axis,
    )


def _viridis(share: float) -> str:
    at = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    n = min(int(at), len(VIRIDIS) - 2)
    mixed = (round(a + (at - n) * (b - a)) for a, b in zip(VIRIDIS[n], VIRIDIS[n + 1], strict=True))
    return f"rgb({','.join(map(str, mixed))})"
