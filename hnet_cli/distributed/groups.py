"""Control groups of Linux, versions 1 and 2: the CPUs and the memory that a container leaves to this process.

Every function takes the folder of `proc` and `sys` as `root`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_MOUNTS = {"cpu": ("cpu", "cpu,cpuacct"), "memory": ("memory",)}
"""Folders of version 1 by controller."""


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs that the groups leave, the least of all levels; None if there is no limit."""
    quotas = []
    for folder in _levels("cpu", root):
        period = text(folder / "cpu.cfs_period_us")
        quotas.append(_share(text(folder / "cpu.max") or f"{text(folder / 'cpu.cfs_quota_us')} {period}"))
    return min((quota for quota in quotas if quota), default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the groups allow, the least of all levels; None if there is no limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes that the groups still leave; None if there is no limit.

    What was read from files and not used lately is given back before anything fails, so it counts as free.
    """
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def text(path: Path) -> str:
    """The content of a file of the kernel; "" where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 16).decode(errors="replace")
    except OSError:
        return ""


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every level that has a limit."""
    for folder in _levels("memory", root):
        names = ("memory.max", "memory.high", "memory.limit_in_bytes")
        limits = [int(limit) for name in names if (limit := text(folder / name).strip()).isdecimal()]
        if limits:
            used = text(folder / "memory.current") or text(folder / "memory.usage_in_bytes")
            rows = dict(row.split(maxsplit=1) for row in text(folder / "memory.stat").splitlines() if " " in row)
            cached = rows.get("total_inactive_file") or rows.get("inactive_file") or ""
            yield min(limits), _number(used) - _number(cached)


def _levels(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups of this process that may limit a controller, from its own outwards.

    A container may see the path that its group has outside: what is not there has no limit.
    """
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        group = PurePosixPath("/".join(part for part in path.split("/") if part not in ("", "..")))
        for mount in _MOUNTS[controller] if controllers else ("", "unified"):
            for level in (group, *group.parents):
                yield root / "sys/fs/cgroup" / mount / level


def _share(limit: str) -> float | None:
    """CPUs of "QUOTA PERIOD" in microseconds; None for "max 100000", for a quota of -1, and for anything else."""
    try:
        quota, period = map(int, limit.split())
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _number(word: str) -> int:
    word = word.strip()
    return int(word) if word.isdecimal() else 0
