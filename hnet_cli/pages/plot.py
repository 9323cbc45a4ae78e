"""Charts as HTML and SVG of our own: curves that stretch with the page, words that do not, values under the pointer.

A chart is drawn once for every axis it has; the page's choice hides the others. Colours are those of `pages/page.css`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hnet_cli.pages.shell import safe
from hnet_cli.terminal.console import count, size

POINTS = 600
"""A curve is drawn with at most about this many points, extremes kept."""
COLUMNS = 120
SHADES = 16


@dataclass(frozen=True)
class Line:
    """One curve: ys (n,) over xs (n,) ascending, for every axis by name. Without a label it only joins points."""

    label: str
    xs: Mapping[str, Sequence[float]]
    ys: Sequence[float]
    colour: int = 0
    style: str = "solid"
    """"solid", "faint", "dashed", "dotted" or "dots" (points alone)."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place of each axis."""

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
    """Horizontal lines by label: what a curve is to be compared with."""
    unit: str = ""
    """"bytes" where the values are bytes."""
    log: bool = False
    """Values <= 0 are left out then."""
    marks: Sequence[Mark] = ()


AXES = ("bytes", "time")
"""Bytes of training data seen, and seconds of training."""


def _short(text: str) -> str:
    number, unit = text.split(" ")
    return f"{float(number):g} {'B' if unit == 'bytes' else unit}"


def chart(given: Chart) -> str:
    """A chart as a `<figure>`; empty if nothing can be drawn."""
    lines = [line for line in map(_positive, given.lines) if line.ys] if given.log else [x for x in given.lines if x.ys]
    if not lines:
        return ""
    low, high = _bounds(lines, given)
    drawn = [line for line in lines if line.style != "faint"]
    legend = "".join(_legend(line.label, line.colour, line.style) for line in drawn)
    legend += "".join(_legend(f"{label} {_value(y)}", 5, style) for (label, y), style in _levels(given))
    plots = "".join(_plot(axis, given, lines, low, high) for axis in AXES if all(axis in line.xs for line in lines))
    note = f"<small>{safe(given.note)}</small>" if given.note else ""
    return (
        f'<figure><figcaption><b>{safe(given.title)}</b>{note}</figcaption><ul class="legend">{legend}</ul>'
        f"{plots}</figure>"
    )


def _positive(line: Line) -> Line:
    kept = [n for n, y in enumerate(line.ys) if y > 0]
    xs = {axis: [values[n] for n in kept] for axis, values in line.xs.items()}
    return Line(line.label, xs, [math.log10(line.ys[n]) for n in kept], line.colour, line.style)


def _levels(given: Chart) -> Iterator[tuple[tuple[str, float], str]]:
    yield from zip(given.levels.items(), ("dashed", "dotted", "dashed", "dotted"), strict=False)


def _legend(label: str, colour: int, style: str) -> str:
    path = "M11 4h0" if style == "dots" else "M0 4H22"
    return (
        f'<li><svg class="s{colour % 6}" viewBox="0 0 22 8" aria-hidden="true"><path class="{style}" d="{path}"/></svg>'
        f'<span class="name">{safe(label)}</span></li>'
    )


def _bounds(lines: Sequence[Line], given: Chart) -> tuple[float, float]:
    """What the vertical axis shows. The first steps start at 8 bits and would flatten all that comes after them."""
    ys = sorted(y for line in lines for y in line.ys)
    levels = [math.log10(y) if given.log else y for y in given.levels.values() if y > 0 or not given.log]
    low, high = min([ys[0], *levels]), max([ys[int(0.97 * (len(ys) - 1))], *levels])
    pad = 0.06 * (high - low) or max(1e-3, 0.05 * abs(high))
    return (max(low - pad, 0.0) if low >= 0 and not given.log else low - pad), high + pad


