"""Files of a run that grow by a line of JSON: `metrics.jsonl`, `samples.jsonl` and `events.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnet_cli.storage.files import append_text, write_text
from hnet_cli.storage.reading import RECORDS, read_text

LONGEST = 1 << 20
"""Characters of the longest line that is read; a record has a few thousand."""
MOST_STEPS = 10**15
"""Records of a later step are nobody's."""


class RecordFile:
    """One record per line, each with a "step"; opened at a step, it is cut back to the records up to that step."""

    def __init__(self, path: Path, step: int, silent: bool = False) -> None:
        """`silent`: another process keeps the file; nothing is read or written. Raises StorageError, DamagedError."""
        self.path, self.silent, self._waiting = path, silent, ""
        self._kept: list[str] = []
        if not silent and path.exists():
            self._kept = [line for line, record in records(path) if is_step(record.get("step"), step)]
            write_text(path, "".join(line + "\n" for line in self._kept))

    def last(self, key: str) -> dict[str, Any]:
        """The newest record of an earlier run that remains and has a number under `key`; empty where there is none."""
        found = (record_of(line) or {} for line in reversed(self._kept) if key in line)
        return next((record for record in found if number(record.get(key)) is not None), {})

    def write(self, record: dict[str, Any]) -> None:
        """Append a record. Numbers that are not finite, which JSON lacks, are left out.

        Raises StorageError or BusyError; a record that could not be written is written with the next one.
        """
        if not self.silent:
            finite = {key: n for key, n in record.items() if not isinstance(n, float) or math.isfinite(n)}
            self._waiting += json.dumps(finite) + "\n"
            self._append(sync=False)

    def sync(self) -> None:
        """Make all records survive a power cut."""
        if not self.silent and (self.path.exists() or self._waiting):
            self._append(sync=True)

    def _append(self, sync: bool) -> None:
        append_text(self.path, self._waiting, sync=sync)
        self._waiting = ""


def number(value: Any) -> float | None:
    """A number of a record, which may come from anywhere; None for anything else, not finite or absurdly large."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e30 else None


def is_step(value: Any, most: int = MOST_STEPS) -> bool:
    """True for a number of steps of at most `most`."""
    return type(value) is int and 0 <= value <= most


def records(path: Path, limit: int = RECORDS) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a file that hold a record, as they stand and read; those torn by a kill are passed over.

    A file that is not there has none. Raises StorageError, and DamagedError for what is no file or has more than
    `limit` bytes.
    """
    for line in lines_of(path, limit):
        if (record := record_of(line)) is not None:
            yield line, record


def lines_of(path: Path, limit: int = RECORDS) -> list[str]:
    """The lines of a file of records, as `records`."""
    try:
        return read_text(path, limit, errors="replace").split("\n")
    except FileNotFoundError:
        return []


def record_of(line: str) -> dict[str, Any] | None:
    """A JSON object; None for anything else, such as a line torn by a kill or still being written."""
    if len(line) > LONGEST or not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        return None
    return value if isinstance(value, dict) else None
