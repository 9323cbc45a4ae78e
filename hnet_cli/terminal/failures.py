"""What a command that fails ends with: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
import traceback

from hnet_cli.errors import INTERRUPTED, EnvironmentLimit, HNetError, StorageError, UsageError
from hnet_cli.modality import escape
from hnet_cli.terminal.console import is_verbose


def report(error: BaseException) -> int:
    """Say in one line what ended the command; its exit code."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # Typer's own: a wrong option or argument
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "hnet"
        return _fail(UsageError(error.format_message(), f"see {command} --help"))
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        print("hnet: interrupted", file=sys.stderr)
        return INTERRUPTED
    if is_verbose():
        traceback.print_exception(error)
    if isinstance(error, HNetError):
        return _fail(error)
    if _out_of_memory(error):
        return _fail(EnvironmentLimit("out of memory", "a smaller preset, or more train.micro_batches, needs less"))
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return _fail(StorageError(f"{place}{error.strerror or error}"))
    bug = HNetError(f"a bug of ours: {type(error).__name__}: {error}", "`hnet -v` with the same command says where")
    return _fail(bug)


def _fail(error: HNetError) -> int:
    message = f"{error} ({error.hint})" if error.hint else str(error)
    if message:  # else another rank of the run says it
        print(f"hnet: {escape(' '.join(message.split()))}", file=sys.stderr)
    return error.exit_code


def _out_of_memory(error: BaseException) -> bool:
    """PyTorch says so in several ways."""
    return isinstance(error, MemoryError) or any(
        sign in f"{type(error).__name__} {error}" for sign in ("OutOfMemoryError", "can't allocate memory")
    )
