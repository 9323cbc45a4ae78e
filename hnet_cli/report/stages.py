"""Figures of the stages in a record of `metrics.jsonl`, where they lie flat: `stage0_bytes_per_chunk`, and with `val_`
before it that of a validation. Nobody else takes such keys apart or puts them together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from hnet_cli.storage.jsonl import number

LEAST_WORTH = 0.01
"""Bits per byte below which what the chunks of a stage carry is said to be worth nothing."""
VALIDATION = "val_"
"""Prefix of the keys of a validation."""
MOST, MOST_BINS = 15, 256
"""Stages of a record, and bins of a histogram, that are read: a record may come from anywhere."""
AT_BUDGET = "bpb_at_"
MOST_BUDGETS = 16
"""That are read of a record, which may come from anywhere."""


def stage_key(stage: int, name: str, prefix: str = "") -> str:
    """The key of a figure; `name` is a field of `StageFigures`."""
    return f"{prefix}stage{stage}_{name}"


def budget_key(budget: float) -> str:
    """The key of a validation's bits per byte at one of `train.budgets` other than 1, without its prefix."""
    return f"{AT_BUDGET}{budget:g}"


def budgets_of(record: Mapping[str, Any]) -> dict[float, float]:
    """Bits per byte of a validation at each of `train.budgets`, 1 among them, ascending; empty without others."""
    found, begin = dict[float, float](), VALIDATION + AT_BUDGET
    for key in [key for key in record if key.startswith(begin)][:MOST_BUDGETS]:
        with suppress(ValueError):
            budget, bits = float(key.removeprefix(begin)), number(record[key])
            if bits is not None and 0 < budget < math.inf:
                found[budget] = bits
    if found and (bits := number(record.get(VALIDATION + "bpb"))) is not None:
        found[1.0] = bits
    return dict(sorted(found.items()))


def budget_rows(budgets: Mapping[float, float], stages: Sequence[StageFigures]) -> list[list[str]]:
    """A table of `budgets_of` a validation whose `stages` they are, the first row of heads; these alone without any."""
    target, own = stages[-1].target_bytes_per_chunk if stages else None, budgets.get(1)
    rows = [["budget", "bytes per chunk aimed at", "bits per byte", "change"]]
    for budget, bits in budgets.items():
        change = "" if own is None or budget == 1 else f"{bits - own:+.3f}"
        rows.append([f"{budget:g}", f"{budget * target:.2f}" if target else "-", f"{bits:.3f}", change])
    return rows


@dataclass(frozen=True)
class StageFigures:
    """Figures of one stage over a batch or a validation split; None where a record does not have them."""

    bytes_per_chunk: float | None = None
    target_bytes_per_chunk: float | None = None
    """The product of the target ratios N of this stage and those before it."""
    boundary_fraction: float | None = None
    """F of the ratio loss (paper equation 10): boundaries / positions."""
    target_fraction: float | None = None
    """1 / N."""
    mean_boundary_prob: float | None = None
    """G of the ratio loss: the mean of p."""
    undecided: float | None = None
    """Share of the positions with 0.45 <= p < 0.55."""
    flips: float | None = None
    """Share of the probe's positions decided otherwise than at the evaluation before."""
    imbalance: float | None = None
    """Chunks of the rank that has most, over the mean of the ranks."""
    worth: float | None = None
    """Bits per byte lost where what the chunks carry is withheld (docs/evaluation.md)."""
    worth_low: float | None = None
    """Lower end of its 95% interval."""
    worth_high: float | None = None
    prob_histogram: list[int] | None = None
    """Positions per equal part of [0, 1] that p lies in."""

    def flat(self, stage: int, prefix: str = "") -> dict[str, Any]:
        """The entries of a record."""
        return {stage_key(stage, name, prefix): value for name, value in vars(self).items() if value is not None}


NAMES = tuple(field.name for field in fields(StageFigures))


def stages_of(record: Mapping[str, Any], prefix: str = "") -> list[StageFigures]:
    """The stages of a record, outermost first. Values of another type than the field's count as missing."""
    stages: list[StageFigures] = []
    for stage in range(MOST):
        values = {name: record.get(stage_key(stage, name, prefix)) for name in NAMES}
        counts = values.pop("prob_histogram")
        figures = StageFigures(
            **{name: number(value) for name, value in values.items()}, prob_histogram=_counts(counts)
        )
        if figures == StageFigures():
            return stages
        stages.append(figures)
    return stages


def number_of_stages(records: Iterable[Mapping[str, Any]]) -> int:
    """The most stages that any of the records has, in training or validation."""
    return max((len(stages_of(record, prefix)) for record in records for prefix in ("", VALIDATION)), default=0)


def _counts(value: Any) -> list[int] | None:
    good = (
        isinstance(value, list)
        and 0 < len(value) <= MOST_BINS
        and all(isinstance(n, int | float) and 0 <= n < 1e18 for n in value)
    )
    return [int(n) for n in value] if good else None
