"""Settings of the test run."""

import os
from functools import cache
from pathlib import Path

import pytest
import typer.main
from browserkit import CHROME
from hypothesis import settings

from hnet_cli.terminal import console

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: threads would only wait for each other
# A loaded machine is no failure. CI draws the same examples each time: new ones are for where their faults are mended.
# Every day a law is tried on a few of them; CI tries it on more with --hypothesis-profile=thorough.
settings.register_profile("hnet", deadline=None, derandomize="CI" in os.environ, max_examples=25)
settings.register_profile("thorough", settings.get_profile("hnet"), max_examples=100)
settings.load_profile("hnet")
typer.main.get_command = cache(typer.main.get_command)  # else every command line in a test builds all commands anew

RELIABILITY = Path(__file__).parent / "reliability"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names of tests stay readable where a parameter is a whole file: its first characters, escaped."""
    shown = ascii(val) if isinstance(val, str | bytes | int) else ""
    return f"{shown[:40]}..." if len(shown) > 60 else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in `tests/reliability`, which the README's command leaves to CI."""
    for item in items:
        if item.path.is_relative_to(RELIABILITY):
            item.add_marker(pytest.mark.reliability)


@pytest.fixture(scope="module")
def browser():
    """The Chromium of this machine, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])


@pytest.fixture(autouse=True)
def _neither_quiet_nor_verbose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbosity that a command line sets stays set in its process; here another test follows."""
    monkeypatch.setattr(console, "_verbosity", 0)
