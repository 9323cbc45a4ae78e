"""Completions for shells (presets, modalities, formats, models, runs, datasets), and placeholders in the help.

torch is never imported for it.
"""

from __future__ import annotations

import io
import os
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

EXAMPLES = {
    "prepare": "hnet prepare --modality dna genome.fa",
    "train": "hnet train --preset nano --data data/genome --minutes 30",
    "segment": "hnet segment file.txt",
    "play": "hnet play starter:text starter:code",
    "sample": "hnet sample starter:text --prompt 'Once upon'",
    "score": "hnet score file.txt --per chunk",
    "embed": "hnet embed a.txt b.txt --out vectors.npz",
    "eval": "hnet eval runs/mine file.txt",
    "compare": "hnet compare --data data/book --minutes 60",
    "runs": "hnet runs",
    "presets": "hnet presets nano",
    "doctor": "hnet doctor --check",
    "convert": "hnet convert runs/mine mine",
    "publish": "hnet publish runs/mine my-model --licence mit",
    "retrofit": "hnet retrofit llama-folder retrofitted",
    "quickstart": "hnet quickstart --minutes 5",
}
"""A line for the help of each command."""
METAVARS = {
    **dict.fromkeys(("model", "start"), "MODEL"),
    **dict.fromkeys(("field", "prompt_field", "completion_field", "label", "group"), "NAME"),
    **dict.fromkeys(("modality", "format", "preset", "line_up", "sort", "dtype", "per", "layer", "pool"), "NAME"),
    **dict.fromkeys(("val_input", "prompt_file", "data"), "PATH"),
    "device": "DEVICE",
    "stage": "STAGE",
    **dict.fromkeys(("max_bytes", "context", "stride", "window"), "BYTES"),
    "minutes": "MINUTES",
}
"""Placeholders in the help by the name of a parameter; else by its type."""
BY_TYPE = {Path: "PATH", int: "N", float: "X", str: "TEXT"}


def presets() -> Iterable[str]:
    from hnet_cli.config.presets import preset_names

    return preset_names()


def modalities() -> Iterable[str]:
    from hnet_cli import modality

    return modality.names()


def formats() -> Iterable[str]:
    from hnet_cli import modality
    from hnet_cli.inference.render import COMMON
    from hnet_cli.inference.render import formats as formats_of

    return dict.fromkeys(each for name in modality.names() for each in [*COMMON, *formats_of(modality.get(name))])


def runs() -> Iterable[str]:
    from hnet_cli.report import history

    return map(str, history.find(Path("runs")))


def models() -> Iterable[str]:
    folder = Path(__file__).parents[1] / "starters"
    return [*(f"starter:{path.parent.name}" for path in sorted(folder.glob("*/config.json"))), *runs()]


def datasets() -> Iterable[str]:
    return (str(path.parent) for path in sorted(Path("data").glob("*/dataset.json")))


KNOWN: dict[str, Callable[[], Iterable[str]]] = {
    **dict.fromkeys(("model", "models", "names", "start", "src", "compare"), models),
    **dict.fromkeys(("run", "paths"), runs),
    "data": datasets,
    "preset": presets,
    "name": presets,
    "modality": modalities,
    "format": formats,
}
"""Completions by the name of a parameter."""


@contextmanager
def whole_words() -> Iterator[None]:
    """Undo what bash does to a word with colons, such as starter:text: it hands it over as three words, and replaces
    the last of them by what is offered."""
    if "COMP_WORDS" not in os.environ or not os.environ.get("COMP_CWORD", "").isdecimal():
        yield
        return
    words, at = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    joined, place = list[str](), at
    for number, word in enumerate(words):
        if joined and (word == ":" or words[number - 1] == ":"):
            joined[-1] += word
            place -= number <= at
        else:
            joined.append(word)
    os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(place)}
    there = "".join(joined[place].rpartition(":")[:2]) if place < min(at, len(joined)) else ""
    offered = io.StringIO()
    try:
        with redirect_stdout(offered):
            yield
    finally:
        sys.stdout.writelines(line.removeprefix(there) for line in offered.getvalue().splitlines(keepends=True))


def _completing(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        try:
            return [word for word in known() if word.startswith(incomplete)]
        except Exception:  # a shell has no place for it
            return []

    return complete


def describe(command: Callable[..., Any]) -> None:
    """Give the parameters of a command that have none a placeholder for people, and completions."""
    command.__annotations__ = typing.get_type_hints(command, include_extras=True)  # which Typer reads
    for name, hint in command.__annotations__.items():
        if name == "return":
            continue
        info = hint.__metadata__[0]
        kind = typing.get_args(hint)[0]
        parts = [kind, *typing.get_args(kind)]
        kinds = [*parts, *(inner for part in parts for inner in typing.get_args(part))]
        placeholder = METAVARS.get(name) or next((BY_TYPE[each] for each in kinds if each in BY_TYPE), None)
        if info.metavar is None and placeholder:
            info.metavar = placeholder
        if name in KNOWN and info.autocompletion is None:
            info.autocompletion = _completing(KNOWN[name])
