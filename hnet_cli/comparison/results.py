"""The figures of a comparison, from its runs and measurements: `compare.json`, defined in docs/compare.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np

from hnet_cli import provenance
from hnet_cli.comparison.curves import Curve, crossover, efficiency
from hnet_cli.comparison.measures import Exam
from hnet_cli.comparison.members import Member
from hnet_cli.comparison.plan import ComparisonPlan, MemberRun
from hnet_cli.evaluation.resampling import interval, over_seeds, ratio
from hnet_cli.report import history

FORMAT = 1
REFERENCES = ("transformer", "dna-transformer")
"""Members that all others are compared with, where one takes part; else the first that learns no boundaries, of those
with the same FLOPs."""
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """A member with all of its runs that were trained and measured, S seeds."""

    member: Member
    runs: Sequence[MemberRun]
    measured: Sequence[Json]
    """One per run."""
    bytes: Curve
    """Validations over bytes of training, mean over seeds."""
    seconds: Curve
    """Validations over seconds of training, mean over seeds."""
    spent: list[float]
    """Seconds of training, per seed."""
    validation: Json
    """The record of the last validation of the curves."""
    unsteady: float
    """Upper over lower quartile of the speeds that the trainings recorded: 1 on a machine with nothing else to do."""

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def units(self) -> np.ndarray:
        """(S, U, 2): bits and bytes of every unit of the held-out documents."""
        return np.array([measurement["units"] for measurement in self.measured])

    @property
    def stable_bytes(self) -> float:
        """Bytes after which the learning rate decays."""
        train = self.member.config.train
        return (1 - (train.decay if train.schedule == "wsd" else 0.0)) * self.member.bytes

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """`bytes` and `seconds`, and both up to the decay of the learning rate (`stable_`)."""
        stable = self.bytes.until(self.stable_bytes)
        whole = {"bytes": self.bytes, "seconds": self.seconds}
        return whole | {"stable_bytes": stable, "stable_seconds": self.seconds.first(len(stable.xs))}


def scored(plan: ComparisonPlan, measured: Mapping[str, Json]) -> list[Scored]:
    """The members of which at least one run is measured."""
    entries = []
    for member in plan.members:
        if runs := [run for run in plan.runs if run.member is member and run.name in measured]:
            entries.append(_scored(member, runs, [measured[run.name] for run in runs]))
    return entries


def _scored(member: Member, runs: Sequence[MemberRun], measured: Sequence[Json]) -> Scored:
    places, curves, spent, speeds = [], [], list[float](), list[float]()
    validation: Json = {}
    for run in runs:
        records = history.read_metrics(run.folder)
        clock = history.clock(records)
        xs, ys = history.series(records, "val_bpb")
        places.append(xs)
        curves.append(np.array([[clock(x) for x in xs], ys]))
        spent.append(clock(member.bytes))
        validation = history.last_validation(records)
        speeds += history.series(records, "bytes_per_s")[1]
    points = min(map(len, places))
    seconds, values = np.mean([curve[:, :points] for curve in curves], axis=0).tolist()
    over_bytes, over_seconds = Curve.of(places[0][:points], values), Curve.of(seconds, values)
    slow, fast = np.percentile(speeds or [1.0], [25, 75])
    return Scored(member, runs, measured, over_bytes, over_seconds, spent, validation, float(fast / max(slow, 1e-9)))


def reference(members: Sequence[Member]) -> str | None:
    """The member that the others are compared with."""
    members = [member for member in members if member.share == 1] or members
    names = [member.name for member in members]
    known = [name for name in REFERENCES if name in names]
    return next(iter([*known, *(member.name for member in members if not member.learned), *names]), None)


def results(
    plan: ComparisonPlan, exam: Exam, measured: Mapping[str, Json], failed: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `compare.json` without the verdict. `measured` and `failed` are by name of the run."""
    entries = scored(plan, measured)
    against = reference([entry.member for entry in entries])
    rival = next((entry for entry in entries if entry.name == against), None)
    alike = [entry for entry in entries if entry.member.share == 1] or entries
    best = min(alike, key=lambda entry: over_seeds(entry.units)[0], default=None)
    double = next((entry for entry in entries if entry.member.share > 1), None)
    roles = {"reference": rival, "best": best, "double": double}
    models = [_model(entry) | {"differences": _differences(entry, roles)} for entry in entries]
    return {
        "format": FORMAT,
        "dataset": _dataset(plan),
        "budget": {"bytes": plan.bytes, "flops_per_byte": plan.flops, "minutes": plan.minutes, "seeds": plan.seeds},
        "size": plan.size,
        "settings": plan.settings,
        "reference": against,
        "best": best.name if best else None,
        "models": models,
        "crossovers": {
            entry.name: {key: crossover(entry.curves[key], rival.curves[key]) for key in ("bytes", "seconds")}
            for entry in entries
            if rival and entry is not rival
        },
        "efficiency": _efficiencies(entries),
        "curves": _curves(entries),
        "failed": dict(failed),
        "missing": [run.name for run in plan.runs if run.name not in measured and run.name not in failed],
        "exam": {
            "documents": exam.chosen,
            "bytes": exam.bytes,
            "of": plan.dataset.nbytes("val"),
            "context": plan.context,
            "unit": entries[0].measured[0]["unit"] if entries else None,
            "compression": vars(exam.compression) if not exam.compression.is_default else None,
        },
        "machine": _machine(plan),
    }


