"""What `hnet train` is about to do: which configuration, data and folder, and whether this machine can. No torch here
unless the plan has to be timed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnet_cli import modality, storage
from hnet_cli.config.run import RunConfig, differences, resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.errors import EnvironmentLimit, HNetError, InputError
from hnet_cli.report import history
from hnet_cli.terminal.console import count, duration, literal, say, show, size, table
from hnet_cli.training import budget, lineup
from hnet_cli.training.budget import GIB, Machine

OFTEN = 16
"""Times that data may be read before they teach next to nothing more (Muennighoff et al., arXiv 2305.16264)."""


@dataclass(frozen=True)
class Plan:
    """One training run, decided."""

    config: RunConfig
    data: Path
    dataset: dict[str, Any]
    """`dataset.json`."""
    run: Path
    machine: Machine
    """Of this rank."""
    ranks: int = 1
    shares: int = 1
    """Ranks that the model is divided among; 1 where each has a copy."""


def dataset_at(data: Path) -> Dataset:
    """The dataset in a folder. Raises InputError where there is none."""
    if not (data / "dataset.json").exists():
        what = "is not a dataset: it has no dataset.json" if data.exists() else "does not exist"
        raise InputError(f"{data} {what}", f"`hnet prepare` makes a dataset{' of it' if data.is_file() else ''}")
    return Dataset.open(data)


def newest_dataset() -> Path:
    """The newest dataset under `data/`. Raises InputError where there is none."""
    found = sorted(Path("data").glob("*/dataset.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError("there is no dataset under data/", "make one with `hnet prepare FILE`, or give --data")
    return found[-1].parent


def _newest_run() -> Path | None:
    """The run under `runs/` that `--resume` means where nothing is named: one that is not finished, if there is any.

    One that is running still counts, and is refused later: an older one is not what was meant.
    """
    runs = [history.glance(path) for path in history.find(Path("runs"))]
    return max(runs, key=lambda run: (run.state != "finished", run.when)).path if runs else None


def choose(
    preset: str | None,
    data: Path | None,
    run: Path | None,
    settings: list[str],
    *,
    resume: bool,
    device: str | None,
    world: World = ALONE,
) -> Plan:
    """Fill in what the user left open and say what was chosen. Raises UsageError, InputError or EnvironmentLimit."""
    here = budget.machine(world.device(device), world.local_size)
    if resume and run is None and preset is None and data is None and (run := _newest_run()) is not None:
        say(f"Run: [bold]{literal(run)}[/] (the newest that goes on; --run names another)")
    config = resolve(preset, settings) if preset is not None else None
    if resume and run is not None:
        config = _stored(run, config, settings)
    if data is None:
        data = Path(config.data) if config is not None and config.data else newest_dataset()
        say(f"Data: [bold]{literal(data)}[/]")
    dataset = dataset_at(data)
    if config is None:
        preset = modality.get(dataset.modality).presets["nano" if here.device == "cpu" else "small"]
        config = resolve(preset, settings)
        say(f"Preset: [bold]{preset}[/] (the default for {dataset.modality} on {here.device})")
    if run is None:
        run = Path("runs") / f"{data.resolve().name}-{config.name}"
        say(f"Run: [bold]{literal(run)}[/]")
        if resume:
            config = _stored(run, config, settings)
    Batches(dataset, sequence_length=config.train.sequence_length, rows=config.train.rows)  # enough data for them
    config = dataclasses.replace(config, data=str(data))
    is_open = config.train.micro_batches == "auto"
    config = budget.settled(config, here, world.size)
    if is_open:
        _tell_of_micro_batches(config)
    shares = world.size if budget.is_sharded(config, here, world.size) else 1
    return Plan(config, data, dataset.about, run, here, world.size, shares)


def _tell_of_micro_batches(config: RunConfig) -> None:
    """Print the number chosen for `auto`, and whether it decides more than memory and speed."""
    train, weight = config.train, config.train.ratio_loss_weight
    weights = [value for _, value in weight] if isinstance(weight, list) else [weight]
    matters = any(chunker.learned for chunker in config.model.chunkers) and max(weights) > 0
    note = "; the ratio loss is computed from each, so another number makes another step" if matters else ""
    say(f"Micro-batches: [bold]{train.pieces}[/] of {size(train.batch_bytes // train.pieces)}{note}")


def _stored(run: Path, given: RunConfig | None, settings: list[str]) -> RunConfig:
    """The configuration a run began with, which holds when it goes on, with `settings` on top.

    What differs in the configuration given is said. A run that never began goes by that one.
    """
    file = _sealed(run) or run / "config.yaml"
    if not file.exists():
        if given is None:
            raise InputError(f"{run} holds no run to resume: it has no config.yaml", "`hnet train` without --resume")
        return given
    stored = resolve(str(file), settings)
    _tell_of_edits(run / "config.yaml", file)
    if given is not None:
        theirs = vars(given.train)
        kept = [f"train.{key}={value}" for key, value in vars(stored.train).items() if value != theirs[key] != "auto"]
        kept += ["its model"] if stored.model != given.model else []
        if kept:
            say(
                f"[yellow]note:[/] the run goes on with its own settings, not those of {literal(given.name)}: "
                f"{literal(', '.join(kept))}; --set changes one"
            )
    return stored


def _sealed(run: Path) -> Path | None:
    """The configuration that the newest checkpoint was written with and whose manifest vouches for it."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        with contextlib.suppress(HNetError, KeyError):
            storage.verify_file(folder, "config.yaml", storage.read_manifest(folder)["files"]["config.yaml"])
            return folder / "config.yaml"
    return None


