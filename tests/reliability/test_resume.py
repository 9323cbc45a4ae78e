"""Runs killed at any moment go on from what was saved, and end with the same bits as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import golden_curve
import numpy as np
import pytest
from commands import SMALLER, command, hnet, training
from forms import trials
from runkit import metrics, tiny, weights

from hnet_cli import storage
from hnet_cli.checkpoints.find import load, newest, verify
from hnet_cli.config.run import resolve
from hnet_cli.errors import DamagedError
from hnet_cli.training.loop import train

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("run-*"))
EVERY_STEP = (*SMALLER, "train.checkpoint_every=1", "train.eval_every=0")


def acknowledged(run: Path) -> int:
    """The last step that was reported as saved."""
    file = run / "acknowledged"
    steps = re.findall(r"checkpoint (\d+)\n", file.read_text()) if file.exists() else []
    return int(steps[-1]) if steps else 0


def newest_step(run: Path, messages: list[str]) -> int:
    """The step of the newest checkpoint, 0 without one; what is wrong with others goes to `messages`."""
    folder = newest(run, messages.append)
    return int(folder.name[5:]) if folder else 0


def logged_steps(run: Path) -> list[int]:
    return [record["step"] for record in metrics(run) if "loss" in record]


def test_r2_killed_at_random_moments(data: Path, tmp_path: Path, tally: Any) -> None:
    """One run, killed again and again: each time it goes on from a whole checkpoint, and none it reported is lost.

    The kills come while it starts (1 of 5), at a random moment of one of the next steps, and in the save of one.
    """
    counted = tally("R2", "kill -9 of train at random moments of its start, its steps and its saves")
    luck, run, folders = random.Random(2), tmp_path / "run", tmp_path / "run/checkpoints"
    endless = tiny(*EVERY_STEP, "train.steps=100000")
    start = pace = 0.2  # seconds that a start and a step take
    during, resumed, reached = 0, 0, list[int]()
    for trial in range(trials(12, 100, 300)):
        before, began = acknowledged(run), time.monotonic()
        process = training(endless, data, run, tmp_path / "stderr")
        if trial % 5 == 4:
            process.sleep(luck.uniform(0, start))
        else:
            process.wait_for_text(f"resume {before}" if before else "checkpoint 1", run / "acknowledged")
            start = time.monotonic() - began
            steps, began = luck.randrange(1, trials(4, 8, 8)), time.monotonic()
            process.wait_for(lambda: acknowledged(run) >= before + steps, "more steps")  # noqa: B023
            pace = (time.monotonic() - began) / steps
            if trial % 2:
                process.wait_for(lambda: any(folders.glob(".step-*")), "a save")
                process.sleep(luck.choice([0, luck.uniform(0, pace / 2)]))
            else:
                process.sleep(luck.uniform(0, pace))
        process.kill()
        during += any(folders.glob(".step-*"))
        resumed += "resume" in (run / "acknowledged").read_text()
        torn: list[str] = []
        reached.append(newest_step(run, torn))
        good = process.code == -9 and not torn and reached[-1] >= acknowledged(run)
        why = f"step {acknowledged(run)} reported, {reached[-1]} is there, {torn}, exit {process.code}"
        counted.count(good, f"trial {trial}: {why}: {process.error[-300:]}")
        (run / "acknowledged").write_text(f"checkpoint {reached[-1]}\n")
    assert during or counted.n < 50, "no kill came in the middle of a save"  # which takes milliseconds
    assert resumed > counted.n // 2, "it seldom went on"
    assert len(set(reached)) > counted.n // 3, f"killed at steps {set(reached)} only"
    counted.figures |= {
        "kills during a save": during,
        "steps trained": reached[-1],
        "different steps": len(set(reached)),
    }
    last = reached[-1] + 3
    final = training(tiny(*EVERY_STEP, f"train.steps={last}"), data, run, tmp_path / "stderr")
    counted.count(final.wait() == 0, f"it does not go on: {final.error[-300:]}")
    counted.count(logged_steps(run) == list(range(1, last + 1)), "its records are not those of one run")
    left = [path.name for path in run.rglob(".*tmp*")]
    counted.count(not left, f"left behind: {left}")


def trace(run: Path) -> tuple[list[dict[str, Any]], bytes]:
    """All but the clock of a run's records, and its last weights."""
    clock = {"seconds", "step_ms"}
    return [{k: v for k, v in record.items() if k not in clock} for record in metrics(run)], weights(run)


