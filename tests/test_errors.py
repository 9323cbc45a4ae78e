"""The errors a user can cause: each has its exit code, and lack of memory is known however it is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hnet_cli import errors

CODES = {
    "UsageError": 2,
    "InputError": 3,
    "DamagedError": 4,
    "NumericalError": 5,
    "EnvironmentLimit": 69,
    "BusyError": 73,
    "StorageError": 74,
    "Stopped": 75,
}


def test_every_error_has_the_exit_code_that_is_documented() -> None:
    kinds = {
        kind.__name__: kind.exit_code
        for kind in errors.HNetError.__subclasses__()
        if kind.__module__ == errors.__name__
    }
    assert kinds == CODES
    assert errors.HNetError.exit_code == 1
    page = (Path(__file__).parents[1] / "docs/reference/commands.md").read_text()
    assert {1, errors.INTERRUPTED, *CODES.values()} <= {int(number) for number in re.findall(r"\b\d+\b", page)}


def test_the_message_is_shown_as_it_stands_and_the_hint_is_kept() -> None:
    error = errors.InputError("a [b] \\ c", "do this")
    assert (str(error), error.hint) == ("a [b] \\ c", "do this")
    assert errors.InputError("a").hint == ""


def test_lack_of_memory_is_known_by_type_or_by_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    for error in (
        caught.value,
        MemoryError(),
        torch.cuda.OutOfMemoryError(),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ):
        assert errors.is_out_of_memory(error), error
    for other in (RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not errors.is_out_of_memory(other), other
