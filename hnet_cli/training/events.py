"""Events of a run (warnings, resumes, why it ended) as records in its `events.jsonl`; `log.txt` is for people."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.errors import BusyError, HNetError, Stopped
from hnet_cli.report.history import EVENTS
from hnet_cli.storage.jsonl import RecordFile

Listener = Callable[[str, dict[str, Any]], None]
"""Called with ("step" | "log" | "eval" | "checkpoint" | "resume" | "warning" | "shortened", record)."""


class EventLog:
    """A listener of `train` that records events and passes everything on.

    A record has "kind", "step", "time" (UTC, ISO 8601), "text", and of a skipped step its "documents". Until `open`
    records wait, for it is not yet known from which step the run goes on. That one cannot be written ends no run: it is
    written with the next.
    """

    def __init__(self, run: Path, listen: Listener, silent: bool = False) -> None:
        """`silent`: another rank writes."""
        self.path, self.listen, self.silent = run / EVENTS, listen, silent
        self.step, self.waiting = 0, list[dict[str, Any]]()
        self.fitting = 0
        """Steps last recorded to fit into the time, which is estimated anew all the while."""
        self.file: RecordFile | None = None

    def hear(self, kind: str, record: dict[str, Any]) -> None:
        """Record a "warning", "resume" or "shortened", and pass it on."""
        self.step = record.get("step", self.step)
        if kind == "warning":
            text = record["message"].removeprefix(f"step {self.step}: ")
            documents = {"documents": record["documents"]} if "documents" in record else {}
            self._add(record.get("event", kind), text, **documents)
        elif kind == "resume":
            self._add(kind, "; ".join(["went on from a checkpoint", *record["changed"]]))
        elif kind == "shortened" and abs(record["steps"] - self.fitting) > record["steps"] / 10:
            self.fitting = record["steps"]
            self._add(kind, f"{record['steps']:,} steps fit into the time")
        self.listen(kind, record)

    def open(self, step: int) -> None:
        """Cut the file back to what was written until `step`, from which the run goes on. Raises StorageError."""
        self.step, self.file = step, RecordFile(self.path, step, silent=self.silent)
        if not self.silent:
            storage.append_text(self.path, "")  # an empty file: no events, not a run that did not record them
        for record in self.waiting:
            self.file.write(record | {"step": step})
        self.waiting.clear()

    def sync(self) -> None:
        """Make all records survive a power cut. Raises StorageError."""
        if self.file is not None:
            self.file.sync()

    @contextlib.contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Record what ends the block before the run's last step: not that the folder is another process's, nor what
        fails before there is a run."""
        try:
            yield
        except BusyError:
            raise
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, HNetError) else f"{type(error).__name__}: {error}"
        self._add("stopped" if isinstance(error, Stopped) else "failed", text or "another rank failed")
        if self.file is None and not self.silent and (self.path.parent / "config.yaml").exists():
            with contextlib.suppress(HNetError):
                storage.append_text(self.path, "".join(json.dumps(record) + "\n" for record in self.waiting))

    def _add(self, kind: str, text: str, **fields: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"step": self.step, "kind": kind, "time": time, "text": text} | fields
        if self.file is None:
            self.waiting.append(record)
        else:
            with contextlib.suppress(HNetError):
                self.file.write(record)
