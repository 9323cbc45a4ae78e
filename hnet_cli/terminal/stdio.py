"""Standard input, output and error of the process, made fit for long work."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class _Messages(io.FileIO):
    """Standard error. What cannot be said there (a log on a full disk, a reader that is gone) is lost, and the work
    goes on: a training of days does not end for a line about its progress."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def make_fit() -> None:
    """Open what is closed (`>&-`, as some daemons have it) before another file takes its number, and make standard
    error one that never fails."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    messages = io.BufferedWriter(_Messages(sys.stderr.fileno(), "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(messages, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def abandon_stdout() -> None:
    """Python would complain once more about a closed pipe while it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def utf8_stdout() -> TextIO:
    """Standard output in UTF-8 whatever the locale says; what UTF-8 cannot hold is written as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    return sys.stdout