def _plot(axis: str, given: Chart, lines: Sequence[Line], low: float, high: float) -> str:
    every = [x for line in lines for x in line.xs[axis]]
    left, right = min(0.0, min(every)), max(every) or 1.0

    def across(x: float) -> float:
        return 1000 * (x - left) / ((right - left) or 1)

    def down(y: float) -> float:
        return 1000 * (high - y) / (high - low)

    parts = []
    ticks = _log_ticks(low, high) if given.log else _ticks(low, high)
    rules = "".join(f"M0 {down(y):.1f}H1000" for y in ticks)
    parts.append(f'<path class="rule" d="{rules}"/>')
    for (_, y), style in _levels(given):
        parts.append(f'<path class="{style} s5" d="M0 {down(math.log10(y) if given.log else y):.2f}H1000"/>')
    for line in lines:
        kept = _thinned(line.ys)
        points = " ".join(f"{across(line.xs[axis][n]):.2f},{down(line.ys[n]):.2f}" for n in kept)
        told = f'class="{line.style} s{line.colour % 6}" data-label="{safe(line.label)}"'
        if line.style == "dots" or len(kept) == 1:
            dots = "".join(f"M{across(line.xs[axis][n]):.2f} {down(line.ys[n]):.2f}h0" for n in kept)
            parts.append(f'<path {told.replace(line.style, "dots", 1)} d="{dots}" data-points="{points}"/>')
        else:
            parts.append(f'<polyline {told} points="{points}"/>')
    marks = "".join(
        f'<i class="mark {safe(mark.kind)}" style="left:{min(across(mark.at[axis]), 1000) / 10:.2f}%"'
        f' title="{safe(mark.label)}"></i>'
        for mark in given.marks
        if axis in mark.at
    )
    labels = "".join(
        f'<span class="y" style="top:{down(y) / 10:.2f}%">{_value(10**y if given.log else y, given.unit)}</span>'
        for y in ticks
    )
    return (
        f'<div class="plot by-{axis}" data-range="{left:.6g} {right:.6g} {low:.8g} {high:.8g}" data-unit="{given.unit}"'
        f'{" data-log=1" * given.log}><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{safe(_spoken(given, lines))}">{"".join(parts)}</svg>{marks}{labels}'
        f"{_x_labels(axis, left, right, across)}</div>"
    )


def _spoken(given: Chart, lines: Sequence[Line]) -> str:
    ends = (f"{line.label} {_value(10 ** line.ys[-1] if given.log else line.ys[-1])}" for line in lines if line.label)
    return f"{given.title}. At the end: {', '.join(dict.fromkeys(ends))}"


def _x_labels(axis: str, left: float, right: float, across: Callable[[float], float]) -> str:
    unit, name = 1, ""
    if axis == "time":
        unit, name = (3600, " h") if right >= 7200 else (60, " min") if right >= 120 else (1, " s")
    parts = []
    for x in _ticks(left / unit, right / unit):
        place = across(x * unit)
        edge = " last" if place > 930 else " first" if place < 20 else ""
        label = f"{x:g}{name}" if name else _short(size(x))
        parts.append(f'<span class="x{edge}" style="left:{place / 10:.2f}%">{label}</span>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, three to five or so."""
    if not high > low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((s * power for s in (1, 2, 5) if s * power >= rough), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between 10**low and 10**high, with digits between them where those are few; logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [n + math.log10(d) for n in powers for d in digits if low <= n + math.log10(d) <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, math.ceil(len(ticks) / 6))]


def _value(value: float, unit: str = "") -> str:
    if unit == "bytes":
        return _short(size(value))
    if unit == "count":
        return count(value)
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{float(f'{value:.4g}'):g}"


def _thinned(ys: Sequence[float], limit: int = POINTS) -> list[int]:
    """Which points to draw: all, or of each stretch the smallest and the largest, and the last."""
    width = math.ceil(2 * len(ys) / limit)
    if width <= 2:
        return list(range(len(ys)))
    kept = {0, len(ys) - 1}
    for at in range(0, len(ys), width):
        stretch = range(at, min(at + width, len(ys)))
        kept |= {min(stretch, key=ys.__getitem__), max(stretch, key=ys.__getitem__)}
    return sorted(kept)


def smoothed(ys: Sequence[float]) -> list[float]:
    """The running mean over about a twentieth of the curve, centred, narrower at the ends."""
    reach = len(ys) // 40
    sums = [0.0]
    for y in ys:
        sums.append(sums[-1] + y)
    result = []
    for n in range(len(ys)):
        here = min(reach, n, len(ys) - 1 - n)
        result.append((sums[n + here + 1] - sums[n - here]) / (2 * here + 1))
    return result


@dataclass(frozen=True)
class Bar:
    """One value with its interval, where that is known."""

    label: str
    value: float
    told: str
    """The value in words."""
    ci95: Sequence[float] | None = None
    colour: int = 0


def bars(title: str, rows: Sequence[Bar], note: str = "", unit: str = "", origin: bool = False) -> str:
    """Horizontal bars with intervals as a `<figure>`; empty for none. They begin at 0; without `origin`, values
    that are all far from it are dots."""
    if not rows:
        return ""
    ends = [end for row in rows for end in (row.value, *(row.ci95 or ()))]
    low, high = min(ends), max(ends)
    far = not origin and low > 0 and low > 0.5 * high  # a difference of a few per cent would not be seen from 0
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    left, right = (low - pad if far else min(0.0, low - pad * (low < 0))), (high + pad if high > 0 else 0.0)

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left)

    parts = []
    for row in rows:
        start, end = sorted((across(left if far else 0.0), across(row.value)))
        mark = (
            f'<i class="dot" style="left:{across(row.value):.2f}%"></i>'
            if far
            else f'<i class="bar" style="left:{start:.2f}%;width:{end - start:.2f}%"></i>'
        )
        if row.ci95:
            a, b = map(across, row.ci95)
            mark += f'<i class="whisker" style="left:{a:.2f}%;width:{b - a:.2f}%"></i>'
        parts.append(
            f'<li class="s{row.colour % 6}"><span class="name">{safe(row.label)}</span>'
            f'<span class="track">{mark}</span><span class="told">{safe(row.told)}</span></li>'
        )
    ticks = "".join(f'<span style="left:{across(x):.2f}%">{_value(x, unit)}</span>' for x in _ticks(left, right))
    zero = f'<i class="zero" style="left:{across(0):.2f}%"></i>' if left < 0 < right else ""
    return (
        f'<figure><figcaption><b>{safe(title)}</b><small>{safe(note)}</small></figcaption><ul class="rows">'
        f'{"".join(parts)}</ul><div class="axis"><span class="track">{ticks}{zero}</span></div></figure>'
    )


