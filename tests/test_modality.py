"""The plugin contract: what a modality gets by default, the automaton, and names and text that are foreign."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.errors import UsageError
from hnet_cli.modality import Automaton, Document, Modality, Refused, Source, escape, suffix


class Plain(Modality):
    """A modality with nothing but what is mandatory."""

    name = "plain"
    summary = "one document per file"

    def documents(self, source: Source):
        yield Document(source.open().read(), source.name, source.name)


def test_a_plugin_may_leave_out_all_but_its_documents(tmp_path: Path) -> None:
    plugin = Plain()
    (document,) = plugin.documents(Source.of_bytes(b"abc", "a"))
    files = [tmp_path / "b/x", tmp_path / "y"]
    assert list(plugin.select(tmp_path, files)) == [(files[0], "b/x"), (files[1], "y")]
    assert plugin.select_members({})("a/b", 3, b"") == ("", "a/b")
    assert plugin.detect("a", b"abc") == 0.0
    assert not plugin.divisible(b"abc")
    assert plugin.cut(b"abc", 2) == 2
    assert plugin.units(document) == plugin.reference_edges(b"abc") == {} == plugin.perturbations()
    assert plugin.settle(b"abc") is plugin.mirror(b"abc") is plugin.syntax(document) is None
    assert plugin.automaton().run(bytes(range(254))) == 0
    assert plugin.automaton().run(b"\xfe") == plugin.automaton().run(b"\xff") == -1
    assert plugin.display(b"a\x1b[31m\xff\n") == "a\\x1b[31m\ufffd\n"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda plugin, source: plugin.gold(source), "plain reads no gold files"),
        (lambda plugin, source: plugin.annotation(source), "plain has no annotation"),
        (lambda plugin, source: plugin.variants(source, source, 9), "plain has no variants"),
        (lambda plugin, source: plugin.render(None, [], "bed"), "plain has no output format 'bed'"),
    ],
)
def test_what_it_cannot_do_is_said_by_its_name(call, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(Plain(), Source.of_bytes(b""))


def test_a_source_can_be_read_again() -> None:
    source = Source.of_bytes(b"abc", "x", group="g")
    assert [source.open().read() for _ in range(2)] == [b"abc"] * 2
    assert (source.whole, source.group, source.offset) == (True, "g", 0)
    assert not Refused("why", "where").damaged


@given(st.binary(max_size=20), st.binary(min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_an_alphabet_accepts_its_own_bytes_only(data: bytes, alphabet: bytes, choose: random.Random) -> None:
    automaton = Automaton.of_alphabet(alphabet)
    legal = bytes(choose.choices(alphabet, k=9))
    assert automaton.run(legal) in automaton.accepting
    assert (automaton.run(data) >= 0) == (set(data) <= set(alphabet))
    assert automaton.run(data, automaton.run(legal)) == automaton.run(legal + data)


@given(st.text())
def test_nothing_that_is_escaped_can_steer_a_terminal(text: str) -> None:
    shown = escape(text)
    assert not {*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F)} & set(map(ord, shown))
    assert escape(shown) == shown
    assert escape("a\nb\tc", keep="") == "a\\x0ab\\x09c"


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a/Genome.FA.gz", ".fa"), ("x.txt", ".txt"), ("x.gz", ""), ("README", ""), ("a.tar.ZST", ".tar"), (".gz", "")],
)
def test_a_suffix_is_that_below_the_compression(name: str, ending: str) -> None:
    assert suffix(name) == ending


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    assert {"text", "chinese", "code", "dna"} <= set(modality.names())
    with pytest.raises(UsageError, match="no modality is called 'x'") as error:
        modality.get("x")
    assert "chinese" in error.value.hint
    assert modality.get("dna").name == "dna"
