"""`hnet train`: a dataset and a preset to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options


def train(
    preset: Annotated[
        str | None,
        typer.Option(help="A preset (`hnet presets`) or a YAML file. Default: the modality's preset for this machine."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[:WEIGHT]",
            help="A dataset of `hnet prepare`; may be repeated: all are mixed, weights being shares of the bytes read. "
            "Default: the newest under data/.",
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<dataset>-<preset>.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Begin with this model: a run, a checkpoint, a model folder, starter:text. Without --preset its "
            "architecture is taken, and few epochs."
        ),
    ] = None,
    settings: options.Settings = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Train for about this many minutes, validations and all; the schedule is laid out to fit."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder; without --run, the newest.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --resume: stop if the newest checkpoint is damaged.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events: --set train.tensorboard=true.")
    ] = False,
    dry_run: options.DryRun = False,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Train an H-Net on a dataset."""
    from hnet_cli import api
    from hnet_cli.distributed.world import joined
    from hnet_cli.terminal.console import set_verbosity
    from hnet_cli.training import plan

    settings = [*(settings or []), *(["train.tensorboard=true"] if tensorboard else [])]
    with joined(device) as world:
        if dry_run:
            if not world.is_main:
                set_verbosity(-1)
            with world.together():
                chosen = plan.choose(
                    preset, data, run, settings, resume=resume, device=device, world=world, start=start, strict=strict
                )
                if world.is_main:
                    plan.describe(chosen, as_json, minutes)
                if minutes is None:
                    plan.warn_of_repetition(chosen)
                if world.is_main:
                    from hnet_cli.training.loop import refuse_what_is_there

                    refuse_what_is_there(chosen.run, resume)
            return
        result = api.train(
            data,
            run,
            preset=preset,
            start=start,
            settings=settings,
            minutes=minutes,
            resume=resume,
            strict=strict,
            device=device,
            world=world,
        )
    if as_json and world.is_main:
        summary = {"run": str(result.run), "steps": result.state.step, "seconds": result.seconds}
        options.print_json(summary | result.last)
