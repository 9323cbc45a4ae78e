"""The ranks of a run as forked processes."""

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from commands import forked, poll
from runkit import metrics

from hnet_cli.cli.app import run
from hnet_cli.distributed.world import joined
from hnet_cli.terminal import failures
from hnet_cli.training.loop import train


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """`size` processes that each run `work(rank)`; their standard streams go to `out0`, `err0`, ... in `folder`."""

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
        self.processes = []
        for rank in range(size):
            local, streams = (
                {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
                (folder / f"err{rank}", folder / f"out{rank}"),
            )
            self.processes.append(forked(partial(work, rank), *streams, **environment, **local))
        self.pids = [process.pid for process in self.processes]

    def wait(self, seconds: float = 400.0) -> list[int]:
        """Return their exit codes, negative for a signal. Raises AssertionError, having killed them, if they take
        longer."""
        ended = poll(lambda: all(process.ended() for process in self.processes), seconds)
        for process in self.processes:
            process.kill()
        assert ended, f"ranks did not end within {seconds} s: {[self.said(rank) for rank in range(self.size)]}"
        return [process.wait() for process in self.processes]

    def said(self, rank: int, name: str = "err") -> str:
        file = self.folder / f"{name}{rank}"
        return file.read_text(errors="replace") if file.exists() else ""

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        assert poll(condition, seconds), [self.said(rank) for rank in range(self.size)]


def hnet(size: int, folder: Path, *arguments: object, **environment: str) -> Ranks:
    """`hnet ARGUMENTS` on `size` ranks."""
    return Ranks(size, lambda rank: run([str(argument) for argument in arguments]), folder, **environment)


def ranks_of(config, data, run, size, listen=lambda rank, kind, record: None, **options):
    """Train on `size` ranks; `listen(rank, kind, record)` receives their events."""

    def work(rank):
        try:
            with joined("cpu") as world:
                train(config, data, run, world=world, listen=lambda *event: listen(rank, *event), **options)
        except BaseException as error:
            return failures.report(error)
        return 0

    return Ranks(size, work, run.parent / f"{run.name}-said")


def trained(config, data, run, size, **options):
    """Train on `size` ranks to the end and return the run folder."""
    if size == 1:
        train(config, data, run, **options)
        return run
    ranks = ranks_of(config, data, run, size, **options)
    assert ranks.wait() == [0] * size, [ranks.said(rank) for rank in range(size)]
    return run


def without(records, *words):
    """Records without the keys that contain one of the words."""
    return [{key: value for key, value in record.items() if not any(w in key for w in words)} for record in records]


def losses(run):
    return [record["loss"] for record in metrics(run) if "loss" in record]
