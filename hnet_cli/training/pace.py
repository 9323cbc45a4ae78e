"""The number of steps of a run with limited time. Times are passed in; no clock is read."""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 10
"""The pace is the median of so many steps; before that, of the fastest, since others may have compiled kernels."""


class Pace:
    """The number of steps of a run that ends in `seconds`: as many as fit at the recent pace, at most `most`."""

    def __init__(self, seconds: float, most: int, now: float) -> None:
        self.end, self.most, self.steps = now + seconds, most, most
        self._last, self._durations = now, deque[float](maxlen=WINDOW)

    @property
    def seconds_per_step(self) -> float:
        """The pace; 0 before the first step."""
        typical = median if len(self._durations) == WINDOW else min
        return typical(self._durations) if self._durations else 0.0

    def total(self, now: float, step: int, closing: float = 0.0) -> int:
        """Number of steps of the whole run, estimated at `now`, after `step` steps; call it after every step.

        `closing`: seconds needed after the last step. The estimate falls and grows, but the last step is always known
        to be the last before it is made, so that a schedule over this many steps reaches its end.
        """
        self._durations.append(now - self._last)
        self._last = now
        left = self.end - now - closing
        fitting = step + int(left / max(self.seconds_per_step, 1e-9)) if left > 0 else step
        if len(self._durations) == 1 and left > 0:  # most of the first step's time may be compilation
            fitting = self.most
        if step < self.steps:
            fitting = max(fitting, step + 1)
        self.steps = min(self.most, max(fitting, step))
        return self.steps
