"""Signals at any moment stop a run so that it can go on; a second process in the folder is refused."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import command, hnet
from forms import trials
from runkit import dataset, metrics

from hnet_cli.checkpoints import find as finding


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("fox"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_r5_signals_at_random_moments(data: Path, tmp_path: Path, name: str, tally: Any) -> None:
    """Exit 75 and a saved step; a second signal does no harm, and a second Ctrl-C ends at once with 130."""
    counted = tally(
        "R5", "signals, once or twice, at random moments of train: exit 75, or 130 after a second Ctrl-C", name
    )
    luck, run, slowest = random.Random(name), tmp_path / "run", 0.0
    arguments = command(data, run, "train.steps=100000", "train.eval_every=0")
    before = 0
    for trial in range(trials(2, 20, 50)):
        process = hnet(*arguments, stderr=tmp_path / "stderr")
        process.until("saved" if trial == 0 else f"step {before + 1}  saved", run / "log.txt")
        time.sleep(luck.uniform(0, 0.3))
        sent, twice = time.monotonic(), trial % 2 == 1
        process.send(signal.Signals[name])
        if twice:
            time.sleep(luck.uniform(0, 0.03))
            process.send(signal.Signals[name])
        code = process.wait()
        slowest = max(slowest, time.monotonic() - sent)
        folder = finding.newest(run)
        step = int(folder.name[5:]) if folder else 0
        wanted = (75, 130) if twice and name == "SIGINT" else (75,)
        lines = [line for line in process.said().splitlines() if line.startswith("hnet:")]
        good = code in wanted and step > before and len(lines) == 1 and "Traceback" not in process.said()
        counted.count(good, f"trial {trial}: exit {code}, step {step} after {before}: {lines}")
        before = step
    counted.figures["slowest answer, s"] = round(slowest, 2)


def test_r30_a_second_train_is_refused(data: Path, tmp_path: Path, tally: Any) -> None:
    """It names host and process, and the first run goes on; a reader finds a whole model at any time."""
    counted = tally("R30", "a second train in the folder refused; models read while training prunes")
    run = tmp_path / "run"
    arguments = command(data, run, "train.steps=100000", "train.eval_every=3", "train.keep_checkpoints=1")
    first = hnet(*arguments, stderr=tmp_path / "first")
    first.until("step 2  saved", run / "log.txt")
    # In a fresh process: what makes the answer slow is loading torch, so that must not come first.
    code = "import sys; from hnet_cli.cli.app import run; code = run(sys.argv[1:]); print('torch' in sys.modules, code)"
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    second = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    named = f"process {first.pid}" in second.stderr and os.uname().nodename in second.stderr
    counted.count(second.stdout == "False 73\n" and named, f"torch, exit code: {second.stdout} {second.stderr}")
    seconds = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    counted.count(seconds <= 2, f"{seconds} s of CPU time")
    counted.figures["CPU seconds to refuse"] = round(seconds, 2)
    third = hnet(*arguments, stderr=tmp_path / "third")  # and if it had come to the lock itself
    counted.count(third.wait() == 73 and not third.clumsy(), f"exit {third.code}: {third.said()}")
    for read in range(trials(20, 200, 200)):
        try:
            finding.load(run)
            counted.count(True)
        except Exception as error:
            counted.count(False, f"read {read}: {error}")
    first.send(signal.SIGTERM)
    counted.count(first.wait() == 75, f"the first ended with {first.code}")
    steps = [record["step"] for record in metrics(run) if "loss" in record]
    counted.count(steps == list(range(1, len(steps) + 1)), "its records are not those of one run")
