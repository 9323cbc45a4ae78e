"""Checkpoints of a run: exact, kept as long as they should be, and never silently wrong."""

import contextlib
import json
import random

import pytest
import torch
from checkpointkit import FILES, built, saved, steps
from runkit import SETTINGS, TWO_STAGES
from safetensors.torch import load_file, save_file
from strangerkit import changed

from hnet_cli.checkpoints.find import find, load, newest
from hnet_cli.checkpoints.training_state import TrainingState, _read_state, load_checkpoint, save_checkpoint
from hnet_cli.errors import DamagedError


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


MOMENT = "embeddings.weight|exp_avg"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda moments: moments.pop(MOMENT),
        lambda moments: moments.update({MOMENT: moments[MOMENT].double()}),
        lambda moments: moments.update({MOMENT: moments[MOMENT][:-1].contiguous()}),
        lambda moments: moments.update({MOMENT: moments[MOMENT] * float("nan")}),
        lambda moments: moments.update({f"{MOMENT}_sq": -moments[MOMENT].abs()}),
        lambda moments: moments.update({"embeddings.weight|step": torch.tensor(-1.0)}),
        lambda moments: moments.update({"embeddings.weight|mine": torch.tensor(1.0)}),
        lambda moments: moments.update({"nobody|step": torch.tensor(1.0)}),
        lambda moments: [moments.pop(key) for key in list(moments) if key.startswith("embeddings")],
    ],
    ids=["missing", "dtype", "shape", "nan", "negative", "steps", "kind", "name", "none"],
)
def test_moments_that_no_optimizer_left_are_damage(tmp_path, spoil):
    model, optimizer = built()
    file = saved(tmp_path, 1, model, optimizer) / "optimizer.safetensors"
    moments = load_file(file)
    spoil(moments)
    save_file(moments, file)
    with pytest.raises(DamagedError, match=r"optimizer\.safetensors"):
        load_checkpoint(file.parent, *built(seed=1))


def test_a_state_is_typed_and_bounded(tmp_path):
    """Whatever stands in the place of a value, it is refused by its name or one that a state can have."""
    file = saved(tmp_path, 1, *built(), best_bpb=1.5, best_step=1, watch={"spike": 0.0}) / "state.json"
    stored = json.loads(file.read_text())
    for values in ({"best_bpb": 1e31}, {"watch": {"spike": -1e31}}, {"step": 10**16}, {"probe_depth": "1x"}):
        file.write_text(json.dumps(stored | values))
        with pytest.raises(DamagedError, match=next(iter(values))):
            _read_state(file.parent)
    for number in range(300):
        text, what = changed(stored, random.Random(number))
        file.write_text(text)
        with contextlib.suppress(DamagedError):
            state = _read_state(file.parent)
            assert 0 <= state.step <= 10**15, what
            assert all(abs(value) <= 1e30 for value in state.watch.values()), what


LIMITS = {
    "step": (-1, 10**15 + 1, 1.5, True),
    "bytes_seen": (-1, 10**15 + 1),
    "best_bpb": (-2e30, 2e30, "1"),
    "best_step": (-1, 10**15 + 1),
    "skipped_steps": (-1, 10**15 + 1),
    "skipped_in_a_row": (-1, 10**15 + 1),
    "dataset": ("x" * ((1 << 13) + 1), 3),
    "probe_depth": ("1" * ((1 << 16) + 1), "1x", "١"),
    "watch": ({"spike": 2e30}, {str(n): 0.0 for n in range(1001)}, []),
}


def test_every_field_of_a_state_has_limits(tmp_path):
    file = saved(tmp_path, 1, *built(), best_bpb=1.5, best_step=1, watch={"spike": 0.0}) / "state.json"
    stored = json.loads(file.read_text())
    assert LIMITS.keys() == stored.keys() - {"format"}
    for name, values in LIMITS.items():
        for value in values:
            file.write_text(json.dumps(stored | {name: value}))
            with pytest.raises(DamagedError, match=rf"state\.json is damaged: {name}"):
                _read_state(file.parent)
