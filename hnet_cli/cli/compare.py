"""The command line of `hnet compare`. No torch in here but inside the function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hnet_cli.errors import UsageError


def compare(
    data: Annotated[
        Path | None, typer.Option(help="A dataset of `hnet prepare`. Default: the newest under data/.")
    ] = None,
    line_up: Annotated[
        str | None,
        typer.Option(help="Who takes part, such as bpe,space,1stage,2stage; YAML presets too. Default: the paper's."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="nano, small or l. Default: nano on a CPU, else small.")] = None,
    bytes_: Annotated[
        int | None, typer.Option("--bytes", min=1, help="Train every member on so many. Default: as the presets say.")
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
        int | None, typer.Option(min=0, help="Measure on at most so many held-out bytes; 0: all. Default: 1,000,000.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every member; may be repeated."),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="0,1,...", help="Train on these GPUs, a member on each at a time.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the page here. Default: compare.html in the folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:N or mps. Default: a CUDA GPU if there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Train several models alike and say which is best.

    They have equal FLOPs per byte and read the same bytes; it is told how sure the verdict is, and when the H-Net does
    not win. The trainings are ordinary runs. Stopped, even by a kill, the same command goes on; on a finished folder it
    only writes tables and page anew. docs/compare.md says what is equal and what is not.
    """
    from hnet_cli.comparison import session, tables
    from hnet_cli.comparison.plan import Request

    if bytes_ and minutes:
        raise UsageError("--bytes and --minutes exclude each other", "the minutes say how many bytes there are")
    asked = Request(data, line_up, size, bytes_, minutes, flops, seeds, max_bytes, run, device, settings or [],
                    _numbers(gpus))  # fmt: skip
    told = session.run(asked, out=out, dry_run=dry_run)
    if as_json:
        print(json.dumps(told), flush=True)
    elif not dry_run:
        tables.show(told)


def _numbers(gpus: str | None) -> list[int]:
    if gpus is None:
        return []
    parts: list[Any] = gpus.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(f"--gpus {gpus!r} is no list of GPUs", "for example --gpus 0,1")
    return [int(part) for part in parts]
