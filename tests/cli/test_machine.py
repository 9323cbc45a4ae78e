"""Answers about this machine are what is so, and plain data."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

from hnet_cli import modality
from hnet_cli.cli import machine
from hnet_cli.errors import EnvironmentLimit


@pytest.fixture(scope="module")
def found() -> dict:
    return machine.report()


def test_it_is_plain_data(found: dict) -> None:
    assert json.loads(json.dumps(found)) == found


def test_it_says_what_is_so(found: dict) -> None:
    assert found["torch"]["version"] == torch.__version__
    assert found["cpu"]["cores"] >= 1
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert found["disk"]["free"] > 0
    assert torch.cuda.is_available() or not found["gpus"] or "error" in found["gpus"]
    assert [row["name"] for row in found["modalities"]] == modality.names()
    assert not any(row["problems"] for row in found["modalities"])
    versions = {row["name"]: row["version"] for row in found["packages"]}
    assert "mamba-ssm" in versions
    sizes = [row["parameters"] for row in found["presets"]]
    assert sizes == sorted(sizes)
    fits = {row["name"]: row["fits"] for row in found["presets"]}
    assert fits["nano"] >= fits["2stage-xl"]


def test_every_optional_package_of_the_project_is_listed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    builders = {"packaging", "ninja", "setuptools", "wheel"}
    for extra, requirements in extras.items():
        names = {re.split(r"[<>=\[ ]", line)[0].replace("_", "-") for line in requirements} - builders
        if extra not in ("test", "dev"):
            assert names <= machine.OPTIONAL.keys(), extra
            assert {machine.OPTIONAL[name][0] for name in names} <= {extra, ""}
    assert {extra for extra, _ in machine.OPTIONAL.values()} <= {*extras, ""}


def test_the_verdict_says_what_is_wrong_first_or_what_to_do(found: dict) -> None:
    assert found["verdict"]["ok"], found["verdict"]
    assert "hnet quickstart" in found["verdict"]["text"]
    first = {row["modality"]: row for row in found["first"]}
    assert first["chinese"]["preset"] == "nano-chinese" or first["chinese"]["device"] != "cpu"
    assert all(row["command"].startswith(f"hnet prepare --modality {name} ") for name, row in first.items())
    wrong = {"torch": {"error": "ImportError: no torch"}, "gpus": {"error": "a driver too old"}}
    assert machine.verdict(found | wrong) == {"ok": False, "text": "torch: ImportError: no torch"}
    assert machine.verdict(found | {"gpus": wrong["gpus"]})["text"] == "gpus: a driver too old"
    poor = [row | {"fits": False} for row in found["first"]]
    assert "no preset fits" in machine.verdict(found | {"first": poor})["text"]
    odd = [found["modalities"][0] | {"problems": ["no summary"]}]
    assert "no summary" in machine.verdict(found | {"modalities": odd})["text"]


def test_kernels_are_listed_with_reasons(found: dict) -> None:
    assert {"ssd_scan", "attention"} <= {row["op"] for row in found["kernels"]}
    assert all(row["available"] or row["reason"] for row in found["kernels"])


def test_a_part_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise EnvironmentLimit("no driver", "install one")

    for part in ("_torch", "_gpus", "_kernels", "_presets", "installed_modalities"):
        monkeypatch.setattr(machine, part, broken)
    answers = machine.report()
    assert answers["torch"] == answers["gpus"] == answers["presets"] == {"error": "no driver (install one)"}
    assert answers["cpu"]["cores"] >= 1
