"""Models and checkpoints on disk: exact, found by every name, and never silently wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from runkit import SETTINGS, TWO_STAGES, dataset, tiny

import hnet_cli
from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints.convert import convert
from hnet_cli.checkpoints.find import default_model, find, load, newest
from hnet_cli.checkpoints.training_state import TrainingState, load_checkpoint, save_checkpoint
from hnet_cli.errors import DamagedError, InputError
from hnet_cli.training.build import build_model
from hnet_cli.training.loop import train
from hnet_cli.training.optim import build_optimizer

FILES = ["config.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(tiny("train.steps=3", "train.checkpoint_every=1", "train.eval_every=2"), dataset(folder), folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run with checkpoints of steps 2 (best or not) and 3."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def built(*settings, seed=0):
    """A model whose optimizer has taken a step."""
    config = tiny(*settings)
    torch.manual_seed(seed)
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def saved(folder, step, model, optimizer, keep=2, **state):
    state = TrainingState(step=step, **state)
    return save_checkpoint(folder, model, optimizer, state, {"modality": "text"}, [4.0], keep)


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


# -- exact -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [[], TWO_STAGES, ["train.optimizer=muon"]], ids=["one stage", "two stages", "muon"]
)
def test_what_is_loaded_is_what_was_saved(tmp_path, settings):
    model, optimizer = built(*settings)
    state = TrainingState(step=7, bytes_seen=99, best_bpb=1.25, best_step=5, skipped_steps=2, dataset="abc")
    random = torch.get_rng_state()
    folder = save_checkpoint(
        tmp_path, model, optimizer, state, {"modality": "text"}, [4.0] * model.config.num_stages, 2
    )
    other, fresh = built(*settings, seed=1)
    assert load_checkpoint(folder, other, fresh) == state
    assert torch.equal(torch.get_rng_state(), random)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[a].keys() == fresh.state[b].keys()
        assert all(torch.equal(optimizer.state[a][key], fresh.state[b][key]) for key in optimizer.state[a])
        b.grad = a.grad
    optimizer.step()
    fresh.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_same_state_gives_the_same_files(tmp_path):
    model, optimizer = built()
    one, two = (saved(tmp_path / name, 1, model, optimizer) for name in "ab")
    assert [(one / name).read_bytes() for name in FILES] == [(two / name).read_bytes() for name in FILES]


def test_a_model_folder_says_what_it_is(trained):
    stored = json.loads((find(trained) / "config.json").read_text())
    assert stored["arch_layout"] == ["m1", ["T1"], "m1"]
    assert stored["hnet"]["modality"] == "text"
    assert stored["hnet"]["target_ratios"] == [4.0]
    assert hnet_cli.HNetConfig.from_json(find(trained) / "config.json").target_ratios == (4.0,)


def test_the_python_interface(trained):
    model = hnet_cli.load(str(trained))
    data = "Kette — 世界, the quick brown fox".encode()
    chunks = model.segment(data)
    assert b"".join(chunks) == data
    assert len(chunks) > 1
    assert model.modality == "text"
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.segment(b"") == []


def is_mapped(tensor, path):
    """Return True if the system maps the tensor's pages from the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, name = line.split()[0], line.partition("/")[2]
        low, high = (int(bound, 16) for bound in bounds.split("-"))
        if low <= tensor.data_ptr() < high:
            return f"/{name}" == str(path.resolve())
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_stay_in_the_file(tmp_path, trained, dtype):
    """So that memory holds what is used; and nothing done to the model reaches the file."""
    convert(find(trained), tmp_path / "model", dtype={torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype])
    file = tmp_path / "model/model.safetensors"
    model = load(tmp_path / "model", dtype=dtype)
    for name, parameter in model.named_parameters():
        wide = "residual_proj" in name or name.endswith(".D")
        assert parameter.dtype == (torch.float32 if wide else dtype), name
        assert is_mapped(parameter, file) == (parameter.dtype == dtype), name
    before = file.read_bytes()
    with torch.no_grad():
        model.embeddings.weight.zero_()
    assert file.read_bytes() == before


