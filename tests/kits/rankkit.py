"""Ranks of a run as processes forked from this one, which has imported everything: they start at once."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401
from runkit import metrics

import hnet_cli.training.progress  # noqa: F401
from hnet_cli.cli.app import run
from hnet_cli.distributed.world import joined
from hnet_cli.terminal import console, failures
from hnet_cli.training.loop import train


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """`size` processes that each run `work(rank)`; what they say is in files of `folder`."""

    def __init__(self, size: int, work: Callable[[int], int], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size = folder, size
        environment = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "HNET_RANK_TIMEOUT": "300",
        } | environment
        sys.stdout.flush()
        sys.stderr.flush()
        self.pids = [self._start(rank, work, environment) for rank in range(size)]

    def _start(self, rank: int, work: Callable[[int], int], environment: dict[str, str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
            console.console.file = sys.stderr
            code = work(rank)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 400.0) -> list[int]:
        """Their exit codes, negative for a signal. Ends them and fails if that takes longer."""
        until, codes = time.monotonic() + seconds, dict[int, int]()
        while len(codes) < self.size:
            for pid in set(self.pids) - codes.keys():
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                for pid in set(self.pids) - codes.keys():
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                raise AssertionError(
                    f"ranks did not end within {seconds} s: {[self.said(r) for r in range(self.size)]}"
                )
            time.sleep(0.005)
        return [codes[pid] for pid in self.pids]

    def said(self, rank: int, name: str = "err") -> str:
        file = self.folder / f"{name}{rank}"
        return file.read_text(errors="replace") if file.exists() else ""

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, [self.said(rank) for rank in range(self.size)]
            time.sleep(0.005)


def hnet(size: int, folder: Path, *arguments: object, **environment: str) -> Ranks:
    """`hnet ARGUMENTS` on `size` ranks."""
    return Ranks(size, lambda rank: run([str(argument) for argument in arguments]), folder, **environment)


def ranks_of(config, data, run, size, listen=lambda rank, kind, record: None, **options):
    """A training on `size` ranks; what each hears goes to `listen`."""

    def work(rank):
        try:
            with joined("cpu") as world:
                train(config, data, run, world=world, listen=lambda *heard: listen(rank, *heard), **options)
        except BaseException as error:
            return failures.report(error)
        return 0

    return Ranks(size, work, run.parent / f"{run.name}-said")


def trained(config, data, run, size, **options):
    """The run folder of a training on `size` ranks."""
    if size == 1:
        train(config, data, run, **options)
        return run
    ranks = ranks_of(config, data, run, size, **options)
    assert ranks.wait() == [0] * size, [ranks.said(rank) for rank in range(size)]
    return run


def without(records, *words):
    return [{key: value for key, value in record.items() if not any(w in key for w in words)} for record in records]


def losses(run):
    return [record["loss"] for record in metrics(run) if "loss" in record]
