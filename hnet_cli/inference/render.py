"""Rendering of chunks: coloured, plain or HTML for people, JSONL and TSV for programs, and modalities' own formats.

Every function takes the windows of `hnet_cli.inference.windows` and yields pieces of text as they come; none holds more
than the chunks that are still open. Nothing from a file or a model reaches a terminal unescaped.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from hnet_cli.errors import InputError, UsageError
from hnet_cli.inference import browsers
from hnet_cli.inference import chunks_page as chunkpage
from hnet_cli.inference.chunks import Assembler, Block, record_of
from hnet_cli.inference.chunks_page import About, Part, Piece
from hnet_cli.modality import MARK, MARK_LEFT_OUT, Annotation, Chunk, Document, Modality, Shown, escape

if TYPE_CHECKING:
    from hnet_cli.inference.windows import Stream, Window

COMMON = ("pretty", "plain", "jsonl", "tsv", "html", "live")
PAGES = ("html", "igv")
BROWSERS = ("bigwig", "igv")
"""Formats that are made of a modality's "bed" and "bedgraph"; as text bigwig is bedgraph."""
SEPARATOR = "|"
"""Between chunks in `plain`; once more for every stage further in that a new chunk begins at."""
RESET = "\x1b[0m"
HUES = ((153, 117), (223, 216), (157, 120), (225, 218))
"""Backgrounds of the 256-colour palette, black text on them: one hue per chunk of the innermost stage that is shown,
two shades for the chunks of the outermost inside it."""
UNSAFE_JSON = re.compile("[\ud800-\udfff\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def formats(modality: Modality | None) -> tuple[str, ...]:
    """All formats of `hnet segment` for a modality."""
    own = modality.formats if modality else ()
    return COMMON + own + (BROWSERS if {"bed", "bedgraph"} <= set(own) else ())


def check(format: str, modality: Modality | None) -> None:
    """Raises UsageError for a format that does not exist."""
    if format not in formats(modality):
        raise UsageError(f"there is no output format {format!r} here", f"choose from {', '.join(formats(modality))}")


def use_colour(stream: TextIO) -> bool:
    """True if `stream` is a terminal that wants colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render(
    windows: Iterable[Window],
    format: str,
    stages: Sequence[int],
    modality: Modality | None,
    headings: bool = False,
    about: About = About(),  # noqa: B008
    note: Callable[[], str] = lambda: "",
    annotation: Annotation | None = None,
    beside: tuple[Iterable[Window], Sequence[int]] | None = None,
) -> Iterator[str]:
    """Pieces of text; joined they are the whole output. `stages` ascending. For the page: what it is `about`, `note`
    is asked at the end for what is still to be said, `beside`: windows of the same documents and stages of another
    model."""
    check(format, modality)
    if format == "jsonl":
        return _jsonl(windows, stages, modality)
    if format == "tsv":
        return _tsv(windows, stages, shower(modality))
    if format not in COMMON:
        assert modality is not None
        if format == "igv":
            return _igv(windows, stages, modality, about, note, annotation)
        return _own_format(windows, stages, modality, "bedgraph" if format == "bigwig" else format)
    show, drawings = shower(modality), _drawings(windows, stages, headings or format == "html")
    if format == "html":
        other = beside and (_parts(_drawings(*beside, False), beside[1], None), len(beside[1]))
        parts = _parts(drawings, stages, modality, annotation, about.source)
        return chunkpage.page(parts, show, stages, about, note, other)
    return _pretty(drawings, show, len(stages) - 1) if format == "pretty" else _plain(drawings, show)


def paint(text: str, hue: int, shade: int = 0) -> str:
    """`text`, which must be safe, on a coloured background that ends with each line, its white space made visible."""
    on = f"\x1b[38;5;16;48;5;{HUES[hue % len(HUES)][shade]}m"
    lines = text.replace("\t", "→   ").replace("\n", "↵\n").split("\n")
    return "\n".join(f"{on}{line}{RESET}" if line else "" for line in lines)


NAMES_KEPT = 500_000
"""Names of records remembered to tell whether one comes again."""
MOST_KEPT = 64
"""Bytes of a chunk whose text is kept: short ones repeat, and long ones would fill the memory."""


def kept(show: Callable[[bytes], str]) -> Callable[[bytes], str]:
    """The function, with its results for short chunks at hand."""
    cached = lru_cache(maxsize=1 << 16)(show)
    return lambda data: cached(data) if len(data) <= MOST_KEPT else show(data)


def shower(modality: Modality | None) -> Callable[[bytes], str]:
    """A chunk's bytes as safe text; of a character that is cut, the bytes."""
    display = (modality or Modality()).display

    @kept
    def show(data: bytes) -> str:
        text = display(data)
        return escape(data.decode("utf-8", "backslashreplace")) if "\ufffd" in text else text

    return show


# -- for programs ------------------------------------------------------------------------------------------------------


def json_line(value: Any) -> str:
    """A value as JSON in its own script, safe on a terminal."""
    return UNSAFE_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


@kept
def json_payload(data: bytes) -> str:
    """The key and value of a chunk's bytes: "text", or "bytes" in base64 where they are no UTF-8."""
    try:
        return f'"text": {json_line(data.decode())}'
    except UnicodeDecodeError:
        return f'"bytes": "{base64.b64encode(data).decode()}"'


def json_head(document: Document | Stream, modality: Modality | None) -> str:
    """The beginning of a JSON line about a part of a document: its source, "record" where there are records, "encoding"
    where the source's may differ."""
    record = document.name if modality and modality.records else record_of(document)
    head = f'{{"source": {json_line(document.source)}, '
    head += f'"record": {json_line(record)}, ' if record is not None else ""
    if modality and modality.converts and isinstance(document, Document):
        head += f'"encoding": {json_line(document.encoding)}, '
    return head


def tsv_field(text: str) -> str:
    """Safe text as a field of a TSV."""
    return text.replace("\t", "\\t").replace("\n", "\\n")


class Names:
    """The names of the records of an output whose rows have nothing else to tell their sources."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int]] = {}

    def check(self, document: Document | Stream) -> None:
        """Raise InputError for a record of a name that came before, in another source or in the same one again: their
        rows would lie over each other. Documents of one record are told by their offsets, which grow."""
        before = self._seen.get(document.name)
        if before is not None and (before[0] != document.source or document.offset <= before[1]):
            told = f"and so has {before[0]}" if before[0] != document.source else "twice"
            raise InputError(
                f"{document.source} has a record {document.name!r}, {told}: their rows would lie over each other",
                "take one after the other, or tsv, which names the source",
            )
        if before is not None or len(self._seen) < NAMES_KEPT:
            self._seen[document.name] = document.source, document.offset


class _Characters:
    """Character offsets in a source, for one stage. None where they are unknown: after a gap, or inside a character.

    A byte order mark is a character of its source.
    """

    def __init__(self) -> None:
        self.source, self.end, self.count = "", 0, 0

    def __call__(self, block: Block, ahead: bytes) -> list[int | None]:
        """The offset of each of `block.starts`, its end among them. `ahead`: bytes that follow it in its document."""
        document = block.window.document
        start, end = document.offset + block.starts[0], document.offset + block.starts[-1]
        if document.source != self.source or (not block.starts[0] and document.offset <= len(MARK)):
            self.source, self.end, self.count = document.source, 0, 0  # another, or the same again
        if isinstance(document, Document) and MARK_LEFT_OUT in document.notes and start == self.end + len(MARK):
            self.end, self.count = start, self.count + 1
        if start != self.end:
            self.end = -1  # some bytes were left out: nobody knows how many characters they are
            return [None] * len(block.starts)
        self.end = end
        data = np.frombuffer(b"".join(block.chunks), dtype=np.uint8)
        begins = (data & 0xC0) != 0x80
        before = self.count + np.concatenate([[0], np.cumsum(begins)])
        self.count = int(before[-1])
        at = np.asarray(block.starts) - block.starts[0]
        whole = np.append(begins, not ahead or (ahead[0] & 0xC0) != 0x80)[at]
        return [count if ok else None for count, ok in zip(before[at].tolist(), whole.tolist(), strict=True)]


def _jsonl(windows: Iterable[Window], stages: Sequence[int], modality: Modality | None) -> Iterator[str]:
    """Every line of an output has the same keys: those of `json_head`, and of a document's text, where there are no
    records, "char_start" and "char_end", null where they are unknown."""
    assemblers, characters = [Assembler(stage) for stage in stages], [_Characters() for _ in stages]
    for window in windows:
        document = window.document
        record = document.name if modality and modality.records else record_of(document)
        head = json_head(document, modality)
        for assemble, count in zip(assemblers, characters, strict=True):
            block = assemble(window)
            if not block.chunks:
                continue
            fixed = f'{head}"document": {window.index}, "stage": {assemble.stage}, "start": '
            starts = [document.offset + start for start in block.starts]
            chars = count(block, b"" if window.last else assemble.data[:1]) if record is None else []
            lines = []
            probability = block.probability[:, assemble.stage].tolist()
            for n, (a, b, chunk, p) in enumerate(zip(starts, starts[1:], block.chunks, probability, strict=False)):
                content, place = json_payload(chunk), ""
                if chars:
                    place = f'"char_start": {json.dumps(chars[n])}, "char_end": {json.dumps(chars[n + 1])}, '
                lines.append(f'{fixed}{a}, "end": {b}, {place}{content}, "probability": {p:.4f}}}\n')
            yield "".join(lines)


def _tsv(windows: Iterable[Window], stages: Sequence[int], show: Callable[[bytes], str]) -> Iterator[str]:
    yield "source\trecord\tdocument\tstage\tstart\tend\tprobability\ttext\n"
    assemblers = [Assembler(stage) for stage in stages]
    for window in windows:
        document = window.document
        head = f"{tsv_field(escape(document.source))}\t{tsv_field(escape(document.name))}\t{window.index}\t"
        for assemble in assemblers:
            block = assemble(window)
            starts = [document.offset + start for start in block.starts]
            yield "".join(
                f"{head}{assemble.stage}\t{a}\t{b}\t{p:.4f}\t{tsv_field(show(chunk))}\n"
                for a, b, chunk, p in zip(
                    starts, starts[1:], block.chunks, block.probability[:, assemble.stage].tolist(), strict=False
                )
            )


def _own_format(windows: Iterable[Window], stages: Sequence[int], modality: Modality, format: str) -> Iterator[str]:
    assemblers, names = [Assembler(stage) for stage in stages], Names()
    every = iter(windows)

    def of_document(window: Window) -> Iterator[Window]:
        yield window
        while not window.last:
            yield (window := next(every))

    def chunks(own: Iterator[Window]) -> Iterator[Chunk]:
        for window in own:
            for assemble in assemblers:
                block = assemble(window)
                p = block.probability[:, assemble.stage].tolist()
                yield from map(Chunk, [assemble.stage] * len(p), block.starts, block.starts[1:], p)

    for first in every:
        document = first.document
        if not isinstance(document, Document):
            document = Document(b"", document.name, document.source, offset=document.offset)
        if modality.records:  # else rows have no coordinates within a name
            names.check(document)
        own = chunks(of_document(first))
        for line in modality.render(document, own, format):
            yield escape(line, keep="\t") + "\n"
        for _ in own:  # what a careless plugin left
            pass


def _igv(
    windows: Iterable[Window],
    stages: Sequence[int],
    modality: Modality,
    about: About,
    note: Callable[[], str],
    annotation: Annotation | None,
) -> Iterator[str]:
    """The page of igv.js, for which all is held in memory."""
    held = list(windows)
    documents = [each.document for each in held if each.start == 0 and isinstance(each.document, Document)]
    yield from browsers.igv_page(
        documents,
        stages,
        lambda stage, format: _own_format(held, [stage], modality, format),
        annotation,
        about.title,
        about.model,
        note(),
    )


# -- for people --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Chunks of the outermost stage shown."""

    above: str | None
    """None where the document goes on; else its name, or "" where it needs none."""
    block: Block
    chunks: list[bytes]
    """Text to draw for each chunk: cut at the edges of characters; jsonl, tsv and html tell exact offsets."""
    depths: list[int]
    """Number of further stages that begin a chunk where each of these chunks begins."""


def whole_characters(chunks: Sequence[bytes]) -> list[bytes]:
    """The same bytes in as many pieces, none beginning inside a character: what completes one moves to the
    piece in which it begins, so some may be empty. Bytes that are no UTF-8 stay where they are."""
    drawn = list(chunks)
    owner = 0
    for i in range(1, len(drawn)):
        missing = _missing(drawn[owner])
        taken = 0
        while taken < min(missing, len(drawn[i])) and drawn[i][taken] & 0xC0 == 0x80:
            taken += 1
        drawn[owner], drawn[i] = drawn[owner] + drawn[i][:taken], drawn[i][taken:]
        if drawn[i]:
            owner = i
    return drawn


def _missing(data: bytes) -> int:
    """Number of bytes that the UTF-8 character at the end of `data` still lacks."""
    for back, byte in enumerate(reversed(data[-3:]), start=1):
        if byte >= 0xC0:
            return max(0, (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) - back)
        if byte < 0x80:
            return 0
    return 0


class _WholeCharacters:
    """`whole_characters` over the blocks of a document: what ends inside a character waits for the next block."""

    def __init__(self) -> None:
        self.waiting: Block | None = None
        self.gone = 0  # bytes of its first chunk that are drawn already, with a character that began before them

    def __call__(self, block: Block) -> tuple[Block, list[bytes]]:
        """A block and what to draw for each of its chunks."""
        if self.waiting is not None:
            first = self.waiting
            both = np.concatenate([first.probability, block.probability])
            block = Block(block.window, first.starts[:-1] + block.starts, first.chunks + block.chunks, both)
        pieces = [chunk[self.gone :] if n == 0 else chunk for n, chunk in enumerate(block.chunks)]
        drawn = whole_characters(pieces)
        owner = max((n for n, piece in enumerate(drawn) if piece), default=0)
        if block.window.last or not drawn or not _missing(drawn[owner]):
            self.waiting, self.gone = None, 0
            return block, drawn
        if owner:
            self.gone = sum(map(len, drawn[:owner])) - sum(map(len, pieces[:owner]))
        self.waiting = Block(block.window, block.starts[owner:], block.chunks[owner:], block.probability[owner:])
        ready = Block(block.window, block.starts[: owner + 1], block.chunks[:owner], block.probability[:owner])
        return ready, drawn[:owner]


def _drawings(windows: Iterable[Window], stages: Sequence[int], headings: bool) -> Iterator[_Drawing]:
    assemble, whole = Assembler(stages[0]), _WholeCharacters()
    before = None
    for window in windows:
        (block, drawn), document = whole(assemble(window)), window.document
        above, this = None, (document.source, document.name)
        if this != before:
            record = record_of(document)
            above = document.source if record is None else f"{document.source}: {record}"
            above = escape(above, keep="") if headings or record is not None else ""
            before = this
        deeper = ~np.isnan(block.probability[:, stages[0] + 1 : stages[-1] + 1])
        yield _Drawing(above, block, drawn, deeper.sum(1).tolist())


def _plain(drawings: Iterable[_Drawing], show: Callable[[bytes], str]) -> Iterator[str]:
    tail, separated = "\n", False
    for drawing in drawings:
        parts = []
        if drawing.above is not None:
            separated = False  # until something is drawn: a chunk may be longer than what was read with its beginning
            parts.append("" if tail == "\n" else "\n")
            parts.append(f"==> {drawing.above} <==\n" if drawing.above else "")
        for chunk, depth in zip(drawing.chunks, drawing.depths, strict=True):
            if not chunk:
                continue
            parts += [SEPARATOR * (1 + depth) if separated else "", show(chunk)]
            separated = True
        text = "".join(parts)
        tail = text[-1:] or tail
        yield text
    yield "" if tail == "\n" else "\n"


def _pretty(drawings: Iterable[_Drawing], show: Callable[[bytes], str], furthest: int) -> Iterator[str]:
    tail, hue, shade = "\n", -1, 0
    for drawing in drawings:
        parts = []
        if drawing.above is not None:
            parts.append("" if tail == "\n" else "\n")
            parts.append(f"\x1b[1m{drawing.above}{RESET}\n" if drawing.above else "")
        for chunk, depth in zip(drawing.chunks, drawing.depths, strict=True):
            if not chunk:
                continue
            hue, shade = (hue + 1, 0) if depth == furthest else (hue, 1 - shade)
            parts.append(paint(show(chunk), hue, shade))
        text = "".join(parts)
        tail = text[-1:] or tail
        yield text
    yield "" if tail == "\n" else "\n"


def _parts(
    drawings: Iterable[_Drawing],
    stages: Sequence[int],
    modality: Modality | None,
    annotation: Annotation | None = None,
    source: str = "",
) -> Iterator[Part]:
    """Input of the page of chunks: the chunks of each drawing with their bytes' surprisal and syntax. Headings leave
    out `source`, the only one."""
    waiting = np.empty(0, dtype=np.float32)  # of bytes read whose chunk has not been drawn yet
    syntax = b""  # of the bytes of the document that have not been drawn yet
    number, record, heading = -1, -1, ""
    features: Sequence[Shown] = ()
    for drawing in drawings:
        block = drawing.block
        document = block.window.document
        if drawing.above is not None:
            record += 1
            alone = drawing.above == source or (source and drawing.above == "-")
            heading = "" if alone else drawing.above.removeprefix(f"{source}: ").removeprefix("-: " if source else "")
        if block.window.start == 0:
            number += 1
            waiting = waiting[:0]
            syntax = (modality.syntax(document) if modality and isinstance(document, Document) else None) or b""
            features = annotation.shown(document) if annotation and isinstance(document, Document) else ()
        bits = block.window.surprisal
        waiting = np.concatenate([waiting, bits if bits is not None else waiting[:0]])
        starts, p = block.starts, block.probability[:, stages[0] : stages[-1] + 1].tolist()
        pieces = []
        for (start, end), drawn, probability in zip(pairwise(starts), drawing.chunks, p, strict=True):
            at = start - starts[0]
            kinds, syntax = syntax[: len(drawn)], syntax[len(drawn) :]
            pieces.append(Piece(start, end, drawn, tuple(probability), waiting[at : at + end - start], kinds))
        waiting = waiting[starts[-1] - starts[0] :] if pieces else waiting
        yield Part(pieces, number, document.offset, record, heading, features)
