"""Settings of the test run."""

import os
from functools import cache
from pathlib import Path

import pytest
import typer.main
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: threads would only wait for each other
settings.register_profile("hnet", deadline=None)  # a loaded machine is no failure
settings.load_profile("hnet")
typer.main.get_command = cache(typer.main.get_command)  # else every command line in a test builds all commands anew

RELIABILITY = Path(__file__).parent / "reliability"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in `tests/reliability`, which the README's command leaves to CI."""
    for item in items:
        if item.path.is_relative_to(RELIABILITY):
            item.add_marker(pytest.mark.reliability)
