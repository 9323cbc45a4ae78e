"""How often each rule of reliability was tried: a form (short in CI, nightly, long) and a tally printed as JSON.

    python benchmarks/reliability.py --form long --only R2,R8

runs these tests in the long form and writes the table of `docs/reliability.md` from what they print.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forms import FORM, trials

__all__ = ["trials"]

RECORDS = os.environ.get("HNET_RELIABILITY_RECORDS")
"""A file that the tallies are appended to, a line of JSON each."""


@dataclass
class Tally:
    """Counts the trials of one rule. A test that ends with failures, or without a trial, fails."""

    id: str
    what: str
    """One line for the table."""
    case: str = ""
    """One of several that share the line."""
    n: int = 0
    failures: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """Further numbers for the table, such as the slowest answer."""
    began: float = field(default_factory=time.monotonic)

    def count(self, good: bool, why: str = "") -> None:
        """One trial; `why` says what went wrong in it."""
        self.n += 1
        if not good:
            self.failures.append(why or f"trial {self.n}")

    def record(self) -> dict[str, Any]:
        seconds = round(time.monotonic() - self.began, 1)
        return {
            "id": self.id,
            "what": self.what,
            "case": self.case,
            "form": FORM,
            "n": self.n,
            "failures": len(self.failures),
            "seconds": seconds,
        } | self.figures


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`tally("R2", "kill -9 at random moments of train")` makes the Tally of this test; closed when the test ends."""
    made: list[Tally] = []

    def make(id: str, what: str, case: str = "") -> Tally:
        made.append(Tally(id, what, case))
        return made[-1]

    yield make
    for one in made:
        line = json.dumps(one.record())
        print(line)
        if RECORDS:
            with Path(RECORDS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        assert one.n, f"{one.id}: nothing was tried"
        assert not one.failures, f"{one.id}: {len(one.failures)} of {one.n} failed:\n" + "\n".join(one.failures[:20])
