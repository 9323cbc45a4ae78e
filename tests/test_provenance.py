"""Provenance of runs, model folders and datasets."""

import json
import sys

import pytest
from runkit import dataset, tiny

import hnet_cli
from hnet_cli import provenance
from hnet_cli.checkpoints.find import newest
from hnet_cli.report import history
from hnet_cli.training.loop import train


def test_a_run_says_it_and_when_it_goes_on_what_was_before(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hnet", "train", "--data", "my data"])
    data, run = dataset(tmp_path / "data"), tmp_path / "run"
    train(tiny("train.steps=4"), data, run)
    (made,) = [json.loads((newest(run) / "config.json").read_text())["hnet"]["made"]]
    assert made["hnet"] == hnet_cli.__version__
    assert made["packages"]["torch"]
    assert made["command"] == "hnet train --data 'my data'"
    assert made["device"] == "cpu"
    assert made["threads"] >= 1
    assert set(made["kernels"]) >= {"attention"} or made["kernels"] == {}
    assert history.glance(run).made == made
    monkeypatch.setattr(sys, "argv", ["hnet", "train", "--resume"])
    train(tiny("train.steps=6"), data, run, resume=True)
    now = history.glance(run).made
    assert now["command"] == "hnet train --resume"
    assert now["before"] == [made]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://me:secret@host/x.jsonl", "https://host/x.jsonl"),
        ("https://host/x?signature=secret&a=b", "'https://host/x?...'"),
        ("s3://key:secret@bucket/x*", "'s3://bucket/x*'"),
    ],
)
def test_a_command_keeps_no_secrets(monkeypatch, given, said):
    monkeypatch.setattr(sys, "argv", ["hnet", "prepare", given, "--val", "0.1"])
    assert provenance.made()["command"] == f"hnet prepare {said} --val 0.1"


@pytest.mark.parametrize(
    "about", [None, 3, [], {}, {"packages": 3, "kernels": [1], "threads": "x", "command": {}, "name": [2]}]
)
def test_what_comes_from_anywhere_is_a_line(about):
    assert "\n" not in provenance.line(about)
    now = provenance.made()
    assert provenance.after(now, {"made": about})["hnet"] == now["hnet"]
    assert len(provenance.after(now, {"made": now | {"before": [now] * 100}})["before"]) == 20