def heat_map(title: str, xs: Sequence[float], columns: Sequence[Sequence[float]], note: str = "") -> str:
    """Histograms over [0, 1], one column each from its place on the axis of bytes to the next, as a `<figure>`.

    The first reaches back by the width of a column, for that is how long nothing was recorded before it.
    A column's shares of its sum are drawn on a logarithmic scale from 0.1% to 100%, for most of p is near 0.
    """
    every = max(1, math.ceil(len(xs) / COLUMNS))
    chosen = list(zip(xs, columns, strict=True))[::every]
    picked = [(x, [count / sum(column) for count in column]) for x, column in chosen if sum(column) > 0]
    if not picked:
        return ""
    right = max(xs[-1], picked[-1][0]) * (1 + 1 / len(picked))
    first = max(0.0, 2 * picked[0][0] - picked[1][0]) if len(picked) > 1 else 0.0
    places = [1000 * x / right for x in (first, *(x for x, _ in picked[1:]), right)]
    shades: list[list[str]] = [[] for _ in range(SHADES)]
    for (left, end), (_, shares) in zip(pairwise(places), picked, strict=True):
        tall = 1000 / len(shares)
        for n, share in enumerate(shares):
            if share >= 1e-3:
                shade = min(SHADES - 1, int((math.log10(share) + 3) / 3 * SHADES))
                shades[shade].append(
                    f"M{left:.1f} {1000 - (n + 1) * tall:.0f}h{end - left + 0.4:.1f}v{tall:.0f}H{left:.1f}z"
                )
    paths = "".join(
        f'<path d="{"".join(cells)}" style="color:{_viridis(n / (SHADES - 1))}"/>'
        for n, cells in enumerate(shades)
        if cells
    )
    values = [
        [round(place, 1), *(round(share, 4) for share in shares)]
        for place, (_, shares) in zip(places, picked, strict=False)
    ]
    told = safe(json.dumps(values, separators=(",", ":")))
    labels = "".join(f'<span class="y" style="top:{100 - 100 * p:.0f}%">{p:g}</span>' for p in (0, 0.25, 0.5, 0.75, 1))
    scale = "".join(f'<i style="background:{_viridis(n / 7)}"></i>' for n in range(8))
    return (
        f"<figure><figcaption><b>{safe(title)}</b><small>{safe(note)}</small></figcaption>"
        f'<ul class="legend"><li>0.1% <span class="scale">{scale}</span> 100% of the positions</li></ul>'
        f'<div class="plot" data-range="0 {right:.6g} 0 1" data-heat="{told}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{safe(title)}">'
        f'<g class="heat">{paths}</g><path class="dashed s5" d="M0 500H1000"/></svg>{labels}'
        f"{_x_labels('bytes', 0, right, lambda x: 1000 * x / right)}</div></figure>"
    )


VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def _viridis(share: float) -> str:
    """The colour map of that name (van der Walt and Smith): even to the eye and to the colour-blind."""
    at = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    n = min(int(at), len(VIRIDIS) - 2)
    mixed = (round(a + (at - n) * (b - a)) for a, b in zip(VIRIDIS[n], VIRIDIS[n + 1], strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def spark(values: Sequence[float], width: int = 40) -> str:
    """A curve as one line of text, for the terminal."""
    if not values:
        return ""
    count = min(width, len(values))
    picked = [values[i * (len(values) - 1) // max(1, count - 1)] for i in range(count)]
    ranked = sorted(picked)
    low, high = ranked[0], ranked[len(ranked) - 1 - len(ranked) // 10]  # the first losses would flatten all the others
    scale = 7 / (high - low) if high > low else 0
    return "".join("▁▂▃▄▅▆▇█"[int((min(value, high) - low) * scale)] for value in picked)
