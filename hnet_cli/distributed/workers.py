"""Processes on this machine that compute ahead, while this one takes their results in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from types import TracebackType
from typing import Any, TypeVar

from hnet_cli.errors import EnvironmentLimit

R = TypeVar("R")


class Workers:
    """`number` processes, started when there is work. As a context manager they end with it, and at once where it is
    left by an exception: what they compute is of no use then."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._processes = _Processes()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            self._processes.kill()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def in_order(
        self, calls: Iterable[Callable[[], R] | None], begin: Callable[[], None] | None = None
    ) -> Iterator[R | None]:
        """The result of each call, made by some process; None for None. Twice `number` calls are taken ahead.

        Calls and results are pickled. `begin` is called first in every process. Raises what a call raises, and
        EnvironmentLimit where a process dies.
        """
        queue: deque[Future[R] | None] = deque()
        self._pool = ProcessPoolExecutor(self.number, self._processes, initializer=_begin, initargs=(begin,))

        def first() -> R | None:
            future = queue.popleft()
            return future.result() if future else None

        try:
            for call in calls:
                with self._processes.starting():
                    queue.append(self._pool.submit(call) if call else None)
                if len(queue) > 2 * self.number:
                    yield first()
            while queue:
                yield first()
        except BrokenExecutor as error:
            message = "a worker process died, perhaps for lack of memory"
            raise EnvironmentLimit(message, "use fewer --workers") from error


class _Processes(SpawnContext):
    """Starts processes that leave signals to this one, and remembers them.

    Spawned, not forked: the caller may have threads (progress bars, torch).
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]  # a class there
        self.started.append(SpawnProcess(*args, **options))
        return self.started[-1]

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """While a process may start: it inherits that signals are held back, from its first instruction on."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kill(self) -> None:
        for process in self.started:
            process.kill()


def _begin(begin: Callable[[], None] | None) -> None:
    """End when the main process is killed: nothing may be written any more."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if begin is not None:
        begin()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
