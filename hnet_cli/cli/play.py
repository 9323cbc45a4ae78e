"""`hnet play`: a page of this machine on which chunks follow what one types."""

from __future__ import annotations

import contextlib
import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options
from hnet_cli.errors import UsageError


def play(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [MODEL2] [FILE]",
            help=options.MODEL_HELP + "A second one is shown beside it: a model, or a tokenizer.json. A file is what "
            "stands in the page at first. Default model: $HNET_MODEL, else the newest run, else starter:text.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="The port; 0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    device: options.Device = None,
) -> None:
    """Type, and see the chunks move.

    Opens a page on this machine, for nobody else: chunks of all stages in colour as one types, two models side by side,
    longer and shorter chunks, continuations. Ctrl-C ends it.
    """
    from hnet_cli.checkpoints.find import default_model
    from hnet_cli.play import server
    from hnet_cli.play.session import MOST_FILE, Session
    from hnet_cli.storage.streams import open_input
    from hnet_cli.terminal.console import literal, say

    models, file = _divide(names or [])
    session = Session(models or [default_model()], options.device_name(device))
    for number in range(max(1, len(models))):  # what is wrong with one shows here, not in the page
        session.player(number)
    examples = [offer["example"] for offer in session.offered()]
    text = examples[0] or examples[-1]
    if file is not None:
        with contextlib.closing(open_input(Path(file))) as stream:
            text, _ = session.text_of(0, stream.read(MOST_FILE))

    def ready(address: str) -> None:
        say(f"Play: [bold]{literal(address)}[/] (for this machine alone; Ctrl-C ends it)")
        if browser and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
            webbrowser.open(address)

    with contextlib.closing(server.listen(port)) as opened:
        server.serve(session, opened, text, 1 if len(models) > 1 else None, ready)
    say("Ended.")


def _divide(names: list[str]) -> tuple[list[str], str | None]:
    """Models and the file. Raises UsageError where there are too many."""
    files = [name for name in names if not _is_player(name)]
    models = list(dict.fromkeys(name for name in names if _is_player(name)))
    if len(models) > 2 or len(files) > 1:
        raise UsageError(
            f"{len(models)} models and {len(files)} files are given", "give at most two models, and one file"
        )
    return models, files[0] if files else None


def _is_player(name: str) -> bool:
    """True for what names a model or a tokenizer; what does not exist was meant as a model."""
    return options.is_model(name) or name.endswith("tokenizer.json") or not Path(name).exists()
