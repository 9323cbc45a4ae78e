"""Limits of containers, read below a made-up root of the system."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnet_cli.distributed import device, groups


@pytest.fixture
def system(tmp_path: Path):
    """Writes files below a made-up root of the system."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


V1, V2 = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 1.5),
        (
            {"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/cpu.max": "50000 100000", f"{V2}/a/b/cpu.max": "max 100000"},
            0.5,
        ),
        # in a container the path is that of the host, or above the root of its own name space
        ({"proc/self/cgroup": "0::/../../docker/1\n", f"{V2}/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "1:name=systemd:/\n0::/\n", "sys/fs/cgroup/unified/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/1:2\n3:memory:/x\n0::/\n",
                f"{V1}/cpu.cfs_quota_us": "-1",
                f"{V1}/cpu.cfs_period_us": "100000",
                f"{V1}/docker/1:2/cpu.cfs_quota_us": "25000",
                f"{V1}/docker/1:2/cpu.cfs_period_us": "100000",
            },
            0.25,
        ),
        ({"proc/self/cgroup": "nonsense\n0::/\n", f"{V2}/cpu.max": "many 0\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "100000 0\n"}, None),
    ],
)
def test_the_quota_of_a_container(system, files: dict[str, str], quota: float | None) -> None:
    assert groups.cpu_quota(system(files)) == quota


MEMORY = "sys/fs/cgroup/memory"
LARGEST = "9223372036854771712"
"""No limit, in version 1."""


@pytest.mark.parametrize(
    ("files", "limit", "left"),
    [
        ({}, None, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n", f"{V2}/memory.current": "7\n"}, None, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "900\n", f"{V2}/memory.current": "700\n"}, 900, 200),
        # the outer group is the smaller one, or has less left although it is larger
        (
            {
                "proc/self/cgroup": "0::/pod/1\n",
                f"{V2}/pod/memory.max": "500",
                f"{V2}/pod/memory.current": "100",
                f"{V2}/pod/1/memory.max": "900",
                f"{V2}/pod/1/memory.current": "100",
            },
            500,
            400,
        ),
        (
            {
                "proc/self/cgroup": "0::/pod/1\n",
                f"{V2}/pod/memory.max": "5000",
                f"{V2}/pod/memory.current": "4990",
                f"{V2}/pod/1/memory.max": "900",
                f"{V2}/pod/1/memory.current": "100",
            },
            900,
            10,
        ),
        # throttled from there on
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}/memory.max": "900",
                f"{V2}/memory.high": "800",
                f"{V2}/memory.current": "1",
            },
            800,
            799,
        ),
        # files that were read make no process fail
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}/memory.max": "900",
                f"{V2}/memory.current": "880",
                f"{V2}/memory.stat": "anon 80\ninactive_file 700\n",
            },
            900,
            720,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/1:2\n3:cpu:/x\n0::/\n",
                f"{MEMORY}/memory.limit_in_bytes": LARGEST,
                f"{MEMORY}/memory.usage_in_bytes": "4000",
                f"{MEMORY}/docker/1:2/memory.limit_in_bytes": "3000",
                f"{MEMORY}/docker/1:2/memory.usage_in_bytes": "1500",
                f"{MEMORY}/docker/1:2/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
            },
            3000,
            2000,
        ),
        # in a container the path is that of the host
        (
            {"proc/self/cgroup": "4:memory:/docker/12\n", f"{MEMORY}/memory.limit_in_bytes": "3000"},
            3000,
            3000,
        ),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "900", f"{V2}/memory.current": "1000"}, 900, 0),
        ({"proc/self/cgroup": "nonsense\n0::/\n", f"{V2}/memory.max": "\x00"}, None, None),
    ],
)
def test_the_memory_of_a_container(system, files: dict[str, str], limit: int | None, left: int | None) -> None:
    root = system(files | {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4 kB\n"})
    assert (groups.memory_limit(root), groups.memory_left(root)) == (limit, left)
    assert device.cpu_memory(root) == min(4096, 4096 if left is None else left)
    if limit is not None:
        assert device.total_memory(root) == limit
