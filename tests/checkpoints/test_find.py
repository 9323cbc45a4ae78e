"""Models are found by every name, and what is damaged is passed over or named."""

import os
import shutil

import pytest
import torch
from checkpointkit import FILES

from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints.find import default_model, find, load, newest
from hnet_cli.errors import DamagedError, InputError


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


def test_the_default_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HNET_MODEL", raising=False)
    monkeypatch.setattr("hnet_cli.checkpoints.find.STARTERS", tmp_path / "starters")
    with pytest.raises(InputError, match="no model for dna"):
        default_model("dna")
    shutil.copytree(find(run), tmp_path / "starters/dna")
    assert default_model("dna") == "starter:dna"
    for age, name in ((3, "old"), (2, "new"), (1, "dna"), (0, "unfinished")):
        shutil.copytree(run, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "latest", (1e9 - age, 1e9 - age))
    config = tmp_path / f"runs/dna/checkpoints/{find(run).name}/config.json"
    config.write_text(config.read_text().replace('"text"', '"dna"'))
    shutil.rmtree(tmp_path / "runs/unfinished/checkpoints")
    assert default_model("text") == "runs/new"
    assert default_model("dna") == "runs/dna"
    assert default_model() == "runs/dna"
    with pytest.raises(InputError, match="no model for code"):
        default_model("code")
    monkeypatch.setenv("HNET_MODEL", "mine")
    assert default_model("text") == default_model() == "mine"


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
