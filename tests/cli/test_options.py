"""Options that several commands share."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from clikit import hnet

from hnet_cli import modality
from hnet_cli.cli import options
from hnet_cli.cli.app import COMMANDS
from hnet_cli.errors import EnvironmentLimit, UsageError


def test_help_names_the_installed_modalities(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.installed_modalities() == ", ".join(modality.names())

    def twice() -> list[str]:
        raise UsageError("two packages offer the same name")

    monkeypatch.setattr(modality, "names", twice)
    options.installed_modalities.cache_clear()
    try:
        assert options.installed_modalities() == "see hnet doctor"  # help is shown all the same
    finally:
        options.installed_modalities.cache_clear()


def test_json_is_one_line_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_json({"a": [1, 2.5, None], "b": "é", "c": [math.nan, {"d": -math.inf}]})
    out, err = capsys.readouterr()
    wanted = {"a": [1, 2.5, None], "b": "é", "c": [None, {"d": None}]}
    assert (json.loads(out), out.count("\n"), err) == (wanted, 1, "")


def test_the_device_is_checked_before_anything_is_computed() -> None:
    assert options.device_name("cpu") == "cpu"
    with pytest.raises(UsageError, match="--device 'gpu' is not known"):
        options.device_name("gpu")
    with pytest.raises(EnvironmentLimit, match="cuda:99"):
        options.device_name("cuda:99")


@pytest.mark.parametrize("command", ["convert x", "publish x", "prepare", "segment"])
def test_a_missing_argument_is_named(command: str, capsys) -> None:
    assert hnet(command) == 2
    assert "Missing argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("prepare", "presets", "runs")])
def test_a_wrong_device_is_a_mistake_of_usage_in_every_command_that_has_one(command: str, capsys) -> None:
    if hnet(f"{command} --help") == 0 and "--device" not in capsys.readouterr().out:
        return
    assert hnet(f"{command} x --device gpu") in (2, 3)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch):
    """The environment and torch's number of threads as they were, afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("line", "variable", "number"), [("--threads 2", "", 2), ("", "3", 3), ("--threads 2", "3", 2)]
)
def test_threads_by_option_or_variable(threads, monkeypatch, line: str, variable: str, number: int) -> None:
    if variable:
        monkeypatch.setenv("HNET_THREADS", variable)
    assert hnet(f"{line} presets nano") == 0
    assert torch.get_num_threads() == number
    assert os.environ["OMP_NUM_THREADS"] == str(number)


@pytest.mark.parametrize("option", ["--threads=2", "-q", "--verbose"])
def test_an_option_of_hnet_itself_behind_the_command_is_explained(option: str, capsys) -> None:
    assert hnet(f"train {option}") == 2
    assert "it goes before the command" in capsys.readouterr().err


def test_no_threads_given_leaves_them(threads) -> None:
    torch.set_num_threads(2)
    assert hnet("--threads 0 presets nano") == 0
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("wrong", ["-1", "many", "1.5", "100000"])
def test_a_number_of_threads_that_is_none(threads, capsys, wrong: str) -> None:
    assert hnet(f"--threads {wrong} presets") == 2
    assert "--threads" in capsys.readouterr().err
