"""Reading helpers that the built-in modalities share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from hnet_cli.errors import InputError
from hnet_cli.modality import MARK, Source, wide_reason

LONGEST_NAME = 1000
"""Letters of the longest name of a record; the end of a longer one is dropped, for output has it in every line."""
NAMES_KEPT = 500_000
"""Names of records remembered to tell repeated ones apart; beyond, memory would grow with the file."""
LONGEST_LINE = 1 << 26
"""Bytes of a line of a table; without a bound, a file without line ends would be one."""
MAGIC = {
    b"%PDF-": "PDF",
    b"PK\x03\x04": "a zip archive or an office document",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x7fELF": "a program",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"{\\rtf": "RTF",
    b"SQLite format 3\x00": "an SQLite database",
}
_MAGIC = tuple(MAGIC)
# Text files do contain tab, line feed, form feed, carriage return and escape (saved terminal output).
CONTROL = bytes(set(range(32)) - set(b"\t\n\f\r\x1b")) + b"\x7f"


def words(text: str) -> frozenset[str]:
    """The set of words in `text`."""
    return frozenset(text.split())


def read(stream: BinaryIO, size: int = -1) -> bytes:
    """`size` bytes of `stream`, fewer only at its end (decompressors return short reads)."""
    parts: list[bytes] = []
    missing = size
    while missing and (part := stream.read(missing)):
        parts.append(part)
        if size >= 0:
            missing -= len(part)
    return b"".join(parts)


def as_text(data: bytes) -> str:
    """Decode UTF-8, or else Latin-1, in which nothing is wrong."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def text_lines(source: Source) -> Iterator[tuple[int, str]]:
    """The lines of a table with their numbers, from 1, without their ends (LF, CR LF or CR) and byte order marks.

    Raises InputError for binary data and for a line that is too long.
    """
    number = 0
    with source.open() as stream:
        while block := stream.readline(LONGEST_LINE):
            if not number and (reason := binary_reason(block)):
                raise InputError(f"{source.name}: {reason}")
            if len(block) == LONGEST_LINE and not block.endswith(b"\n"):
                raise InputError(f"{source.name}: line {number + 1} is longer than {LONGEST_LINE:,} bytes")
            for line in block.removeprefix(MARK).splitlines():
                number += 1
                yield number, as_text(line)


def is_place(text: str) -> bool:
    """True if `text` is a position, a whole number; Python refuses to convert thousands of digits."""
    return text.isdecimal() and len(text) < 19


def record_name(title: str) -> str:
    """The name of a record of sequences in its header: the first word; "" for a blank one."""
    return (title.split(None, 1) or [""])[0][:LONGEST_NAME]


def unique_name(title: str, seen: dict[str, int]) -> tuple[str, tuple[str, ...]]:
    """The name of a record, and notes about it. Names repeat in real files; a number tells such records apart."""
    first = record_name(title)
    name = first or "unnamed"
    times = seen.get(name, 0) + 1
    if times == 1:
        if len(seen) < NAMES_KEPT:
            seen[name] = 1
        return name, ()
    while (free := f"{name}#{times}") in seen:
        times += 1
    seen[name] = times
    if len(seen) < NAMES_KEPT:
        seen[free] = 1
    return free, ("name of an earlier record, told apart as NAME#2, NAME#3",) if first else ()


def drain(stream: BinaryIO, block: int = 1 << 20) -> int:
    """Read to the end. Returns the number of bytes."""
    total = 0
    while part := stream.read(block):
        total += len(part)
    return total


def binary_reason(head: bytes) -> str:
    """The reason why `head` cannot begin a file of text, or ""."""
    if head.startswith(_MAGIC):
        return f"binary data: {next(what for magic, what in MAGIC.items() if head.startswith(magic))}"
    if reason := wide_reason(head):
        return reason
    sample = head[:65536]
    controls = len(sample) - len(sample.translate(None, CONTROL))
    return "binary data" if b"\0" in head or controls > len(sample) // 10 else ""


def blank_reason(data: bytes) -> str:
    """The reason why a source that is just `data` holds nothing, or ""."""
    if not data:
        return "empty"
    return "" if data.strip() else "only white space"
