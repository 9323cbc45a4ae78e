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


def test_a_model_that_is_given_to_others_keeps_no_places():
    """Neither its own command nor those before it; addresses stay."""
    first = {"command": "hnet train --data=/home/me/x/ --set 'tokenizer=../my files/t.json' 'hf:a/b' s3://b/c"}
    about = {"hnet": "1", "command": "hnet convert /home/me/runs/x out/", "before": [first, 3]}
    told = provenance.without_places(about)
    assert told["command"] == "hnet convert x out"
    assert told["before"][0]["command"] == "hnet train --data=x --set tokenizer=t.json hf:a/b s3://b/c"
    assert told["before"][1] == 3
    began = {"start": {"model": "/home/me/runs/x", "checkpoint": "latest", "made": first}}
    told = provenance.without_places({"command": "hnet publish runs/b c", "before": [began]})
    assert told["before"][0]["start"]["model"] == "x"
    assert "/" not in told["before"][0]["start"]["made"]["command"].replace("hf:a/b s3://b/c", "")
    assert provenance.without_places({"start": {"model": "hf:a/b"}})["start"]["model"] == "hf:a/b"
    assert provenance.without_places({"command": "hnet prepare file:///home/me/x"})["command"] == "hnet prepare x"
    assert about["before"] == [first, 3], "the record itself stays"
    assert provenance.without_places({"command": "hnet 'cut /home/me"})["command"] == ""


@pytest.mark.parametrize(
    "content", [None, "", "[1]", '{"hnet": {"made": 3}}', '{"hnet": [1]}', '{"hnet": "\\u001b[31m"}']
)
def test_a_folder_that_says_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert provenance.of(tmp_path) is None


def test_facts_are_lines_by_name():
    about = provenance.made("cpu", "4 cores", {"scan": "reference"})
    facts = provenance.facts(about | {"before": [about], "else": "x"})
    assert facts["packages"].startswith("torch ")
    assert facts["kernels"] == "scan reference"
    assert facts["before"] == provenance.line(about)
    assert "else" not in facts
    assert provenance.facts({"hnet": [1], "packages": 3, "time": "x" * 9999, "before": "x"})["packages"] == "3"
