"""How sure a comparison is: over the held-out documents, and over the seeds of training where there are several.

Documents are drawn again with replacement, the same draws for all models, so that differences are paired. With K seeds
a figure is the mean over them, and an error from Student's t with K - 1 degrees of freedom, scaled by the standard
error of that mean, is added to every draw: what is reported covers both another choice of documents and another start
of training. With one seed it covers the documents alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hnet_cli.evaluation.resampling import draws, ratio

REPEATS = 20
"""Errors of the seeds per draw of the documents."""
_SEED = 7955


def estimate(units: np.ndarray, figure: Callable[[np.ndarray], np.ndarray] = ratio) -> tuple[float, np.ndarray | None]:
    """The figure of the mean over seeds, and draws of it; None for the draws where there are too few units.

    `units` (S, U, K): the sums of every unit for every seed; `figure` maps sums (..., K) to values (...).
    """
    value = float(figure(units.sum(1).mean(0)[None])[0])
    drawn = draws(units.mean(0), figure)
    if drawn is None:
        return value, None
    seeds = len(units)
    if seeds > 1:
        spread = float(np.std(figure(units.sum(1)), ddof=1)) / seeds**0.5
        random = np.random.default_rng(_SEED)
        drawn = (drawn[:, None] + spread * random.standard_t(seeds - 1, (len(drawn), REPEATS))).ravel()
    return value, drawn


def interval(drawn: np.ndarray | None) -> list[float] | None:
    """The central 95% of draws."""
    if drawn is None or not np.isfinite(drawn).all():
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [float(low), float(high)]


def judged(ci95: list[float] | None) -> str:
    """What an interval of (own bits - other bits) says: "wins", "loses" or "cannot be told apart"."""
    if ci95 is None or ci95[0] <= 0 <= ci95[1]:
        return "cannot be told apart"
    return "wins" if ci95[1] < 0 else "loses"
