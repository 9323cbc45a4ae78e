"""Bounds of the numbers in a configuration, and numbers that change over a run.

pydantic reads the annotations here as its own. It is imported only when it does: a configuration can be built without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MOST = 10**15
"""Upper limit of numbers that have no other: beyond it float64 has no longer every integer."""

Points = list[tuple[float, float]]
"""A value that changes: [share of the run, value] points, linear between them, constant before the first and after the
last. `[[0, 1.0], [0.5, 0.03]]` falls from 1 to 0.03 over the first half of the steps."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The numbers that a setting takes: `steps: Annotated[int, Bounds(least=1)]`. Booleans are no numbers."""

    least: float = -MOST
    above: float = -math.inf
    most: float = MOST
    below: float = math.inf

    def __str__(self) -> str:
        low = f"above {self.above}" if self.above > -math.inf else f"at least {self.least}" * (self.least != -MOST)
        high = f"below {self.below}" if self.below < math.inf else f"at most {self.most}" * (self.most != MOST)
        return " and ".join(filter(None, (low, high)))

    def check(self, value: Any) -> Any:
        """`value` itself. Raises ValueError for what is no finite number within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
            raise ValueError(f"must be a number, not {value!r:.40}")
        if not (self.least <= value and self.above < value < self.below):
            raise ValueError(f"must be {self}, not {value!r:.40}")
        if value > self.most:
            raise ValueError(f"must be at most {self.most}, not {value!r:.40}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Make pydantic check the bounds before it converts by type."""
        from pydantic_core.core_schema import no_info_before_validator_function

        return no_info_before_validator_function(self.check, handler(source))


class Schedule(Bounds):
    """The same of a number or of every value of `Points`."""

    def check(self, value: Any) -> Any:
        if not isinstance(value, list):
            return super().check(value)
        if not all(isinstance(point, list | tuple) and len(point) == 2 for point in value):
            raise ValueError("must be a number, or a schedule of [share of the run, value] points")
        shares = [Bounds(least=0, most=1).check(share) for share, _ in value]
        if not shares or shares != sorted(set(shares)):
            raise ValueError(f"needs [share of the run, value] points, shares ascending from 0 to 1, not {value}")
        for _, number in value:
            super().check(number)
        return value


def value_at(value: float | Points, share: float) -> float:
    """A number as it is, or a schedule at a share (0 to 1) of the run."""
    if not isinstance(value, list):
        return value
    after = sum(point[0] <= share for point in value)
    if after in (0, len(value)):
        return value[max(0, after - 1)][1]
    (begin, first), (end, last) = value[after - 1 : after + 1]
    return first + (share - begin) / (end - begin) * (last - first)
