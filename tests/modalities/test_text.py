"""The text plugin: what it takes, refuses and divides, and where it sees words."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnet_cli.modalities import _utf8
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
            "UTF-16 or UTF-32: convert it first, for example with iconv -f UTF-16 -t UTF-8",
            "a.txt",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name(data: bytes, reason: str, where: str) -> None:
    assert read(data) == [Refused(reason, where, len(data), damaged=reason == "not UTF-8")]


def test_a_byte_order_mark_is_dropped_and_counted() -> None:
    mark, document = read(b"\xef\xbb\xbfhello")
    assert isinstance(mark, Refused)
    assert mark.bytes == 3
    assert document == Document(b"hello", "a.txt", "a.txt", "books", offset=3)


@pytest.mark.parametrize("size", range(len("“é🙂中”".encode()) + 1))
def test_a_file_that_was_cut_by_bytes_loses_a_part_of_one_character(size: int) -> None:
    """A file cut by `head -c` or `tail -c`: cut characters are reported, and offsets are those of the file."""
    whole = "“é🙂中”".encode()
    for data, place in ((b"x" * 40 + whole[:size], "end"), (whole[size:] + "中".encode() * 9, "beginning")):
        items = read(data)
        (document,) = [item for item in items if isinstance(item, Document)]
        text = data.decode(errors="ignore").encode()
        assert (document.data, document.offset) == (text, len(data) - len(text) if place == "beginning" else 0)
        refused = [item for item in items if isinstance(item, Refused)]
        at = len(text) if place == "end" else 0
        lost = Refused(f"character cut off at the {place}", f"a.txt: byte {at}", len(data) - len(text))
        assert refused == ([lost] if lost.bytes else [])
        assert TEXT.detect("a.txt", data) >= 0.2


def test_only_the_end_of_a_file_is_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_utf8, "PIECE", 24)
    assert [item.bytes for item in read(b"x" * 24 + "中".encode()[:2]) if isinstance(item, Refused)] == [2]
    (wrong,) = [item for item in read(b"x" * 20 + b"\xe4\n" + b"y" * 24) if isinstance(item, Refused)]
    assert (wrong.reason, wrong.damaged) == ("not UTF-8", True)
    wrong, *rest = read(b"x" * 23 + b"\xe4" + b"y" * 30)  # at the end of a piece, not of the file
    assert (wrong.reason, wrong.bytes) == ("not UTF-8", 24)
    assert b"".join(item.data for item in rest if isinstance(item, Document)) == b"y" * 30
    assert read("é".encode("latin-1")) == [Refused("not UTF-8", "a.txt: byte 0 is 0xe9", 1, damaged=True)]
    symbol = "© Miller".encode("latin-1")  # begins with what ends a character of UTF-8
    assert read(symbol) == [Refused("not UTF-8", "a.txt: byte 0 is 0xa9", len(symbol), damaged=True)]


def test_a_long_file_is_divided_at_paragraphs_and_stays_one_group() -> None:
    data = (SHAKESPEARE + b"\n\n") * 500
    documents = read(data)
    assert b"".join(d.data for d in documents if isinstance(d, Document)) == data
    assert len(documents) == 3
    for document in documents:
        assert isinstance(document, Document)
        assert document.group == "books"
        assert document.data.endswith(b"\n\n")
        assert len(document.data) <= _utf8.PIECE


def test_a_row_of_a_table_is_one_document_however_long() -> None:
    data = SHAKESPEARE * 300
    assert [item.data for item in TEXT.documents(Source.of_bytes(data)) if isinstance(item, Document)] == [data]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([b"word ", "é🙂中".encode(), b"\n\n", b"\r\n", b"\xff", b"\xe4\xb8", b"\x9f", b"\0"])))
def test_every_byte_is_kept_or_refused(parts: list[bytes]) -> None:
    data = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utf8, "PIECE", 24)
        items = read(data)
    at = 0
    for item in items:
        if isinstance(item, Document):
            assert item.offset == at
            assert data[at : at + len(item.data)] == item.data
            item.data.decode()
            at += len(item.data)
        else:
            at += item.bytes
    assert at == len(data)


def test_one_bad_byte_costs_one_piece() -> None:
    data = bytearray((b"x" * 99 + b"\n") * 40_000)
    data[2_500_000] = 0xFF
    items = read(bytes(data))
    assert [type(item) for item in items].count(Refused) == 1
    assert len(items) == 4


def is_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")


@settings(max_examples=200, deadline=None)
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
