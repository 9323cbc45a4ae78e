"""Base of the modalities written in UTF-8: documents, cuts, and the automaton of legal bytes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, ClassVar

import numpy as np

from hnet_cli.modality import MARK, MARK_LEFT_OUT, Automaton, Document, Modality, Refused, Source

from ._bytes import binary_reason, blank_reason, drain, read

PIECE = 1 << 20  # longest document in bytes; a longer source is divided
MARKS = {"utf-8": ("UTF-8", MARK), "gb18030": ("GB18030", "\ufeff".encode("gb18030"))}
"""By codec: the name of the encoding for people, and U+FEFF in it."""
TAILS = bytes(range(0x80, 0xC0))  # continuation bytes
WHITE = np.array([code for code in range(0x3001) if chr(code).isspace()])  # code points; U+3000 is the last


class Utf8(Modality):
    """A source is one document; one longer than `PIECE` is several, divided at a blank line, else at the end of a line,
    else between characters, all of one group so that they stay on one side of the split.

    Bytes that do not decode are never repaired: their piece is refused, the rest is kept. A file that was cut by bytes
    (`head -c`, `split -b`) lacks a part of its first or last character only: those few bytes are refused. Not so a row.
    """

    encodings: ClassVar[str] = "UTF-8"
    """The encodings that `encoding` can return, as a refusal names them."""
    errors: ClassVar[str] = "strict"
    """Error handler of decoding."""

    def encoding(self, head: bytes) -> str:
        """The codec of a source that begins with `head`; documents in another one than UTF-8 are converted."""
        return "utf-8"

    def notes(self, text: str, encoding: str, piece: bytes) -> tuple[str, ...]:
        """`Document.notes` of a piece of the source whose text is `text`."""
        return ()

    def divisible(self, head: bytes) -> bool:
        """True for UTF-8; a legacy encoding is recognised by the beginning of the file, for all of it."""
        return not binary_reason(head) and decoded(head) is not None

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        with source.open() as stream:
            head = read(stream, -1 if source.whole else PIECE)
            encoding = self.encoding(head)
            name, mark = MARKS.get(encoding, ("", b""))
            reason = (len(head) < PIECE and blank_reason(head.removeprefix(mark))) or binary_reason(head)
            if reason:
                yield Refused(reason, source.name, len(head) + drain(stream))
                return
            at = offset = source.offset
            if not at and not source.whole and (lost := rest_of_character(head)):
                yield Refused("character cut off at the beginning", f"{source.name}: byte 0", lost)
                at = offset = lost
                head = head[lost:]
            parts: Iterable[tuple[bytes, bool]] = [(head, True)]
            if not source.whole:
                parts = at_marks(pieces(head, stream, encoding), mark, rb"(?:\A|(?<=\n))")
            elif mark and head.startswith(mark):
                parts = at_marks(parts, mark, rb"\A")
            for piece, last in parts:
                if piece == mark:
                    yield Refused(f"{name} {MARK_LEFT_OUT}", f"{source.name}: byte {at}", len(piece))
                    at, offset = at + len(piece), offset + len(MARK)
                    continue
                item = self._document(piece, source, encoding, at, offset)
                cut = last and not source.whole and isinstance(item, Refused) and item.damaged
                lost = cut_character(piece, encoding, self.errors) if cut else 0
                if 0 < lost < at + len(piece):  # a source of these bytes alone is no text
                    if kept := piece[:-lost]:
                        yield self._document(kept, source, encoding, at, offset)
                    yield Refused("character cut off at the end", f"{source.name}: byte {at + len(kept)}", lost)
                    return
                yield item
                at += len(piece)
                offset += len(item.data) if isinstance(item, Document) else len(piece)

    def _document(self, piece: bytes, source: Source, encoding: str, at: int, offset: int) -> Document | Refused:
        """One piece, which begins at byte `at` of the source, as a document with this `offset`."""
        if (nul := piece.find(b"\0")) >= 0:
            return Refused("binary data", f"{source.name}: byte {at + nul} is 0", len(piece))
        try:
            text = piece.decode(encoding, self.errors)
            data = piece if encoding == "utf-8" else text.encode()
        except UnicodeDecodeError as error:
            where = f"{source.name}: byte {at + error.start} is 0x{piece[error.start]:02x}"
            return Refused(f"not {self.encodings}", where, len(piece), damaged=True)
        group, notes = source.group or source.name, self.notes(text, encoding, piece)
        return Document(data, source.name, source.name, group, offset, notes, self.shown(encoding))

    def shown(self, encoding: str) -> str:
        """The name for people of a codec that `encoding` returned."""
        return "UTF-8"

    def cut(self, data: bytes, near: int) -> int:
        """After white space if there is any in the 256 bytes before `near`, else between two characters."""
        if near >= len(data):
            return len(data)
        space = max(data.rfind(mark, max(0, near - 256), near) for mark in (b" ", b"\n", b"\t")) + 1
        return space or character_start(data, near)

    def automaton(self) -> Automaton:
        return AUTOMATON

    def settle(self, data: bytes) -> Sequence[int]:
        """At the next character; past white space, so that a chunk may begin with the space before a word."""
        codes, starts = code_points(data)
        black = starts[~np.isin(codes, WHITE)]
        return np.append(black, len(data))[np.searchsorted(black, np.arange(len(data) + 1))]  # type: ignore[return-value]


def pieces(head: bytes, stream: BinaryIO, encoding: str) -> Iterator[tuple[bytes, bool]]:
    """`head` and the rest of `stream`, divided, each with whether it is the last. Holds two pieces at most."""
    rest = head
    while block := read(stream, PIECE):
        rest += block
        while len(rest) > PIECE:
            at = divide(rest, PIECE, encoding)
            yield rest[:at], False
            rest = rest[at:]
    if rest:
        yield rest, True


def at_marks(parts: Iterable[tuple[bytes, bool]], mark: bytes, where: bytes) -> Iterator[tuple[bytes, bool]]:
    """The pieces, divided around each byte order mark in a place `where` (a pattern) text may begin: at the start, or
    at a line's where files were joined."""
    for piece, last in parts:
        if not mark or mark not in piece:
            yield piece, last
            continue
        found = [part for part in re.split(rb"%b(%b)" % (where, re.escape(mark)), piece) if part]
        yield from ((part, last and part is found[-1]) for part in found)


