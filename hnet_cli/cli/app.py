"""The `hnet` command: one file per command beside this one. Commands import the library when they run, so that
`hnet --help` answers at once; torch only where they compute."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import hnet_cli
from hnet_cli.cli import completion, options
from hnet_cli.cli.compare import compare
from hnet_cli.cli.convert import convert
from hnet_cli.cli.embed import embed
from hnet_cli.cli.eval import evaluate
from hnet_cli.cli.play import play
from hnet_cli.cli.prepare import prepare
from hnet_cli.cli.presets import presets
from hnet_cli.cli.publish import publish
from hnet_cli.cli.retrofit import retrofit
from hnet_cli.cli.runs import runs
from hnet_cli.cli.sample import sample
from hnet_cli.cli.score import score
from hnet_cli.cli.segment import segment
from hnet_cli.cli.train import train
from hnet_cli.errors import INTERRUPTED
from hnet_cli.modality import escape
from hnet_cli.storage.outputs import mark_stdout
from hnet_cli.terminal import process

app = typer.Typer(
    name="hnet",
    help="Train, sample and look inside H-Nets on your own text, Chinese, source code and DNA.",
    epilog="Begin with: hnet quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"hnet {hnet_cli.__version__}")
        raise typer.Exit


@app.callback()
def _global(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show a traceback for an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    threads: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=1024,
            envvar="HNET_THREADS",
            help="CPU threads to compute with; 0: as many as there are, or one where that was measured to be faster.",
        ),
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    mark_stdout()
    if threads:
        from hnet_cli.distributed.threads import use

        use(threads)
    if verbose or quiet or "hnet_cli.terminal.console" in sys.modules:  # help has no use for it
        from hnet_cli.terminal.console import set_verbosity

        set_verbosity(1 if verbose else -1 if quiet else 0)


def doctor(
    check: Annotated[bool, typer.Option("--check", help="Also compare every kernel with the reference here.")] = False,
    as_json: options.Json = False,
) -> None:
    """Say what this machine will run, and why."""
    from hnet_cli.cli import doctor as examine

    examine.run(check=check, as_json=as_json)


def quickstart(
    out: Annotated[Path, typer.Option(help="A folder for the dataset and the run.")] = Path("hnet-quickstart"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for all of it.")] = 5.0,
    device: options.Device = None,
) -> None:
    """See the whole of it on a bundled text, in five minutes.

    It prepares, trains a small model, samples from it, and shows the chunks that it has learned.
    """
    began = time.monotonic()
    from hnet_cli.cli import quickstart as tour

    tour.run(out, minutes, options.device_name(device), began)


class _Command(TyperCommand):
    """A command that shows the placeholders of its arguments as they stand: releases of Typer bracket them
    differently, some a second time."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        names = [parameter.metavar for parameter in self.params if parameter.param_type_name == "argument"]
        return [piece for piece in (self.options_metavar, *names) if piece]


COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "train": train,
    "segment": segment,
    "play": play,
    "sample": sample,
    "score": score,
    "embed": embed,
    "eval": evaluate,
    "compare": compare,
    "runs": runs,
    "presets": presets,
    "doctor": doctor,
    "convert": convert,
    "publish": publish,
    "retrofit": retrofit,
    "quickstart": quickstart,
}
for name, command in COMMANDS.items():
    completion.describe(command)
    app.command(name, cls=_Command, epilog=f"Example: {completion.EXAMPLES[name]}")(command)


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code (design: 0, 1 bug, 2 usage, 3 input, 4 damaged, 5 numerical, 69
    environment, 73 busy, 74 I/O, 75 stopped, 130 interrupted, 128 + N ended by signal N)."""
    warnings.formatwarning = lambda message, *_: f"hnet: warning: {escape(str(message), keep='')}\n"
    process.utf8_stdout()
    try:
        with process.terminable(), completion.whole_words():
            code = app(args=arguments, prog_name="hnet", standalone_mode=False)
            sys.stdout.flush()
        if code == INTERRUPTED:  # Typer's answer to Ctrl-C
            print("hnet: interrupted", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit):  # Typer and Rich make the second of the first: head, less have seen enough
        process.abandon_stdout()
        return 0
    except BaseException as error:
        from hnet_cli.terminal import failures

        return failures.report(error)


def main() -> None:
    """Entry point of the `hnet` command."""
    process.prepare_streams()
    sys.exit(run())
