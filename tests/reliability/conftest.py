"""A tally of the trials of each rule, printed as JSON for `benchmarks/reliability.py`, and what several rules share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import SMALLER, Command
from forms import FORM
from runkit import dataset, tiny

from hnet_cli.config.run import RunConfig
from hnet_cli.training.loop import train

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
        """Count one trial; `why` says what went wrong in it."""
        self.n += 1
        if not good:
            self.failures.append(why or f"trial {self.n}")

    def record(self) -> dict[str, Any]:
        counts = {"n": self.n, "failures": len(self.failures), "seconds": round(time.monotonic() - self.began, 1)}
        return {"id": self.id, "what": self.what, "case": self.case, "form": FORM} | counts | self.figures


@pytest.fixture
def tally() -> Iterator[Any]:
    """`tally("R2", "kill -9 at random moments of train")` makes a Tally of this test, closed when the test ends."""
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


@pytest.fixture
def finisher(tally: Any) -> Callable[[str], Callable[[Command], tuple[int, str]]]:
    """`finisher(case)` makes a function that waits for a command, returns its exit code and standard error, and counts
    for R31 whether an error is one to four lines without a traceback."""

    def make(case: str) -> Callable[[Command], tuple[int, str]]:
        counted = tally("R31", "errors of every kind: no traceback, at most 4 lines", case)

        def finish(process: Command) -> tuple[int, str]:
            code, error = process.wait(), process.error
            lines = [line for line in error.splitlines() if line.startswith("hnet: ") and "hnet: warning" not in line]
            good = "Traceback" not in error and "a bug of ours" not in error
            good = good and (not code or (1 <= len(lines) <= 4 and len(lines[0]) >= 20))
            counted.count(good, f"exit {code}, {len(lines)} lines: {error[-600:]}")
            return code, error

        return finish

    return make


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset; nobody changes it."""
    return dataset(tmp_path_factory.mktemp("fox"))


@pytest.fixture(scope="session")
def three_steps() -> RunConfig:
    """A run of three steps, each saved."""
    return tiny(*SMALLER, "train.steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=3", "train.eval_every=0")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, data: Path, three_steps: RunConfig) -> Path:
    """A folder with a `dataset` and a `run` of three steps on it; nobody changes them."""
    home = tmp_path_factory.mktemp("home")
    (home / "dataset").symlink_to(data)
    train(three_steps, home / "dataset", home / "run")
    return home
