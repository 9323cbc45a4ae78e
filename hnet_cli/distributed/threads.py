"""Threads of the CPU: their way of waiting, their number, and the work of others beside them. torch is not imported.

Threads of OpenMP spin while they wait for each other, by default for milliseconds: alone on a machine that is fastest,
but beside other work a spinning thread takes the core that the working one needs. On two cores with one busy process
`nano` trained with 380 bytes/s so, and with 3,500 where threads wait passively. GNU's runtime, which torch's wheels for
Linux carry, and LLVM's, which those for macOS do, read how to wait when they are loaded.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from hnet_cli.distributed.groups import cpu_quota, text

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user decides how threads wait."""
NUMBER = "OMP_NUM_THREADS"
BUSY = 0.25
"""Share of the CPUs in use by others from which a machine is called busy."""
STARVED = 0.6
"""CPUs that a process uses which has had work all along, below which it waits for others."""

_by_quota = False
"""True if the number of threads in the environment is a container's quota, which `prepare_environment` put there."""


def prepare_environment() -> None:
    """Have threads wait passively, and no more of them than a container's quota pays for, unless the user's variables
    say otherwise. Without effect on this process if torch has been imported before."""
    global _by_quota
    if not any(name in os.environ for name in WAITING):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    if NUMBER not in os.environ and cpus() < len(_allowed()):
        os.environ[NUMBER] = str(cpus())
        _by_quota = True


def use(number: int) -> None:
    """Compute with `number` threads, here and in processes started from here. No measurement changes it then."""
    global _by_quota
    os.environ[NUMBER], _by_quota = str(number), False
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(number)


def decided() -> bool:
    """True if the user, or a measurement, has decided the number of threads."""
    return NUMBER in os.environ and not _by_quota


def cpus() -> int:
    """CPUs that this process may use: those of its affinity, at most a container's quota, rounded up."""
    quota = cpu_quota()
    allowed = len(_allowed())
    return allowed if quota is None else max(1, min(allowed, -int(-quota // 1)))


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class Meter:
    """Work of other processes on the CPUs of this one since the meter was made. `stat`: the system's counters."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self.stat = stat
        self.start = self._sample()

    def others(self) -> float | None:
        """CPUs that others kept busy, in the mean; None where the system does not say, or in too short a time."""
        (busy, own, then), (busy_now, own_now, now) = self.start, self._sample()
        if busy is None or busy_now is None or now - then < 0.2:  # counters go in steps of 0.01 s
            return None
        return max(0.0, (busy_now - busy - (own_now - own)) / (now - then))

    @property
    def seconds(self) -> float:
        """Time since the meter was made."""
        return time.monotonic() - self.start[2]

    def note(self, computing: bool = False) -> str:
        """A few words if others keep the machine busy, else nothing. `computing`: this process has had work all along,
        so that a share of a CPU says it too, where the system's counters do not (a container's quota)."""
        others, here = self.others(), len(_allowed())
        own = (self._sample()[1] - self.start[1]) / max(self.seconds, 1e-9)
        busy = others is not None and others >= BUSY * here
        told = [f"other work takes {others:.1f} of {here} CPUs"] if busy else []
        if computing and own < STARVED and (told or here == 1 or cpus() < here or others is None):
            told.append(f"this process gets {own:.2f} of one")
        return ", ".join(told)

    def _sample(self) -> tuple[float | None, float, float]:
        """Seconds that the CPUs were busy, that this process used, and of a clock."""
        used, names, ticks = os.times(), {f"cpu{number}" for number in _allowed()}, 0
        rows = [line.split() for line in text(self.stat).splitlines()]
        rows = [row for row in rows if row and row[0] in names and len(row) > 8]
        for _, user, nice, system, _, _, irq, softirq, steal, *_ in rows:
            ticks += sum(map(int, (user, nice, system, irq, softirq, steal)))
        busy = ticks / os.sysconf("SC_CLK_TCK") if rows else None
        return busy, used.user + used.system + used.children_user + used.children_system, time.monotonic()


meter = Meter()
"""From the import of hnet_cli on: while torch was imported, mostly."""
