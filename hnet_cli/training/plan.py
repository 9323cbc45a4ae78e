"""The plan of `hnet train`: configuration, data, run folder, and whether they fit this machine. torch is imported only
to time a plan."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hnet_cli import modality, storage
from hnet_cli.config.run import RunConfig, differences, resolve
from hnet_cli.config.sources import Sources, parse, sources_of, words, written
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.mixture import MixedBatches, Mixture
from hnet_cli.distributed.device import GIB, Machine, this_machine
from hnet_cli.distributed.threads import meter
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.errors import BusyError, EnvironmentLimit, HNetError, InputError, UsageError
from hnet_cli.report import history
from hnet_cli.report.sources import times
from hnet_cli.terminal.console import ago, count, duration, literal, say, show, size, table
from hnet_cli.training import budget, lineup

NAMED = 3
"""Datasets of a mixture in the name of a run."""
MAX_EPOCHS = 16
"""Epochs after which repeated data stops helping (Muennighoff et al., arXiv 2305.16264)."""


@dataclass(frozen=True)
class Plan:
    """The choices for one training run."""

    config: RunConfig
    mixture: Mixture
    """The data, a single dataset too."""
    run: Path
    machine: Machine
    """The machine of this rank."""
    ranks: int = 1
    shares: int = 1
    """Ranks that the model is sharded over; 1 if each has a copy."""


def dataset_at(data: Path) -> Dataset:
    """The dataset in a folder. Raises InputError if there is none."""
    if not (data / "dataset.json").exists():
        reason = "is not a dataset: it has no dataset.json" if data.exists() else "does not exist"
        raise InputError(f"{data} {reason}", f"`hnet prepare` makes a dataset{' of it' if data.is_file() else ''}")
    return Dataset.open(data)


def mixture_at(sources: Sources) -> Mixture:
    """The datasets in some folders. Raises InputError where one is none, UsageError where they cannot be mixed."""
    weights = [source.weight for source in sources if source.weight is not None]
    return Mixture([dataset_at(Path(source.path)) for source in sources], weights or None)


def newest_dataset() -> Path:
    """The newest dataset under `data/`, which is said with its age. Raises InputError if there is none."""
    datasets = sorted(Path("data").glob("*/dataset.json"), key=lambda path: path.stat().st_mtime)
    if not datasets:
        raise InputError("there is no dataset under data/", "make one with `hnet prepare FILE`, or give --data")
    say(f"Data: [bold]{literal(datasets[-1].parent)}[/] (prepared {ago(datasets[-1].stat().st_mtime)})")
    return datasets[-1].parent


def _newest_run() -> history.Glance | None:
    """The newest run under `runs/`, an unfinished one if there is any: what `--resume` without a name continues.

    One whose configuration cannot be read is passed over.
    A run in progress counts, and is refused later: the user did not mean an older one.
    """
    runs = [run for path in history.find(Path("runs")) if (run := history.glance(path)).steps is not None]
    return max(runs, key=lambda run: (run.state != "finished", run.when), default=None)


def choose(
    preset: str | None,
    data: Path | Sequence[str] | None,
    run: Path | None,
    settings: list[str],
    *,
    resume: bool,
    device: str | None,
    world: World = ALONE,
    start: str | None = None,
    strict: bool = False,
) -> Plan:
    """Make and print the choices that the user left open. Raises UsageError, InputError, EnvironmentLimit, and
    BusyError where the run's folder cannot be.

    `data`: a dataset, or several as of `--data`. `start`: the model to begin with; without a `preset` the configuration
    follows from it.
    """
    if strict and not resume:
        raise UsageError("--strict goes with --resume", "give both, or neither")
    if start is not None and resume:
        raise UsageError("--start begins a run, --resume continues one", "give one of them")
    here = this_machine(world.device(device), world.local_size)
    given = sources_of(data) if isinstance(data, Path) else parse(data or ())
    if resume and run is None and preset is None and not given and (newest := _newest_run()) is not None:
        run = newest.path
        say(f"Run: [bold]{literal(run)}[/] ({literal(newest.state)} {ago(newest.when)}; --run names another)")
    config = resolve(preset, settings) if preset is not None else None
    if resume and run is not None:
        config = _stored(run, config, settings)
    known: Sources = ()
    found = None
    if not given:
        known = (config or resolve("nano", [each for each in settings if each.partition("=")[0] == "data"])).sources
        found = history.find_sources(run, known) if resume and run is not None else None
        if given := found or known:
            say(f"Data: [bold]{literal(words(given))}[/]")
        else:
            given = sources_of(newest_dataset())
    mixture = mixture_at(given)
    if len({dataset.modality for dataset in mixture.datasets}) > 1:
        first = mixture.names[0]
        say(f"Modality: [bold]{literal(mixture.modality)}[/] (that of {literal(first)}, the first of the mixture)")
    if config is None and start is not None:
        from hnet_cli.training.start import tuned

        config, why = tuned(start, settings, mixture, here.device)
        say(f"Start: [bold]{literal(start)}[/], its architecture; {literal(why)} (--set or --preset changes it)")
    elif config is not None and start is not None:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, start=start))
    if config is None:
        preset = modality.get(mixture.modality).presets["nano" if here.device == "cpu" else "small"]
        config = resolve(preset, settings)
        say(
            f"Preset: [bold]{literal(preset)}[/] (the default for {literal(mixture.modality)} on "
            f"{literal(here.device)})"
        )
    if run is None:
        run = Path("runs") / f"{_name(mixture)}-{config.name}"
        say(f"Run: [bold]{literal(run)}[/]")
        if resume:
            config = _stored(run, config, settings)
    above = next(folder for folder in (run, *run.absolute().parents) if os.path.exists(folder))
    if not above.is_dir():
        raise BusyError(f"{run} cannot be the run's folder: {above} is a file", "name another with --run")
    MixedBatches(mixture, sequence_length=config.train.sequence_length, rows=config.train.rows)  # raises for too little
    for dataset in mixture.datasets:
        _say_long_rows(dataset, config.train.sequence_length)
    stored = (dataclasses.replace(source, path=history.stored_path(Path(source.path), run)) for source in given)
    config = dataclasses.replace(config, data=written(known if found else tuple(stored)))
    is_auto = config.train.micro_batches == "auto"
    config = budget.settled(config, here, world.size)
    if is_auto:
        _say_micro_batches(config)
    shares = world.size if budget.is_sharded(config, here, world.size) else 1
    return Plan(config, mixture, run, here, world.size, shares)


def _name(mixture: Mixture) -> str:
    """The name of the data in that of a run: those of the first three datasets, and how many more there are."""
    names = [dataset.path.resolve().name for dataset in mixture.datasets]
    return "+".join([*names[:NAMED], *([str(len(names) - NAMED)] if len(names) > NAMED else [])])


def _say_long_rows(dataset: Dataset, length: int) -> None:
    """Say how many rows of prompt and completion are longer than a sequence of `length` bytes."""
    sizes = dataset.ranges("train")[:, 2] if dataset.prompted else np.zeros(0)
    if long := int((sizes > length).sum()):
        say(
            f"[yellow]note:[/] {long:,} of {len(sizes):,} rows are longer than train.sequence_length, {length:,} "
            "bytes; they are cut from the left: their prompts lose the beginning"
        )


def _say_micro_batches(config: RunConfig) -> None:
    """Print the number chosen for `auto`, and whether it affects more than memory and speed."""
    train, weight = config.train, config.train.ratio_loss_weight
    weights = [value for _, value in weight] if isinstance(weight, list) else [weight]
    matters = any(chunker.learned for chunker in config.model.chunkers) and max(weights) > 0
    note = "; the ratio loss is computed from each, so another number makes another step" if matters else ""
    say(f"Micro-batches: [bold]{train.pieces:,}[/] of {size(train.batch_bytes // train.pieces)}{literal(note)}")


def _stored(run: Path, given: RunConfig | None, settings: list[str]) -> RunConfig:
    """The configuration that a run began with, with `settings` on top; of a run that never began, `given`.

    Differences from `given`, which are not used, are printed. Raises InputError if there is neither, UsageError where
    the settings ask for fewer steps than are done.
    """
    file = _sealed(run) or run / "config.yaml"
    if not file.exists():
        if given is None:
            raise InputError(f"{run} holds no run to resume: it has no config.yaml", "`hnet train` without --resume")
        return given
    stored = resolve(str(file), settings)
    done = 0 if file.parent == run else int(file.parent.name[5:])
    stored.train.refuse_less(done, str(run))
    _warn_of_edits(run / "config.yaml", file)
    if given is not None:
        mine, others = vars(stored.train), vars(given.train)
        changed = [f"train.{key}={value}" for key, value in mine.items() if value != others[key] != "auto"]
        changed += ["its model"] if stored.model != given.model else []
        if changed:
            say(
                f"[yellow]note:[/] the run goes on with its own settings, not those of {literal(given.name)}: "
                f"{literal(', '.join(changed))}; --set changes one"
            )
    return stored


def _sealed(run: Path) -> Path | None:
    """The configuration sealed by the manifest of the newest checkpoint that has one."""
    for folder in sorted((run / "checkpoints").glob("step-" + 8 * "[0-9]"), reverse=True):
        with contextlib.suppress(HNetError, KeyError):
            storage.verify_file(folder, "config.yaml", storage.read_manifest(folder)["files"]["config.yaml"])
            return folder / "config.yaml"
    return None


def _warn_of_edits(shown: Path, used: Path) -> None:
    """Say which settings of a run's `config.yaml` are not used: it is for people, and can have been edited, damaged, or
    written by a `--resume` that was stopped before a checkpoint."""
    try:
        changed = differences(resolve(str(used)), resolve(str(shown)))
        difference = ", ".join(f"{key} is {now}, not {before}" for key, (before, now) in changed.items())
    except HNetError as error:
        difference = str(error)
    if difference:
        say(
            f"[yellow]note:[/] {literal(shown)} differs from the newest checkpoint's ({literal(difference)}), "
            "is not used; --set changes a setting"
        )


def _needs(plan: Plan) -> budget.Needs:
    return budget.needs(plan.config, plan.shares, budget.is_lean(plan.config, plan.machine.device))


def refuse_what_cannot_fit(plan: Plan) -> None:
    """Raises EnvironmentLimit if memory does not suffice, with what is needed, what is free and what would fit."""
    if budget.fits(plan.config, plan.machine, plan.shares):
        return
    here = plan.machine
    needed = _needs(plan)
    fitting = [name for name, _ in budget.presets_that_fit(here)]
    advice = f"presets that fit: {', '.join(fitting)}" if fitting else "no preset fits; free some memory"
    if budget.fits(plan.config, here, plan.ranks):
        advice = f"--set train.shard=full would fit; {advice}"
    for pieces in (2**n for n in range(1, 12)):
        train = plan.config.train
        if train.rows % (train.pieces * pieces):
            break
        smaller = dataclasses.replace(train, micro_batches=train.pieces * pieces)
        if budget.fits(dataclasses.replace(plan.config, train=smaller), here, plan.shares):
            advice = f"--set train.micro_batches={smaller.pieces} would fit; {advice}"
            break
    raise EnvironmentLimit(
        f"{plan.config.name} ({count(needed.parameters)} parameters) needs about {needed.memory / GIB:.0f} GiB "
        f"to train ({needed.weights / GIB:.0f} for weights, gradients and AdamW, {needed.activations / GIB:.0f} for "
        f"activations), but {here.device} ({here.name}) has {here.memory / GIB:.0f} GiB free",
        advice,
    )


def warn_of_repetition(plan: Plan) -> None:
    """Warn of more than `MAX_EPOCHS` epochs, most often an oversight: the default number of steps on little data."""
    train, sources = plan.config.train, sources_read(plan)
    if much := [source for source in sources if source["epochs"] > MAX_EPOCHS]:
        most = max(much, key=lambda source: source["epochs"])
        of, less = ("data", "") if len(sources) == 1 else (most["name"], ", a smaller weight")
        say(
            f"[yellow]note:[/] {train.steps:,} steps read the {size(most['bytes'])} of {literal(of)} "
            f"{most['epochs']:,.0f} times; beyond about {MAX_EPOCHS:,} times a model learns them by heart. Give more "
            f"data{literal(less)}, or --set train.steps={max(1, int(MAX_EPOCHS * train.steps / most['epochs'])):d}."
        )


def sources_read(plan: Plan) -> list[dict[str, Any]]:
    """Per dataset: its name, path and weight, share of the bytes read, bytes of its training split, and the times that
    the run reads these."""
    total, mixture = plan.config.train.steps * plan.config.train.batch_bytes, plan.mixture
    rows = []
    for name, share, dataset, source in zip(
        mixture.names, mixture.shares, mixture.datasets, mixture.sources, strict=True
    ):
        size = dataset.nbytes("train")
        epochs = share * total / size
        rows.append(
            {"name": name, "path": source.path, "weight": source.weight, "share": share, "bytes": size}
            | {"modality": dataset.modality, "epochs": epochs}
        )
    return rows


def facts(plan: Plan) -> dict[str, Any]:
    """The plan as data: parameters per part, FLOPs, memory, bytes, epochs."""
    train, mixture = plan.config.train, plan.mixture
    needed = _needs(plan)
    total = train.steps * train.batch_bytes
    return {
        "preset": plan.config.name,
        "data": words(mixture.sources),
        "sources": sources_read(plan),
        "run": str(plan.run),
        "device": plan.machine.device,
        "ranks": plan.ranks,
        "sharded": plan.shares > 1,
        "parameters": needed.parameters,
        "parameters_by_part": plan.config.model.count_parameters(),
        "flops_per_byte": lineup.flops_per_byte(plan.config, mixture),
        "tokens_per_byte": lineup.tokens_per_byte(plan.config, mixture),
        "memory_needed": needed.memory,
        "memory_worst": needed.worst_memory,
        "memory_free": plan.machine.memory,
        "fits": budget.fits(plan.config, plan.machine, plan.shares),
        "micro_batches": train.pieces,
        "steps": train.steps,
        "bytes": total,
        "epochs": total / mixture.nbytes("train"),
    }


def describe(plan: Plan, as_json: bool, minutes: float | None = None) -> None:
    """Print the plan, with its measured time if it fits. Raises EnvironmentLimit after that if it does not."""
    data = facts(plan)
    if data["fits"] and plan.shares == 1:
        from hnet_cli.training.timing import seconds_per_byte

        positions = data["bytes"] * data["tokens_per_byte"]
        data["seconds"] = positions * seconds_per_byte(plan.config, plan.machine.device) / plan.ranks
        data["bytes_per_s"] = data["bytes"] / data["seconds"]
    if as_json:
        print(json.dumps(data))
    else:
        _describe(plan, data)
        if plan.machine.device == "cpu" and (busy := meter.note()):
            say(f"[yellow]busy machine:[/] {literal(busy)}; without it this would be faster")
        if "seconds" in data and minutes is not None:
            steps = max(1, round(data["steps"] * 60 * minutes / data["seconds"]))
            say(f"In {minutes:g} minutes about {steps:,} of these steps.")
    refuse_what_cannot_fit(plan)


def _describe(plan: Plan, data: dict[str, Any]) -> None:
    rows = table("part", "parameters")
    for part, number in data["parameters_by_part"].items():
        rows.add_row(part, f"{number:,}")
    rows.add_row("[bold]all[/]", f"[bold]{data['parameters']:,}[/]")
    show(rows)
    train = plan.config.train
    if plan.config.tokenizer:
        say(f"{1 / data['tokens_per_byte']:.2f} bytes per token on these data.")
    say(f"{count(data['flops_per_byte'])} FLOPs per byte forward, three times that to train.")
    say(
        f"Memory: {data['memory_needed'] / GIB:.1f} GiB needed ({data['memory_worst'] / GIB:.1f} where every byte is a "
        f"chunk), {data['memory_free'] / GIB:.1f} GiB free on "
        f"{literal(data['device'])} ({literal(plan.machine.name)})."
    )
    if len(data["sources"]) > 1:
        show(_mixture_table(data))
    if plan.ranks > 1:
        say(
            f"{plan.ranks:,} ranks, {train.pieces // plan.ranks:,} micro-batches each; the model is "
            f"{literal('divided among them' if plan.shares > 1 else 'copied on each')}."
        )
    read = f", {data['epochs']:.1f} times the data" if len(data["sources"]) == 1 else ""
    say(f"{train.steps:,} steps of {size(train.batch_bytes)}: {size(data['bytes'])}{literal(read)}.")
    if "seconds" in data:
        say(f"About {size(data['bytes_per_s'])}/s here: {duration(data['seconds'])}.")


def _mixture_table(data: dict[str, Any]) -> Table:
    """The sources of a mixture: their shares of the bytes read, the bytes that they have, and what is read of these."""
    rows = table("source", "share of the bytes", "bytes read", "training split", "read")
    for source in data["sources"]:
        read = size(source["share"] * data["bytes"])
        rows.add_row(
            literal(source["name"]), f"{source['share']:.1%}", read, size(source["bytes"]), times(source["epochs"])
        )
    return rows
