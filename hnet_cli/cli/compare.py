"""`hnet compare`: models trained alike, and which is best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options
from hnet_cli.errors import UsageError


def compare(
    data: Annotated[
        list[Path] | None, typer.Option(help="A dataset of `hnet prepare`. Default: the newest under data/.")
    ] = None,
    line_up: Annotated[
        str | None,
        typer.Option(help="Members, such as bpe,space,1stage,2stage; YAML presets too. Default: the paper's."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="nano, small or l. Default: nano on a CPU, else small.")] = None,
    bytes_: Annotated[
        int | None, typer.Option("--bytes", min=1, help="Bytes to train every member on. Default: as the presets say.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Instead of --bytes: the time for all members together, here.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(min=1, help="FLOPs per byte to size the members to. Default: the first one's.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of every member. Default: 1.")] = None,
    run: Annotated[Path | None, typer.Option(help="The folder. Default: compare/<dataset>-<size>.")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=0, help="Held-out bytes to measure on, at most; 0: all. Default: 1,000,000.")
    ] = None,
    threshold: options.Threshold = None,
    bytes_per_chunk: options.BytesPerChunk = None,
    settings: options.Settings = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="0,1,...", help="Train on these GPUs, a member on each at a time.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the page here. Default: compare.html in the folder.")] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Train several models alike and say which is best.

    They have equal FLOPs per byte and read the same bytes; the verdict says how sure it is, and when the H-Net does not
    win. The trainings are ordinary runs. Stopped, even by a kill, the same command goes on; on a finished folder it
    only writes tables and page anew. docs/compare.md says what is equal and what is not.
    """
    from hnet_cli.comparison import session, tables
    from hnet_cli.comparison.plan import ComparisonRequest

    if data and len(data) > 1:
        raise UsageError(
            "a comparison is of one dataset, and several are given",
            "`hnet prepare` makes one of them; or train on the mixture and compare with `hnet eval RUN RUN`",
        )
    request = ComparisonRequest(
        data=data[0] if data else None,
        line_up=line_up,
        size=size,
        bytes=bytes_,
        minutes=minutes,
        flops=flops,
        seeds=seeds,
        max_bytes=max_bytes,
        run=run,
        device=device,
        settings=settings or [],
        compression=options.compression(threshold, bytes_per_chunk),
        gpus=[] if gpus is None else _numbers(gpus),
    )
    told = session.compare(request, out=out, overwrite=overwrite, dry_run=dry_run)
    if as_json:
        options.print_json(told)
    elif not dry_run:
        tables.show_results(told)


def _numbers(gpus: str) -> list[int]:
    parts = gpus.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(f"--gpus {gpus!r} is no list of GPUs", "for example --gpus 0,1")
    return [int(part) for part in parts]
