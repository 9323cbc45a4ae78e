"""TensorBoard reads back what metrics.jsonl holds."""

import sys

import pytest
from runkit import dataset, metrics, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hnet_cli.cli import app as cli
from hnet_cli.errors import EnvironmentLimit, Stopped
from hnet_cli.training.loggers import Loggers
from hnet_cli.training.loop import train
from hnet_cli.training.tensorboard import Board


def scalars(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def run_with_board(run, data, *settings, resume=False, stop_at=None):
    board = Board(run)

    def listen(kind, record):
        board.hear(kind, record)
        if kind == "log" and record["step"] == stop_at:
            raise Stopped("here")

    try:
        train(
            tiny("train.steps=8", "train.eval_every=4", "train.checkpoint_every=2", *settings),
            data,
            run,
            resume=resume,
            listen=listen,
        )
    finally:
        board.close()


def test_events_are_the_records_of_a_run_that_was_interrupted(tmp_path):
    data, run = dataset(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(Stopped):
        run_with_board(run, data, stop_at=7)  # step 7 is lost: the checkpoint is of step 6
    run_with_board(run, data, resume=True)
    found, events = scalars(run)
    records = metrics(run)
    for tag, key in (
        ("training/bpb", "bpb"),
        ("training/stage0_bytes_per_chunk", "stage0_bytes_per_chunk"),
        ("validation/bpb", "val_bpb"),
    ):
        wanted = [(r["step"], r[key]) for r in records if key in r]
        assert [step for step, _ in found[tag]] == [step for step, _ in wanted]
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in wanted])
    histogram = events.Histograms("training/stage0_prob_histogram")[-1]
    wanted = next(r["stage0_prob_histogram"] for r in reversed(records) if "stage0_prob_histogram" in r)
    assert histogram.histogram_value.num == sum(wanted)
    assert list(histogram.histogram_value.bucket) == wanted


def test_warnings_are_texts(tmp_path):
    board = Board(tmp_path)
    board.hear("warning", {"message": "of no step"})
    assert not (tmp_path / "tensorboard").exists()
    board.hear("warning", {"step": 3, "event": "spike", "message": "the loss jumped"})
    board.close()
    _, events = scalars(tmp_path)
    assert b"the loss jumped" in events.Tensors("spike/text_summary")[0].tensor_proto.string_val[0]


def test_a_disk_that_fails_is_said_and_nothing_else(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("in the way")
    loggers = Loggers(["tensorboard"], tmp_path, tiny())
    for step in (1, 2):
        loggers.hear("log", {"step": step, "bpb": 1.0})
    loggers.close()
    assert capsys.readouterr().err.count("tensorboard gets no more records") == 1


def test_without_the_package_training_does_not_begin(tmp_path, monkeypatch, capsys):
    data = dataset(tmp_path / "data")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(EnvironmentLimit):
        Board(tmp_path)
    run = tmp_path / "run"
    assert cli.run(["train", "--data", str(data), "--run", str(run), "--tensorboard"]) == 69
    assert "hnet-cli[tensorboard]" in capsys.readouterr().err
    assert not run.exists()
