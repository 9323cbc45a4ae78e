"""A step that begins before the numbers of the one before are read, as on a GPU: the same run, told the same way.

Here on a CPU, whose fused AdamW leaves out a step in the same way.
"""

import json
import signal

import numpy as np
import pytest
import torch
from runkit import FLAT, metrics, newest_model, tiny, weights

from hnet_cli.checkpoints.find import newest
from hnet_cli.data.mixture import Mixture
from hnet_cli.errors import NumericalError, Stopped
from hnet_cli.terminal.process import Stop
from hnet_cli.training.build import build_model
from hnet_cli.training.events import EventLog
from hnet_cli.training.loop import _Trainer
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import skips_on_device


def ahead(config, data, run, listen=lambda kind, record: None):
    """A run whose host does not wait for the device."""
    run.mkdir(exist_ok=True)
    stop = Stop()
    trainer = _Trainer(config, Mixture.open(str(data)), run, torch.device("cpu"), EventLog(run, listen), stop)
    assert not trainer.ahead
    assert skips_on_device(trainer.optimizer)
    trainer.ahead = True
    return trainer, stop


@pytest.mark.slow
def test_it_is_the_same_run(whole, data, tmp_path):
    """Bit for bit, records in the same order; each is read when the next step is under way, or something needs it."""
    read, begun, said = [], [], []

    def listen(kind, record):
        said.append(kind)
        if kind == "step":
            read.append(trainer.state.step - record["step"])
            assert trainer.state.step == len(begun)

    trainer, _ = ahead(tiny("train.samples=true"), data, tmp_path / "run", listen)
    trainer.model.register_forward_pre_hook(lambda *_: begun.append(1) if torch.is_grad_enabled() else None)
    assert trainer.go(False).last == metrics(whole)[-1]
    assert metrics(tmp_path / "run") == metrics(whole)
    assert (tmp_path / "run/samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert weights(tmp_path / "run") == weights(whole)
    assert read == [1, 1, 1, 0] * 3
    assert said == ["step", "log"] * 3 + (["step", "log", "eval", "checkpoint"] + ["step", "log"] * 3) * 2 + [
        "step",
        "log",
        "eval",
        "checkpoint",
    ]


@pytest.mark.slow
def test_stopped_and_resumed_is_never_stopped(whole, data, tmp_path):
    run = tmp_path / "run"

    def listen(kind, record):
        if kind == "step" and record["step"] == 5:
            stop.signal = signal.SIGTERM.name

    trainer, stop = ahead(tiny("train.samples=true"), data, run, listen)
    with pytest.raises(Stopped, match="after step 6 of 12"):
        trainer.go(False)
    assert [record["step"] for record in metrics(run) if "loss" in record] == [1, 2, 3, 4, 5, 6]
    trainer, _ = ahead(tiny("train.samples=true"), data, run)
    trainer.go(True)
    assert metrics(run) == metrics(whole)
    assert weights(run) == weights(whole)


def spoil(model, steps, value):
    """One element of a gradient of each of these steps (from 1)."""
    count = [0]

    def hook(gradient):
        count[0] += 1
        if count[0] in steps:
            gradient = gradient.clone()
            gradient.view(-1)[7] = value
        return gradient

    model.lm_head.weight.register_hook(hook)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad", [1, 6])
def test_a_bad_step_changes_nothing(data, tmp_path, bad, value):
    """And the run is the one in which the host saw to that."""
    states, found = {}, {}
    for name in ("waiting", "ahead"):
        trainer, _ = ahead(tiny(), data, tmp_path / name)
        trainer.ahead = name == "ahead"
        spoil(trainer.model, {bad}, value)
        at = states[name] = []
        trainer.model.register_forward_pre_hook(
            lambda *_, m=trainer.model, at=at: (
                at.append(m.lm_head.weight.detach().clone()) if torch.is_grad_enabled() else None
            )
        )
        trainer.go(False)
        found[name] = metrics(tmp_path / name), weights(tmp_path / name)
        assert [record["step"] for record in found[name][0] if "skipped" in record] == [bad]
    assert torch.equal(states["ahead"][bad - 1], states["ahead"][bad])
    assert not torch.equal(states["ahead"][bad], states["ahead"][bad + 1])
    assert found["ahead"] == found["waiting"]
    moments = [json.loads((newest(tmp_path / name) / "manifest.json").read_text())["files"] for name in states]
    assert moments[0]["optimizer.safetensors"] == moments[1]["optimizer.safetensors"]


def test_three_bad_steps_in_a_row_end_the_run(data, tmp_path):
    run = tmp_path / "run"
    trainer, _ = ahead(tiny("train.eval_every=0", "train.checkpoint_every=100"), data, run)
    spoil(trainer.model, {4, 5, 6, 7}, np.nan)
    with pytest.raises(NumericalError, match="3 steps in a row without a finite loss, the last one 6"):
        trainer.go(False)
    skipped = [("skipped" in record) for record in metrics(run)]
    assert skipped == [False] * 3 + [True] * 4
    assert newest(run).name == "step-00000007"
    assert all(torch.isfinite(p).all() for p in newest_model(run).parameters())


def test_a_periodic_checkpoint_waits_for_a_finite_loss(data, tmp_path):
    trainer, _ = ahead(tiny("train.eval_every=0", "train.keep_checkpoints=9"), data, tmp_path / "run")
    spoil(trainer.model, {4, 5}, np.nan)
    trainer.go(False)
    assert sorted(path.name[-2:] for path in (tmp_path / "run/checkpoints").iterdir()) == ["06", "08", "12"]


def test_three_bad_steps_with_a_stop_among_them_end_the_run_as_without_it(data, tmp_path):
    """And are saved, so that the run can go on behind them."""
    run = tmp_path / "run"

    def listen(kind, record):
        if kind == "step" and record["step"] == 5:
            stop.signal = signal.SIGTERM.name

    trainer, stop = ahead(tiny("train.eval_every=0"), data, run, listen)
    spoil(trainer.model, {5, 6}, np.nan)
    with pytest.raises(Stopped):
        trainer.go(False)
    trainer, _ = ahead(tiny("train.eval_every=0"), data, run)
    spoil(trainer.model, {1}, np.nan)
    with pytest.raises(NumericalError, match=r"last one 7; the weights before them are saved in .*step-0000000[78];"):
        trainer.go(True)


def test_muon_has_to_be_waited_for():
    config = tiny(*FLAT, "train.optimizer=muon")
    assert not skips_on_device(build_optimizer(build_model(config), config))
