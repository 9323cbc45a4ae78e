"""Warnings about a run that goes wrong: each has a name, comes once per episode and says what to do.

The state of the rules is a dictionary of numbers that is saved with the run, so that a resumed run warns like one that
never stopped. The failures are those reported for H-Nets (collapse to all or no boundaries, a ratio stuck above its
target, undecided routers, chunks that nothing is learned from), and spikes of the loss.
"""

from __future__ import annotations

import math
from typing import Any

from hnet_cli.report.stages import LEAST_WORTH, VALIDATION, stages_of

PATIENCE = 50
"""Steps that a collapse must last, and that the running mean of the loss needs at first."""
WINDOW = 250
"""Steps over which slow trouble is averaged; two windows in a row must show it, the second hardly less."""
DECAY = 0.98
"""Decay of the running mean and variance of the loss per step."""
SPIKE_SIGMAS = 6.0
"""Standard deviations above the running mean from which on a loss is a spike."""
LEAST_SIGMA = 0.03
"""Lower bound of the standard deviation as a share of the mean: a loss that hardly varies has no spikes either."""
MOST_UNDECIDED = 0.6
"""Share of probabilities between 0.45 and 0.55; settled routers have 0.1 to 0.35."""
WORTHLESS = 3
"""Validations in a row after which chunks that are worth nothing are spoken of."""
EARLY = 1000
"""Steps before which they do not count: the bytes right before the next one are learned first, then what chunks say."""


