"""`hnet doctor`: it says what is so, and survives whatever is not."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from rich.console import Console

from hnet_cli.cli import app as cli
from hnet_cli.cli import doctor
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.terminal.console import show_data


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """The answers as `hnet doctor --json` prints them."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.run(["doctor", "--json"]) == 0
    return json.loads(out.getvalue())


def text_of(report: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(doctor.render(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_it_reads_well(found: dict) -> None:
    shown = text_of(found)
    assert shown.splitlines()[-1].startswith("hnet works here")
    for word in (
        "To train first",
        "hnet train",
        "torch",
        "CPU",
        "Kernels",
        "Modalities",
        "chinese",
        "mamba-ssm",
        "2stage-xl",
    ):
        assert word in shown


def test_what_cannot_be_asked_is_reported(found: dict) -> None:
    """Every part may be an error, and markup in one stays text."""
    parts = ("torch", "cpu", "memory", "gpus", "kernels", "modalities", "presets")
    broken = {part: {"error": "[red]gone"} for part in parts}
    assert text_of(found | broken).count("[red]gone") == 7


def test_a_wrong_kernel_fails_the_check() -> None:
    doctor.raise_on_failure({})
    doctor.raise_on_failure({"check": [{"op": "ssd_scan", "backend": "triton", "ok": True}]})
    with pytest.raises(EnvironmentLimit, match=r"attention \(varlen\)") as caught:
        doctor.raise_on_failure(
            {"check": [{"op": "ssd_scan", "ok": True}, {"op": "attention", "backend": "varlen", "ok": False}]}
        )
    assert caught.value.exit_code == 69
    with pytest.raises(EnvironmentLimit, match="could not be compared"):
        doctor.raise_on_failure({"check": {"error": "boom"}})


def test_lines_are_not_broken_where_nobody_reads_them_on_a_terminal(
    found: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    show_data(doctor.render(found))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  dna ") and line.endswith("left out") for line in lines), lines
    assert [line for line in lines if line != line.rstrip()] == []
