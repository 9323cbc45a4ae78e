"""The end of a command that fails: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
import traceback
from concurrent.futures import BrokenExecutor

from hnet_cli.errors import INTERRUPTED, EnvironmentLimit, HNetError, StorageError, UsageError, is_out_of_memory
from hnet_cli.modality import escape
from hnet_cli.terminal.console import is_verbose
from hnet_cli.terminal.process import Terminated

GLOBAL = ("--threads", "--verbose", "-v", "--quiet", "-q", "--version")
"""Options of `hnet` itself."""
LONGEST = 4000
"""Characters of a message that are printed: it may quote a file."""


def report(error: BaseException) -> int:
    """Print in one line what ended the command; its exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # Typer's
        print(getattr(error, "format_message")(), file=sys.stderr)  # noqa: B009
        return UsageError.exit_code
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        print("hnet: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, Terminated):
        print(f"hnet: {error}", file=sys.stderr)
        return 128 + error.number
    if is_verbose() and not hasattr(error, "format_message"):
        print(escape("".join(traceback.format_exception(error))), file=sys.stderr)
    shown = _user_error(error)
    message = f"{shown} ({shown.hint})" if shown.hint else str(shown)
    if message:  # else another rank of the run prints it
        line = escape(" ".join(message[:LONGEST].split()))
        print(f"hnet: {line}{'...' * (len(message) > LONGEST)}", file=sys.stderr)
    return shown.exit_code


def _user_error(error: BaseException) -> HNetError:
    """The error as one that a user can act on."""
    if isinstance(error, HNetError):
        return error
    if hasattr(error, "format_message"):  # Typer's: a wrong option or argument
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "hnet"
        if getattr(error, "option_name", None) in GLOBAL and command != "hnet":
            return UsageError(error.format_message(), "it goes before the command: hnet OPTION COMMAND")
        return UsageError(error.format_message(), f"see {command} --help")
    if is_out_of_memory(error):
        return EnvironmentLimit(
            "out of memory", "a smaller preset, more train.micro_batches or fewer --workers need less"
        )
    if isinstance(error, BrokenExecutor):
        return EnvironmentLimit("a worker process died, perhaps for lack of memory", "use fewer --workers")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return StorageError(f"{place}{error.strerror or error}")
    return HNetError(f"a bug of ours: {type(error).__name__}: {error}", "`hnet -v` with the same command says where")
