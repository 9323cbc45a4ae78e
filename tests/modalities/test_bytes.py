"""Reading helpers: short reads, binary data and encodings named by their first bytes."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.modalities._bytes import binary_reason, blank_reason, drain, is_place, read


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
