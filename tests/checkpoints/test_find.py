"""The default model: a finished run before one that is not, the newest first, and the choice is said with its age."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from checkpointkit import FILES
from runkit import dataset, tiny

from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints.find import default_model, find, load, load_any, newest
from hnet_cli.errors import DamagedError, InputError
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


def test_every_kind_of_model(run, tmp_path):
    checkpoints = run / "checkpoints"
    best = (run / "best").read_text().strip()
    assert find(run) == checkpoints / best
    assert find(checkpoints / "step-00000003") == checkpoints / "step-00000003"
    plain = tmp_path / "converted"
    plain.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoints / "step-00000003" / name, plain)
    assert find(plain) == plain
    assert load(plain).source == plain
    for (name, a), b in zip(
        load(plain).state_dict().items(), load(checkpoints / "step-00000003").state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["nonsense\n", "../../elsewhere\n", "", "step-00000099"])
def test_a_run_whose_best_is_not_there_gives_its_newest(run, name):
    (run / "best").write_text(name)
    assert find(run).name == "step-00000003"


def test_starter_models_are_found(trained, tmp_path, monkeypatch):
    """The models that ship are data beside the code; here one of ours stands there."""
    monkeypatch.setattr("hnet_cli.checkpoints.find.STARTERS", tmp_path)
    shutil.copytree(find(trained), tmp_path / "text")
    assert finding.starters() == ["starter:text"]
    assert find("starter:text") == tmp_path / "text"
    assert load("starter:text").modality == "text"


@pytest.mark.parametrize("name", ["starter:klingon", "starter:", "starter:../text", "starter:/"])
def test_a_starter_model_that_does_not_ship(name):
    with pytest.raises(InputError, match="no starter model is called"):
        find(name)


def test_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match="no model at"):
        find(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(DamagedError, match="is not a model"):
            find(place)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(DamagedError, match="no complete checkpoint") as error:
        find(tmp_path)
    assert "--resume" in error.value.hint


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {"flipped": flip, "truncated": truncate, "missing": os.remove, "emptied": lambda path: path.write_bytes(b"")}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_damage_is_found_and_named(run, name, damage):
    folder = run / "checkpoints/step-00000003"
    DAMAGE[damage](folder / name)
    if name in ("config.json", "model.safetensors"):  # all that a model needs
        with pytest.raises(DamagedError, match=f"step-00000003/{name}"):
            load(folder)
    with pytest.warns(UserWarning, match="step-00000003/"):
        assert newest(run).name == "step-00000002"


def test_nothing_is_left(run):
    for folder in (run / "checkpoints").iterdir():
        truncate(folder / "model.safetensors")
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest(run) is None


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"{}", b""])
def test_a_file_that_is_neither_a_model_nor_a_tokenizer(data, tmp_path):
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.bin is (no tokenizer\.json|not a byte-level BPE)"):
        load_any(str(tmp_path / "x.bin"))
