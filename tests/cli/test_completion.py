"""Placeholders, examples and completions of every command."""

import os
import shlex
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from hnet_cli.cli import completion
from hnet_cli.cli.app import COMMANDS, app

COMMAND = typer.main.get_command(app)


def completed(monkeypatch, words):
    """What bash would offer for a line."""
    monkeypatch.setenv("COMP_WORDS", f"hnet {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    done = CliRunner().invoke(app, [], env={"_HNET_COMPLETE": "complete_bash"}, prog_name="hnet")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("train --preset nano-d", ["nano-dna"]),
        ("train --start starter:t", ["starter:text"]),
        ("segment --format bed", ["bed", "bedgraph"]),
        ("segment --modality ch", ["chinese"]),
        ("sample runs/", ["runs/a"]),
        ("eval starter:dn", ["starter:dna"]),
        ("train --run r", ["runs/a"]),
        ("compare --data d", ["data/b"]),
        ("play starter:c", ["starter:chinese", "starter:code"]),
        ("seg", ["segment"]),
    ],
)
def test_what_there_is_is_offered(words, offered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("runs/a/config.yaml", "runs/a/metrics.jsonl", "data/b/dataset.json", "runs/c/other"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert completed(monkeypatch, words) == offered


@pytest.mark.parametrize(
    ("words", "at", "offered"),
    [
        (["hnet", "sample", "starter", ":", "t"], 4, ["text"]),
        (["hnet", "play", "starter", ":", "text", "starter", ":", "c"], 7, ["chinese", "code"]),
        (["hnet", "segment", "a:b", "--model", "starter", ":"], 5, ["chinese", "code", "dna", "novels", "text"]),
        (["hnet", "train", "--start", "starter", ":", "text", "--preset", "nano-d"], 7, ["nano-dna"]),
        (["hnet", "sample", "sta"], 2, [f"starter:{name}" for name in ("chinese", "code", "dna", "novels", "text")]),
    ],
)
def test_words_that_bash_cuts_at_colons(words, at, offered, tmp_path):
    """It replaces what stands behind the last colon."""
    told = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(at), "_HNET_COMPLETE": "complete_bash"}
    line = [sys.executable, "-m", "hnet_cli"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **told}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == offered


def test_a_folder_that_cannot_be_read_offers_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    assert completed(monkeypatch, "sample x") == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_speaks_to_people(name):
    """No value is called by a type of Python's, and the example is a line that parses."""
    command = COMMAND.commands[name]
    for parameter in command.params:
        if parameter.name != "help" and not getattr(parameter, "is_flag", False):
            assert parameter.metavar, f"{name} {parameter.name}"
    program, called, *arguments = shlex.split(completion.EXAMPLES[name])
    assert (program, called) == ("hnet", name)
    command.make_context(name, arguments)
    assert completion.EXAMPLES[name] in CliRunner().invoke(app, [name, "--help"], terminal_width=200).stdout
