"""`hnet publish`: a model folder with a card, as the Hub shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options
from hnet_cli.errors import UsageError


def publish(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    to: Annotated[
        str | None, typer.Option(metavar="hf:OWNER/NAME", help="Then put it onto the Hugging Face Hub.")
    ] = None,
    licence: Annotated[
        str, typer.Option(metavar="NAME", help="Licence of the weights: mit, apache-2.0, cc-by-4.0, ... Default: none.")
    ] = "",
    language: Annotated[list[str] | None, typer.Option(metavar="CODE", help="Such as en; may be repeated.")] = None,
    base_model: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="The model it began with, by its name on the Hub.")
    ] = "",
    data: Annotated[
        list[str] | None,
        typer.Option(help="Files, or a dataset, to measure it on. Default: the held-out split of the run's own data."),
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Measure on at most this many bytes.")] = 200_000,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Write a model as a folder for others.

    A card (README.md) with its figures and a picture of its chunks stands beside the weights, and what
    AutoModelForCausalLM needs to open it where hnet-cli is installed.
    """
    from hnet_cli.checkpoints import hub
    from hnet_cli.evaluation import card
    from hnet_cli.terminal.console import literal, say

    if to is not None:
        if not to.startswith(hub.PREFIX):
            raise UsageError(f"--to {to} is no place to publish", "give hf:OWNER/NAME")
        hub.place(to)  # before hours of measuring
    words = card.Card(licence, language or (), base_model)
    figures = card.publish(
        model, folder, words, data=data or (), max_bytes=max_bytes, overwrite=overwrite, device=device
    )
    if not figures:
        say("[yellow]note:[/] no figures on the card: the data of the run are not there; --data names some")
    if not licence:
        say("[yellow]note:[/] the card names no licence, without which nobody may use the weights; --licence does")
    say(f"Wrote {literal(folder)}.")
    address = hub.sent(folder, to) if to is not None else None
    if address is not None:
        say(f"Published: {literal(address)}")
    if as_json:
        options.print_json({"folder": str(folder), "address": address, "figures": figures})
