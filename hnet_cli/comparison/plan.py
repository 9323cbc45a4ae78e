"""What `hnet compare` is about to do: who takes part, how large they are, what they see, how long that takes.

The plan is kept in the folder as `plan.json` with the configuration of every member in `members/`, and holds when the
command is given again: only the line-up and the number of seeds may change then.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnet_cli import modality, storage
from hnet_cli.comparison.members import DECIDED, Member, line_up, with_train
from hnet_cli.config.run import RunConfig, to_yaml
from hnet_cli.data.dataset import Dataset
from hnet_cli.distributed.device import Machine, this_machine
from hnet_cli.errors import DamagedError, InputError, UsageError
from hnet_cli.model.config import Chunker
from hnet_cli.terminal.console import count, duration, literal, progress, say, show, size, table
from hnet_cli.training import lineup
from hnet_cli.training.plan import dataset_at, newest_dataset

FORMAT = 1
NAME = "plan.json"
KEYS = {"asked", "bytes", "data", "dataset", "flops_per_byte", "line_up", "max_bytes", "seeds", "settings", "size"}
"""Of `plan.json`: what another call relies on."""
VALIDATIONS = 40
"""Of every run: the points of its curve."""
VALIDATION_SHARE = 0.1
"""Of the time of training, at most, that validations take."""
LEAST_STEPS = 10
MATCHED = 0.05
"""FLOPs per byte that differ by more are said."""
MAX_BYTES = 1_000_000
"""Of the held-out split, by default, that the members are measured on."""
ANEW = "begin in another folder: --run"


@dataclass(frozen=True)
class Request:
    """The options of `hnet compare`; None: not given."""

    data: Path | None = None
    line_up: str | None = None
    size: str | None = None
    bytes: int | None = None
    minutes: float | None = None
    flops: float | None = None
    seeds: int | None = None
    max_bytes: int | None = None
    run: Path | None = None
    device: str | None = None
    settings: Sequence[str] = ()
    gpus: Sequence[int] = ()


@dataclass(frozen=True)
class Run:
    """One training of one member."""

    member: Member
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.member.name}-s{self.seed}"

    @property
    def config(self) -> RunConfig:
        return with_train(self.member, seed=self.seed).config


@dataclass(frozen=True)
class Plan:
    """A comparison, decided."""

    folder: Path
    data: Path
    dataset: Dataset
    size: str
    settings: list[str]
    bytes: int
    """That every member is trained on."""
    flops: float
    """Forward FLOPs per byte that the members were sized to."""
    minutes: float | None
    seeds: int
    max_bytes: int
    members: list[Member]
    machine: Machine
    gpus: Sequence[int] = ()

    @property
    def kind(self) -> modality.Modality:
        return modality.get(self.dataset.modality)

    @property
    def context(self) -> int:
        """Bytes of the windows that all are measured on."""
        return min(member.config.train.sequence_length for member in self.members)

    @property
    def runs(self) -> list[Run]:
        """Seed by seed, so that a comparison that is stopped has whole line-ups."""
        return [
            Run(member, seed, self.folder / "runs" / f"{member.name}-s{seed}")
            for seed in range(self.seeds)
            for member in self.members
        ]


def choose(asked: Request) -> Plan:
    """Fill in what the user left open, from the folder's own plan or by default, and say what was chosen.

    Raises UsageError where the folder holds another comparison, or the budget is too small; InputError, DamagedError.
    """
    for name in ("minutes", "flops"):
        if not math.isfinite(getattr(asked, name) or 0.0):
            raise UsageError(f"--{name} must be a number, not {getattr(asked, name)}")
    machine = this_machine(asked.device)
    for gpu in asked.gpus if asked.device != "cpu" else ():
        this_machine(f"cuda:{gpu}")  # raises where it is not there
    data = asked.data
    if data is None and asked.run is not None:
        data = Path(_stored(asked.run).get("data", "")) if _stored(asked.run) else None
    if data is None:
        data = newest_dataset()
        say(f"Data: [bold]{literal(data)}[/]")
    dataset = dataset_at(data)
    if "val" not in dataset.splits or not dataset.nbytes("val"):
        raise InputError(f"{data} holds nothing out", "prepare it with --val or --val-input")
    usual = asked.size or (_stored(asked.run).get("size") if asked.run else None)
    size_name = usual or ("nano" if machine.device == "cpu" else "small")
    folder = asked.run or Path("compare") / f"{data.resolve().name}-{size_name}"
    if asked.run is None:
        say(f"Folder: [bold]{literal(folder)}[/]")
    stored = _stored(folder)
    _refuse_another(folder, stored, asked, data, dataset)
    names = [each for each in (asked.line_up or "").split(",") if each.strip()] or stored.get("line_up")
    settings = list(asked.settings) or stored.get("settings", [])
    _tell_of_settings_without_effect(asked)
    kept = {file.stem: file for file in (folder / "members").glob("*.yaml")} if stored else {}
    flops = asked.flops or stored.get("flops_per_byte")
    members, flops = line_up(names, size_name, dataset, flops, settings, kept)
    seeds = asked.seeds or stored.get("seeds", 1)
    max_bytes = asked.max_bytes if asked.max_bytes is not None else stored.get("max_bytes", MAX_BYTES)
    minutes = asked.minutes or stored.get("minutes")
    plan = Plan(
        folder,
        data,
        dataset,
        size_name,
        settings,
        stored.get("bytes") or asked.bytes or 0,
        flops,
        minutes,
        seeds,
        max_bytes,
        members,
        machine,
        asked.gpus,
    )
    if not plan.bytes:
        plan = dataclasses.replace(plan, bytes=_affordable(plan) if minutes else _usual(plan))
    return dataclasses.replace(plan, members=[_scheduled(member, plan) for member in members])


def _stored(folder: Path) -> dict[str, Any]:
    """`plan.json` of a folder; empty where there is none."""
    file = folder / NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if any((folder / "runs").glob("*/config.yaml")):
            raise DamagedError(f"{folder} has trainings but no {NAME}", ANEW) from error
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file} cannot be read: {error}", ANEW) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not found.keys() >= KEYS:
        raise DamagedError(f"{file} is no plan of this version of hnet", ANEW)
    return found


def _tell_of_settings_without_effect(asked: Request) -> None:
    """`train.steps` has one where nothing else says how many bytes there are."""
    decided = {f"train.{name}" for name in DECIDED} - ({"train.steps"} if not (asked.bytes or asked.minutes) else set())
    if vain := [key for each in asked.settings if (key := each.partition("=")[0].strip()) in decided]:
        say(
            f"[yellow]note:[/] --set {literal(', '.join(vain))} has no effect: the comparison decides that itself "
            "(--bytes, --seeds)."
        )


def _refuse_another(folder: Path, stored: dict[str, Any], asked: Request, data: Path, dataset: Dataset) -> None:
    if not stored:
        return
    changed = []
    if stored["dataset"] != dataset.fingerprint:
        changed.append(f"the dataset {stored['data']}, not {data}")
    budgets = {"bytes": asked.bytes, "minutes": asked.minutes, "flops": asked.flops}
    for name, value in budgets.items():
        if value is not None and value != stored["asked"][name]:
            had = stored["asked"][name]
            changed.append(f"{'no ' if had is None else ''}--{name}{'' if had is None else f' {had:g}'}, not {value:g}")
    if asked.size and asked.size != stored["size"]:
        changed.append(f"--size {stored['size']}, not {asked.size}")
    if asked.settings and list(asked.settings) != stored["settings"]:
        changed.append(f"the settings {', '.join(stored['settings']) or 'of the presets'}")
    if changed:
        raise UsageError(
            f"{folder} holds a comparison with {'; '.join(changed)}",
            "--run FOLDER begins another; without these options this one goes on",
        )


def _usual(plan: Plan) -> int:
    """As many bytes as the line-up's presets say, the least of them."""
    return min(member.config.train.steps * member.config.train.batch_bytes for member in plan.members)


