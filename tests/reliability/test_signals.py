"""Signals at any moment stop a run so that it can go on; a second process in the folder is refused."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import command, fresh, hnet
from forms import trials
from runkit import metrics

from hnet_cli.checkpoints.find import load, newest


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_r5_signals_at_random_moments(data: Path, tmp_path: Path, name: str, tally: Any) -> None:
    """Exit 75 and a saved step; a second signal does no harm, and a second Ctrl-C ends at once with 130."""
    counted = tally(
        "R5", "signals, once or twice, at random moments of train: exit 75, or 130 after a second Ctrl-C", name
    )
    luck, run, slowest, before = random.Random(name), tmp_path / "run", 0.0, 0
    arguments = command(data, run, "train.steps=100000", "train.eval_every=0")
    for trial in range(trials(2, 20, 50)):
        process = hnet(*arguments, stderr=tmp_path / "stderr")
        process.wait_for_text(f"step {before + 1}  saved" if trial else "saved", run / "log.txt")
        process.sleep(luck.uniform(0, 0.3))
        sent, twice = time.monotonic(), trial % 2 == 1
        process.send(signal.Signals[name])
        if twice:
            process.sleep(luck.uniform(0, 0.03))
            process.send(signal.Signals[name])
        code = process.wait()
        slowest = max(slowest, time.monotonic() - sent)
        folder = newest(run)
        step = int(folder.name[5:]) if folder else 0
        lines = [line for line in process.error.splitlines() if line.startswith("hnet:")]
        good = code == 75 or (code == 130 and twice and name == "SIGINT")
        good = good and step > before and len(lines) == 1 and "Traceback" not in process.error
        counted.count(good, f"trial {trial}: exit {code}, step {step} after {before}: {lines}")
        before = step
    counted.figures["slowest answer, s"] = round(slowest, 2)


def test_r30_a_second_train_is_refused(data: Path, tmp_path: Path, tally: Any, finisher: Any) -> None:
    """It names host and process, and the first run goes on; a reader finds a whole model at any time."""
    counted = tally("R30", "a second train in the folder refused; models read while training prunes")
    run = tmp_path / "run"
    arguments = command(data, run, "train.steps=100000", "train.eval_every=3", "train.keep_checkpoints=1")
    first = hnet(*arguments, stderr=tmp_path / "first")
    first.wait_for_text("step 2  saved", run / "log.txt")
    # In a fresh process: what makes the answer slow is loading torch, so that must not come first.
    stdout, stderr, seconds = fresh(*arguments)
    named = f"process {first.pid}" in stderr and os.uname().nodename in stderr
    counted.count(stdout == "False 73\n" and named, f"torch, exit code: {stdout} {stderr}")
    counted.count(seconds <= 2, f"{seconds} s of CPU time")
    counted.figures["CPU seconds to refuse"] = round(seconds, 2)
    # And one that comes as far as the lock.
    code, error = finisher("a second train")(hnet(*arguments, stderr=tmp_path / "third"))
    counted.count(code == 73, f"exit {code}: {error}")
    for read in range(trials(20, 200, 200)):
        try:
            load(run)
            counted.count(True)
        except Exception as error:
            counted.count(False, f"read {read}: {error}")
    first.send(signal.SIGTERM)
    counted.count(first.wait() == 75, f"the first ended with {first.code}")
    steps = [record["step"] for record in metrics(run) if "loss" in record]
    counted.count(steps == list(range(1, len(steps) + 1)), "its records are not those of one run")
