"""Resuming: from which checkpoint, with which settings, on which data."""

import pytest
from runkit import dataset, metrics, sending, tiny, weights, when

from hnet_cli.config.run import resolve
from hnet_cli.errors import InputError, Stopped
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
