"""The commands as functions: files to a dataset, a dataset to a run, a model to figures.

They read, write, say and raise what the commands do: messages and progress on standard error, a subclass of `HNetError`
for whatever a user can cause. torch is imported by the functions that need it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hnet_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hnet_cli.checkpoints.model_folder import LoadedModel
    from hnet_cli.data.prepare.preparation import Summary
    from hnet_cli.distributed.world import World
    from hnet_cli.terminal.console import Task
    from hnet_cli.training.loop import Result

Names = str | PathLike[str] | Sequence[str | PathLike[str]]
"""A file, folder, URL, dataset or model, or several."""


def prepare(
    inputs: Names,
    out: str | PathLike[str] | None = None,
    *,
    modality: str | None = None,
    val: float | None = None,
    val_inputs: Names = (),
    field: str | tuple[str, str] | None = None,
    workers: int = 1,
    part: tuple[int, int] | None = None,
    allow_skips: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Turn files into the dataset `out`, as `hnet prepare`; the options are its.

    `modality` is detected and `out` is data/NAME unless given. `field`: of rows; (prompt, completion) for fine-tuning.
    Of the result, `path` is the dataset. Raises UsageError, InputError, BusyError, StorageError.
    """
    from hnet_cli import modality as modalities
    from hnet_cli import provenance
    from hnet_cli.data.prepare import detection, preparation
    from hnet_cli.terminal.console import literal, progress, say

    read, held_out = _names(inputs), _names(val_inputs)
    if not read:
        raise UsageError("there is nothing to prepare", "name a file, a folder or a URL")
    if val is not None and held_out:
        raise UsageError("--val and --val-input exclude each other")
    val = 0.01 if val is None else val
    if not 0 < val < 1:
        raise UsageError(f"--val is a share between 0 and 1, not {val}")
    if modality is None:
        modality, _, why = detection.detect(read, field)
        say(f"These look like [bold]{literal(modality)}[/] ({literal(why)}); say --modality to choose another.")
    with progress("reading") as task:
        summary = preparation.prepare(
            read,
            modalities.get(modality),
            Path("data") / default_name(read[0]) if out is None else Path(out),
            val=val,
            val_inputs=held_out,
            field=field,
            workers=workers,
            part=part,
            progress=reading(task),
            overwrite=overwrite,
            tolerated=1.0 if allow_skips else preparation.TOLERATED,
        )
    provenance.write(summary.path)
    return summary


def reading(task: Task) -> Callable[[int, int | None], None]:
    """The progress of reading on a bar; when all is read, that of what comes after."""
    parts: list[Task] = []

    def update(done: int, total: int | None) -> None:
        task.update(done, total)
        if total and done >= total and not parts:
            parts.append(task.part("splitting and measuring", None))

    return update


def default_name(first: str) -> str:
    """A name for the dataset of some inputs: that of the first without its extensions."""
    from hnet_cli.modality import COMPRESSIONS

    if "://" in first:
        first = first.partition("?")[0].replace("*", "all")
    path = Path("stdin" if first == "-" else first).resolve()
    if not path.is_dir():
        packed = False
        while path.suffix.lower() in {*COMPRESSIONS, ".tar", ".tgz"} and path.stem:
            packed = packed or path.suffix.lower() in (".tar", ".tgz")
            path = path.with_suffix("")
        path = path if packed or not path.name.strip(".") else path.with_suffix("")
    return path.name.lstrip(".") or "data"


