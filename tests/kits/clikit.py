"""`hnet` command lines in this process and in one of its own, and the check of a user's mistake."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnet_cli.cli.app import run

ROOT = Path(__file__).parents[2]
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from hnet_cli.cli.app import run
code = run(sys.argv[1:])
print("torch imported" if "torch" in sys.modules else "no torch", file=sys.stderr)
sys.exit(code)
"""


def hnet(line: str) -> int:
    """The exit code of a command line, run in this process."""
    return run(line.split())


def child(line: str, **options: Any) -> subprocess.Popen[str]:
    """`hnet` in a process of its own, on one core and without a GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, *line.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **(pipes | options))


def limit(resource_kind: int, size: int) -> Callable[[], None]:
    """For `preexec_fn`: a resource limit of the child."""
    return lambda: resource.setrlimit(resource_kind, (size, size))


def wait_for(path: Path) -> None:
    """Wait until a file is there. Raises AssertionError after a minute."""
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def check_mistake(home: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, message: str) -> None:
    """A user's mistake is one line on standard error and an exit code; nothing on standard output or the disk."""
    before = sorted(home.rglob("*"))
    assert hnet(line) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert [text.startswith("hnet: ") for text in err.splitlines()].count(True) == 1
    assert err.splitlines()[-1].startswith("hnet: ")
    assert message in err
    assert sorted(home.rglob("*")) == before
