"""The number of steps of a run with limited time, and when it validates. Times are passed in; no clock is read."""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 10
"""The pace is the median of so many steps; before that, of the fastest, since others may have compiled kernels."""
FEWEST_VALIDATIONS, MOST_VALIDATIONS = 8, 40
"""Validations over the whole time: enough for a curve."""
SHARE = 0.2
"""Share of the time that validations may take."""


class Pace:
    """The number of steps of a run that ends in `seconds`: as many as fit at the recent pace, at most `most`."""

    def __init__(self, seconds: float, most: float, now: float, steps: int) -> None:
        """`steps`: the number assumed until the pace is known."""
        self.seconds, self.end, self.most, self.steps = seconds, now + seconds, most, steps
        self._step, self._last, self._durations = -1, now, deque[float](maxlen=WINDOW)
        self._validated = now

    @property
    def seconds_per_step(self) -> float:
        """The pace; 0 before the first step."""
        typical = median if len(self._durations) == WINDOW else min
        return typical(self._durations) if self._durations else 0.0

    @property
    def is_known(self) -> bool:
        """False while a step may have been one that compiles."""
        return len(self._durations) > 1

    def note(self, now: float, step: int) -> None:
        """Time `step`, which has just been made."""
        if step != self._step:
            self._durations.append(now - self._last)
            self._step, self._last = step, now

    def pause(self, seconds: float) -> None:
        """Leave the `seconds` just spent out of the pace."""
        self._last += seconds

    def total(self, now: float, step: int, closing: float = 0.0) -> int:
        """Number of steps of the whole run, estimated at `now`, after `step` steps; call it after every step.

        `closing`: seconds needed for all else, before the last step and after it. The estimate falls and grows, but the
        last step is always known to be the last before it is made, so that a schedule over this many steps reaches its
        end.
        """
        self.note(now, step)
        left = self.end - now - closing
        fitting = float(step + int(left / max(self.seconds_per_step, 1e-9)) if left > 0 else step)
        if not self.is_known and left > 0:  # most of the first step's time may be compilation
            fitting = max(self.steps, step + 1)
        if step < self.steps:
            fitting = max(fitting, step + 1)
        self.steps = int(min(self.most, max(fitting, step)))
        return self.steps

    # -- validations ---------------------------------------------------------------------------------------------------

    def affordable(self, batch_bytes: int) -> int:
        """Bytes of a validation of which `FEWEST_VALIDATIONS` fit: a forward pass is about a third of a step."""
        return int(3 * SHARE * self.seconds / FEWEST_VALIDATIONS * batch_bytes / max(self.seconds_per_step, 1e-9))

    def validations_left(self, now: float, cost: float) -> int:
        """Validations from `now` to the last step, that after it not among them; each takes `cost` seconds."""
        return max(0, int((self.end - max(now, self._validated)) / self._gap(cost) - 0.5))

    def is_due(self, now: float, cost: float) -> bool:
        """True where a validation is due; it is taken to be made. Never before the pace is known."""
        gap = self._gap(cost)
        due = self.is_known and now - self._validated >= gap and self.end - now > gap / 2
        if due:
            self._validated = now
        return due

    def _gap(self, cost: float) -> float:
        fitting = SHARE * self.seconds / max(cost, 1e-9)
        return self.seconds / min(MOST_VALIDATIONS, max(FEWEST_VALIDATIONS, fitting))
