"""Uncertainty of a figure: the percentile bootstrap over documents, and over training seeds where there are several.

A figure is a function of sums over units (documents). Units are drawn with replacement, the same draws for all figures
of the same units, so that the difference between two models is paired. Hand-written, because `scipy.stats.bootstrap`
neither shares draws between figures nor joins units: here 1,000 draws are a few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hnet_cli.inference.scoring import FEWEST

Figure = Callable[[np.ndarray], np.ndarray]
"""Maps sums (..., K) to values (...)."""

TIMES = 1000
"""Draws."""
GROUPS = 2000
"""Above this number, neighbouring units are joined into as many groups: cheaper and slightly conservative."""
SEED_ERRORS = 20
"""Errors of the training seeds per draw of the documents."""
_SEED, _SEED_OF_SEEDS = 2507, 7955


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column over the second; 0 where that is 0."""
    over, under = sums[..., 0], sums[..., 1]
    return np.divide(over, under, out=np.zeros_like(over, dtype=np.float64), where=under != 0)


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on; those that tie share the mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: np.ndarray = (ends - (counts - 1) / 2)[inverse]
    return shared


def draws(units: np.ndarray, figure: Figure) -> np.ndarray | None:
    """(TIMES,) values of `figure` on units (U, K), one per draw; None for fewer than `FEWEST` units."""
    if len(units) < FEWEST:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([figure(sums) for sums in _drawn_sums(_grouped(units))])


def _grouped(units: np.ndarray) -> np.ndarray:
    if len(units) <= GROUPS:
        return units.astype(np.float64)
    borders = np.linspace(0, len(units), GROUPS, endpoint=False).astype(np.int64)
    grouped: np.ndarray = np.add.reduceat(units.astype(np.float64), borders, axis=0)
    return grouped


def _drawn_sums(units: np.ndarray, at_once: int = 50) -> Iterator[np.ndarray]:
    random = np.random.default_rng(_SEED)
    for _ in range(TIMES // at_once):
        drawn = random.integers(0, len(units), (at_once, len(units)))
        weights = np.stack([np.bincount(row, minlength=len(units)) for row in drawn])
        yield weights @ units


def interval(drawn: np.ndarray | None) -> list[float] | None:
    """The central 95% of draws, [low, high]; None without draws, or where one is not finite."""
    if drawn is None or not np.isfinite(drawn).all():
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [float(low), float(high)]


def with_interval(name: str, units: np.ndarray, figure: Figure = ratio) -> dict[str, object]:
    """{name: the figure over all units (U, K), name_ci95: its interval}."""
    whole = float(figure(units.astype(np.float64).sum(0)[None])[0])
    return {name: whole, f"{name}_ci95": interval(draws(units, figure))}


def mean_with_interval(name: str, values: np.ndarray) -> dict[str, object]:
    """`with_interval` of the mean of values (U,)."""
    return with_interval(name, np.stack([values, np.ones(len(values))], 1))


def share_weighted(name: str, figures: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> dict[str, Any]:
    """The mean of a figure of independent samples in some shares. `figures`: what `with_interval` gives of each.

    The deviations of the ends of the intervals add up in squares, since the samples are independent; no interval where
    one has none.
    """
    value = sum(share * figure[name] for share, figure in zip(shares, figures, strict=True))
    interval, ends = None, [figure[f"{name}_ci95"] for figure in figures]
    if None not in ends:
        away = [
            math.hypot(*(s * (f[name] - f[f"{name}_ci95"][side]) for s, f in zip(shares, figures, strict=True)))
            for side in range(2)
        ]
        interval = [value - away[0], value + away[1]]
    return {name: value, f"{name}_ci95": interval}


def share_interval(hits: float, units: int) -> list[float]:
    """The 95% interval of a share (Wilson 1927). A bootstrap of units that are all alike would have no width."""
    z2 = 1.959964**2
    share, wide = hits / units, 1 + z2 / units
    centre, half = share + z2 / (2 * units), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * units)) / units)
    return [max(0.0, (centre - half) / wide), min(1.0, (centre + half) / wide)]


def over_seeds(units: np.ndarray, figure: Figure = ratio) -> tuple[float, np.ndarray | None]:
    """A figure's mean over S training seeds, and draws of it; None instead of draws where there are too few units.

    `units` (S, U, K): the sums of every unit for every seed. With S > 1, errors from Student's t with S - 1 degrees of
    freedom, scaled by the standard error of the mean over seeds, are added to every draw, so that draws cover both
    another choice of documents and another training. With one seed they cover the documents only.
    """
    value = float(figure(units.sum(1).mean(0)[None])[0])
    drawn = draws(units.mean(0), figure)
    seeds = len(units)
    if drawn is not None and seeds > 1:
        spread = float(np.std(figure(units.sum(1)), ddof=1)) / seeds**0.5
        random = np.random.default_rng(_SEED_OF_SEEDS)
        drawn = (drawn[:, None] + spread * random.standard_t(seeds - 1, (len(drawn), SEED_ERRORS))).ravel()
    return value, drawn