def _model(scored: Scored) -> dict[str, Any]:
    member, units, tokens = scored.member, scored.units, scored.measured[0]["tokens"]
    model, train = member.config.model, member.config.train
    value, drawn = over_seeds(units)
    stages = _stages(scored)
    share = 1.0 if tokens is None else tokens / float(units[0, :, 1].sum())  # positions per byte
    fractions = [1 / stage["bytes_per_chunk"] / share for stage in stages]
    seconds = float(np.mean(scored.spent))
    return {
        "name": scored.name,
        "description": member.config.description,
        "layout": member.layout,
        "thresholds": scored.measured[0].get("thresholds"),
        "parameters": model.num_parameters,
        "flops_per_byte": share * model.flops_per_byte(fractions, train.sequence_length * share),
        "planned_flops_per_byte": member.flops_per_byte,
        "share_of_flops": member.share,
        "learned": member.learned,
        "bytes": member.bytes,
        "steps": train.steps,
        "bpb": value,
        "bpb_ci95": interval(drawn),
        "seeds": [
            {"seed": run.seed, "run": str(run.folder), "bpb": float(ratio(sums)), "seconds": spent}
            for run, sums, spent in zip(scored.runs, units.sum(1), scored.spent, strict=True)
        ],
        "bytes_per_chunk": stages[-1]["bytes_per_chunk"] if stages else 1 / share,
        "stages": stages,
        "seconds": seconds,
        "bytes_per_s": member.bytes / max(1e-9, seconds),
        "unsteady": scored.unsteady,
        "curve": scored.bytes.points,
        "curve_seconds": scored.seconds.points,
        "stable_bytes": scored.stable_bytes,
        "robustness": _robustness(scored),
    }


def _stages(scored: Scored) -> list[dict[str, Any]]:
    """Bytes per chunk of every stage beside the target; means over seeds."""
    stages, target = [], 1.0
    for stage, aimed in enumerate(scored.member.config.train.ratios()):
        target *= aimed
        lengths = [run["positions"] / max(1.0, run["boundaries"][stage]) for run in scored.measured]
        learned = scored.member.config.model.chunkers[stage].learned
        stages.append({"bytes_per_chunk": float(np.mean(lengths)), "target": target if learned else None})
    return stages


def _robustness(scored: Scored) -> dict[str, Any]:
    """Per distortion: bits per byte of the distorted documents, bits per byte that stood there before, and the score.

    The score is 100 x clean bits / bits of the distorted documents: 100 where a distortion costs nothing, 50 where it
    doubles the bits. `score` and `bpb` on top are means over the distortions.
    """
    rows = {name: np.array([run["noise"][name] for run in scored.measured]) for name in scored.measured[0]["noise"]}
    clean = rows.pop("")
    distortions: dict[str, Any] = {}
    for name, noisy in rows.items():
        score, drawn = over_seeds(np.concatenate([noisy, clean], 2), lambda sums: 100 * ratio(sums[..., [2, 0]]))
        distortions[name] = {
            "bpb": over_seeds(noisy)[0],
            "bits_per_clean_byte": over_seeds(np.stack([noisy[..., 0], clean[..., 1]], 2))[0],
            "score": score,
            "score_ci95": interval(drawn),
        }
    means = dict[str, float | None](score=None, bpb=None)
    if distortions:
        means = {key: float(np.mean([figures[key] for figures in distortions.values()])) for key in means}
    return means | {"clean_bpb": over_seeds(clean)[0], "distortions": distortions}


