"""The errors a user can cause, each with its exit code.

Every message says what is wrong, where, and what to do. `cli.main` prints it as one line and exits with the code;
anything else that escapes is a bug of ours (exit code 1).
"""

from __future__ import annotations

import errno

INTERRUPTED = 130
"""Exit code after a second Ctrl-C."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocator failed. A GPU's has a type of its own, told by its name because torch is not imported here;
    PyTorch's CPU allocator and cuBLAS say so in words only."""
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    by_words = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    by_number = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return by_words or by_number or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class HNetError(Exception):
    """Base of all errors a user can cause. `str(error)` is shown as it stands; `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(HNetError):
    """A wrong option, a configuration with an unknown key, a choice that does not exist."""

    exit_code = 2


class InputError(HNetError):
    """Input data that cannot be used: missing, empty, binary, truncated, of another modality."""

    exit_code = 3


class DamagedError(HNetError):
    """A checkpoint or dataset that is damaged, incomplete, or of an incompatible format."""

    exit_code = 4


class NumericalError(HNetError):
    """A model gives numbers that are not finite; in training, such that no step can be taken."""

    exit_code = 5


class EnvironmentLimit(HNetError):
    """This machine lacks something: a device, memory, an optional package."""

    exit_code = 69


class BusyError(HNetError):
    """A folder is in use by another process, exists already, or cannot be created."""

    exit_code = 73


class StorageError(HNetError):
    """Reading or writing failed: disk full, I/O error, no permission."""

    exit_code = 74


class Stopped(HNetError):
    """A signal asked the command to stop; its state is saved and it can be resumed."""

    exit_code = 75
