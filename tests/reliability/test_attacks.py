"""Damage of every kind is found before the first step, and named; the last sound checkpoint is used instead."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forms import contents, flip_bit, trials

from hnet_cli import storage
from hnet_cli.checkpoints.find import newest, verify
from hnet_cli.config.run import RunConfig
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import DamagedError
from hnet_cli.training.loop import train


def open_dataset(folder: Path) -> None:
    """Check a dataset as `train` does before the first step."""
    Dataset.open(folder).verify()


def damage(check: Callable[[Path], object], folder: Path) -> str:
    """The damage that a check reports; "" if it finds none."""
    try:
        check(folder)
    except DamagedError as error:
        return str(error)
    return ""


def test_r8_every_flipped_bit_is_detected(home: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R8", "one flipped bit in a checkpoint or dataset: detected before the first step, the file named")
    luck = random.Random(8)
    for original, check in ((home / "run/checkpoints/step-00000003", verify), (home / "dataset", open_dataset)):
        folder = tmp_path / original.name
        shutil.copytree(original, folder)
        assert not damage(check, folder)
        files = contents(folder)
        for trial in range(trials(30, 500, 500)):
            name = luck.choice(list(files))
            (folder / name).write_bytes(flip_bit(files[name], luck))
            message = damage(check, folder)
            # These two tell what the others must be: a flip in them may be reported as damage of another file.
            named = name in message or name in ("manifest.json", "dataset.json")
            counted.count(bool(message) and named, f"trial {trial}, {name}: {message or 'not noticed'}")
            (folder / name).write_bytes(files[name])


def test_r9_truncated_missing_and_swapped_files(home: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R9", "files of a checkpoint truncated, missing, or swapped with another checkpoint's: named")
    luck = random.Random(9)
    original, other = (home / f"run/checkpoints/step-0000000{step}" for step in (3, 2))
    folder = tmp_path / original.name
    shutil.copytree(original, folder)
    files, others = contents(folder), contents(other)
    for _ in range(trials(12, 200, 200)):
        name = luck.choice(list(files))
        (folder / name).write_bytes(files[name][: luck.randrange(len(files[name]))])
        counted.count(name in damage(verify, folder), f"{name} truncated: {damage(verify, folder)}")
        (folder / name).write_bytes(files[name])
    for name, content in files.items():
        (folder / name).unlink()
        counted.count(name in damage(verify, folder), f"{name} missing: {damage(verify, folder)}")
        if others[name] != content:
            (folder / name).write_bytes(others[name])
            counted.count(bool(damage(verify, folder)), f"{name} of another checkpoint")
        (folder / name).write_bytes(content)
    (folder / "extra").write_bytes(b"")
    counted.count(not damage(verify, folder), "a further file does no harm")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    counted.count("step 2" in damage(verify, folder), "another checkpoint under its name")


def test_r10_a_damaged_newest_is_passed_over(home: Path, tmp_path: Path, three_steps: RunConfig, tally: Any) -> None:
    counted = tally("R10", "newest checkpoint damaged or missing: the one before, named; with --strict refused")
    checkpoint = Path("checkpoints/step-00000003")
    for name in [*contents(home / "run" / checkpoint), ""][:: trials(3, 1, 1)]:
        run = tmp_path / f"run {name}"
        shutil.copytree(home / "run", run)
        if name:
            (run / checkpoint / name).write_bytes((run / checkpoint / name).read_bytes()[:-2])
        else:
            shutil.rmtree(run / checkpoint)
        before = storage.file_sha256(run / "metrics.jsonl")
        with pytest.raises(DamagedError, match="step-00000003"):
            train(three_steps, home / "dataset", run, resume=True, strict=True)
        counted.count(storage.file_sha256(run / "metrics.jsonl") == before, f"{name}: --strict changed something")
        events: list[tuple[str, Any]] = []
        train(three_steps, home / "dataset", run, resume=True, listen=lambda *event: events.append(event))  # noqa: B023
        warnings = [record["message"] for kind, record in events if kind == "warning"]
        resumed = [record["step"] for kind, record in events if kind == "resume"]
        good = resumed == [2] and len(warnings) == 1 and "step-00000003" in warnings[0] and name in warnings[0]
        counted.count(good and newest(run) == run / checkpoint, f"{name}: {warnings}, {resumed}")
    run = tmp_path / "none"
    shutil.copytree(home / "run", run)
    for state in run.glob("checkpoints/*/state.json"):
        state.write_bytes(b"")
    with pytest.raises(DamagedError, match="no checkpoint"):
        train(three_steps, home / "dataset", run, resume=True)
    counted.count((run / "metrics.jsonl").exists(), "nothing whole: refused, not begun again")
