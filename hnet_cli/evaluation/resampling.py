"""How sure a figure is: the bootstrap over documents.

A figure is a function of sums over units, and units (documents) are drawn again with replacement. All figures of the
same units are computed on the same draws, so that differences between two models are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

TIMES = 1000
"""Draws."""
GROUPS = 2000
"""More units than this are joined to as many groups of neighbours: cheaper, and if anything more cautious."""
FEWEST = 8
"""With fewer units there is no telling how sure a figure is."""
_SEED = 2507


def interval(units: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> list[float] | None:
    """The central 95% of `figure` over the draws, [lo, hi]; None for fewer than `FEWEST` units.

    `units` (U, K) are the sums of each unit; `figure` maps sums (..., K) to values (...).
    """
    values = draws(units, figure)
    if values is None or not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def draws(units: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """(TIMES,) values of `figure`, one per draw; None for fewer than `FEWEST` units."""
    if len(units) < FEWEST:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([figure(sums) for sums in _sums(_grouped(units))])


def _grouped(units: np.ndarray) -> np.ndarray:
    if len(units) <= GROUPS:
        return units.astype(np.float64)
    borders = np.linspace(0, len(units), GROUPS, endpoint=False).astype(np.int64)
    grouped: np.ndarray = np.add.reduceat(units.astype(np.float64), borders, axis=0)
    return grouped


def _sums(units: np.ndarray, at_once: int = 50) -> Iterator[np.ndarray]:
    random = np.random.default_rng(_SEED)
    for _ in range(TIMES // at_once):
        drawn = random.integers(0, len(units), (at_once, len(units)))
        weights = np.stack([np.bincount(row, minlength=len(units)) for row in drawn])
        yield weights @ units


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column over the second; 0 where that is 0."""
    over, under = sums[..., 0], sums[..., 1]
    return np.divide(over, under, out=np.zeros_like(over, dtype=np.float64), where=under != 0)


def of_share(hits: float, units: int) -> list[float]:
    """The 95% interval of a share (Wilson 1927): drawn again, units that are all alike would give one of no width."""
    z2 = 1.959964**2
    share, wide = hits / units, 1 + z2 / units
    centre, half = share + z2 / (2 * units), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * units)) / units)
    return [max(0.0, (centre - half) / wide), min(1.0, (centre + half) / wide)]


def with_interval(
    name: str, units: np.ndarray, figure: Callable[[np.ndarray], np.ndarray] = ratio
) -> dict[str, object]:
    """{name: the figure over all units, name_ci95: its interval}."""
    whole = float(figure(units.astype(np.float64).sum(0)[None])[0])
    return {name: whole, f"{name}_ci95": interval(units, figure)}
