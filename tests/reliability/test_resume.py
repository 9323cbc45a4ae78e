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
from runkit import dataset, metrics, tiny

from hnet_cli import storage
from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints.find import has_any, newest, verify
from hnet_cli.config.run import resolve
from hnet_cli.errors import DamagedError
from hnet_cli.training.loop import train

CLOCK = {"bytes_per_s", "seconds", "step_ms"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("fox"))


def acknowledged(run: Path) -> int:
    """The last step that was said to be saved."""
    file = run / "acknowledged"
    steps = re.findall(r"checkpoint (\d+)\n", file.read_text()) if file.exists() else []
    return int(steps[-1]) if steps else 0


def test_r2_killed_at_random_moments(data: Path, tmp_path: Path, tally: Any) -> None:
    """One run, killed again and again: each time it goes on from a whole checkpoint, and none it told of is lost.

    The kills come while it starts (1 of 5), at a random moment of one of the next steps, and in the save of one.
    """
    counted = tally("R2", "kill -9 of train at random moments of its start, its steps and its saves")
    luck, run, folders = random.Random(2), tmp_path / "run", tmp_path / "run/checkpoints"
    endless = tiny(*SMALLER, "train.checkpoint_every=1", "train.eval_every=0", "train.steps=100000")
    start = pace = 0.2
    during, resumed, reached = 0, 0, set[int]()
    for trial in range(trials(12, 100, 300)):
        before, began = acknowledged(run), time.monotonic()
        process = training(endless, data, run, tmp_path / "stderr")
        if trial % 5 == 4:
            process.sleep(luck.uniform(0, start))
        else:
            process.until(f"resume {before}" if before else "checkpoint 1", run / "acknowledged")
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
        said: list[str] = []
        folder = newest(run, said.append)
        found, told = int(folder.name[5:]) if folder else 0, acknowledged(run)
        reached.add(found)
        why = ""
        if process.code != -9:
            why = f"it ended with {process.code}: {process.said()[-300:]}"
        elif said:
            why = f"torn: {said[0]}"
        elif found < told:
            why = f"step {told} was acknowledged, {found} is there"
        counted.count(not why, f"trial {trial}: {why}")
        (run / "acknowledged").write_text(f"checkpoint {found}\n")
    assert during or counted.n < 50, "no kill came in the middle of a save"  # which takes milliseconds
    assert resumed > counted.n // 2, "it seldom went on"
    assert len(reached) > counted.n // 3, f"killed at steps {reached} only"
    counted.figures |= {"kills during a save": during, "steps trained": found, "different steps": len(reached)}
    last = tiny(*SMALLER, "train.checkpoint_every=1", "train.eval_every=0", f"train.steps={found + 3}")
    final = training(last, data, run, tmp_path / "stderr")
    counted.count(final.wait() == 0, f"it does not go on: {final.said()[-300:]}")
    steps_logged = [record["step"] for record in metrics(run) if "loss" in record]
    counted.count(steps_logged == list(range(1, found + 4)), "its records are not those of one run")
    left = [path.name for path in run.rglob(".*tmp*")]
    counted.count(not left, f"left behind: {left}")


def trace(run: Path) -> tuple[list[dict[str, Any]], str]:
    """All but the clock of a run's records, and the SHA-256 of its last weights."""
    records = [{k: v for k, v in record.items() if k not in CLOCK} for record in metrics(run)]
    folder = newest(run)
    assert folder is not None
    return records, hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_r3_killed_three_times_is_never_killed(data: Path, tmp_path: Path, tally: Any) -> None:
    """Records and weights are those of the run that nothing happened to, bit for bit, each step once."""
    counted = tally("R3", "runs killed 3 times and resumed: records and final weights, bit for bit")
    last = trials(6, 12, 12)
    config = tiny(*SMALLER, f"train.steps={last}", "train.checkpoint_every=2", "train.eval_every=5")
    began = time.monotonic()
    assert training(config, data, tmp_path / "whole", tmp_path / "stderr").wait() == 0
    took = time.monotonic() - began
    expected = trace(tmp_path / "whole")
    luck = random.Random(3)
    for trial in range(trials(2, 10, 20)):
        run, kills = tmp_path / f"run{trial}", 0
        while kills < 3:
            process = training(config, data, run, tmp_path / "stderr")
            process.sleep(luck.uniform(0.1, 0.6) * took)
            process.kill()
            kills += 1
            if process.code != -9:
                break
        process = training(config, data, run, tmp_path / "stderr")
        ended = process.wait()
        found = trace(run)
        steps = [record["step"] for record in found[0] if "loss" in record]
        good = ended == 0 and found == expected and steps == list(range(1, last + 1))
        counted.count(good, f"trial {trial}: ended {ended}, {len(found[0])} records, weights {found[1][:8]}")


