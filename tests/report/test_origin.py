"""The origin of a run: what differs from its preset, its sessions, and addresses that are nothing but relative."""

import json
import os
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.config.run import resolve, to_yaml
from hnet_cli.report import history, origin

MADE = {"hnet": "1.0", "packages": {"torch": "2.13"}, "name": "2 CPU cores", "command": "hnet train --resume"}


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "runs" / "a: b"
    checkpoint = run / "checkpoints" / "step-00000008"
    checkpoint.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(resolve("nano", ["train.lr=0.5", "train.seed=7"])))
    (run / "metrics.jsonl").write_text('{"step": 8, "bytes": 8, "bpb": 1.0}\n')
    (run / "latest").write_text("step-00000008\n")
    about = MADE | {"before": [MADE | {"command": "hnet train --preset nano", "time": "2026"}, 3]}
    (checkpoint / "config.json").write_text(json.dumps({"hnet": {"made": about}}))
    return run


def test_what_differs_from_the_preset_is_told_and_the_first_command_comes_first(run):
    found = origin.of(run, history.glance(run), history.read_config(run))
    assert found.changes[1:] == [
        ["train.seed", "0", "7"],
        ["train.lr", str(resolve("nano").train.lr), "0.5"],
    ]
    facts = dict(found.facts)
    assert facts["preset"] == "nano, 2 settings changed"
    assert (facts["seed"], facts["machine"], facts["packages"]) == ("7", "2 CPU cores", "torch 2.13")
    assert found.commands == [("2026", "hnet train --preset nano"), ("", "hnet train --resume")]


@pytest.mark.parametrize("config", [{}, {"name": "mine"}, {"name": ["x"]}, {"name": "nano", "train": {"steps": "x"}}])
def test_of_an_odd_configuration_nothing_is_said_to_differ(run, config):
    found = origin.of(run, history.glance(run), config)
    assert len(found.changes) == 1


def test_links_lead_to_the_files_that_are_there(run, tmp_path):
    for at in (run, tmp_path, tmp_path / "elsewhere"):
        links = dict(origin.links(run, at))
        assert [*links] == ["config.yaml", "metrics.jsonl", "checkpoints/step-00000008"]
        for name, address in links.items():
            assert address.startswith("./")
            assert os.path.normpath(at / unquote(address)) == str(run / name)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
def test_no_name_of_a_folder_makes_an_address_of_another_kind(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    run = folder / f"javascript:{name.replace('/', '')}"
    run.mkdir(exist_ok=True)
    (run / "log.txt").touch()
    ((_, address),) = origin.links(run, folder)
    assert address.isascii()
    assert not set("\"'<>:\\ ") & set(address)
    assert address.startswith("./javascript%3A")
