"""Threads: they wait passively in every process, their number follows quota and user, and other work is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hnet_cli.distributed import threads


def environment_after_import(**variables: str) -> dict[str, str]:
    """Variables of OpenMP after `import hnet_cli` in a fresh process, and in one that it starts."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_", "HNET_"))}
    code = """
import hnet_cli, json, os, subprocess, sys
assert "torch" not in sys.modules
code = "import json, os; print(json.dumps(dict(os.environ)))"
child = subprocess.run([sys.executable, "-c", code], capture_output=True)
print(json.dumps({k: v for k, v in json.loads(child.stdout).items() if k.startswith(("OMP_", "GOMP_", "KMP_"))}))
"""
    done = subprocess.run([sys.executable, "-c", code], env=clean | variables, capture_output=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_threads_wait_passively_unless_the_user_says_otherwise() -> None:
    assert environment_after_import()["OMP_WAIT_POLICY"] == "PASSIVE"
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000"), ("KMP_BLOCKTIME", "200")):
        found = environment_after_import(**{name: value, "OMP_NUM_THREADS": "1"})
        assert found == {name: value, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("quota", "number"), [(None, 4), (0.3, 1), (1.5, 2), (2.0, 2), (9.0, 4)])
def test_no_more_threads_than_the_quota_pays_for(monkeypatch, quota: float | None, number: int) -> None:
    allowed = 4
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(threads, "_allowed", lambda: set(range(allowed)))
    monkeypatch.setattr(threads, "_by_quota", False)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # restored afterwards
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setitem(sys.modules, "torch", None)  # whose threads stay as they are: later tests fork this process
    threads.prepare_environment()
    assert os.environ.get("OMP_NUM_THREADS") == (None if number == allowed else str(number))
    assert threads.cpus() == number
    assert not threads.decided()
    threads.use(3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert threads.decided()
    threads.prepare_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_other_work_is_noticed(tmp_path: Path, monkeypatch) -> None:
    """Counters of the system: two of three CPUs are this process's; the others' time there counts, waiting does not."""
    monkeypatch.setattr(threads, "_allowed", lambda: {0, 2})
    tick = os.sysconf("SC_CLK_TCK")
    rows = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 {0} 0 0 5 7 0 0 0 0 0\ncpu1 {1} 0 0 0 0 0 0 0 0 0\n"
    stat = tmp_path / "stat"
    stat.write_text(rows.format(0, 0) + "cpu2 0 0 0 0 0 0 0 0 0 0\nintr 1\n")
    meter = threads.Meter(stat)
    assert meter.others() is None  # too short a time to say
    assert meter.note() == ""
    meter.start = (meter.start[0], meter.start[1], meter.start[2] - 10)
    stat.write_text(rows.format(9 * tick, 500 * tick) + f"cpu2 {tick} {tick} {tick} 0 0 {tick} {tick} {tick} 0 0\n")
    spent = sum(os.times()[:4]) - meter.start[1]
    assert meter.others() == pytest.approx((15 - spent) / 10, abs=0.2)
    assert "other work takes 1.5 of 2 CPUs" in meter.note()
    stat.write_text(rows.format(2 * tick, 500 * tick) + "cpu2 0 0 0 0 0 0 0 0 0 0\n")
    assert meter.note() == ""
    assert threads.Meter(stat / "none").others() is None


def test_own_work_is_not_others() -> None:
    meter = threads.Meter()
    began = time.process_time()
    while time.process_time() < began + 0.3:
        pass
    others = meter.others()
    assert others is None or others >= 0
