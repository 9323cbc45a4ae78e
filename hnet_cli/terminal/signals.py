"""Signals that ask a run to stop: heard between its steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Set by a signal, read between steps."""

    signal: str = ""
    count: int = 0


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask for a stop after the step; a second Ctrl-C interrupts at once.

    What is ignored (nohup, a shell's background job) stays ignored.
    """
    stop = Stop()

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.signal = signal.Signals(number).name
        stop.count += number == signal.SIGINT
        if stop.count > 1:
            raise KeyboardInterrupt

    wanted = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")]
    heard = [number for number in wanted if number and signal.getsignal(number) != signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, on_signal) for number in heard}
    except ValueError:  # not in the main thread: somebody else handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
