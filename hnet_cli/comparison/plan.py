"""The plan of `hnet compare`: who takes part, how large they are, what they see, how long that takes.

The plan is kept in the folder as `plan.json` with the configuration of every member in `members/`, and holds when the
command is given again: only the line-up and the number of seeds may change then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from hnet_cli import modality, storage
from hnet_cli.comparison.members import DECIDED, Member, line_up
from hnet_cli.config.bounds import Bounds, typed
from hnet_cli.config.run import RunConfig, to_yaml
from hnet_cli.data.dataset import Dataset
from hnet_cli.distributed.device import Machine, this_machine
from hnet_cli.errors import DamagedError, InputError, UsageError
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.model.config import Chunker
from hnet_cli.report import history
from hnet_cli.storage import shown
from hnet_cli.terminal.console import literal, progress, say, size
from hnet_cli.training import lineup
from hnet_cli.training.plan import dataset_at, newest_dataset

FORMAT = 1
Amount = Annotated[float, Bounds(least=0, most=1e30)]
NAME = "plan.json"
MOST_VALIDATIONS, FEWEST_VALIDATIONS = 40, 12
"""Validations of every training: the points of its curve. Fewer than most where the bytes for each would be few."""
ENOUGH = 1 << 16
"""Bytes of a validation that are not few."""
VALIDATION_SHARE = 0.1
"""Share of the training time that validations take, at most."""
LEAST_STEPS = 10
MAX_BYTES = 1_000_000
"""Default number of held-out bytes that the members are measured on."""
ANEW = "begin in another folder: --run"


@dataclass(frozen=True)
class ComparisonRequest:
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
    compression: Compression = UNCHANGED
    """Choice of boundaries in the measurements of members that learn them; training knows nothing of it."""

    def __post_init__(self) -> None:
        """Raise UsageError where options contradict each other."""
        if max(map(len, (self.compression.thresholds, self.compression.bytes_per_chunk))) > 1:
            raise UsageError("members have different stages: one number is for all of them", "give one number")
        if self.bytes and self.minutes:
            raise UsageError("--bytes and --minutes exclude each other", "the minutes say how many bytes there are")
        for name, value in self.budgets.items():
            if not math.isfinite(value or 0.0):
                raise UsageError(f"--{name} must be a number, not {value}")

    @property
    def budgets(self) -> dict[str, float | None]:
        return {"bytes": self.bytes, "minutes": self.minutes, "flops": self.flops}


@dataclass
class _Asked:
    """The user's budgets."""

    bytes: Amount | None
    minutes: Amount | None
    flops: Amount | None


@dataclass
class _Stored:
    """Fields of `plan.json` that a later call relies on, typed and bounded."""

    asked: _Asked
    bytes: Annotated[int, Bounds(least=1)]
    data: str
    dataset: str
    flops_per_byte: Amount
    line_up: list[str]
    max_bytes: Annotated[int, Bounds(least=0)]
    minutes: Amount | None
    seeds: Annotated[int, Bounds(least=1, most=1000)]
    settings: list[str]
    size: str