def train(
    data: Names | None = None,
    run: str | PathLike[str] | None = None,
    *,
    preset: str | None = None,
    start: str | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    minutes: float | None = None,
    resume: bool = False,
    strict: bool = False,
    device: str | None = None,
    world: World | None = None,
) -> Result:
    """Train a model in the folder `run`, as `hnet train`; what is left open is chosen and said.

    `data`: datasets, each perhaps with ":WEIGHT". `settings`: {"train.steps": 2000}, or "train.steps=2000" and so on.
    `minutes` count from this call. `world`: the ranks that train together, by default those that torchrun has started.
    Of the result, `run` is the folder, which `load` reads. Raises UsageError, InputError, BusyError, DamagedError,
    NumericalError, EnvironmentLimit, StorageError, Stopped.
    """
    began = time.monotonic()
    from hnet_cli import storage
    from hnet_cli.distributed.world import joined
    from hnet_cli.terminal.console import set_verbosity
    from hnet_cli.training import plan

    if isinstance(settings, Mapping):
        settings = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
    settings = list(settings)
    with joined(device) if world is None else nullcontext(world) as world:
        if not world.is_main:
            set_verbosity(-1)
        with world.together():
            chosen = plan.choose(
                preset,
                None if data is None else _names(data),
                None if run is None else Path(run),
                settings,
                resume=resume,
                device=device,
                world=world,
                start=start,
                strict=strict,
            )
            if world.is_main:
                storage.refuse_if_held(chosen.run)
            plan.refuse_what_cannot_fit(chosen)
            if minutes is None:
                plan.warn_of_repetition(chosen)
        from hnet_cli.training.progress import follow

        seconds = math.inf
        if minutes is not None:  # what has passed counts, torch's import above all
            seconds = max(6 * minutes, 60 * minutes - (time.monotonic() - began))
        asked = any(setting.partition("=")[0].strip() == "train.steps" for setting in settings)
        most = chosen.config.train.steps if asked else math.inf
        return follow(chosen, resume=resume, strict=strict, seconds=seconds, most=most, world=world)


def evaluate(
    models: Names | LoadedModel | Sequence[LoadedModel],
    data: Names = (),
    *,
    device: str | None = None,
    threshold: float | Sequence[float] | None = None,
    bytes_per_chunk: float | Sequence[float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The figures of one model, or of two on the same bytes, as `hnet eval --json` prints them.

    `models`: MODEL as everywhere, or a loaded model, whose folder is read. `data`: files, or one dataset; by default
    that of the run, its held-out split. `options`: fields of `EvaluationRequest`, such as max_bytes, context, noise.
    Raises UsageError, InputError, DamagedError, NumericalError, EnvironmentLimit.
    """
    from hnet_cli.checkpoints.model_folder import LoadedModel
    from hnet_cli.evaluation import report
    from hnet_cli.inference.thresholds import Compression

    several = [models] if isinstance(models, str | PathLike | LoadedModel) else models
    names = [str(model.source if isinstance(model, LoadedModel) else model) for model in several]
    options |= {key: [Path(name) for name in _names(options[key])] for key in ("gold", "tasks") if options.get(key)}
    try:
        request = report.EvaluationRequest(
            data=_names(data), compression=Compression.of(threshold, bytes_per_chunk), **options
        )
    except TypeError as error:
        raise UsageError(f"evaluate: {str(error).partition('__init__() ')[2]}", "see `hnet eval --help`") from error
    return report.evaluate(names, request, device)


def metrics(run: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The curves of a run, finished or not, as columns: {"step": (n,) int64, "bpb": (n,) float64, ...}.

    A row for each line of `metrics.jsonl` with a number of bytes: steps, and validations, whose columns begin with
    "val_"; NaN where a row has no number. `pandas.DataFrame` takes it. Raises InputError where there is no such run.
    """
    from hnet_cli.report import history
    from hnet_cli.report.stages import number

    folder = Path(run)
    if not (folder / "metrics.jsonl").exists():
        raise InputError(f"{folder} is no run that has begun: it has no metrics.jsonl", "name a folder of `hnet train`")
    rows = history.all_metrics(folder)
    columns = {key: [number(row.get(key)) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    whole = {key: [math.nan if value is None else value for value in values] for key, values in columns.items()}
    return {
        key: np.array(values, dtype=np.int64 if key == "step" and not any(map(math.isnan, values)) else np.float64)
        for key, values in whole.items()
        if not all(map(math.isnan, values))
    }


def _names(names: Names) -> list[str]:
    """One name or several as a list of texts."""
    return [str(name) for name in ([names] if isinstance(names, str | PathLike) else names)]
