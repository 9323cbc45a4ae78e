"""A command that fails says why in one line, and exits with the code of the kind of failure."""

import errno
from concurrent.futures.process import BrokenProcessPool

import click
import pytest
import torch

from hnet_cli.errors import HNetError, InputError
from hnet_cli.terminal import console, failures
from hnet_cli.terminal.process import Terminated


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.txt:\n is\x1b[2J empty", "give another"), 3, "hnet: a.txt: is\\x1b[2J empty (give another)\n"),
        (HNetError(""), 1, ""),  # another rank says it
        (KeyboardInterrupt(), 130, "hnet: interrupted\n"),
        (click.Abort(), 130, "hnet: interrupted\n"),
        (Terminated(15), 143, "hnet: ended by SIGTERM\n"),
        (click.UsageError("No such option: --x"), 2, "hnet: No such option: --x (see hnet --help)\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 74, "hnet: x.bin: No space left on device\n"),
        (OSError("closed"), 74, "hnet: closed\n"),
        (
            ZeroDivisionError("x"),
            1,
            "hnet: a bug of ours: ZeroDivisionError: x (`hnet -v` with the same command says where)\n",
        ),
    ],
)
def test_one_line_and_a_code(capsys, error, code, line):
    assert failures.report(error) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_no_bug(capsys, error):
    assert failures.report(error) == 69
    assert "micro_batches" in capsys.readouterr().err


def test_a_worker_that_died_is_no_bug(capsys):
    assert failures.report(BrokenProcessPool("a child process terminated abruptly")) == 69
    assert "fewer --workers" in capsys.readouterr().err


def test_what_speaks_of_memory_elsewhere_is_a_bug(capsys):
    assert failures.report(ValueError("out of memory")) == 1
    capsys.readouterr()


def test_a_traceback_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setattr(console, "_verbosity", 1)
    for error, shown in ((InputError("bad"), True), (click.UsageError("bad"), False)):
        failures.report(error)
        assert ("InputError" in capsys.readouterr().err) == shown
