"""Files of a run that grow by a line of JSON: `metrics.jsonl`, `samples.jsonl` and `events.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnet_cli import storage


class RecordFile:
    """One record per line, each with a "step"; opened at a step, it is cut back to what was written until then."""

    def __init__(self, path: Path, step: int, silent: bool = False) -> None:
        """`silent`: another process keeps it; nothing is read or written. Raises StorageError."""
        self.path, self.silent, self._waiting = path, silent, ""
        self.kept = [record for record in _records(path) if record["step"] <= step] if not silent else []
        """What stood there before."""
        if not silent and (self.kept or path.exists()):
            storage.write_text(path, "".join(json.dumps(record) + "\n" for record in self.kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append a record. Numbers that are not finite, which JSON lacks, are left out.

        Raises StorageError or BusyError; what could not be written is kept for the next time.
        """
        if self.silent:
            return
        finite = {key: value for key, value in record.items() if not isinstance(value, float) or math.isfinite(value)}
        self._waiting += json.dumps(finite) + "\n"
        self._append(sync=False)

    def sync(self) -> None:
        """Make all records survive a power cut."""
        if not self.silent and (self.path.exists() or self._waiting):
            self._append(sync=True)

    def _append(self, sync: bool) -> None:
        storage.append_text(self.path, self._waiting, sync=sync)
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