@dataclass(frozen=True)
class MemberRun:
    """One training of one member."""

    member: Member
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> RunConfig:
        return self.member.with_train(seed=self.seed).config


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison, decided."""

    folder: Path
    data: Path
    dataset: Dataset
    size: str
    settings: list[str]
    bytes: int
    """Bytes that every member is trained on."""
    flops: float
    """Forward FLOPs per byte that the members were sized to."""
    minutes: float | None
    seeds: int
    max_bytes: int
    members: list[Member]
    machine: Machine
    gpus: Sequence[int] = ()
    compression: Compression = UNCHANGED

    @property
    def modality(self) -> modality.Modality:
        return modality.get(self.dataset.modality)

    @property
    def context(self) -> int:
        """Bytes of the windows that all members are measured on."""
        return min(member.config.train.sequence_length for member in self.members)

    @property
    def epochs(self) -> float:
        return self.bytes / self.dataset.nbytes("train")

    @cached_property
    def runs(self) -> list[MemberRun]:
        """Seed by seed, so that a comparison that is stopped has whole line-ups."""
        return [
            MemberRun(member, seed, self.folder / "runs" / f"{member.name}-s{seed}")
            for seed in range(self.seeds)
            for member in self.members
        ]


def choose(request: ComparisonRequest) -> ComparisonPlan:
    """Fill in what the user left open, from the folder's own plan or by default, and say what was chosen.

    Raises UsageError where the folder holds another comparison, or the budget is too small; InputError, DamagedError,
    EnvironmentLimit.
    """
    machine = this_machine(request.device)
    for gpu in request.gpus if request.device != "cpu" else ():
        this_machine(f"cuda:{gpu}")  # raises where it is not there
    stored = _stored(request.run) if request.run else {}
    data = request.data
    if data is None and stored and request.run is not None:
        data = history.data_of(request.run, stored["data"]) or Path(str(stored["data"]))
    if data is None:
        data = newest_dataset()
    dataset = dataset_at(data)
    if "val" not in dataset.splits or not dataset.nbytes("val"):
        raise InputError(f"{data} holds nothing out", "prepare it with --val or --val-input")
    if dataset.prompted:
        reason = f"{data} holds rows of prompt and completion, which are not compared"
        raise InputError(reason, "train on them, then `hnet eval --exact`")
    scale = request.size or stored.get("size") or ("nano" if machine.device == "cpu" else "small")
    folder = request.run
    if folder is None:
        folder = Path("compare") / f"{data.resolve().name}-{scale}"
        stored = _stored(folder)
        say(f"Folder: [bold]{literal(folder)}[/]")
    if stored:
        _refuse_another(folder, stored, request, data, dataset)
    _warn_of_decided_settings(request)
    given = [name for name in (request.line_up or "").split(",") if name.strip()]
    names = given or stored.get("line_up") or lineup.members(dataset.modality)
    settings = list(request.settings) or stored.get("settings", [])
    before = {file.stem: file for file in (folder / "members").glob("*.yaml")} if stored else {}
    flops = request.flops or stored.get("flops_per_byte")
    members, flops = line_up(names, scale, dataset, flops, settings, before, asked=bool(given or stored))
    plan = ComparisonPlan(
        folder=folder,
        data=data,
        dataset=dataset,
        size=scale,
        settings=settings,
        bytes=stored.get("bytes") or request.bytes or 0,
        flops=flops,
        minutes=request.minutes or stored.get("minutes"),
        seeds=request.seeds or stored.get("seeds", 1),
        max_bytes=request.max_bytes if request.max_bytes is not None else stored.get("max_bytes", MAX_BYTES),
        members=members,
        machine=machine,
        gpus=request.gpus,
        compression=request.compression,
    )
    if not plan.bytes:
        fewest = min(member.bytes for member in members)  # as the presets say
        plan = replace(plan, bytes=_affordable(plan, plan.minutes) if plan.minutes else fewest)
    return replace(plan, members=_scheduled(plan))


def _stored(folder: Path) -> dict[str, Any]:
    """`plan.json` of a folder; empty where there is none. Raises DamagedError."""
    file = folder / NAME
    try:
        stored = storage.read_json(file)
    except FileNotFoundError as error:
        if any((folder / "runs").glob("*/config.yaml")):
            raise DamagedError(f"{folder} has trainings but no {NAME}", ANEW) from error
        return {}
    relied_on = {field.name for field in fields(_Stored)}
    if stored.get("format") != FORMAT or not stored.keys() >= relied_on:
        raise DamagedError(f"{shown(file)} is no plan of this version of hnet", ANEW)
    typed(_Stored, {key: stored[key] for key in relied_on}, shown(file))
    return stored


def _warn_of_decided_settings(request: ComparisonRequest) -> None:
    """`train.steps` has an effect only where nothing else says how many bytes there are."""
    decided = {f"train.{name}" for name in DECIDED}
    if not (request.bytes or request.minutes):
        decided.remove("train.steps")
    if vain := [key for setting in request.settings if (key := setting.partition("=")[0].strip()) in decided]:
        names = ", ".join(vain)
        say(
            f"[yellow]note:[/] --set {literal(names)} has no effect: the comparison decides that itself (--bytes, "
            "--seeds)."
        )


def _refuse_another(
    folder: Path, stored: dict[str, Any], request: ComparisonRequest, data: Path, dataset: Dataset
) -> None:
    changed = []
    if stored["dataset"] != dataset.fingerprint:
        changed.append(f"the dataset {stored['data']}, not {data}")
    for name, value in request.budgets.items():
        before = stored["asked"][name]
        if value is not None and value != before:
            changed.append((f"no --{name}" if before is None else f"--{name} {before:g}") + f", not {value:g}")
    if request.size and request.size != stored["size"]:
        changed.append(f"--size {stored['size']}, not {request.size}")
    if request.settings and list(request.settings) != stored["settings"]:
        changed.append(f"the settings {', '.join(stored['settings']) or 'of the presets'}")
    if changed:
        raise UsageError(
            f"{folder} holds a comparison with {'; '.join(changed)}",
            "--run FOLDER begins another; without these options this one goes on",
        )


def _affordable(plan: ComparisonPlan, minutes: float) -> int:
    """Bytes that every member can be trained on in these minutes on this machine, all together. Raises UsageError."""
    from hnet_cli.comparison.measures import Exam

    times = seconds_per_byte(plan)
    exam = Exam.of(plan)
    per_byte = plan.seeds * sum(times.values()) / max(1, min(len(plan.gpus), len(plan.runs)))
    seconds = 60 * 0.95 * minutes  # the rest: starting, saving
    affordable = int((seconds / per_byte - exam.bytes * exam.passes / 3) / (1 + VALIDATION_SHARE))
    if affordable < LEAST_STEPS * max(member.config.train.batch_bytes for member in plan.members):
        raise UsageError(
            f"{minutes:g} minutes are too few for {len(plan.runs)} trainings: {size(max(0, affordable))} each",
            "give more minutes, fewer members (--line-up) or seeds, or a smaller --max-bytes",
        )
    slowest = max(times, key=lambda name: times[name])
    speed = f"{slowest} is the slowest, {size(1 / times[slowest])}/s"
    say(f"{minutes:g} minutes for all together: {size(affordable)} for each, the same bytes ({literal(speed)}).")
    return affordable


def seconds_per_byte(plan: ComparisonPlan) -> dict[str, float]:
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
    """A configuration to time instead: fixed chunks, since an untrained routing module puts a boundary at every other
    byte; and rows of as many positions as there are tokens in one, `share` per byte."""
    model, train, ratios = config.model, config.train, config.train.ratios()
    length = max(2, round(train.sequence_length * share))
    chunkers = tuple(
        Chunker("fixed", max(1, round(ratio))) if chunker.learned else chunker
        for chunker, ratio in zip(model.chunkers, ratios, strict=True)
    )
    train = replace(train, sequence_length=length, batch_bytes=length * train.rows, budgets=[], frozen=[])
    return replace(config, model=replace(model, chunkers=chunkers), train=train)


def _scheduled(plan: ComparisonPlan) -> list[Member]:
    """The members with the steps, validations and checkpoints of the plan. Raises UsageError for too few bytes.

    All validate on the same bytes in the same windows, those of `ComparisonPlan.context` bytes.
    """
    for member in plan.members:
        size = member.config.train.batch_bytes
        if round(plan.bytes / size) < LEAST_STEPS:
            raise UsageError(
                f"{plan.bytes:,} bytes are less than {LEAST_STEPS} steps of {size:,} for {member.name}",
                "give more, or a smaller train.batch_bytes with --set",
            )
    affordable = 3 * VALIDATION_SHARE * plan.bytes  # a forward pass is a third of a step
    wanted = min(ENOUGH, plan.dataset.nbytes("val"))
    validations = max(FEWEST_VALIDATIONS, min(MOST_VALIDATIONS, int(affordable / wanted)))
    eval_bytes = max(plan.context, min(int(affordable / validations), plan.dataset.nbytes("val")))
    return [_with_schedule(member, plan, validations, eval_bytes) for member in plan.members]


def _with_schedule(member: Member, plan: ComparisonPlan, validations: int, eval_bytes: int) -> Member:
    train = member.config.train
    steps = round(plan.bytes / train.batch_bytes)
    every = max(1, round(steps / validations))
    member = member.with_train(
        steps=steps,
        eval_every=every,
        eval_bytes=eval_bytes,
        eval_window=plan.context,
        checkpoint_every=max(every, steps // 8),
        keep_checkpoints=1,
        samples=False,
        log_every=max(1, min(train.log_every, every)),
    )
    return replace(
        member, config=replace(member.config, name=member.name, data=history.stored_path(plan.data, plan.folder))
    )


def write(plan: ComparisonPlan, request: ComparisonRequest) -> None:
    """Write `plan.json` and the members' configurations. Raises StorageError, BusyError, DamagedError."""
    stored = _stored(plan.folder)
    for member in plan.members:
        file = plan.folder / "members" / f"{member.name}.yaml"
        if not stored or not file.exists():
            storage.make_folder(file.parent)
            storage.write_text(file, to_yaml(member.config))
    record = {name: getattr(plan, name) for name in ("bytes", "max_bytes", "minutes", "seeds", "settings", "size")}
    record |= {
        "format": FORMAT,
        "data": history.stored_path(plan.data, plan.folder),
        "dataset": plan.dataset.fingerprint,
        "modality": plan.dataset.modality,
        "asked": stored.get("asked") or request.budgets,
        "flops_per_byte": plan.flops,
        "line_up": [member.name for member in plan.members],
    }
    storage.write_json(plan.folder / NAME, record)
