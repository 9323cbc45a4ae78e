"""Answers about this machine are what is so, and plain data."""

import json

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