def _tell_of_edits(shown: Path, used: Path) -> None:
    """`config.yaml` of a run is for people; what is otherwise in it (edited, damaged, or set by a `--resume` that was
    stopped before a checkpoint) does not hold."""
    try:
        changed = differences(resolve(str(used)), resolve(str(shown)))
        told = ", ".join(f"{key} is {now}, not {before}" for key, (before, now) in changed.items())
    except HNetError as error:
        told = str(error)
    if told:
        say(
            f"[yellow]note:[/] {literal(shown)} differs from the newest checkpoint's ({literal(told)}), is not used; "
            "--set changes a setting"
        )


def _needs(plan: Plan) -> budget.Needs:
    return budget.needs(plan.config, plan.shares, budget.is_lean(plan.config, plan.machine.device))


def refuse_what_cannot_fit(plan: Plan) -> None:
    """Raises EnvironmentLimit with what is needed, what is there and what would fit."""
    if budget.fits(plan.config, plan.machine, plan.shares):
        return
    here = plan.machine
    needs = _needs(plan)
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
        f"{plan.config.name} ({count(needs.parameters)} parameters) needs about {needs.memory / GIB:.0f} GiB to train "
        f"({needs.weights / GIB:.0f} for weights, gradients and AdamW, {needs.activations / GIB:.0f} for activations), "
        f"but {here.device} ({here.name}) has {here.memory / GIB:.0f} GiB free",
        advice,
    )


def tell_of_repetition(plan: Plan) -> None:
    """A plan that reads the same few bytes again and again is most often an oversight: the default number of steps."""
    train, there = plan.config.train, plan.dataset["splits"]["train"]["bytes"]
    total = train.steps * train.batch_bytes
    if total > OFTEN * there:
        say(
            f"[yellow]note:[/] {train.steps:,} steps read the {size(there)} of data {total / there:,.0f} times; beyond "
            f"about {OFTEN} times a model learns them by heart. Give more data, or --set "
            f"train.steps={max(1, OFTEN * there // train.batch_bytes)}."
        )


def facts(plan: Plan) -> dict[str, Any]:
    """The plan as data: parameters per part, FLOPs, memory, bytes, epochs."""
    train, dataset = plan.config.train, Dataset.open(plan.data)
    needs = _needs(plan)
    total = train.steps * train.batch_bytes
    return {
        "preset": plan.config.name,
        "data": str(plan.data),
        "run": str(plan.run),
        "device": plan.machine.device,
        "ranks": plan.ranks,
        "sharded": plan.shares > 1,
        "parameters": needs.parameters,
        "parameters_by_part": plan.config.model.count_parameters(),
        "flops_per_byte": lineup.flops_per_byte(plan.config, dataset),
        "tokens_per_byte": lineup.tokens_per_byte(plan.config, dataset),
        "memory_needed": needs.memory,
        "memory_worst": needs.worst_memory,
        "memory_free": plan.machine.memory,
        "fits": budget.fits(plan.config, plan.machine, plan.shares),
        "micro_batches": train.pieces,
        "steps": train.steps,
        "bytes": total,
        "epochs": total / plan.dataset["splits"]["train"]["bytes"],
    }


def describe(plan: Plan, as_json: bool, minutes: float | None = None) -> None:
    """Print the plan, with the time it would take, measured, if it fits; else raises EnvironmentLimit after it."""
    data = facts(plan)
    if data["fits"] and plan.shares == 1:
        from hnet_cli.training.step import seconds_per_byte

        positions = data["bytes"] * data["tokens_per_byte"]
        data["seconds"] = positions * seconds_per_byte(plan.config, plan.machine.device) / plan.ranks
        data["bytes_per_s"] = data["bytes"] / data["seconds"]
    if as_json:
        print(json.dumps(data))
    else:
        _describe(plan, data)
        if "seconds" in data and minutes is not None and 60 * minutes < data["seconds"]:
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
        f"{data['device']} ({plan.machine.name})."
    )
    times = f"{data['epochs']:.1f} times the data"
    if plan.ranks > 1:
        say(
            f"{plan.ranks} ranks, {train.pieces // plan.ranks} micro-batches each; the model is "
            f"{'divided among them' if plan.shares > 1 else 'copied on each'}."
        )
    say(f"{train.steps:,} steps of {size(train.batch_bytes)}: {size(data['bytes'])}, {times}.")
    if "seconds" in data:
        say(f"About {size(data['bytes_per_s'])}/s here: {duration(data['seconds'])}.")
