"""Agreement of learned boundaries with units known without training. Pure numpy, on positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass
class Agreement:
    """Counts over many stretches of data; the ratios follow from them. Counts add, so memory does not grow."""

    positions: int = 0
    """Bytes at which a boundary could have been."""
    boundaries: int = 0
    edges: int = 0
    hits: int = 0
    """Boundaries that are edges."""

    def add(self, boundaries: ArrayLike, edges: ArrayLike, length: int, first: int = 1) -> None:
        """Count the stretch [first, length): positions of boundaries and of edges, ascending and without repetition.

        `first` is 1 by default because a document begins with a boundary whatever the model has learned.
        """
        found = _within(boundaries, first, length)
        wanted = _within(edges, first, length)
        self.positions += max(0, length - first)
        self.boundaries += len(found)
        self.edges += len(wanted)
        self.hits += len(np.intersect1d(found, wanted, assume_unique=True))

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.positions + other.positions,
            self.boundaries + other.boundaries,
            self.edges + other.edges,
            self.hits + other.hits,
        )

    @property
    def precision(self) -> float:
        """Share of the boundaries that fall on an edge; 0 without boundaries."""
        return _ratio(self.hits, self.boundaries)

    @property
    def recall(self) -> float:
        """Share of the edges that have a boundary; 0 without edges."""
        return _ratio(self.hits, self.edges)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.hits, self.boundaries + self.edges)

    @property
    def chance(self) -> float:
        """Share of all positions that are edges: the precision of boundaries thrown at random."""
        return _ratio(self.edges, self.positions)

    def to_dict(self) -> dict[str, float]:
        """The ratios, for reports."""
        return {"precision": self.precision, "chance": self.chance, "recall": self.recall, "f1": self.f1}


def _within(positions: ArrayLike, first: int, length: int) -> np.ndarray:
    array = np.asarray(positions, dtype=np.int64)
    return array[(array >= first) & (array < length)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