class Watch:
    """The rules; they observe every step that was not skipped."""

    def __init__(self, learned: list[bool], warmup: int, memory: dict[str, float]) -> None:
        """`learned`: per stage, true for a learned chunker. `warmup`: steps before slow trouble counts. `memory`: the
        state of the rules, changed in place."""
        self.learned, self.warmup, self.memory = learned, warmup, memory

    def observe(self, record: dict[str, Any], total_bytes: int, documents: int, alpha: float) -> list[tuple[str, str]]:
        """The warnings that begin with this step: their names and messages.

        `record` as in `metrics.jsonl`, of a batch of `total_bytes` in `documents` sequences; `alpha`: the weight of the
        ratio loss. The first position of a document is always a boundary, so those positions do not count.
        """
        step, positions = record["step"], total_bytes
        messages = [("spike", self._spike(record["loss"]))]
        for s, (learned, stage) in enumerate(zip(self.learned, stages_of(record), strict=True)):
            chunks = round(total_bytes / (stage.bytes_per_chunk or 1))
            free, boundaries = positions - documents, chunks - documents
            positions = chunks
            if learned and free > 0:
                share, target = boundaries / free, 1 / (stage.target_fraction or 1)
                messages.append(("collapse", self._collapse(s, share, target)))
                if alpha:
                    messages.append(("undershoot", self._undershoot(s, step, share, target)))
                messages.append(("undecided", self._undecided(s, step, stage.undecided)))
        return [(name, message) for name, message in messages if message]

    def validated(self, record: dict[str, Any]) -> list[tuple[str, str]]:
        """The warnings that begin with this validation, whose `record` is as in `metrics.jsonl`."""
        messages, memory = list[tuple[str, str]](), self.memory
        for s, stage in enumerate(stages_of(record, VALIDATION)):
            if record["step"] <= max(self.warmup, EARLY) or stage.worth is None:
                continue
            key, worth = f"worthless{s}", stage.worth
            most = worth if stage.worth_high is None else stage.worth_high
            memory[key] = memory.get(key, 0) + 1 if most < LEAST_WORTH else 0
            if memory[key] == WORTHLESS:
                message = (
                    f"stage {s}: for {WORTHLESS} validations what its chunks carry has been worth less than "
                    f"{LEAST_WORTH} bits per byte (now {worth:.4f}), so what lies inside the stage is not used; try a "
                    "lower learning rate inside (the last of train.lr_multipliers), a smaller encoder "
                    "(model.arch_layout, model.d_model), or a model without this stage"
                )
                messages.append(("worthless", message))
        return messages

    def _spike(self, loss: float) -> str:
        memory = self.memory
        count, mean, variance = (memory.get(f"loss_{key}", 0.0) for key in ("count", "mean", "variance"))
        sigma = max(math.sqrt(max(variance, 0.0)), LEAST_SIGMA * abs(mean))
        limit = mean + SPIKE_SIGMAS * sigma if count >= PATIENCE else math.inf
        begins = loss > limit and not memory.get("spike")
        memory["spike"] = float(loss > limit or (bool(memory.get("spike")) and loss > mean + SPIKE_SIGMAS / 2 * sigma))
        # A spike counts for half its limit: one must not hide the next, a level that stays must become the mean.
        decay, counted = min(DECAY, count / (count + 1)), loss if loss <= limit else mean + SPIKE_SIGMAS / 2 * sigma
        memory["loss_mean"] = mean + (1 - decay) * (counted - mean)
        memory["loss_variance"] = decay * (variance + (1 - decay) * (counted - mean) ** 2)
        memory["loss_count"] = min(count + 1, PATIENCE)
        if not begins:
            return ""
        return (
            f"the loss is {loss:.2f}, {(loss - mean) / sigma:.0f} standard deviations above its running mean of "
            f"{mean:.2f}; if it does not come back, try a lower train.lr or train.grad_clip"
        )

    def _collapse(self, s: int, share: float, target: float) -> str:
        everywhere, nowhere = share > 1 / 1.05, share < 1 / (4 * target)
        key = f"collapse{s}"
        self.memory[key] = self.memory.get(key, 0) + 1 if everywhere or nowhere else 0
        if self.memory[key] != PATIENCE:
            return ""
        what = "nearly every position is" if everywhere else "hardly any position is"
        return (
            f"stage {s}: for {PATIENCE} steps {what} a boundary (a share of {share:.3f}, target {1 / target:.3f}); "
            "raise train.ratio_loss_weight, or lower train.lr"
        )

    def _undershoot(self, s: int, step: int, share: float, target: float) -> str:
        if not self._lasts(f"undershoot{s}", self._windows(f"undershoot{s}", step, share * target), 2.0):
            return ""
        return (
            f"stage {s}: its chunks stay below half of the target of {target:g} positions and do not grow; give it a "
            "deeper encoder (model.arch_layout), or raise train.ratio_loss_weight"
        )

    def _undecided(self, s: int, step: int, share: float | None) -> str:
        if not self._lasts(f"undecided{s}", self._windows(f"undecided{s}", step, share), MOST_UNDECIDED):
            return ""
        return (
            f"stage {s}: most boundary probabilities stay between 0.45 and 0.55, so its chunks change with every step; "
            "raise train.alignment_loss_weight, or give it a deeper encoder (model.arch_layout)"
        )

    def _windows(self, key: str, step: int, value: float | None) -> tuple[float, float] | None:
        """At the end of a window of steps after the warm-up: the means of the window before and of this one."""
        if step <= self.warmup:
            return None
        memory, total, count = self.memory, f"{key}_sum", f"{key}_count"
        if value is not None:
            memory[total] = memory.get(total, 0) + value
            memory[count] = memory.get(count, 0) + 1
        if (step - self.warmup) % WINDOW or not memory.get(count):
            return None
        mean = memory.pop(total) / memory.pop(count)
        before = memory.get(f"{key}_before", math.inf)
        memory[f"{key}_before"] = mean
        return before, mean

    def _lasts(self, key: str, means: tuple[float, float] | None, limit: float) -> bool:
        """True where an episode begins: two windows above the limit, the second hardly below the first."""
        if means is None:
            return False
        before, now = means
        bad = now > limit and 0.95 * before < now
        begins = bad and not self.memory.get(key)
        self.memory[key] = float(bad or bool(self.memory.get(key) and now > limit))
        return begins
