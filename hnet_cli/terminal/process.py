"""The process: standard streams made fit for long work, and signals that ask a run to stop."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO


class _Messages(io.FileIO):
    """Standard error that loses what cannot be written (a log on a full disk, a reader that is gone): a training of
    days does not end for a line about its progress."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare_streams() -> None:
    """Open streams that are closed (`>&-`, as some daemons have it) before another file takes their numbers, and
    replace standard error by one that never fails."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    messages = io.BufferedWriter(_Messages(sys.stderr.fileno(), "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(messages, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def abandon_stdout() -> None:
    """Detach from a closed pipe, about which Python would complain once more while it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def utf8_stdout() -> TextIO:
    """Standard output in UTF-8 whatever the locale; what UTF-8 cannot hold is written as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    return sys.stdout


class Terminated(BaseException):
    """A signal that ends the command, as KeyboardInterrupt does: what it was writing is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


CLEANING = 5.0
"""Seconds in which a command that is ended is left in peace; an exception may get lost, in a destructor say."""
PATIENCE = 1.5
"""Seconds that a signal waits for an import: that of torch takes half a minute on a busy machine."""
AGAIN = 0.1
"""Seconds after which a signal that came in the midst of an import is sent again."""
_stopped = -math.inf
"""Time at which a run ended that a signal had asked to stop (`catch_signals`)."""


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, SIGHUP, SIGUSR1, SIGXCPU raise `Terminated` where they would end the process at once; what follows the
    first within `CLEANING` is ignored, so that it can clean up. `catch_signals` comes first in its block; where it was
    asked to stop, the same signal once more is not another wish.

    While a module is imported they wait: an exception that passes through C++, as there is in torch, may abort. After
    `PATIENCE` the process ends there and then, as after a kill.
    """
    quiet_until, first, began = 0.0, 0.0, time.monotonic()

    def on_signal(received: int, frame: FrameType | None) -> None:
        nonlocal quiet_until, first
        first = first or time.monotonic()
        if _is_importing(frame):
            if time.monotonic() > first + PATIENCE:
                print(f"hnet: {Terminated(received)}", file=sys.stderr, flush=True)
                os._exit(128 + received)
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), received))
            again.daemon = True
            again.start()
        elif (now := time.monotonic()) >= max(quiet_until, _stopped + CLEANING if _stopped >= began else 0.0):
            quiet_until = now + CLEANING
            raise Terminated(received)

    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")]
    before = [number for number in numbers if number and signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in before:
            signal.signal(number, on_signal)
    except ValueError:  # not in the main thread: somebody else handles signals
        before = []
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


@dataclass
class Stop:
    """Set by a signal, read between steps."""

    signal: str = ""
    count: int = 0
    """Times that Ctrl-C was pressed."""


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask for a stop after the step; a second Ctrl-C interrupts at once.

    Ignored signals (nohup, a shell's background job) stay ignored.
    """
    stop = Stop()

    def on_signal(received: int, _: FrameType | None) -> None:
        stop.signal = signal.Signals(received).name
        stop.count += received == signal.SIGINT
        if stop.count > 1:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")]
    try:
        before = {n: signal.signal(n, on_signal) for n in numbers if n and signal.getsignal(n) != signal.SIG_IGN}
    except ValueError:  # not in the main thread: somebody else handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        global _stopped
        _stopped = time.monotonic() if stop.signal else _stopped
        for n, handler in before.items():
            signal.signal(n, handler)
