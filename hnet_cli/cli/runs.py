"""`hnet runs`: runs at a glance, and side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options


def runs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH...]",
            help="Runs, or folders of runs; datasets and model folders say what they were made with. Default: runs/.",
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="when, name, bpb, bytes or speed.")] = "when",
    out: Annotated[
        Path | None, typer.Option(help="Write a page of the runs here: the report of one, the curves of several.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """List runs, or compare the runs you name."""
    from hnet_cli.report import runs as listing
    from hnet_cli.terminal.console import show_data

    shown = listing.show(paths or [], sort, out, overwrite)
    if as_json:
        options.print_json(shown.data)
    else:
        for table in shown.tables:
            show_data(table)
