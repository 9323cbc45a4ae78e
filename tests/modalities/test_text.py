"""The text plugin: what it takes, refuses and divides, and where it sees words."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.modalities.text import Text
from hnet_cli.modality import Document, Refused, Source

SHAKESPEARE = (Path(__file__).parents[1] / "data" / "text" / "shakespeare.txt").read_bytes()
TEXT = Text()


def read(data: bytes) -> list[Document | Refused]:
    return list(TEXT.documents(Source("a.txt", lambda: io.BytesIO(data), group="books")))


def test_a_short_file_is_one_document() -> None:
    assert read(SHAKESPEARE) == [Document(SHAKESPEARE, "a.txt", "a.txt", "books")]


@pytest.mark.parametrize(
    ("data", "reason", "where"),
    [
        (b"", "empty", "a.txt"),
        (b" \n\t\n", "only white space", "a.txt"),
        (b"\xef\xbb\xbf", "empty", "a.txt"),
        ("naïve café".encode("latin-1"), "not UTF-8", "a.txt: byte 2 is 0xef"),
        (b"GIF89a\0\1\2", "binary data", "a.txt"),
        (b"%PDF-1.7\nabc", "binary data: PDF", "a.txt"),
        (
            "Call me Ishmael".encode("utf-16"),
            "UTF-16LE: convert it first, for example with iconv -f UTF-16LE -t UTF-8",
            "a.txt",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name(data: bytes, reason: str, where: str) -> None:
    assert read(data) == [Refused(reason, where, len(data), damaged=reason == "not UTF-8")]


def is_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")


@given(st.text("ab 1_-.\n\t\x00é中🙂\u0301—“\u3000٣", max_size=40))
def test_word_edges_by_the_definition(text: str) -> None:
    edges = [len(text[:i].encode()) for i, char in enumerate(text) if is_word(char) != (i > 0 and is_word(text[i - 1]))]
    assert list(TEXT.reference_edges(text.encode())["word"]) == edges


def test_word_edges_of_bytes_that_are_no_text() -> None:
    assert list(TEXT.reference_edges(b"\xffab\xfe")["word"]) == [1, 3]


@pytest.mark.parametrize(
    ("name", "head", "low", "high"),
    [
        ("a.txt", SHAKESPEARE, 0.6, 0.6),
        ("a", SHAKESPEARE, 0.5, 0.5),
        ("a.md.gz", b"# Title\n", 0.6, 0.6),
        ("a", "中文的文字".encode(), 0.0, 0.2),
        ("a", b"\0\1\2", 0.0, 0.0),
        ("a.txt", "cafés".encode("latin-1"), 0.3, 0.3),
    ],
)
def test_detect(name: str, head: bytes, low: float, high: float) -> None:
    assert low <= TEXT.detect(name, head) <= high


def test_cut_prefers_the_space_before() -> None:
    assert TEXT.cut(b"one two three", 9) == 8
    assert TEXT.cut("ééé".encode(), 3) == 2
    assert TEXT.cut(b"abc", 3) == 3
