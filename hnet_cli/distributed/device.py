"""The device that a run uses, and the memory free on it. torch is imported only to ask a GPU."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from hnet_cli.distributed import groups
from hnet_cli.distributed.threads import cpus
from hnet_cli.errors import EnvironmentLimit, UsageError

GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """The device of a run."""

    device: str
    """`cpu`, `cuda:N`, `mps`."""
    memory: int
    """Free bytes."""
    name: str = ""


def this_machine(device: str | None = None, ranks: int = 1) -> Machine:
    """The device that a run on this machine uses: `device`, by default a CUDA GPU if there is one, else the CPU, whose
    memory `ranks` processes share.

    Raises UsageError for an unknown kind of device, EnvironmentLimit if the device is not there.
    """
    gpu = re.fullmatch(r"cuda(?::(\d+))?", "cuda" if device is None else device)
    if not gpu and device not in ("cpu", "mps"):
        raise UsageError(f"--device {device!r} is not known", "use cpu, cuda or cuda:N, or mps on a Mac")
    if device == "mps":
        memory = mps_memory()
        if memory is None:
            raise EnvironmentLimit("there is no mps: it is the GPU of a Mac with Apple silicon", "use cpu")
        return Machine(device, memory, "Apple GPU")
    if gpu:
        if there := _cuda(int(gpu[1] or 0)):
            return there
        if device is not None:
            raise EnvironmentLimit(f"there is no {device}: no GPU can be used here", "`hnet doctor` says why")
    return Machine("cpu", cpu_memory() // ranks, f"{cpus()} CPU cores")


def _cuda(index: int) -> Machine | None:
    """GPU `index`; None if CUDA cannot be used. Raises EnvironmentLimit if there are fewer GPUs."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    if index >= torch.cuda.device_count():
        raise EnvironmentLimit(f"there is no cuda:{index}", f"this machine has {torch.cuda.device_count()} GPUs")
    free, _ = torch.cuda.mem_get_info(index)
    return Machine(f"cuda:{index}", free, torch.cuda.get_device_name(index))


def cpu_memory(root: Path = groups.ROOT) -> int:
    """Bytes this process can still allocate: the least of what the system, the container and `ulimit -v` leave.

    `root`: the folder of `proc` and `sys`.
    """
    try:
        fields = dict(line.split(":", 1) for line in groups.text(root / "proc/meminfo").splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (KeyError, ValueError):
        available = total_memory() or 8 * GIB
    if (left := groups.memory_left(root)) is not None:
        available = min(available, left)
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        with contextlib.suppress(IndexError, ValueError):
            taken = int(groups.text(root / "proc/self/statm").split()[0]) * os.sysconf("SC_PAGE_SIZE")
            available = min(available, allowed - taken)
    return max(0, available)


def total_memory(root: Path = groups.ROOT) -> int:
    """Bytes of the machine's memory, or of what the container may have of it; 0 if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        total = 0
    limit = groups.memory_limit(root)
    return total if limit is None else min(total or limit, limit)


def mps_memory() -> int | None:
    """Bytes that the GPU of a Mac can still allocate of the memory it shares with the CPU; None if there is none."""
    import torch

    if not torch.backends.mps.is_available():
        return None
    return min(cpu_memory(), torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