def test_only_large_models_compute_in_half_precision(tmp_path, trained, monkeypatch):
    convert(find(trained), tmp_path / "model", dtype="bf16")
    exact = load(tmp_path / "model")
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    monkeypatch.setattr("hnet_cli.checkpoints.model_folder.WIDENED", 1000)
    large = load(tmp_path / "model")
    assert large.embeddings.weight.dtype == torch.bfloat16
    assert load(trained).embeddings.weight.dtype == torch.float32, "what is stored in float32 stays so"
    data = b"the quick brown fox jumps over the lazy dog " * 20
    assert b"".join(large.segment(data)) == data
    ids = torch.tensor([list(data)])
    with torch.no_grad():
        assert (large(ids).logits.float() - exact(ids).logits).abs().max() < 0.1
    state = large.allocate_state(1, 100)
    stepped = [large.prefill([data[:5]], state), *(large.step(ids[:, t], state)[0] for t in range(5, 20))]
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(stepped, 1), large(ids[:, :20]).logits[:, 4:], atol=0.1, rtol=0)


# -- found -------------------------------------------------------------------------------------------------------------


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


# -- damaged -----------------------------------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


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


def test_files_of_another_checkpoint_are_damage(run):
    two, three = (run / f"checkpoints/step-0000000{n}/model.safetensors" for n in (2, 3))
    shutil.copy(two, three)
    with pytest.raises(DamagedError, match="SHA-256"):
        load(three.parent)


def test_nothing_is_left(run):
    for folder in (run / "checkpoints").iterdir():
        truncate(folder / "model.safetensors")
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest(run) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b"[]", "config.json"),
        ("config.json", b"\xff", "config.json"),
        ("config.json", b"[" * 100_000, "config.json"),
        ("config.json", b'{"arch_layout": ["m1"]}', "lacks d_model"),
        ("model.safetensors", b"", "model.safetensors"),
        ("model.safetensors", b"\xff" * 64, "model.safetensors"),
        ("model.safetensors", b"\x80\x04cos\nsystem\n", "model.safetensors"),
    ],
)
def test_a_model_folder_without_manifest_is_checked_as_far_as_it_goes(run, name, content, said):
    folder = run / "checkpoints/step-00000003"
    (folder / "manifest.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedError, match=said):
        load(folder)


def test_weights_that_do_not_fit_the_configuration(run):
    folder = run / "checkpoints/step-00000003"
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_intermediate": [0, 256]}))
    with pytest.raises(DamagedError, match=r"does not fit its config\.json: 2 of another shape"):
        load(folder)


def test_a_checkpoint_does_not_go_into_another_model(run):
    model, optimizer = built("model.d_intermediate=[0, 256]")
    with pytest.raises(DamagedError, match="does not fit the configuration"):
        load_checkpoint(run / "checkpoints/step-00000003", model, optimizer)


def test_a_newer_format_is_refused_by_name(run):
    state = run / "checkpoints/step-00000003/state.json"
    state.write_text(state.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DamagedError, match="format 2") as error:
        load_checkpoint(state.parent, *built(*SETTINGS))
    assert "update hnet" in error.value.hint


# -- kept --------------------------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(tmp_path):
    model, optimizer = built()
    for step in range(1, 7):
        saved(tmp_path, step, model, optimizer, best_step=2 if step >= 2 else step)
        assert (tmp_path / "latest").read_text() == f"step-{step:08d}\n"
    assert steps(tmp_path) == [2, 5, 6]
    assert find(tmp_path).name == "step-00000002"
    saved(tmp_path, 7, model, optimizer, best_step=7)
    assert steps(tmp_path) == [6, 7]
    assert find(tmp_path).name == "step-00000007"


def test_saving_a_step_again_replaces_it(tmp_path):
    one, other = built(), built(seed=1)
    saved(tmp_path, 1, *one)
    folder = saved(tmp_path, 1, *other)
    assert steps(tmp_path) == [1]
    assert newest(tmp_path) == folder
    assert torch.equal(load(folder).lm_head.weight, other[0].lm_head.weight)
