"""Reading helpers: short reads, binary data and encodings named by their first bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.errors import InputError
from hnet_cli.modalities import _bytes
from hnet_cli.modalities._bytes import binary_reason, blank_reason, drain, is_place, read
from hnet_cli.modality import Source


class Short(io.BytesIO):
    """Gives at most three bytes at once, as decompressors do."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3 if size is None or size < 0 else min(size, 3))


@given(st.binary(max_size=40), st.integers(-1, 50))
def test_short_reads_are_joined(data: bytes, size: int) -> None:
    stream = Short(data)
    assert read(stream, size) == (data if size < 0 else data[:size])
    assert drain(stream) == len(data) - len(data if size < 0 else data[:size])


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", ""),
        (b"plain \x1b[31mtext\r\n\f", ""),
        (b"%PDF-1.7\n", "binary data: PDF"),
        (b"\x1f\x8b\x08", "binary data: gzip"),
        (b"a\0b", "binary data"),
        (b"\x01\x02abc", "binary data"),
        ("text".encode("utf-16"), "UTF-16LE: convert it first, for example with iconv -f UTF-16LE -t UTF-8"),
        ("中文".encode("utf-16"), "UTF-16LE: convert it first, for example with iconv -f UTF-16LE -t UTF-8"),
        (b"\xfe\xff\0t", "UTF-16BE: convert it first, for example with iconv -f UTF-16BE -t UTF-8"),
        ("text".encode("utf-32"), "UTF-32LE: convert it first, for example with iconv -f UTF-32LE -t UTF-8"),
        ("some text\n".encode("utf-16-be"), "UTF-16BE: convert it first, for example with iconv -f UTF-16BE -t UTF-8"),
        (bytes(5000), "binary data"),
        (bytes(range(256)) * 20, "binary data"),
    ],
)
def test_binary_data_and_wide_encodings_are_named(head: bytes, reason: str) -> None:
    assert binary_reason(head) == reason


CHINESE = (Path(__file__).parents[1] / "data" / "chinese" / "criminal_law.txt").read_text()
ITALIAN = "Così è, se vi pare: «perché no?» — disse.\n"


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", [CHINESE, ITALIAN, "Привет, мир.\n" * 9, "東京は日本の首都です。\n" * 9, "a,b\r\n1,2\r\n"]
)
def test_text_of_any_script_in_a_wide_encoding_is_named(text: str, codec: str) -> None:
    name = codec.upper().replace("-LE", "LE").replace("-BE", "BE")
    for size in (len(text.encode(codec)), 4001, 201):
        assert binary_reason(text.encode(codec)[:size]).startswith(f"{name}: "), size


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u4", ">i4", "<f4", "<f8"])
def test_numbers_are_no_text(kind: str) -> None:
    rng = np.random.default_rng(0)
    for scale in (3, 100, 10_000):
        data = (rng.normal(size=3000) * scale).astype(kind).tobytes()
        assert binary_reason(data) in ("binary data", ""), scale


@given(
    st.text("abc def.\n", min_size=8, max_size=200),
    st.sampled_from(["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]),
)
def test_a_wide_encoding_needs_no_mark(text: str, codec: str) -> None:
    name = codec.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert binary_reason(text.encode(codec)).startswith(f"{name}: ")
    assert binary_reason(text.encode()) == ""


def test_a_blank_source_says_so() -> None:
    assert [blank_reason(data) for data in (b"", b" \n\t", b" a")] == ["empty", "only white space", ""]


def test_places_are_whole_numbers_of_a_sane_size() -> None:
    assert [is_place(text) for text in ("0", "12", "-1", "1.5", "", "x", "9" * 5000)] == [True, True, *[False] * 5]


@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"])), max_size=5), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_lines_and_their_numbers(lines: list[str], end: str) -> None:
    for mark in ("", "\ufeff"):
        data = (mark + "".join(line + end for line in lines)).encode()
        assert list(_bytes.text_lines(Source.of_bytes(data))) == list(enumerate(lines, 1))


def test_a_line_is_utf_8_or_latin_1() -> None:
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
def test_lines_that_cannot_be_read(data: bytes, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bytes, "LONGEST_LINE", 16)
    with pytest.raises(InputError, match=says):
        list(_bytes.text_lines(Source.of_bytes(data, "x")))


def test_a_mark_begins_each_of_the_files_that_were_joined() -> None:
    lines = _bytes.text_lines(Source.of_bytes(b"\xef\xbb\xbfa\nb\n" * 2))
    assert list(lines) == [(1, "a"), (2, "b"), (3, "a"), (4, "b")]
