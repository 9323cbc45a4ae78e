"""How many steps a run with limited time has. Arithmetic on times that it is given: it reads no clock."""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 10
"""Steps of which the pace is that of the median; until there are so many it is that of the fastest, since others may
have compiled kernels."""


class Pace:
    """The steps of a run that is to end in `seconds`: as many as fit at the pace of the last ten, at most `most`."""

    def __init__(self, seconds: float, most: int, now: float) -> None:
        self.end, self.most, self.steps = now + seconds, most, most
        self._before, self._taken = now, deque[float](maxlen=WINDOW)

    @property
    def seconds_per_step(self) -> float:
        """0 before the first step."""
        typical = median if len(self._taken) == WINDOW else min
        return typical(self._taken) if self._taken else 0.0

    def total(self, now: float, step: int, closing: float = 0.0) -> int:
        """Steps of the whole run as known at `now`, when `step` are done; to be asked after each of them.

        `closing`: seconds needed after the last. The number falls and grows again, but the last step is always known to
        be the last before it is made, so that a schedule laid out over this many ends where it should.
        """
        self._taken.append(now - self._before)
        self._before = now
        left = self.end - now - closing
        fitting = step + int(left / max(self.seconds_per_step, 1e-9)) if left > 0 else step
        if len(self._taken) == 1 and left > 0:  # the first step says nothing: it may have compiled for most of its time
            fitting = self.most
        if step < self.steps:
            fitting = max(fitting, step + 1)
        self.steps = min(self.most, max(fitting, step))
        return self.steps
