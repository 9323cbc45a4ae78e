"""`hnet` in a process of its own that starts at once: forked from this one, which has imported everything."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  (what an optimizer imports when it is made: seconds, in every process)
from runkit import SETTINGS

import hnet_cli.training.progress  # noqa: F401  (all that `hnet train` needs)
from hnet_cli import storage
from hnet_cli.cli.app import run
from hnet_cli.config.run import RunConfig
from hnet_cli.training.loop import train


@dataclass
class Command:
    """A running `hnet`, its standard error in a file."""

    pid: int
    stderr: Path
    began: float
    code: int | None = None
    """Exit code, negative for a signal; None while it runs."""
    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of CPU time."""
    memory: int = 0
    """Bytes it held at most, those shared with this process included."""

    def wait(self, seconds: float = 120.0) -> int:
        """The exit code. Ends it and fails if it takes longer."""
        until = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"hnet did not end within {seconds} s: {self.said()}")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def ended(self) -> bool:
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.cpu, self.memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
                self.code, self.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.began
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        if not self.ended():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        while not self.ended():
            time.sleep(0.001)

    def said(self) -> str:
        return self.stderr.read_text(errors="replace")

    def clumsy(self) -> str:
        """What is wrong with how it spoke of an error; "" if nothing: one line of cause and remedy, four at most."""
        said = self.said()
        lines = [line for line in said.splitlines() if line.startswith("hnet: ") and "hnet: warning" not in line]
        if "Traceback" in said or "a bug of ours" in said:
            return f"a traceback: {said[-600:]}"
        if self.code and not 1 <= len(lines) <= 4:
            return f"{len(lines)} lines for exit {self.code}: {said[-600:]}"
        return f"no words for exit {self.code}" if self.code and len(lines[0]) < 20 else ""

    def sleep(self, seconds: float) -> None:
        """Wait that long, or until it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended():
            time.sleep(0.0005)

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        """Wait until something holds. Fails if it ends before, or takes too long."""
        until = time.monotonic() + seconds
        while not condition():
            assert not self.ended(), f"hnet ended with {self.code} before {what}: {self.said()}"
            assert time.monotonic() < until, f"hnet never came to {what}"
            time.sleep(0.001)

    def until(self, text: str, file: Path | None = None) -> None:
        """Wait until it has said something, or written it to a file."""
        place = file or self.stderr
        self.wait_for(lambda: place.exists() and text in place.read_text(errors="replace"), f"saying {text!r}")


def hnet(*arguments: object, stderr: Path, stdout: Path | None = None) -> Command:
    """Start `hnet ARGUMENTS`."""
    return forked(lambda: run([str(argument) for argument in arguments]), stderr, stdout)


def training(config: RunConfig, data: Path, folder: Path, stderr: Path) -> Command:
    """Start or go on with a run; the steps that it was told are saved go to `acknowledged` in the run folder."""

    def listen(kind: str, record: dict[str, Any]) -> None:
        if kind in ("checkpoint", "resume"):
            storage.append_text(folder / "acknowledged", f"{kind} {record['step']}\n")

    def work() -> int:
        train(config, data, folder, resume=True, listen=listen)
        return 0

    return forked(work, stderr)


def forked(work: Callable[[], int], stderr: Path, stdout: Path | None = None) -> Command:
    """Start `work` in a process whose exit code it gives."""
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    pid = os.fork()
    if pid:
        return Command(pid, stderr, began)
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.dup2(os.open(stdout or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 1)
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
        _rewire()
        code = work()
        sys.stderr.flush()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _rewire() -> None:
    """Standard streams as a fresh process has them, not the ones pytest put there."""
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    from hnet_cli.terminal import console

    console.console.file = sys.stderr


SMALLER = [
    "model.d_model=[16, 16]",
    "model.d_intermediate=[0, 32]",
    "model.ssm_cfg={d_state: 8, headdim: 16}",
    "model.attn_cfg={num_heads: [2, 2], rotary_emb_dim: [8, 8], window_size: [-1, -1]}",
    "train.samples=false",
]


def command(data: Path, run: Path, *settings: str) -> list[str]:
    """`hnet train` of a tiny model that saves every step, beginning or going on."""
    chosen = [*SETTINGS, *SMALLER, "train.checkpoint_every=1", "train.eval_every=5", *settings]
    arguments = ["train", "--preset", "nano", "--data", data, "--run", run, "--device", "cpu", "--resume"]
    return [str(a) for a in arguments] + [part for setting in chosen for part in ("--set", setting)]