def test_r23_the_same_command_twice(data: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R23", "the same command twice: records and weights, bit for bit")
    traces = []
    for name in ("a", "b"):
        process = hnet(*command(data, tmp_path / name, "train.steps=5"), stderr=tmp_path / "stderr")
        assert process.wait() == 0, process.said()
        traces.append(trace(tmp_path / name))
    counted.count(traces[0] == traces[1], "the runs differ")


def test_r12_settings_that_make_another_run_are_refused(data: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R12", "settings changed on resume: shown, and refused where they make another run")
    run = tmp_path / "run"
    assert hnet(*command(data, run, "train.steps=2"), stderr=tmp_path / "stderr").wait() == 0
    resume = ["train", "--run", run, "--device", "cpu", "--resume", "--set", "train.steps=3"]
    refused = (
        ("train.seed", 7, "train.seed from 0 to 7"),
        ("train.sequence_length", 32, "train.sequence_length from 64 to 32"),
        ("train.batch_bytes", 512, "train.batch_bytes from 256 to 512"),
        ("model.d_intermediate", [0, 64], "model.d_intermediate from [0, 32] to [0, 64]"),
    )
    for setting, value, shown in refused[:: trials(3, 1, 1)]:
        process = hnet(*resume, "--set", f"{setting}={value}", stderr=tmp_path / "stderr")
        counted.count(process.wait() == 2 and shown in process.said(), f"{setting}: {process.code} {process.said()}")
    process = hnet(*resume, "--set", "train.lr=1e-4", stderr=tmp_path / "stderr")
    fine = process.wait() == 0 and "train.lr from" in process.said() and "train.steps from 2 to 3" in process.said()
    counted.count(fine, f"a change that may be: {process.code} {process.said()}")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    process = hnet(*resume, stderr=tmp_path / "stderr")
    told = process.wait() == 0 and "train.seed is 1, not 0" in process.said()
    counted.count(told, f"config.yaml was edited: {process.code} {process.said()}")
    assert json.loads((verify_newest(run) / "state.json").read_text())["step"] == 3


@pytest.mark.parametrize("folder", sorted((Path(__file__).parents[1] / "golden").glob("run-*")), ids=lambda f: f.name)
def test_r12_r23_golden_runs_go_on_as_they_did(folder: Path, tmp_path: Path, tally: Any) -> None:
    """Every format that was released still loads and resumes; the curve is that of the day it was written."""
    loads = tally("R12", "a run in the format of its day: verifies, loads, resumes", folder.name)
    same = tally("R23", "golden curve of losses and gradient norm, exact on its build of torch, else 1e-4", folder.name)
    golden = json.loads((folder / "curve.json").read_text())
    stopped = newest(folder / "run")
    assert stopped is not None
    verify(stopped)
    loads.count(finding.load(stopped).segment(b"The quick brown fox")[0] != b"", "no chunks")
    curve = golden_curve.of(folder)
    loads.count(len(curve) == golden_curve.STEPS, f"{len(curve)} steps")
    exact = all(golden[key] == value for key, value in golden_curve.build().items())
    for step, (found, wanted) in enumerate(zip(curve, golden["curve"], strict=True), 1):
        close = found == wanted if exact else np.allclose(found, wanted, rtol=1e-4, atol=1e-4)
        same.count(close, f"step {step}: {found}, not {wanted}")
    same.figures["exact"] = exact


def test_r12_a_newer_format_is_refused_by_name(tmp_path: Path, tally: Any) -> None:
    counted = tally("R12", "checkpoints and models of a newer format: refused, the format named")
    source = next((Path(__file__).parents[1] / "golden").glob("run-*"))
    for name in ("manifest.json", "state.json"):
        golden = tmp_path / name
        shutil.copytree(source, golden)
        folder = next((golden / "run/checkpoints").glob("step-*"))
        changed = json.loads((folder / name).read_text()) | {"format": 99}
        storage.write_json(folder / name, changed)
        if name != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            storage.write_json(folder / "manifest.json", manifest)
        with pytest.raises(DamagedError, match="format 99") as told:
            train(resolve(str(folder / "config.yaml")), golden / "dataset", golden / "run", resume=True, strict=True)
        counted.count(str(golden) in str(told.value), f"{name}: {told.value}")


def verify_newest(run: Path) -> Path:
    assert has_any(run)
    folder = newest(run)
    assert folder is not None
    return verify(folder)
