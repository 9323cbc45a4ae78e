"""Bounds of the numbers in a configuration, and numbers that change over a run.

pydantic reads the annotations here as its own. It is imported only when it does: a configuration can be built without.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hnet_cli.errors import DamagedError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

MOST = 10**15
"""Upper limit of numbers that have no other: beyond it float64 has no longer every integer."""

STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic's configuration of what is read: unknown keys and numbers that are not finite are errors."""

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


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def typed(kind: type[T], data: Any, where: str) -> T:
    """`data`, parsed JSON, as `kind`, a dataclass that bounds its fields; types are not converted.

    Raises DamagedError with `where` and the first field that does not fit.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Any, kind)).validate_json(json.dumps(data), strict=True)
        return value
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, problem["loc"]))[:100]
        raise DamagedError(f"{where} is damaged: {field}: {problem['msg'].removeprefix('Input ')}") from error


def value_at(value: float | Points, share: float) -> float:
    """A number as it is, or a schedule at a share (0 to 1) of the run."""
    if not isinstance(value, list):
        return value
    after = sum(point[0] <= share for point in value)
    if after in (0, len(value)):
        return value[max(0, after - 1)][1]
    (begin, first), (end, last) = value[after - 1 : after + 1]
    return first + (share - begin) / (end - begin) * (last - first)
