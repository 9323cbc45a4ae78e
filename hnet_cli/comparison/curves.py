"""Two learning curves: where one crosses the other, and how much less one needs to get as far.

A curve is bits per byte over what was spent (bytes, or seconds), at the validations of a run. Between two validations
it is linear in the logarithm of what was spent.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Curve:
    """Values (n,) over places (n,) > 0, ascending."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    @staticmethod
    def of(xs: Sequence[float], ys: Sequence[float]) -> Curve:
        """The points with x > 0; where several have the same x, the last."""
        points = {x: y for x, y in sorted(zip(xs, ys, strict=True), key=lambda point: point[0]) if x > 0}
        return Curve(tuple(points), tuple(points.values()))

    def __bool__(self) -> bool:
        return bool(self.xs)

    def at(self, x: float) -> float | None:
        """The value at x; None before the first point and after the last."""
        if not self.xs or not self.xs[0] <= x <= self.xs[-1]:
            return None
        n = bisect_left(self.xs, x)
        if self.xs[n] == x:
            return self.ys[n]
        share = math.log(x / self.xs[n - 1]) / math.log(self.xs[n] / self.xs[n - 1])
        return self.ys[n - 1] + share * (self.ys[n] - self.ys[n - 1])

    @property
    def points(self) -> list[list[float]]:
        return [[x, y] for x, y in zip(self.xs, self.ys, strict=True)]

    def first(self, number: int) -> Curve:
        """The first points."""
        return Curve(self.xs[:number], self.ys[:number])

    def until(self, x: float) -> Curve:
        """The points up to x."""
        return self.first(sum(place <= x for place in self.xs))


def crossover(curve: Curve, other: Curve) -> dict[str, Any]:
    """The place from which on `curve` is below `other`, to the end of what both have spent.

    `state`: "crosses" (`at` says where), "from the beginning" (below at every point), "never" (not below at the end),
    or "unknown" (the curves have no place in common).
    """
    if not curve or not other:
        return {"state": "unknown", "at": None}
    low, high = max(curve.xs[0], other.xs[0]), min(curve.xs[-1], other.xs[-1])
    places = sorted({x for x in (*curve.xs, *other.xs) if low <= x <= high})
    if not places:
        return {"state": "unknown", "at": None}
    gaps = [(curve.at(x) or 0.0) - (other.at(x) or 0.0) for x in places]
    above = [n for n, gap in enumerate(gaps) if not gap < 0]
    if not above:
        return {"state": "from the beginning", "at": None}
    n = above[-1]
    if n == len(gaps) - 1:
        return {"state": "never", "at": None}
    share = gaps[n] / (gaps[n] - gaps[n + 1])
    return {"state": "crosses", "at": places[n] * (places[n + 1] / places[n]) ** share}


def reached(curve: Curve, value: float) -> float | None:
    """The place where a curve first comes down to `value`; its first if it begins below; None if it never does."""
    n = next((n for n, y in enumerate(curve.ys) if y <= value), None)
    if n is None or n == 0:
        return None if n is None else curve.xs[0]
    share = (curve.ys[n - 1] - value) / (curve.ys[n - 1] - curve.ys[n])
    return curve.xs[n - 1] * (curve.xs[n] / curve.xs[n - 1]) ** share


def efficiency(curve: Curve, other: Curve) -> float | None:
    """Ratio of what `other` spent in all to what `curve` needed to get to where `other` ended; 2 means half was enough.
    None: `curve` never got there."""
    needed = reached(curve, other.ys[-1]) if other else None
    return None if needed is None else other.xs[-1] / needed
