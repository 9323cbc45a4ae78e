"""Documents of text in UTF-8: divided, cut, marked; every byte is kept or refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.modalities import _utf8
from hnet_cli.modalities.text import Text
from hnet_cli.modality import MARK, Document, Refused, Source

SHAKESPEARE = (Path(__file__).parents[1] / "data" / "text" / "shakespeare.txt").read_bytes()
TEXT = Text()


def read(data: bytes) -> list[Document | Refused]:
    return list(TEXT.documents(Source("a.txt", lambda: io.BytesIO(data), group="books")))


def test_a_byte_order_mark_is_dropped_and_counted() -> None:
    mark, document = read(b"\xef\xbb\xbfhello")
    assert isinstance(mark, Refused)
    assert mark.bytes == 3
    assert document == Document(b"hello", "a.txt", "a.txt", "books", offset=3)


@pytest.mark.parametrize("piece", [24, 1 << 20])
def test_a_mark_begins_a_document_where_files_were_joined(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning of a line; anywhere else U+FEFF is a character of the text, as in a row after its beginning."""
    monkeypatch.setattr(_utf8, "PIECE", piece)
    parts = [b"one\ntwo words\n", "été\n".encode() * 20, b"last"]
    items = read(b"".join(MARK + part for part in parts))
    at, texts = 0, [b""]
    for item in items:
        if isinstance(item, Refused):
            assert item == Refused("UTF-8 byte order mark", f"a.txt: byte {at}", 3)
            at, texts = at + 3, [*texts, b""]
        else:
            assert item.offset == at
            at, texts[-1] = at + len(item.data), texts[-1] + item.data
    assert texts[1:] == parts
    inside = b"one\xef\xbb\xbftwo"
    assert read(inside) == [Document(inside, "a.txt", "a.txt", "books")]
    row = MARK + b"one\n" + MARK + b"two"
    mark, document = TEXT.documents(Source.of_bytes(row, "x.jsonl:1"))
    assert isinstance(mark, Refused)
    assert document == Document(row[3:], "x.jsonl:1", "x.jsonl:1", "x.jsonl:1", offset=3)


@pytest.mark.parametrize("row", ["café".encode("latin-1"), "中".encode()[1:] + "中".encode()])
def test_a_row_was_not_cut_by_bytes(row: bytes) -> None:
    (refused,) = TEXT.documents(Source.of_bytes(row))
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.bytes) == ("not UTF-8", len(row))


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
