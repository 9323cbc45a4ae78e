"""`hnet` in a process of its own that starts at once: forked from this one, which has imported everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import typer.main
from runkit import SETTINGS

import hnet_cli
from hnet_cli import modality, storage
from hnet_cli.cli.app import app, run
from hnet_cli.config.run import RunConfig
from hnet_cli.terminal import console
from hnet_cli.training.loop import train

SMALLER = [
    "model.d_model=[16, 16]",
    "model.d_intermediate=[0, 32]",
    "model.ssm_cfg={d_state: 8, headdim: 16}",
    "model.attn_cfg={num_heads: [2, 2], rotary_emb_dim: [8, 8], window_size: [-1, -1]}",
    "train.samples=false",
]


def poll(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until `condition` holds; False if it does not within `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


@dataclass
class Command:
    """A running `hnet`, its standard error in a file."""

    pid: int
    stderr: Path
    code: int | None = None
    """Exit code, negative for a signal; None while it runs."""
    cpu: float = 0.0
    """Seconds of CPU time."""
    memory: int = 0
    """Peak resident bytes, those shared with this process included."""

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code. Raises AssertionError, having killed the process, if it takes longer."""
        if not poll(self.ended, seconds):
            self.kill()
            raise AssertionError(f"hnet did not end within {seconds} s: {self.error}")
        assert self.code is not None
        return self.code

    def ended(self) -> bool:
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.cpu, self.memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        if not self.ended():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.send(signal.SIGKILL)
        assert poll(self.ended, 60)

    @property
    def error(self) -> str:
        """Standard error so far."""
        return self.stderr.read_text(errors="replace")

    def sleep(self, seconds: float) -> None:
        """Wait that long, or until the process has ended."""
        poll(self.ended, seconds)

    def wait_for(self, condition: Callable[[], bool], event: str) -> None:
        """Wait until a condition holds. Raises AssertionError if the process ends before, or after two minutes."""
        came = poll(lambda: self.ended() or condition(), 120.0)
        assert came, f"hnet never came to {event}"
        assert condition(), f"hnet ended with {self.code} before {event}: {self.error}"

    def wait_for_text(self, text: str, file: Path) -> None:
        self.wait_for(lambda: file.exists() and text in file.read_text(errors="replace"), f"writing {text!r}")


def hnet(*arguments: object, stderr: Path, stdout: Path | None = None) -> Command:
    """Start `hnet ARGUMENTS`."""
    return forked(lambda: run([str(argument) for argument in arguments]), stderr, stdout)


def fresh(*arguments: str) -> tuple[str, str, float]:
    """Run `hnet ARGUMENTS` in a new interpreter. Return its standard output, which ends with whether it imported torch
    and the exit code, its standard error and seconds of CPU time."""
    code = "import sys; from hnet_cli.cli.app import run; code = run(sys.argv[1:]); print('torch' in sys.modules, code)"
    before = os.times()
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return process.stdout, process.stderr, seconds


def training(config: RunConfig, data: Path, folder: Path, stderr: Path) -> Command:
    """Start or resume a run; the steps reported as saved go to the file `acknowledged` of the run folder."""

    def listen(kind: str, record: dict[str, Any]) -> None:
        if kind in ("checkpoint", "resume"):
            storage.append_text(folder / "acknowledged", f"{kind} {record['step']}\n")

    def work() -> int:
        train(config, data, folder, resume=True, listen=listen)
        return 0

    return forked(work, stderr)


def command(data: Path, folder: Path, *settings: str) -> list[str]:
    """`hnet train --resume` of a tiny model that saves every step."""
    chosen = [*SETTINGS, *SMALLER, "train.checkpoint_every=1", "train.eval_every=5", *settings]
    arguments = ["train", "--preset", "nano", "--data", data, "--run", folder, "--device", "cpu", "--resume"]
    return [str(a) for a in arguments] + [part for setting in chosen for part in ("--set", setting)]


def forked(work: Callable[[], int], stderr: Path, stdout: Path | None = None, **environment: str) -> Command:
    """Start `work` in a process whose exit code it returns; 99 after an exception."""
    _preload()
    sys.stdout.flush()
    sys.stderr.flush()
    # Emptied before the fork: who waits for a text never finds the one of an earlier command.
    streams = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666) for path in (stdout or os.devnull, stderr)]
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return Command(pid, stderr)
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.environ.update(environment)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        # Standard streams as a fresh process has them, not the ones pytest put there.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        console.console.file = sys.stderr
        code = work()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@cache
def _preload() -> None:
    """Do once what every command would do again, in seconds: import what it needs (an optimizer imports torch._dynamo)
    and build the command line."""
    root = Path(hnet_cli.__file__).parents[1]
    rooms = ("checkpoints", "cli", "data", "inference", "report", "terminal", "training")
    files = [file for room in rooms for file in sorted((root / "hnet_cli" / room).rglob("[!_]*.py"))]
    ours = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    for name in (*ours, "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"):
        import_module(name)
    for name in modality.names():
        modality.get(name)
    typer.main.get_command(app)