def _affordable(plan: Plan) -> int:
    """Bytes that every member can be trained on in the minutes of the plan, on this machine, all together."""
    from hnet_cli.comparison.measures import Exam

    assert plan.minutes is not None
    times = seconds_per_byte(plan)
    exam = Exam.of(plan.data, plan.kind, plan.max_bytes, plan.context)
    each_byte = plan.seeds * sum(times.values()) / max(1, min(len(plan.gpus), len(plan.runs)))
    seconds = 60 * 0.95 * plan.minutes  # the rest: starting, saving
    found = int((seconds / each_byte - exam.bytes * exam.passes / 3) / (1 + VALIDATION_SHARE))
    least = LEAST_STEPS * max(member.config.train.batch_bytes for member in plan.members)
    if found < least:
        raise UsageError(
            f"{plan.minutes:g} minutes are too few for {len(plan.runs)} trainings: {size(max(0, found))} each",
            "give more minutes, fewer members (--line-up) or seeds, or a smaller --max-bytes",
        )
    slowest = max(times, key=lambda name: times[name])
    say(
        f"{plan.minutes:g} minutes for all together: {size(found)} for each, the same bytes "
        f"({literal(slowest)} is the slowest, {size(1 / times[slowest])}/s)."
    )
    return found


def seconds_per_byte(plan: Plan) -> dict[str, float]:
    """Seconds to train a byte here, measured for every member as if its chunks were as long as aimed at."""
    from hnet_cli.training.timing import seconds_per_byte as measure

    times = {}
    with progress("timing", len(plan.members)) as task:
        for n, member in enumerate(plan.members):
            task.update(n, note=member.name)
            share = lineup.tokens_per_byte(member.config, plan.dataset)
            times[member.name] = share * measure(_timed(member.config, share), plan.machine.device, 10.0)
    return times