def judged(ci95: Sequence[float] | None) -> str:
    """The meaning of an interval of (bits of one - bits of the other): "wins", "loses" or "cannot be told apart"."""
    if ci95 is None or ci95[0] <= 0 <= ci95[1]:
        return "cannot be told apart"
    return "wins" if ci95[1] < 0 else "loses"


def _differences(entry: Scored, roles: Mapping[str, Scored | None]) -> dict[str, Any]:
    """By name of the other member: its roles, and `difference`."""
    others = [other for other in roles.values() if other is not None and other is not entry]
    return {
        other.name: {"role": [role for role, who in roles.items() if who is other]} | difference(entry, other)
        for other in others
    }


def difference(entry: Scored, other: Scored) -> dict[str, Any]:
    """Bits per byte of `entry` minus those of `other`: after equal bytes, and after equal seconds of training."""
    rows = _paired(entry, other)
    value, drawn = over_seeds(rows)
    ci95 = interval(drawn)
    return {
        "bpb": value,
        "bpb_ci95": ci95,
        "judged": judged(ci95),
        "share_of_draws_better": None if drawn is None else float((drawn < 0).mean()),
        "equal_time": _at_equal_time(entry, other, float(rows[0, :, 1].sum()), value, ci95),
    }


def _paired(entry: Scored, other: Scored) -> np.ndarray:
    """(S, U, 2): difference of the bits, and the bytes, of every unit; of the seeds that both have."""
    seeds = [run.seed for run in other.runs]
    both = [(n, seeds.index(run.seed)) for n, run in enumerate(entry.runs) if run.seed in seeds] or [(0, 0)]
    ours, theirs = entry.units[[n for n, _ in both]], other.units[[n for _, n in both]]
    return np.stack([ours[..., 0] - theirs[..., 0], theirs[..., 1]], 2)


def _at_equal_time(
    entry: Scored, other: Scored, size: float, value: float, ci95: list[float] | None
) -> dict[str, Any] | None:
    """The difference at the moment that the faster of the two began to decay its learning rate; None where their curves
    have no moment in common.

    Only in the stable phase are two moments of two runs comparable. The interval is that of the final difference over
    `size` bytes, widened by the root of how many times fewer bytes a validation reads.
    """
    ours, theirs = entry.curves["stable_seconds"], other.curves["stable_seconds"]
    if not ours or not theirs:
        return None
    moment = min(ours.xs[-1], theirs.xs[-1])
    here, there = ours.at(moment), theirs.at(moment)
    if here is None or there is None:
        return None
    gap = here - there
    read = min(entry.member.config.train.eval_bytes, other.member.config.train.eval_bytes)
    wider = math.sqrt(max(1.0, size / read))
    around = None if ci95 is None else [gap + wider * (end - value) for end in ci95]
    return {"seconds": moment, "bpb": gap, "bpb_ci95": around, "judged": judged(around)}


def _efficiencies(entries: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """`efficiency` in bytes and in seconds by [name][other name]: of the whole trainings, and of the stable phases as
    in the paper's curves."""
    table: dict[str, dict[str, Any]] = {entry.name: {} for entry in entries}
    for entry, other in permutations(entries, 2):
        table[entry.name][other.name] = {key: efficiency(entry.curves[key], other.curves[key]) for key in entry.curves}
    return table


def _dataset(plan: ComparisonPlan) -> dict[str, Any]:
    return {
        "name": plan.data.resolve().name,
        "path": str(plan.data),
        "modality": plan.dataset.modality,
        "fingerprint": plan.dataset.fingerprint,
        "train_bytes": plan.dataset.nbytes("train"),
        "val_bytes": plan.dataset.nbytes("val"),
        "epochs": plan.epochs,
    }


def _curves(entries: Sequence[Scored]) -> dict[str, Any]:
    """The held-out bytes that the curves are of, `alike` if they are the same for all, and baselines on just these."""
    last = entries[0].validation if entries else {}
    alike = len({history.sample_of(entry.validation) for entry in entries}) < 2
    return {
        "bytes": last.get("val_bytes"),
        "of": last.get("val_of"),
        "read": history.bytes_of(last),
        "alike": alike,
        "baselines": history.beside(last, {}) if alike else {},
    }


def _machine(plan: ComparisonPlan) -> dict[str, Any]:
    made = provenance.made(plan.machine.device, plan.machine.name)
    versions = {"hnet": made["hnet"], **made["packages"], "python": made["python"]}
    # Without what differs when only the page is written anew.
    return {key: value for key, value in made.items() if key not in ("command", "time")} | {"versions": versions}
