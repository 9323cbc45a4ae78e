"""The default model: a finished run before one that is not, the newest first, and the choice is said with its age."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from runkit import dataset, tiny

from hnet_cli.checkpoints.find import default_model, find
from hnet_cli.errors import InputError
from hnet_cli.training.loop import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("find")
    config = tiny("train.steps=2", "train.eval_every=0", "train.eval_bytes=128", "train.checkpoint_every=1")
    train(config, dataset(folder), folder / "run")
    return folder / "run"


@pytest.fixture
def runs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes `runs/NAME`, saved so many days ago; with `unfinished` as if it had been stopped after its first step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HNET_MODEL", raising=False)

    def make(name: str, days: float, unfinished: bool = False, modality: str = "text") -> Path:
        run = shutil.copytree(finished, Path("runs") / name)
        if unfinished:
            shutil.rmtree(run / "checkpoints/step-00000002")
            (run / "latest").write_text("step-00000001\n")
            (run / "best").unlink()
        for config in run.glob("checkpoints/*/config.json"):
            config.write_text(config.read_text().replace('"text"', f'"{modality}"'))
        os.utime(run / "latest", (time.time() - days * 86400 - 1,) * 2)
        return run

    return make


def test_a_finished_run_comes_before_a_newer_one_that_is_not(runs, capsys) -> None:
    runs("old", 30)
    runs("done", 3)
    runs("going", 0, unfinished=True)
    assert default_model("text", "by the look of it") == "runs/done"
    assert "Model: runs/done (text by the look of it; finished 3 days ago)" in capsys.readouterr().err
    assert default_model() == "runs/done"
    assert "(text; finished 3 days ago)" in capsys.readouterr().err


def test_one_that_is_not_finished_is_better_than_none_and_is_said(runs, capsys) -> None:
    runs("going", 1 / 24, unfinished=True)
    runs("genome", 0, modality="dna")
    assert default_model("text") == "runs/going"
    assert "not finished, saved 1 hour ago" in capsys.readouterr().err
    assert default_model() == "runs/genome"


def test_a_run_that_is_damaged_or_odd_is_passed_over(runs, capsys) -> None:
    runs("good", 9)
    for name, content in (("nul", b"\0"), ("huge", b"step-" + b"9" * 400), ("none", b"step-00000007\n")):
        run = runs(name, 0, unfinished=True)
        (run / "latest").write_bytes(content)
        (run / "checkpoints/step-00000001/config.yaml").write_text("[")
    assert default_model("text") == "runs/good"


def test_without_a_run_it_is_the_starter(runs, capsys) -> None:
    runs("genome", 0, modality="dna")
    assert default_model("chinese") == "starter:chinese"
    assert "starter:chinese (chinese; comes with hnet" in capsys.readouterr().err
    with pytest.raises(InputError, match="no model for morse yet"):
        default_model("morse")


def test_the_users_own_choice(runs, monkeypatch, capsys) -> None:
    runs("good", 9)
    monkeypatch.setenv("HNET_MODEL", "mine")
    assert default_model("text") == default_model() == "mine"
    assert "$HNET_MODEL" in capsys.readouterr().err


def test_a_run_is_its_best_checkpoint(finished: Path) -> None:
    assert find(finished).name == (finished / "best").read_text().strip()