def _timed(config: RunConfig, share: float) -> RunConfig:
    """What to time instead: fixed chunks, for an untrained routing module puts a boundary at every other byte; and rows
    of as many positions as there are tokens in one, `share` per byte."""
    model, train, ratios = config.model, config.train, config.train.ratios()
    length = max(2, round(train.sequence_length * share))
    train = dataclasses.replace(train, sequence_length=length, batch_bytes=length * train.rows)
    chunkers = tuple(
        Chunker("fixed", max(1, round(ratio))) if chunker.learned else chunker
        for chunker, ratio in zip(model.chunkers, ratios, strict=True)
    )
    return dataclasses.replace(config, model=dataclasses.replace(model, chunkers=chunkers), train=train)


def _scheduled(member: Member, plan: Plan) -> Member:
    """The member with the steps, validations and checkpoints of the plan."""
    train = member.config.train
    steps = round(plan.bytes / train.batch_bytes)
    if steps < LEAST_STEPS:
        raise UsageError(
            f"{plan.bytes:,} bytes are less than {LEAST_STEPS} steps of {train.batch_bytes:,} for {member.name}",
            "give more, or a smaller train.batch_bytes with --set",
        )
    every = max(1, round(steps / VALIDATIONS))
    bounded = int(3 * VALIDATION_SHARE * steps * train.batch_bytes / -(-steps // every))
    changed = with_train(
        member,
        steps=steps,
        eval_every=every,
        checkpoint_every=max(every, steps // 8),
        keep_checkpoints=1,
        eval_bytes=max(train.sequence_length, min(bounded, plan.dataset.nbytes("val"))),
        samples=False,
        log_every=max(1, min(train.log_every, every)),
    )
    config = dataclasses.replace(changed.config, name=member.name, data=str(plan.data))
    return dataclasses.replace(changed, config=config)


def write(plan: Plan, asked: Request) -> None:
    """`plan.json` and the members' configurations. Raises StorageError, BusyError."""
    stored = _stored(plan.folder)
    for member in plan.members:
        file = plan.folder / "members" / f"{member.name}.yaml"
        if not stored or not file.exists():
            storage.make_folder(file.parent)
            storage.write_text(file, to_yaml(member.config))
    storage.write_json(
        plan.folder / NAME,
        {
            "format": FORMAT,
            "data": str(plan.data),
            "dataset": plan.dataset.fingerprint,
            "modality": plan.dataset.modality,
            "size": plan.size,
            "settings": plan.settings,
            "asked": stored.get("asked") or {"bytes": asked.bytes, "minutes": asked.minutes, "flops": asked.flops},
            "bytes": plan.bytes,
            "flops_per_byte": plan.flops,
            "minutes": plan.minutes,
            "seeds": plan.seeds,
            "max_bytes": plan.max_bytes,
            "line_up": [member.name for member in plan.members],
        },
    )


def describe(plan: Plan, times: dict[str, float]) -> dict[str, Any]:
    """Print the plan; and the same as data."""
    rows = table("member", "layers", "parameters", "FLOPs/byte", "of target", "time")
    told: list[dict[str, Any]] = []
    for member in plan.members:
        train, flops = member.config.train, member.flops_per_byte
        aimed = member.share * plan.flops
        total = train.steps * train.batch_bytes
        spent = times[member.name] * (total * (1 + VALIDATION_SHARE)) if member.name in times else None
        told.append(
            {
                "name": member.name,
                "layout": layout(member.config),
                "parameters": member.config.model.num_parameters,
                "flops_per_byte": flops,
                "of_target": flops / aimed,
                "bytes": total,
                "steps": train.steps,
                "estimated_seconds": spent,
            }
        )
        rows.add_row(
            literal(member.name),
            literal(layout(member.config)),
            count(member.config.model.num_parameters),
            count(flops),
            f"{flops / aimed:.0%}",
            duration(spent) if spent is not None else "-",
        )
    rows.columns[1].justify = "left"
    rows.columns[0].no_wrap = True
    show(rows)
    for each in told:
        if abs(each["of_target"] - 1) > MATCHED:
            say(
                f"[yellow]note:[/] {literal(each['name'])} has {each['of_target']:.0%} of the FLOPs per byte: no "
                "number of layers comes closer (--flops asks for another budget)."
            )
    for name in ("batch_bytes", "sequence_length"):
        values = {member.name: getattr(member.config.train, name) for member in plan.members}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{value:,} for {member}" for member, value in values.items())
            say(
                f"[yellow]note:[/] train.{name} is not the same for all ({literal(listed)}), so they do not see the "
                "same bytes in the same order."
            )
    epochs = plan.bytes / plan.dataset.nbytes("train")
    say(
        f"{size(plan.bytes)} for every member, {epochs:.2g} times the data"
        f"{f', {plan.seeds} times each from another seed' if plan.seeds > 1 else ''}."
    )
    if epochs > 1.5:
        say("[yellow]note:[/] seeing the data again and again, a member can learn it by heart: that counts too.")
    if known := [each["estimated_seconds"] for each in told if each["estimated_seconds"] is not None]:
        say(f"About {duration(plan.seeds * sum(known))} of training in all.")
    return {
        "data": str(plan.data),
        "folder": str(plan.folder),
        "device": plan.machine.device,
        "bytes": plan.bytes,
        "flops_per_byte": plan.flops,
        "seeds": plan.seeds,
        "epochs": epochs,
        "models": told,
    }


def layout(config: RunConfig) -> str:
    """The layers as the paper writes them: m4+T22+m4."""

    def flat(part: Any) -> list[str]:
        return [part] if isinstance(part, str) else [letters for each in part for letters in flat(each)]

    return "+".join(letters for letters in flat(config.model.arch_layout) if letters)
