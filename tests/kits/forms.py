"""The form the tests of reliability are run in."""

from __future__ import annotations

import os

FORM = os.environ.get("HNET_RELIABILITY", "short")
"""short in CI, nightly, long."""

MANNERS = "errors of every kind: no traceback, at most 4 lines"
"""What R31 asks of all."""


def trials(short: int, nightly: int, long: int) -> int:
    """How often to try, by the form asked for."""
    return {"short": short, "nightly": nightly, "long": long}[FORM]
