"""Damage of every kind is found before the first step, and named; what is whole is gone back to."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import SMALLER
from forms import trials
from runkit import dataset, tiny

from hnet_cli import storage
from hnet_cli.checkpoints.find import newest, verify
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import DamagedError
from hnet_cli.training.loop import train

THREE = ["train.steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=3", "train.eval_every=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a run on it with checkpoints of steps 1, 2 and 3."""
    home = tmp_path_factory.mktemp("home")
    dataset(home)
    config = tiny(*SMALLER, *THREE)
    train(config, home / "dataset", home / "run")
    return home


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def open_dataset(folder: Path) -> None:
    """What `train` does before the first step."""
    Dataset.open(folder).verify()


def told(check: Callable[[], object]) -> str:
    """What a check says about damage; "" if it finds none."""
    try:
        check()
    except DamagedError as error:
        return str(error)
    return ""


def test_r8_every_flipped_bit_is_detected(home: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R8", "one flipped bit in a checkpoint or dataset: detected before the first step, the file named")
    luck = random.Random(8)
    folders = {home / "run/checkpoints/step-00000003": verify, home / "dataset": open_dataset}
    for original, check in folders.items():
        folder = tmp_path / original.name
        shutil.copytree(original, folder)
        assert not told(lambda: check(folder))  # noqa: B023
        for _ in range(trials(30, 500, 500)):
            file = luck.choice(files(folder))
            whole = file.read_bytes()
            bit = luck.randrange(8 * len(whole))
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            said = told(lambda: check(folder))  # noqa: B023
            # These two tell what the others must be: a flip in them may be told as damage of another file.
            named = file.name in said or file.name in ("manifest.json", "dataset.json")
            counted.count(bool(said) and named, f"bit {bit} of {file.name}: {said or 'not noticed'}")
            file.write_bytes(whole)


def test_r9_truncated_missing_and_swapped_files(home: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R9", "files of a checkpoint truncated, missing, or swapped with another checkpoint's: named")
    luck = random.Random(9)
    original, other = (home / f"run/checkpoints/step-0000000{step}" for step in (3, 2))
    folder = tmp_path / original.name
    shutil.copytree(original, folder)
    for _ in range(trials(12, 200, 200)):
        file = luck.choice(files(folder))
        whole = file.read_bytes()
        file.write_bytes(whole[: luck.randrange(len(whole))])
        said = told(lambda: verify(folder))
        counted.count(file.name in said, f"{file.name} truncated: {said}")
        file.write_bytes(whole)
    for file in files(folder):
        whole = file.read_bytes()
        file.unlink()
        said = told(lambda: verify(folder))
        counted.count(file.name in said, f"{file.name} missing: {said}")
        if (other / file.name).read_bytes() != whole:
            shutil.copy(other / file.name, file)
            counted.count(bool(told(lambda: verify(folder))), f"{file.name} of another checkpoint")
        file.write_bytes(whole)
    (folder / "extra").write_bytes(b"")
    counted.count(not told(lambda: verify(folder)), "a file more does no harm")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    counted.count("step 2" in told(lambda: verify(folder)), "another checkpoint under its name")


def test_r10_a_damaged_newest_is_passed_over(home: Path, tmp_path: Path, tally: Any) -> None:
    counted = tally("R10", "newest checkpoint damaged or missing: the one before, named; with --strict refused")
    config = tiny(*SMALLER, *THREE)
    newest_of = home / "run/checkpoints/step-00000003"
    names = [*(file.name for file in files(newest_of)), ""]
    for name in names[:: trials(3, 1, 1)]:
        run = tmp_path / f"run {name}"
        shutil.copytree(home / "run", run)
        damaged = run / "checkpoints" / newest_of.name / name
        if name:
            damaged.write_bytes(damaged.read_bytes()[:-2])
        else:
            shutil.rmtree(damaged)
        before = storage.file_sha256(run / "metrics.jsonl")
        with pytest.raises(DamagedError, match="step-00000003"):
            train(config, home / "dataset", run, resume=True, strict=True)
        counted.count(storage.file_sha256(run / "metrics.jsonl") == before, f"{name}: --strict changed something")
        heard: list[tuple[str, Any]] = []
        train(config, home / "dataset", run, resume=True, listen=lambda kind, r: heard.append((kind, r)))  # noqa: B023
        warned = [record["message"] for kind, record in heard if kind == "warning"]
        resumed = [record["step"] for kind, record in heard if kind == "resume"]
        good = resumed == [2] and len(warned) == 1 and "step-00000003" in warned[0] and name in warned[0]
        counted.count(good and newest(run) == run / "checkpoints/step-00000003", f"{name}: {warned}, {resumed}")
    run = tmp_path / "none"
    shutil.copytree(home / "run", run)
    for state in run.glob("checkpoints/*/state.json"):
        state.write_bytes(b"")
    with pytest.raises(DamagedError, match="no checkpoint"):
        train(config, home / "dataset", run, resume=True)
    counted.count((run / "metrics.jsonl").exists(), "nothing whole: refused, not begun again")