def test_r3_r23_killed_three_times_is_never_killed(data: Path, tmp_path: Path, tally: Any) -> None:
    """Records and weights are those of the run that nothing happened to, bit for bit, each step once."""
    counted = tally("R3", "runs killed 3 times and resumed: records and final weights, bit for bit")
    twice = tally("R23", "the same command twice: records and weights, bit for bit")
    last = trials(6, 12, 12)
    settings = (f"train.steps={last}", "train.checkpoint_every=2", "train.eval_every=5")
    config = tiny(*SMALLER, *settings)
    began = time.monotonic()
    assert training(config, data, tmp_path / "whole", tmp_path / "stderr").wait() == 0
    took = time.monotonic() - began
    expected = trace(tmp_path / "whole")
    process = hnet(*command(data, tmp_path / "again", *settings), stderr=tmp_path / "stderr")
    twice.count(process.wait() == 0 and trace(tmp_path / "again") == expected, f"the runs differ: {process.error}")
    luck = random.Random(3)
    for trial in range(trials(2, 10, 20)):
        run = tmp_path / f"run{trial}"
        for _ in range(3):
            process = training(config, data, run, tmp_path / "stderr")
            process.sleep(luck.uniform(0.1, 0.6) * took)
            process.kill()
            if process.code != -9:
                break
        ended = training(config, data, run, tmp_path / "stderr").wait()
        good = ended == 0 and trace(run) == expected and logged_steps(run) == list(range(1, last + 1))
        counted.count(good, f"trial {trial}: ended {ended}, steps {logged_steps(run)}")


def test_r12_settings_that_make_another_run_are_refused(data: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R12", "settings changed on resume: shown, and refused where they make another run")
    run = tmp_path / "run"
    assert hnet(*command(data, run, "train.steps=2"), stderr=tmp_path / "stderr").wait() == 0
    resume = ["train", "--run", run, "--device", "cpu", "--resume", "--set", "train.steps=3"]

    def resumed(code: int, *shown: str, setting: str = "train.steps=3") -> None:
        process = hnet(*resume, "--set", setting, stderr=tmp_path / "stderr")
        good = process.wait() == code and all(text in process.error for text in shown)
        counted.count(good, f"{setting}: exit {process.code}: {process.error}")

    refused = {
        "train.seed=7": "train.seed from 0 to 7",
        "train.sequence_length=32": "train.sequence_length from 64 to 32",
        "train.batch_bytes=512": "train.batch_bytes from 256 to 512",
        "model.d_intermediate=[0, 64]": "model.d_intermediate from [0, 32] to [0, 64]",
    }
    for setting, change in list(refused.items())[:: trials(3, 1, 1)]:
        resumed(2, change, setting=setting)
    resumed(0, "train.lr from", "train.steps from 2 to 3", setting="train.lr=1e-4")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    resumed(0, "train.seed is 1, not 0")
    folder = newest(run)
    assert folder is not None
    assert json.loads((verify(folder) / "state.json").read_text())["step"] == 3


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_r12_r23_golden_runs_go_on_as_they_did(folder: Path, tmp_path: Path, tally: Any) -> None:
    """Every format that was released still loads and resumes; the curve is that of the day it was written."""
    loads = tally("R12", "a run in the format of its day: verifies, loads, resumes", folder.name)
    same = tally("R23", "golden curve of losses and gradient norm, exact on its build of torch, else 1e-4", folder.name)
    golden = json.loads((folder / "curve.json").read_text())
    stopped = newest(folder / "run")
    assert stopped is not None
    verify(stopped)
    loads.count(load(stopped).segment(b"The quick brown fox")[0] != b"", "no chunks")
    curve = golden_curve.of(folder)
    loads.count(len(curve) == golden_curve.STEPS, f"{len(curve)} steps")
    exact = all(golden[key] == value for key, value in golden_curve.build().items())
    for step, (values, wanted) in enumerate(zip(curve, golden["curve"], strict=True), 1):
        close = values == wanted if exact else np.allclose(values, wanted, rtol=1e-4, atol=1e-4)
        same.count(close, f"step {step}: {values}, not {wanted}")
    same.figures["exact"] = exact


def test_r12_a_newer_format_is_refused_by_name(tmp_path: Path, tally: Any) -> None:
    counted = tally("R12", "checkpoints and models of a newer format: refused, the format named")
    for name in ("manifest.json", "state.json"):
        golden = tmp_path / name
        shutil.copytree(GOLDEN[0], golden)
        folder = next((golden / "run/checkpoints").glob("step-*"))
        changed = json.loads((folder / name).read_text()) | {"format": 99}
        storage.write_json(folder / name, changed)
        if name != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            storage.write_json(folder / "manifest.json", manifest)
        with pytest.raises(DamagedError, match="format 99") as error:
            train(resolve(str(folder / "config.yaml")), golden / "dataset", golden / "run", resume=True, strict=True)
        counted.count(str(golden) in str(error.value), f"{name}: {error.value}")
