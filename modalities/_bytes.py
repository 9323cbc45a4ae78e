"""Reading helpers that the built-in modalities share."""

from __future__ import annotations

from typing import BinaryIO

from hnet_cli.modality import wide_reason

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


def is_place(text: str) -> bool:
    """True if `text` is a position, a whole number; Python refuses to convert thousands of digits."""
    return text.isdecimal() and len(text) < 19


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
