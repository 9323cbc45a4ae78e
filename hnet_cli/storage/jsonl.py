"""Files of a run that grow by a line of JSON: `metrics.jsonl`, `samples.jsonl` and `events.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnet_cli.storage.files import append_text, write_text


class RecordFile:
    """One record per line, each with a "step"; opened at a step, it is cut back to the records up to that step."""

    def __init__(self, path: Path, step: int, silent: bool = False) -> None:
        """`silent`: another process keeps the file; nothing is read or written. Raises StorageError."""
        self.path, self.silent, self._waiting = path, silent, ""
        self.kept = [] if silent else [record for record in _records(path) if record["step"] <= step]
        """Records that remain of an earlier run."""
        if not silent and path.exists():
            write_text(path, "".join(json.dumps(record) + "\n" for record in self.kept))

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


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file; lines torn by a kill are passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            if isinstance(record["step"], int):
                yield record
        except (ValueError, KeyError, TypeError):
            continue
