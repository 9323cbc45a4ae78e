"""Events are records: those of a run that was stopped, killed or resumed are those of one that never was."""

import json

import pytest
from runkit import dataset, tiny

from hnet_cli import storage
from hnet_cli.errors import BusyError, Stopped
from hnet_cli.report import history
from hnet_cli.training.events import EventLog
from hnet_cli.training.loop import train


def recorded(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def kinds(run):
    return [(record["step"], record["kind"]) for record in recorded(run)]


def nothing(kind, record):
    pass


def warn(log, step, message="x"):
    log.hear("warning", {"step": step, "event": "spike", "message": f"step {step}: {message}"})


def test_everything_is_passed_on_and_events_are_recorded(tmp_path):
    heard = []
    log = EventLog(tmp_path, lambda kind, record: heard.append(kind))
    log.hear("resume", {"step": 4, "folder": "f", "changed": ["train.lr from 1 to 2"]})  # before the file is open
    log.open(4)
    log.hear("step", {"step": 5})
    log.hear("warning", {"message": "disk full"})
    log.hear("warning", {"step": 5, "event": "skipped", "message": "step 5: not finite", "documents": [3]})
    log.hear("shortened", {"step": 6, "steps": 1000})
    assert heard == ["resume", "step", "warning", "warning", "shortened"]
    records = recorded(tmp_path)
    assert all(record.pop("time").endswith("+00:00") for record in records)
    assert records == [
        {"step": 4, "kind": "resume", "text": "went on from a checkpoint; train.lr from 1 to 2"},
        {"step": 5, "kind": "warning", "text": "disk full"},
        {"step": 5, "kind": "skipped", "text": "not finite", "documents": [3]},
        {"step": 6, "kind": "shortened", "text": "1,000 steps fit into the time"},
    ]
    silent = EventLog(tmp_path / "other", nothing, silent=True)  # of another rank
    silent.open(0)
    warn(silent, 1)
    assert not (tmp_path / "other").exists()


def test_going_on_from_an_earlier_checkpoint_repeats_nothing(tmp_path):
    log = EventLog(tmp_path, nothing)
    log.open(0)
    for step in (2, 4, 5, 7):
        warn(log, step)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "spi')  # cut by a crash
    log = EventLog(tmp_path, nothing)
    log.hear("warning", {"message": "a checkpoint was passed over"})
    log.hear("resume", {"step": 4, "folder": "f", "changed": []})
    log.open(4)
    for step in (5, 7):
        warn(log, step)
    assert kinds(tmp_path) == [(2, "spike"), (4, "spike"), (4, "warning"), (4, "resume"), (5, "spike"), (7, "spike")]


def test_what_cannot_be_written_is_written_with_the_next(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    log = EventLog(run, nothing)
    log.open(0)
    run.rename(tmp_path / "gone")
    warn(log, 1)
    (tmp_path / "gone").rename(run)
    warn(log, 2)
    assert kinds(run) == [(1, "spike"), (2, "spike")]


def test_a_run_says_how_it_ended(tmp_path):
    data, run = dataset(tmp_path / "data"), tmp_path / "run"

    def stop_at(step, error):
        def listen(kind, record):
            if kind == "log" and record["step"] == step:
                raise error

        return listen

    settings = tiny("train.steps=8", "train.checkpoint_every=2")
    with pytest.raises(OSError, match="gone"):
        train(settings, data, run, listen=stop_at(7, OSError("the disk is gone")))
    assert kinds(run) == [(7, "failed")]
    assert history.glance(run).about == history.ending(run) == "OSError: the disk is gone"
    with storage.FolderLock(run), pytest.raises(BusyError):
        train(settings, data, run, resume=True)
    with pytest.raises(Stopped):
        train(settings, data, run, resume=True, listen=stop_at(8, Stopped("stopped by hand")))
    assert kinds(run) == [(6, "resume"), (8, "stopped")]  # the failure at 7 is void, as the records of that step
    train(settings, data, run, resume=True)
    assert kinds(run) == [(6, "resume"), (6, "resume")]
