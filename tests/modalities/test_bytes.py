"""Reading helpers of the modalities."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.errors import InputError
from hnet_cli.modalities import _bytes
from hnet_cli.modality import Source


@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"])), max_size=5), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_lines_and_their_numbers(lines, end):
    for mark in ("", "\ufeff"):
        data = (mark + "".join(line + end for line in lines)).encode()
        assert list(_bytes.text_lines(Source.of_bytes(data))) == list(enumerate(lines, 1))


def test_a_line_is_utf_8_or_latin_1():
    lines = _bytes.text_lines(Source.of_bytes("é\n".encode() + "é".encode("latin-1")))
    assert list(lines) == [(1, "é"), (2, "é")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\0", "x: binary data"),
        ("a".encode("utf-16"), "x: UTF-16"),
        (b"ab\n" + b"c" * 20, "x: line 2 is longer than 16"),
    ],
)
def test_lines_that_cannot_be_read(data, says, monkeypatch):
    monkeypatch.setattr(_bytes, "LONGEST_LINE", 16)
    with pytest.raises(InputError, match=says):
        list(_bytes.text_lines(Source.of_bytes(data, "x")))


def test_reads_are_filled_from_short_ones():
    class Short(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 3) if size >= 0 else 3)

    assert _bytes.read(Short(b"abcdefghij"), 8) == b"abcdefgh"
    assert _bytes.read(Short(b"abcdefghij")) == b"abcdefghij"
    assert _bytes.drain(Short(b"abcdefghij")) == 10


@pytest.mark.parametrize(("text", "place"), [("0", True), ("12", True), ("", False), ("-1", False), ("9" * 19, False)])
def test_positions(text, place):
    assert _bytes.is_place(text) == place


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"text\tand \x1b[0m\n", ""),
        (b"%PDF-1.4", "PDF"),
        (b"a\0b", "binary data"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"\1" * 9, "binary"),
    ],
)
def test_heads_of_files_that_are_no_text(head, reason):
    found = _bytes.binary_reason(head)
    assert reason in found
    assert bool(found) == bool(reason)


def test_blank_sources():
    assert [_bytes.blank_reason(data) for data in (b"", b" \n", b"a")] == ["empty", "only white space", ""]
