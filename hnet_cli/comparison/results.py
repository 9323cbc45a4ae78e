"""The figures of a comparison, from its runs and measurements: `compare.json`."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

import hnet_cli
from hnet_cli.comparison.curves import Curve, crossover, efficiency
from hnet_cli.comparison.members import Member
from hnet_cli.comparison.plan import Plan, Run, layout
from hnet_cli.comparison.statistics import estimate, interval, judged
from hnet_cli.evaluation.resampling import ratio
from hnet_cli.report import history

FORMAT = 1
REFERENCES = ("transformer", "dna-transformer")
"""Whom all are compared with, where one takes part; else the first that learns no boundaries, of those with the same
FLOPs."""
Measured = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Scored:
    """A member with all of its runs that were trained and measured."""

    member: Member
    runs: Sequence[Run]
    measured: Sequence[Mapping[str, Any]]
    """One per run."""
    units: np.ndarray
    """(S, U, 2): bits and bytes of every unit of the held-out documents, per seed."""
    bytes: Curve
    seconds: Curve
    """Validations over bytes and over seconds of training, means over seeds."""
    stable: float
    """Bytes after which the learning rate decays."""
    spent: list[float]
    """Seconds of training, per seed."""
    unsteady: float
    """Upper over lower quartile of the speeds that the trainings recorded: 1 on a machine with nothing else to do."""

    @property
    def name(self) -> str:
        return self.member.name


def scored(plan: Plan, measured: Measured) -> list[Scored]:
    """The members of which at least one run is measured."""
    found = []
    for member in plan.members:
        runs = [run for run in plan.runs if run.member is member and run.name in measured]
        if runs:
            found.append(_scored(member, runs, [measured[run.name] for run in runs]))
    return found


def _scored(member: Member, runs: Sequence[Run], measured: Sequence[Mapping[str, Any]]) -> Scored:
    train = member.config.train
    each, speeds = [], list[float]()
    for run in runs:
        records = history.read_metrics(run.folder)
        clock = history.clock(records)
        xs, ys = history.series(records, "val_bpb")
        each.append((xs, [clock(x) for x in xs], ys, clock(train.steps * train.batch_bytes)))
        speeds += history.series(records, "bytes_per_s")[1]
    points = min(len(xs) for xs, *_ in each)
    xs = each[0][0][:points]
    times = np.mean([seconds[:points] for _, seconds, _, _ in each], axis=0).tolist()
    values = np.mean([ys[:points] for _, _, ys, _ in each], axis=0).tolist()
    slow, fast = np.percentile(speeds or [1.0], [25, 75])
    decay = train.decay if train.schedule == "wsd" else 0.0
    return Scored(
        member, runs, measured, np.array([m["units"] for m in measured]), Curve.of(xs, values),
        Curve.of(times, values), (1 - decay) * train.steps * train.batch_bytes, [spent for *_, spent in each],
        float(fast / max(slow, 1e-9)),
    )  # fmt: skip


def reference(members: Sequence[Member]) -> str | None:
    """The member that the others are compared with."""
    names = [member.name for member in members if member.share == 1] or [member.name for member in members]
    if known := [name for name in REFERENCES if name in names]:
        return known[0]
    plain = [member.name for member in members if not member.learned and member.name in names]
    return next(iter(plain or names), None)


def results(plan: Plan, measured: Measured, failed: Mapping[str, str], chosen: str, size: int) -> dict[str, Any]:
    """All there is to say, as JSON: see docs/compare.md. `chosen`, `size`: the held-out documents, and their bytes."""
    found = scored(plan, measured)
    against = reference([each.member for each in found])
    rival = next((each for each in found if each.name == against), None)
    alike = [each for each in found if each.member.share == 1] or found
    best = min(alike, key=lambda each: _bpb(each)[0]) if found else None
    double = next((each for each in found if each.member.share > 1), None)
    models = [_model(plan, each) for each in found]
    for each, told in zip(found, models, strict=True):
        others = {"reference": rival, "best": best, "double": double}
        told["differences"] = {
            other.name: {"role": [role for role, who in others.items() if who is other]} | difference(each, other)
            for other in {id(who): who for who in others.values() if who is not None and who is not each}.values()
        }
    return {
        "format": FORMAT,
        "dataset": _dataset(plan),
        "budget": {"bytes": plan.bytes, "flops_per_byte": plan.flops, "minutes": plan.minutes, "seeds": plan.seeds},
        "size": plan.size,
        "settings": plan.settings,
        "reference": against,
        "best": best.name if best else None,
        "models": models,
        "crossovers": {each.name: _crossovers(each, rival) for each in found if rival and each is not rival},
        "efficiency": _efficiencies(found),
        "failed": dict(failed),
        "missing": [run.name for run in plan.runs if run.name not in measured and run.name not in failed],
        "exam": {
            "documents": chosen,
            "bytes": size,
            "context": plan.context,
            "unit": found[0].measured[0]["unit"] if found else None,
        },
        "machine": _machine(plan),
    }


def _bpb(each: Scored) -> tuple[float, np.ndarray | None]:
    return estimate(each.units)


def _model(plan: Plan, each: Scored) -> dict[str, Any]:
    model, train = each.member.config.model, each.member.config.train
    value, drawn = _bpb(each)
    stages = _stages(each)
    share = _positions_per_byte(each)
    fractions = [1 / stage["bytes_per_chunk"] for stage in stages]
    flops = share * model.flops_per_byte([one / share for one in fractions], train.sequence_length * share)
    return {
        "name": each.name,
        "description": each.member.config.description,
        "layout": layout(each.member.config),
        "parameters": model.num_parameters,
        "flops_per_byte": flops,
        "planned_flops_per_byte": each.member.flops_per_byte,
        "share_of_flops": each.member.share,
        "learned": each.member.learned,
        "bytes": train.steps * train.batch_bytes,
        "steps": train.steps,
        "bpb": value,
        "bpb_ci95": interval(drawn),
        "seeds": [
            {"seed": run.seed, "run": str(run.folder), "bpb": float(ratio(units.sum(0))), "seconds": spent}
            for run, units, spent in zip(each.runs, each.units, each.spent, strict=True)
        ],
        "bytes_per_chunk": stages[-1]["bytes_per_chunk"] if stages else 1 / share,
        "stages": stages,
        "seconds": float(np.mean(each.spent)),
        "bytes_per_s": train.steps * train.batch_bytes / max(1e-9, float(np.mean(each.spent))),
        "unsteady": each.unsteady,
        "curve": [[x, y] for x, y in zip(each.bytes.xs, each.bytes.ys, strict=True)],
        "curve_seconds": [[x, y] for x, y in zip(each.seconds.xs, each.seconds.ys, strict=True)],
        "stable_bytes": each.stable,
        "robustness": _robustness(each),
    }


def _positions_per_byte(each: Scored) -> float:
    """1, or tokens per byte of a model of tokens."""
    tokens = each.measured[0]["tokens"]
    return 1.0 if tokens is None else tokens / float(each.units[0, :, 1].sum())


def _stages(each: Scored) -> list[dict[str, Any]]:
    """Bytes per chunk of every stage beside the target; means over seeds."""
    found, product = [], 1.0
    for stage, target in enumerate(each.member.config.train.ratios()):
        product *= target
        lengths = [m["positions"] / max(1.0, m["boundaries"][stage]) for m in each.measured]
        learned = each.member.config.model.chunkers[stage].learned
        found.append({"bytes_per_chunk": float(np.mean(lengths)), "target": product if learned else None})
    return found


def _robustness(each: Scored) -> dict[str, Any]:
    """Per distortion: bits per byte of the distorted documents, bits per byte that stood there before, and the score.

    The score is 100 x clean bits / bits of the distorted documents: 100 where a distortion costs nothing, 50 where it
    doubles the bits. `score` and `bpb` on top are means over the distortions.
    """
    noise = [m["noise"] for m in each.measured]
    clean = np.array([rows[""] for rows in noise])
    found: dict[str, Any] = {}
    for name in noise[0]:
        if not name:
            continue
        rows = np.concatenate([np.array([rows[name] for rows in noise]), clean], 2)
        value, drawn = estimate(rows, _score)
        found[name] = {
            "bpb": estimate(rows)[0],
            "bits_per_clean_byte": estimate(rows[..., [0, 3]])[0],
            "score": value,
            "score_ci95": interval(drawn),
        }
    mean = {key: float(np.mean([told[key] for told in found.values()])) if found else None for key in ("score", "bpb")}
    return mean | {"clean_bpb": estimate(clean)[0], "distortions": found}


def _score(sums: np.ndarray) -> np.ndarray:
    return 100 * ratio(sums[..., [2, 0]])


# -- one against another -----------------------------------------------------------------------------------------------


def difference(own: Scored, other: Scored) -> dict[str, Any]:
    """Bits per byte of `own` minus those of `other`: after equal bytes, and after equal seconds of training."""
    rows = _paired(own, other)
    value, drawn = estimate(rows)
    ci95 = interval(drawn)
    return {
        "bpb": value,
        "bpb_ci95": ci95,
        "judged": judged(ci95),
        "share_of_draws_better": None if drawn is None else float((drawn < 0).mean()),
        "equal_time": _at_equal_time(own, other, float(rows[0, :, 1].sum()), value, ci95),
    }


def _paired(own: Scored, other: Scored) -> np.ndarray:
    """(S, U, 2): difference of the bits, and the bytes, of every unit; of the seeds that both have."""
    seeds = [run.seed for run in other.runs]
    both = [(n, seeds.index(run.seed)) for n, run in enumerate(own.runs) if run.seed in seeds] or [(0, 0)]
    ours, theirs = own.units[[n for n, _ in both]], other.units[[n for _, n in both]]
    return np.stack([ours[..., 0] - theirs[..., 0], theirs[..., 1]], 2)


def _at_equal_time(
    own: Scored, other: Scored, size: float, value: float, ci95: list[float] | None
) -> dict[str, Any] | None:
    """Where the faster of the two stood when the decay of its learning rate began, and the other at that moment; None
    where their curves have no moment in common.

    Only in the stable phase are two moments of two runs comparable. The interval is that of the final difference,
    widened by the root of how many times fewer bytes a validation reads.
    """
    ends = [curve.xs[-1] for each in (own, other) if (curve := _stable_seconds(each))]
    if len(ends) < 2:
        return None
    moment = min(ends)
    here, there = _stable_seconds(own).at(moment), _stable_seconds(other).at(moment)
    if here is None or there is None:
        return None
    gap = here - there
    read = min(own.member.config.train.eval_bytes, other.member.config.train.eval_bytes)
    wider = math.sqrt(max(1.0, size / read))
    around = None if ci95 is None else [gap + wider * (end - value) for end in ci95]
    return {"seconds": moment, "bpb": gap, "bpb_ci95": around, "judged": judged(around)}


def _stable_seconds(each: Scored) -> Curve:
    """The curve over seconds up to the decay of the learning rate."""
    kept = sum(x <= each.stable for x in each.bytes.xs)
    return Curve(each.seconds.xs[:kept], each.seconds.ys[:kept])


def _crossovers(own: Scored, other: Scored) -> dict[str, Any]:
    """From where on a member is better than the reference, in bytes and in seconds of training."""
    return {"bytes": crossover(own.bytes, other.bytes), "seconds": crossover(own.seconds, other.seconds)}


def _efficiencies(found: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """[own][other]: how many times fewer bytes, and seconds, `own` needed to get to where `other` ended; of the whole
    trainings, and of the stable phases as in the paper's curves."""
    table: dict[str, dict[str, Any]] = {each.name: {} for each in found}
    for one, two in combinations(found, 2):
        for own, other in ((one, two), (two, one)):
            stable = own.bytes.until(own.stable), other.bytes.until(other.stable)
            table[own.name][other.name] = {
                "bytes": efficiency(own.bytes, other.bytes),
                "seconds": efficiency(own.seconds, other.seconds),
                "stable_bytes": efficiency(*stable),
                "stable_seconds": efficiency(_stable_seconds(own), _stable_seconds(other)),
            }
    return table


# -- where it was done -------------------------------------------------------------------------------------------------


def _dataset(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.data.resolve().name,
        "path": str(plan.data),
        "modality": plan.dataset.modality,
        "fingerprint": plan.dataset.fingerprint,
        "train_bytes": plan.dataset.nbytes("train"),
        "val_bytes": plan.dataset.nbytes("val"),
        "epochs": plan.bytes / plan.dataset.nbytes("train"),
        "baselines": history.baselines_of(plan.dataset.about),
    }


def _machine(plan: Plan) -> dict[str, Any]:
    import torch

    return {
        "device": plan.machine.device,
        "name": plan.machine.name,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": {
            "hnet": hnet_cli.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
