"""The check of a modality: what keeps the contract passes, and each breach is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from hnet_cli import modality
from hnet_cli.contract import check_modality
from hnet_cli.modality import Automaton, Document, Modality, Refused, Source


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
        "256 finite numbers above 0": {"loss_weights": (1.0,) * 255 + (0.0,)},
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
