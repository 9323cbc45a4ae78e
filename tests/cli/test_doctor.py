"""`hnet doctor`: it says what is so, and survives whatever is not."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from hnet_cli import modality
from hnet_cli.cli import app as cli
from hnet_cli.cli import doctor
from hnet_cli.contract import check_modality
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.modality import Automaton, Document, Modality, Refused, Source
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


def test_it_reads_well(found: dict) -> None:
    shown = text_of(found)
    for word in ("torch", "CPU", "Kernels", "Modalities", "chinese", "mamba-ssm", "2stage-xl"):
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


# --- the contract check -----------------------------------------------------------------------------------------------


class Sound(Modality):
    name = "sound"
    summary = "Anything at all"

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        with source.open() as stream:
            data = stream.read()
        yield Document(data, source.name, source.name) if data else Refused("empty", source.name)


def variant(**members: object) -> Modality:
    return type("Variant", (Sound,), members)()


@pytest.mark.parametrize("name", modality.names())
def test_installed_modalities_are_sound(name: str) -> None:
    assert check_modality(modality.get(name)) == []


def test_the_least_modality_is_sound() -> None:
    assert check_modality(Sound()) == []


def nothing(self: Modality, source: Source) -> Iterator[Document]:
    return iter(())


def raising(self: Modality, source: Source) -> Iterator[Document]:
    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")


NO_WAY_OUT = tuple(tuple(1 for _ in range(256)) for _ in range(2))


class Broken:
    """Each with the words its problem is told in."""

    CASES: ClassVar = {
        "name must be": {"name": ""},
        "summary must be": {"summary": "two\nlines"},
        "presets lacks base": {"presets": {"nano": "nano", "small": "small"}},
        "names no preset: 'huge'": {"presets": {"nano": "nano", "small": "small", "base": "huge"}},
        "input_table must be": {"input_table": bytes(255)},
        "loss_weights must be": {"loss_weights": (float("nan"),) * 256},
        "detect gave 2.0": {"detect": lambda self, name, head: 2.0},
        "neither a document nor a reason": {"documents": nothing},
        "UnicodeDecodeError": {"documents": raising},
        "without a reason": {"documents": lambda self, source: iter([Refused("", "x")])},
        "without bytes": {"documents": lambda self, source: iter([Document(b"", "x", "x")])},
        "a str: it must be a Document": {"documents": lambda self, source: iter(["x"])},
        "cut must give": {"cut": lambda self, data, near: near + 1},
        "256 transitions": {"automaton": lambda self: Automaton(((0,) * 255,))},
        "a state that does not exist": {"automaton": lambda self: Automaton(((7,) * 256,))},
        "accepting states must exist": {"automaton": lambda self: Automaton(((0,) * 256,), accepting=frozenset({4}))},
        "output could never end": {"automaton": lambda self: Automaton(NO_WAY_OUT)},
        "control characters": {"display": lambda self, data: data.decode("latin-1")},
        "reference_edges": {"reference_edges": lambda self, data: {"word": [3, 1]}},
    }


@pytest.mark.parametrize("words", sorted(Broken.CASES))
def test_each_breach_is_told(words: str) -> None:
    problems = check_modality(variant(**Broken.CASES[words]))
    assert any(words in problem for problem in problems), problems


def test_something_else_is_told() -> None:
    assert check_modality(object()) == ["is not a hnet_cli.modality.Modality"]