def divide(data: bytes, near: int, encoding: str = "utf-8") -> int:
    """The best place to divide `data` in the half before `near`.

    A line feed is never part of a longer character in UTF-8, GB18030 or Big5.
    """
    for mark in (b"\n\n", b"\n\r\n", b"\n"):
        if (at := data.rfind(mark, near // 2, near)) >= 0:
            return at + len(mark)
    if encoding == "utf-8":
        return character_start(data, near) or near
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    decoder.decode(data[:near])
    return near - len(decoder.getstate()[0]) or near


def character_start(data: bytes, near: int) -> int:
    """The largest position <= near where a character begins; `near` itself if the bytes before it are not UTF-8."""
    at = near
    while at > max(0, near - 4) and at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return near if at < len(data) and data[at] & 0xC0 == 0x80 else at


def decoded(head: bytes) -> str | None:
    """The text of `head` in UTF-8, whose first or last character may be cut off; None if it is something else."""
    return _decoded(head[rest_of_character(head) :])


def _decoded(head: bytes) -> str | None:
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None


def rest_of_character(head: bytes) -> int:
    """Number of bytes at the beginning of UTF-8 that end a character that was cut off.

    Other encodings begin with such bytes too, so there must be another character to prove that it is UTF-8.
    """
    size = len(head[:3]) - len(head[:3].lstrip(TAILS))
    text = _decoded(head[size:]) if size else None
    return size if text and not text.isascii() else 0


def cut_character(piece: bytes, encoding: str, errors: str = "strict") -> int:
    """Number of bytes at the end of `piece` that begin a character and do not end it; 0 where other bytes are wrong."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    try:
        decoder.decode(piece)
    except UnicodeDecodeError:
        return 0
    return len(decoder.getstate()[0])


def han_count(text: str) -> int:
    """Number of Chinese characters in `text`."""
    return sum("\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or char >= "\U00020000" for char in text)


def code_points(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Code point (uint32) and first byte (int64) of every character of `data`, two arrays (n,).

    A byte that is not UTF-8 counts as one character (a lone surrogate).
    """
    text = data.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    widths[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1
    return codes, np.cumsum(widths) - widths


def _utf8_automaton() -> Automaton:
    """RFC 3629, section 4: no overlong forms, no surrogates, nothing above U+10FFFF."""
    tail, tail2, tail3, after_e0, after_ed, after_f0, after_f4 = range(1, 8)
    leads = [(0x00, 0x7F, 0), (0xC2, 0xDF, tail), (0xE0, 0xE0, after_e0), (0xE1, 0xEC, tail2), (0xED, 0xED, after_ed)]
    leads += [(0xEE, 0xEF, tail2), (0xF0, 0xF0, after_f0), (0xF1, 0xF3, tail3), (0xF4, 0xF4, after_f4)]
    after_lead = [(0x80, 0xBF, 0), (0x80, 0xBF, tail), (0x80, 0xBF, tail2)]
    after_lead += [(0xA0, 0xBF, tail), (0x80, 0x9F, tail), (0x90, 0xBF, tail2), (0x80, 0x8F, tail2)]
    rows = []
    for moves in (leads, *([move] for move in after_lead)):  # by state: (first byte, last byte, next state)
        row = [-1] * 256
        for first, last, state in moves:
            row[first : last + 1] = [state] * (last + 1 - first)
        rows.append(tuple(row))
    return Automaton(tuple(rows))


AUTOMATON = _utf8_automaton()
