"""Trackers get the records of a run; what fails in one ends nothing."""

import sqlite3
import sys
import types

import pytest
from runkit import dataset, metrics, tiny

from hnet_cli.errors import EnvironmentLimit, UsageError
from hnet_cli.training import loggers
from hnet_cli.training.loggers import Loggers, Tracker
from hnet_cli.training.loop import train


class Recorded(types.ModuleType):
    """A package with the functions that wandb and trackio share."""

    def __init__(self):
        super().__init__("wandb")
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))

    def log(self, record):
        self.calls.append(("log", record))

    def finish(self):
        self.calls.append(("finish", None))


def test_names_that_are_not_there_are_named(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="there is no 'nothing'"):
        Loggers(["nothing"], tmp_path, tiny())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EnvironmentLimit, match="wandb needs a package"):
        Loggers(["wandb"], tmp_path, tiny())


def test_a_resumed_run_goes_on_under_its_id(tmp_path, monkeypatch):
    package = Recorded()
    monkeypatch.setitem(sys.modules, "wandb", package)
    run = tmp_path / "run"
    data = dataset(tmp_path / "data")
    for steps in (4, 8):
        made = Loggers(["wandb", "wandb"], run, tiny(f"train.steps={steps}"))
        train(tiny(f"train.steps={steps}"), data, run, resume=steps == 8, listen=made.hear)
        made.close()
    begun = [options for kind, options in package.calls if kind == "init"]
    assert len(begun) == 2
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[0]["id"].startswith("run-")
    assert begun[0]["config"]["train.sequence_length"] == 64
    told = [record for kind, record in package.calls if kind == "log"]
    for key, ours in (("training/bpb", "bpb"), ("validation/bpb", "val_bpb"), ("training/lr", "lr")):
        wanted = [(r["step"], r[ours]) for r in metrics(run) if ours in r]
        assert [(record["steps"], record[key]) for record in told if key in record] == wanted != []
    assert [kind for kind, _ in package.calls].count("finish") == 2


def test_a_tracker_that_fails_is_left_out(tmp_path, monkeypatch, capsys):
    package = Recorded()
    package.log = lambda record: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", package)
    made = Loggers(["wandb"], tmp_path, tiny())
    for step in (1, 2):
        made.hear("log", {"step": step, "bpb": 1.0})
    made.close()
    assert capsys.readouterr().err.count("wandb gets no more records (ZeroDivisionError") == 1


@pytest.mark.parametrize("content", ["", "../../x", "Z" * 20, "a" * 100])
def test_an_id_from_somewhere_is_replaced(tmp_path, monkeypatch, content):
    package = Recorded()
    monkeypatch.setitem(sys.modules, "wandb", package)
    (tmp_path / "wandb.id").write_text(content)
    Tracker("wandb", tmp_path, {}).hear("log", {"step": 1})
    assert (tmp_path / "wandb.id").read_text() != content
    assert loggers._id(tmp_path / "wandb.id")


@pytest.mark.slow
def test_mlflow_has_the_figures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    for step in (1, 2):
        made = Loggers(["mlflow"], tmp_path, tiny())
        made.hear("log", {"step": step, "bpb": 3.0 - step})
        made.close()
    with sqlite3.connect(tmp_path / "runs.db") as base:
        rows = base.execute("select step, value from metrics where key = 'training/bpb' order by step").fetchall()
    assert rows == [(1, 2.0), (2, 1.0)]
