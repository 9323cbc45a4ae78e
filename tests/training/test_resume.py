"""Resuming: from which checkpoint, with which settings, on which data."""

from dataclasses import replace

import pytest
from runkit import dataset, metrics, sending, tiny, weights, when

from hnet_cli.checkpoints.find import newest
from hnet_cli.config.run import resolve
from hnet_cli.config.sources import DataSource
from hnet_cli.errors import InputError, Stopped, UsageError
from hnet_cli.report import history
from hnet_cli.training import plan as planning
from hnet_cli.training.loop import train


def test_a_damaged_checkpoint_is_passed_over(whole, data, tmp_path, signals):
    run, said = tmp_path / "run", []
    with pytest.raises(Stopped):
        train(tiny(), data, run, listen=when("step", 10, sending("SIGTERM")))
    file = run / "checkpoints/step-00000010/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    train(tiny(), data, run, resume=True, listen=lambda kind, record: said.append((kind, record)))
    warned, resumed = said[0], said[1]
    assert warned[0] == "warning"
    assert "step-00000010/optimizer.safetensors is damaged" in warned[1]["message"]
    assert (resumed[0], resumed[1]["step"]) == ("resume", 8)
    assert metrics(run) == metrics(whole)
    assert weights(run) == weights(whole)


def test_a_finished_run_may_be_resumed(whole, data):
    before = weights(whole), metrics(whole)
    result = train(tiny(), data, whole, resume=True)
    assert (result.state.step, result.last) == (12, before[1][-1])
    assert (weights(whole), metrics(whole)) == before


def test_settings_do_nothing_to_a_finished_run(whole, data):
    before, said = (whole / "config.yaml").read_bytes(), []
    train(tiny("train.eval_bytes=100"), data, whole, resume=True, listen=lambda kind, record: said.append(kind))
    assert (said, (whole / "config.yaml").read_bytes()) == (["resume"], before)


def test_fewer_steps_than_are_done_are_refused(whole, data):
    before = (whole / "config.yaml").read_bytes()
    with pytest.raises(UsageError, match=r"train\.steps=11 is fewer than the 12 steps that .*whole.* has made"):
        planning.choose(None, data, whole, ["train.steps=11"], resume=True, device="cpu")
    with pytest.raises(UsageError, match=r"train\.steps=11 is fewer than the 12"):
        train(tiny("train.steps=11"), data, whole, resume=True)
    assert (whole / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("every", [0, 7])
def test_a_run_that_is_to_end_where_it_was_stopped_is_validated(data, tmp_path, signals, every):
    """And sealed as one of so many steps, though it was validated there before."""
    run = tmp_path / "run"
    settings = [f"train.eval_every={every}", "train.log_every=5"]
    with pytest.raises(Stopped):
        train(tiny("train.steps=500", *settings), data, run, listen=when("step", 7, sending("SIGTERM")))
    result = train(tiny("train.steps=7", *settings), data, run, resume=True)
    assert (result.last["step"], metrics(run)[-1]) == (7, result.last)
    assert result.state.best_step == 7
    assert history.glance(run).state == "finished"
    assert [resolve(str(path / "config.yaml")).train.steps for path in (run, newest(run))] == [7, 7]
    before = metrics(run)
    train(tiny("train.steps=7", *settings), data, run, resume=True)
    assert metrics(run) == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(whole, data, tmp_path):
    run, said = tmp_path / "run", []
    run.mkdir()
    (run / "config.yaml").write_text("")
    train(tiny(), data, run, resume=True, listen=lambda kind, record: said.append(kind))
    assert said[0] == "warning"
    assert weights(run) == weights(whole)


@pytest.mark.slow
def test_what_is_chosen_is_written_down_and_kept(data, tmp_path, signals):
    """Also where a run was begun with another number than would be chosen now."""
    train(tiny("train.micro_batches=auto"), data, tmp_path / "auto")
    assert resolve(str(tmp_path / "auto/config.yaml")).train == tiny().train
    train(tiny("train.micro_batches=4"), data, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tiny("train.micro_batches=4"), data, tmp_path / "run", listen=when("step", 6, sending("SIGTERM")))
    train(tiny("train.micro_batches=auto"), data, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert weights(tmp_path / "run") != weights(tmp_path / "auto")


def test_a_run_stays_with_its_dataset(whole, tmp_path):
    (tmp_path / "b.txt").write_text("Another text. " * 500)
    other = dataset(tmp_path, tmp_path / "b.txt")
    before = weights(whole), metrics(whole)
    with pytest.raises(InputError, match="another dataset"):
        train(tiny(), other, whole, resume=True)
    assert (weights(whole), metrics(whole)) == before


def test_a_run_keeps_what_its_state_follows_from(whole, data):
    before = weights(whole), metrics(whole)
    for setting in ("train.seed=1", "train.frozen=[level0.encoder]", "model.d_model=[64, 128]"):
        with pytest.raises(UsageError, match=setting.partition("=")[0]):
            train(tiny(setting), data, whole, resume=True)
    assert (weights(whole), metrics(whole)) == before


@pytest.mark.slow
def test_a_mixture_goes_on_bit_for_bit(mixed, sources, tmp_path, signals):
    """In whatever order its datasets are given."""
    with pytest.raises(Stopped):
        train(tiny(), sources, tmp_path / "run", listen=when("step", 7, sending("SIGTERM")))
    train(tiny(), sources[::-1], tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(mixed)
    one, other = metrics(tmp_path / "run"), metrics(mixed)
    assert [r for r in one if "loss" in r] == [r for r in other if "loss" in r]
    assert [r["val_bpb"] for r in one if "val_bpb" in r] == [r["val_bpb"] for r in other if "val_bpb" in r]


def test_a_run_does_not_begin_anew_with_another_model(mixed, sources):
    with pytest.raises(UsageError, match=r"cannot change train\.start from *to starter:text"):
        train(tiny("train.start=starter:text"), sources, mixed, resume=True)


def test_a_mixture_stays_with_its_datasets_and_weights(mixed, sources, tmp_path):
    before, (fox, numbers) = (weights(mixed), metrics(mixed)), sources
    (tmp_path / "b.txt").write_text("Another text. " * 500)
    other = DataSource(path=str(dataset(tmp_path, tmp_path / "b.txt")), weight=1)
    bare = tuple(replace(source, weight=None) for source in sources)
    for given, error, message in (
        ((fox, other), InputError, f"another dataset than {other.path}$"),
        ((fox,), InputError, f"on 2 datasets; {fox.path} alone"),
        ((*sources, other), InputError, f"another dataset than {other.path}$"),
        (
            (fox, replace(numbers, weight=2)),
            UsageError,
            f"weights of its data, which were {fox.path}:3, {numbers.path}:1",
        ),
        (bare, UsageError, "cannot change the weights of its data"),
    ):
        with pytest.raises(error, match=message):
            train(tiny(), given, mixed, resume=True)
    same = [replace(source, weight=2 * source.weight) for source in sources]
    assert train(tiny(), same, mixed, resume=True).state.step == 12
    assert (weights(mixed), metrics(mixed)) == before
