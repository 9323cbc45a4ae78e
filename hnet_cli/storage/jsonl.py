"""Files of a run that grow by a line of JSON: `metrics.jsonl`, `samples.jsonl` and `events.jsonl`."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from hnet_cli.errors import DamagedError, InputError
from hnet_cli.storage.files import append_text, staged_file
from hnet_cli.storage.reading import RECORDS, open_file

LONGEST = 1 << 20
"""Bytes of the longest line that is read; a record has a few thousand."""
MOST_STEPS = 10**15
"""Records of a later step are nobody's."""
T = TypeVar("T")


class RecordFile:
    """One record per line, each with a "step"; opened at a step, it is cut back to the records up to that step."""

    def __init__(self, path: Path, step: int, silent: bool = False) -> None:
        """`silent`: another process keeps the file; nothing is read or written. Raises StorageError, DamagedError."""
        self.path, self.silent, self._waiting = path, silent, ""
        if not silent and path.exists():
            with staged_file(path) as file:
                for line, record in records(path):
                    if is_step(record.get("step"), step):
                        file.write(f"{line}\n".encode())

    def last(self, key: str) -> dict[str, Any]:
        """The newest record in the file that has a number under `key`; empty where there is none, or it is silent."""
        lines = () if self.silent else (line for line in lines_of(self.path) if f'"{key}"' in line)
        found = (record for record in map(record_of, lines) if record and number(record.get(key)) is not None)
        return next(iter(deque(found, maxlen=1)), {})

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


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a file that hold a record, as they stand and read; those torn by a kill are passed over.

    A file that is not there has none. Raises StorageError, and DamagedError for what is no file or has more than
    `RECORDS` bytes.
    """
    for line in lines_of(path):
        if (record := record_of(line)) is not None:
            yield line, record


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file of records, as `records`, one in memory at a time; too long ones are left out."""
    try:
        file = open_file(path, RECORDS)
    except FileNotFoundError:
        return
    with file:
        try:
            while line := file.readline(LONGEST):
                whole = line.endswith(b"\n") or len(line) < LONGEST
                while not line.endswith(b"\n") and (rest := file.readline(LONGEST)):
                    line = rest
                if whole:
                    yield line.removesuffix(b"\n").decode("utf-8-sig", "replace")
        except InputError as error:
            raise DamagedError(str(error), error.hint) from error


class Spread(Generic[T]):
    """All items added; of more than `most` (even) at least half of so many, evenly spread, and the last."""

    def __init__(self, most: int, stays: Callable[[T, T], T] = lambda first, second: first) -> None:
        """`stays`: which of two neighbours, where one has to go; by default the first."""
        self.most, self.stays = most, stays
        self._kept, self._every, self._count, self._last = list[T](), 1, 0, list[T]()

    def add(self, item: T) -> None:
        if self._count % self._every:
            self._kept[-1] = self.stays(self._kept[-1], item)
        else:
            if len(self._kept) == self.most:
                self._every *= 2
                self._kept = [self.stays(*pair) for pair in zip(self._kept[::2], self._kept[1::2], strict=True)]
            self._kept.append(item)
        self._count, self._last = self._count + 1, [item]

    def items(self) -> list[T]:
        """What is kept, in order."""
        return self._kept + self._last if self._kept and self._kept[-1] is not self._last[0] else self._kept


def record_of(line: str) -> dict[str, Any] | None:
    """A JSON object; None for anything else, such as a line torn by a kill or still being written."""
    if len(line) > LONGEST or not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        return None
    return value if isinstance(value, dict) else None
