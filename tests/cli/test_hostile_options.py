"""Every option and argument of every command, as the signatures declare them, with hostile values: an exit code of the
contract and one line, never a traceback, a hang or a device full of zeros."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import signal
import sys
import threading
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from hnet_cli.cli.app import COMMANDS, run

CODES = {0, 2, 3, 4, 5, 69, 73, 74, 75}
NUMBERS = ["0", "-1", "1e308", "-1e308", "nan", "inf", str(1 << 63), str(1 << 64), "9" * 5000, "", "0x10", "1_0", "٣"]
"""Values for a number."""
WORDS = ["", "\0", "x\0y", "fifo", "/dev/zero", "/proc/self/mem", "folder", "a" * 4096]
"""Values for text that may be a name."""
NEW = ["a" * 255 + "/x", "\udcff", "-"]
"""And names under which something can be made; the whole tour of quickstart would be."""
BASES = {
    "prepare": "file.txt --out new/x --modality text",
    "train": "--preset tiny.yaml --data data/file --run new/x --device cpu --set train.steps=1",
    "segment": "short.txt --model runs/fox --device cpu --format html",
    "sample": "runs/fox --prompt The --max-bytes 3 --device cpu",
    "eval": "runs/fox short.txt --no-samples --device cpu",
    "score": "short.txt --model runs/fox --device cpu",
    "embed": "short.txt --model runs/fox --device cpu",
    "compare": "--data data/file --size nano --line-up 1stage --run new/x --device cpu --dry-run",
    "runs": "runs/fox",
    "play": "nowhere --no-browser",
    "publish": "runs/fox new/x --max-bytes 500",
    "presets": "nano",
    "doctor": "",
    "convert": "runs/fox new/x",
    "retrofit": "nowhere new/x",
    "quickstart": "--out file.txt",
}
"""A small job of each command, that a hostile value is added to."""
LONG = {"train", "segment", "sample", "score", "embed", "eval", "compare", "convert", "publish"}
"""Commands whose jobs load a model."""
SECONDS = 60


class Parameter(NamedTuple):
    name: str
    """The option as it is given; "" for an argument."""
    kind: type


def parameters(command: str) -> list[Parameter]:
    """The parameters of a command that take a value."""
    function, found = COMMANDS[command], []
    hints = typing.get_type_hints(function, include_extras=True)
    for name in inspect.signature(function).parameters:
        hint = hints[name]
        info = next(item for item in getattr(hint, "__metadata__", ()) if hasattr(item, "param_decls"))
        kind = typing.get_args(hint)[0]
        while isinstance(kind, types.UnionType) or typing.get_origin(kind) is list:
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        declared = [word for word in (info.default, *(info.param_decls or ())) if str(word).startswith("-")]
        option = declared[0] if declared else f"--{name.replace('_', '-')}"
        if kind is not bool:
            found.append(Parameter("" if isinstance(info, typer.models.ArgumentInfo) else option, kind))
    return found


END = b"the end of the test"


def drain(reader: int) -> None:
    """Read a pipe until `END` comes."""
    while not os.read(reader, 1 << 16).endswith(END):
        pass
    os.close(reader)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """End what hangs: with an error of ours, which is no exit code of the contract."""

    def late(*_: object) -> None:
        raise RuntimeError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_all_parameters_are_found() -> None:
    """That the walk sees what the commands have."""
    names = {(command, parameter.name) for command in COMMANDS for parameter in parameters(command)}
    assert {("prepare", ""), ("prepare", "--val"), ("sample", "-n"), ("compare", "--bytes")} <= names
    assert len(names) > 70
    assert {parameter.kind for command in COMMANDS for parameter in parameters(command)} == {int, float, str, Path}


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in COMMANDS]
)
def test_hostile_values(
    command: str, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDWR)  # else a writer waits for one
    threading.Thread(target=drain, args=(reader,), daemon=True).start()
    nothing = open(os.devnull)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdin", nothing)
    (own / "folder").mkdir()
    (own / "folder" / "mine").write_text("mine")
    (own / "short.txt").write_text("The quick brown fox.\n")
    wrong, capacity = [], len(os.listdir("/dev"))
    try:
        for name, kind in parameters(command):
            for value in NUMBERS if kind in (int, float) else WORDS + NEW * (command != "quickstart"):
                given = [f"{name}={value}"] if name.startswith("--") else [name, value] if name else [value]
                with limited():
                    code = run([command, *BASES[command].split(), *given])
                out, err = capsys.readouterr()
                said = [line for line in err.splitlines() if line.startswith("hnet:")]
                if code not in CODES or "Traceback" in err + out or len(said) != (code != 0):
                    wrong.append(f"{command} {name or 'ARGUMENT'} {value[:30]!r}: exit {code}: {err[-300:]}")
                shutil.rmtree(own / "new", ignore_errors=True)
    finally:
        os.write(reader, END)
        nothing.close()
    assert not wrong, "\n".join(wrong)
    assert (own / "folder" / "mine").read_text() == "mine"
    assert len(os.listdir("/dev")) == capacity
