"""Many ranks are one run (R22), and stop like one (R5). The short form is tests/distributed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import poll
from forms import FORM, trials
from rankkit import losses, trained, without
from runkit import SETTINGS, TWO_STAGES, metrics, tiny, weights

from hnet_cli.checkpoints import find as finding

pytestmark = pytest.mark.skipif(FORM == "short", reason="tests/distributed is the short form")


@pytest.mark.parametrize("shard", ["none", "full"])
def test_r22_ranks_are_micro_batches(data: Path, tmp_path: Path, shard: str, tally: Any) -> None:
    """50 steps on 2 ranks, bit for bit; on 4 ranks to rounding."""
    counted = tally("R22", "50 steps: 2 ranks = 2 micro-batches, 4 ranks = 4", f"shard={shard}")
    settings = [*TWO_STAGES, "train.steps=50", "train.eval_every=25", f"train.shard={shard}"]
    for ranks in (2, 4):
        config = tiny(*settings, f"train.micro_batches={ranks}")
        one = trained(config, data, tmp_path / f"one-{ranks}", 1)
        many = trained(config, data, tmp_path / f"many-{ranks}", ranks)
        if ranks == 2:
            same = weights(one) == weights(many) and metrics(one) == without(metrics(many), "imbalance")
            counted.count(same, "2 ranks differ from 2 micro-batches")
        else:
            worst = max(abs(a - b) / a for a, b in zip(losses(one), losses(many), strict=True))
            counted.count(worst < 1e-5, f"{ranks} ranks: losses differ by {worst:.1e}")
            counted.figures[f"{ranks} ranks, largest difference of a loss"] = f"{worst:.0e}"


def test_r5_torchrun_passes_a_signal_on(data: Path, tmp_path: Path, tally: Any) -> None:
    """SIGTERM to torchrun at random moments: one checkpoint more, one line, and the run goes on from there."""
    counted = tally("R5", "SIGTERM to torchrun with 2 ranks at random moments: saved, said once, resumed")
    run, before, luck = tmp_path / "run", 0, random.Random(5)
    settings = [*SETTINGS, "train.steps=100000", "train.eval_every=0", "train.checkpoint_every=1000"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "hnet_cli"]
    train = ["train", "--preset", "nano", "--data", str(data), "--run", str(run), "--device", "cpu"]
    command = [sys.executable, *torchrun, *train, *(word for setting in settings for word in ("--set", setting))]
    for trial in range(trials(1, 2, 10)):
        said = tmp_path / f"said-{trial}"
        with said.open("w") as stderr:
            resume = ["--resume"] if trial else []
            process = subprocess.Popen([*command, *resume], stderr=stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
        log, begun = run / "log.txt", f"step {before + 3} "
        assert poll(lambda: log.exists() and begun in log.read_text(), 300), said.read_text()  # noqa: B023
        time.sleep(luck.uniform(0, 0.3))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        folder = finding.newest(run)
        step = int(folder.name[5:]) if folder else 0
        lines = [line for line in said.read_text().splitlines() if line.startswith("hnet: stopped by SIGTERM")]
        counted.count(step >= before + 3 and len(lines) == 1, f"trial {trial}: step {step} after {before}, {lines}")
        before = step
