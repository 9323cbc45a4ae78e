"""Curves as text on a terminal, as wide as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.text import Text

from hnet_cli.modality import escape

ROWS = 13
"""Rows of the plot; every third has its value beside it."""
LEAST, MOST = 16, 100
"""Columns of the box at least, and of everything at most."""
LEAST_SPAN = 1e-3
"""Of the values, so that rounding errors do not look like a curve."""
DOTS = "˙·."
"""A curve in the upper, middle and lower third of a row."""
POINTS, MARKS, STYLES = "●○", "◆◇", ("cyan", "yellow")
"""Of the first curve, and of the second."""


@dataclass(frozen=True)
class Curve:
    """Points (xs, ys) (n,), xs > 0 ascending, of which one is set apart."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    marked: int


@dataclass(frozen=True)
class Chart:
    """One or two curves over a common logarithmic axis, for Rich to draw."""

    curves: Sequence[Curve]
    over: str
    """Quantity of the axis across."""
    of: str
    """Quantity of the axis upwards."""
    mark: str
    """Meaning of the points that are set apart."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        xs, ys = ([x for c in self.curves for x in c.xs], [y for c in self.curves for y in c.ys])
        low, high = min(ys), max(max(ys), min(ys) + LEAST_SPAN)
        decimals = 3 if high - low >= 0.02 else 4
        names = [f"{high - (high - low) * row / (ROWS - 1):.{decimals}f} " for row in range(ROWS)]
        margin = max(map(len, names))
        width = max(LEAST, min(options.max_width, MOST) - margin - 2)
        left, span = math.log(min(xs)), math.log(max(xs) / min(xs))

        def column(x: float) -> int:
            return round((math.log(x) - left) / span * (width - 1)) if span else width // 2

        def part(y: float) -> int:
            """The third of a row, from the top."""
            return round((high - y) / (high - low) * (3 * ROWS - 3)) + 1

        cells = [[(" ", "")] * width for _ in range(ROWS)]
        for number, curve in enumerate(self.curves):
            for at, y in _between([column(x) for x in curve.xs], curve.ys):
                cells[part(y) // 3][at] = (DOTS[part(y) % 3], STYLES[number])
        for number, curve in enumerate(self.curves):
            for x, y in zip(curve.xs, curve.ys, strict=True):
                cells[part(y) // 3][column(x)] = (POINTS[number], STYLES[number])
        for number, curve in enumerate(self.curves):  # last: no point of any curve covers what is set apart
            x, y = curve.xs[curve.marked], curve.ys[curve.marked]
            cells[part(y) // 3][column(x)] = (MARKS[number], STYLES[number])
        yield Text(f"{self.of} over {self.over}", "dim")
        for row, (name, drawn) in enumerate(zip(names, cells, strict=True)):
            axis = f"{name:>{margin}}┤" if row % 3 == 0 else " " * margin + "│"
            yield Text.assemble((axis, "dim"), *drawn)
        yield Text(" " * margin + "└" + "─" * width, "dim")
        first = [curve.xs[curve.marked] for curve in self.curves] + [xs[0], max(xs)]
        yield Text(" " * (margin + 1) + _ticks([(column(x), _number(x)) for x in first + xs], width), "dim")
        for number, curve in enumerate(self.curves):
            own = f" {self.mark}: {curve.ys[curve.marked]:.{decimals}f} at {_number(curve.xs[curve.marked])}"
            name = f"{POINTS[number]} {escape(curve.label)}  " if len(self.curves) > 1 else ""
            yield Text.assemble((name, STYLES[number]), (MARKS[number], STYLES[number]), own)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _between(columns: Sequence[int], ys: Sequence[float]) -> Iterator[tuple[int, float]]:
    """The columns from the first point to the last, and the heights of straight lines through all points."""
    for n in range(1, len(columns)):
        (a, b), (low, high) = columns[n - 1 : n + 1], ys[n - 1 : n + 1]
        for at in range(a, b):
            yield at, low + (high - low) * (at - a) / (b - a)


def _ticks(places: Iterable[tuple[int, str]], width: int) -> str:
    """The texts under their columns in a line, as many as fit, the first ones first."""
    line = " " * width
    for column, text in places:
        at = max(0, min(column - len(text) // 2, width - len(text)))
        if not line[max(0, at - 2) : at + len(text) + 2].strip():
            line = line[:at] + text + line[at + len(text) :]
    return line
