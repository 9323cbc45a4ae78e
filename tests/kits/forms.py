"""The form in which the reliability tests run, and the damage that several of them do."""

from __future__ import annotations

import os
import random
from pathlib import Path

FORM = os.environ.get("HNET_RELIABILITY", "short")
"""short in CI, nightly, long."""


def trials(short: int, nightly: int, long: int) -> int:
    """Number of trials in the current form."""
    return {"short": short, "nightly": nightly, "long": long}[FORM]


def flip_bit(data: bytes, luck: random.Random, first: int = 0) -> bytes:
    """Flip one bit of a random byte from `first` on."""
    at = luck.randrange(first, len(data))
    return data[:at] + bytes([data[at] ^ 1 << luck.randrange(8)]) + data[at + 1 :]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name, but for hidden ones."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")}
