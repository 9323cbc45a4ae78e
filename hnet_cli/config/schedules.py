"""Settings that change over a run: a number, or points between which it is linear."""

from __future__ import annotations

import numpy as np

Points = list[tuple[float, float]]
"""A value that changes: [share of the run, value] points, linear between them, constant before the first and after the
last. `[[0, 1.0], [0.5, 0.03]]` falls from 1 to 0.03 over the first half of the steps."""


def value_at(value: float | Points, share: float) -> float:
    """A number as it is, or a schedule at a share (0 to 1) of the run."""
    if not isinstance(value, list):
        return value
    shares, numbers = zip(*value, strict=True)
    return float(np.interp(share, shares, numbers))


def values(name: str, value: float | Points) -> list[float]:
    """The values a number or schedule has at its points. Raises ValueError for points that are none."""
    if not isinstance(value, list):
        return [value]
    shares = [share for share, _ in value]
    if not value or shares != sorted(set(shares)) or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(
            f"train.{name}: the points of a schedule are [share of the run, value], shares ascending from 0 to 1, "
            f"not {value}"
        )
    return [number for _, number in value]
