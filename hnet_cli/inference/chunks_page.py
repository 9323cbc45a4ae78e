"""`hnet segment --format html`: one page to read a text in its chunks, with their places, certainty and surprisal.

The text stands in the page once (beside a second model twice), as text, in blocks that end with a line where they can;
what is known about the chunks lies beside each block in a few short lists. The script draws only the blocks in view, so
pages of megabytes stay quick, and without it the text can still be read. Written as it comes: nothing here grows with
the input but counts of lengths, and of short chunks up to a limit.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from hnet_cli.modality import SYNTAX, Shown, escape
from hnet_cli.pages.html import macro

BLOCK, LONGEST_BLOCK = 4096, 16384
"""Bytes after which a block ends with the next line, and without one."""
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""Surprisal of a byte as one character: quarters of a bit, at most 15 3/4."""
COUNTED, COUNTED_BYTES = 50_000, 48
"""Different chunks that are counted, and the longest of them."""
TOP, BARS = 40, 32
ROW = 60
"""Letters in a row of what has no lines; blocks end with one."""
MOST_FEATURES = 200
"""Features of an annotation that are drawn in a block."""
FULL = {"base": 2.0}
"""Bits of a position at which colours have their full strength, by unit; else 5."""
TEMPLATE = "segment.html"
LINE_FEED = ord("\n")


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of the outermost stage shown."""

    start: int
    end: int
    """In the document."""
    drawn: bytes
    """Text drawn for it: whole characters only, so perhaps not all of its bytes, or some of the next chunk's."""
    probability: tuple[float, ...]
    """Per stage shown: p where a chunk of the stage begins here, else NaN."""
    surprisal: Sequence[float] | np.ndarray
    """Bits per byte of it; empty where they are not known."""
    syntax: bytes = b""
    """The kind of each byte drawn (`modality.SYNTAX`); empty where it is not known."""


@dataclass(frozen=True, slots=True)
class Part:
    """The next chunks of a document."""

    pieces: Iterable[Piece]
    document: int = 0
    """Number of the document."""
    offset: int = 0
    """Offset of the document in its record, or its source."""
    record: int = 0
    """Number of its record, or its source."""
    heading: str = ""
    features: Sequence[Shown] = ()
    """Features of the document, by start."""


@dataclass(frozen=True, slots=True)
class About:
    """The words of the page, and how positions are counted on it."""

    title: str = "Learned chunks"
    source: str = ""
    """The name of the source if there is but one."""
    model: str = ""
    other: str = ""
    """The model whose chunks stand beside."""
    unit: str = "byte"
    margin: str = "offset"
    """Numbers beside the text: `Modality.margin`."""
    least: float = 0.5
    """The threshold of boundaries."""

    @property
    def full(self) -> float:
        return FULL.get(self.unit, 5.0)


@dataclass
class _Counts:
    """Figures of a stage."""

    chunks: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    texts: Counter[bytes] = field(default_factory=Counter)
    length: int = 0
    text: bytes = b""

    def grow(self, piece: Piece, begins: bool) -> None:
        """Take in the next piece of the outermost stage; `begins`: a chunk of this stage begins with it."""
        if begins:
            self.close()
            self.chunks += 1
        self.length += piece.end - piece.start
        self.text += piece.drawn[: COUNTED_BYTES + 1]
        if len(self.text) > COUNTED_BYTES:
            self.text = self.text[: COUNTED_BYTES + 1]

    def close(self) -> None:
        if self.length:
            self.lengths[self.length] += 1
            if 0 < len(self.text) <= COUNTED_BYTES:
                self.texts[self.text] += 1
            if len(self.texts) > COUNTED:
                self.texts = Counter(dict(self.texts.most_common(COUNTED // 2)))
        self.length, self.text = 0, b""


class _Block:
    """Text and lists of one `<div>`."""

    def __init__(self, at: int, drawn: Sequence[int], into: int = 0, line: int = 0) -> None:
        self.at, self.drawn, self.into, self.line = at, drawn, into, line
        """Its beginning; chunks drawn before it, per stage; bytes of its first chunk that lie before it; the number of
        its first line, where lines have numbers."""
        self.left = 0
        """Bytes of its last chunk that follow it."""
        self.size = 0
        self.texts: list[str] = []
        self.sizes: list[int] = []
        self.units: list[int] = []
        self.probability: list[tuple[float, ...]] = []
        self.surprisal: list[str] = []
        self.runs: list[list[int]] = []
        """Syntax of the text: UTF-16 units in a row of one kind, and which."""
        self.lines: list[int] = []
        """Bytes before each of its lines but the first."""
        self.escaped = False
        """True where the text is not the bytes that it stands for, so that a reader of it cannot count them."""

    def add(
        self,
        text: str,
        size: int,
        probability: tuple[float, ...],
        surprisal: str,
        drawn: bytes = b"",
        syntax: bytes = b"",
    ) -> None:
        """`text` is what is shown for the bytes `drawn`, whose `syntax` is told."""
        self.escaped |= bool(drawn) and text.encode("utf-8", "surrogateescape") != drawn
        self.lines += [self.size + at + 1 for at, byte in enumerate(drawn) if byte == LINE_FEED]
        self.texts.append(text)
        self.sizes.append(size)
        self.units.append(_units(text))
        for kind, units in _runs(text, drawn, syntax) if syntax else [(0, self.units[-1])]:
            if self.runs and self.runs[-1][1] == kind:
                self.runs[-1][0] += units
            else:
                self.runs.append([units, kind])
        self.probability.append(probability)
        self.surprisal.append(surprisal)
        self.size += size

    def lists(self, base: int) -> dict[str, str]:
        """The facts about its chunks, as the script of the page reads them."""
        lists = {"at": str(base + self.at), "n": _listed(self.sizes)}
        if self.units != self.sizes:
            lists["u"] = _listed(self.units)
        for s in range(len(self.drawn)):
            lists[f"p{s}"] = ",".join("" if math.isnan(p[s]) else f"{100 * p[s]:.0f}" for p in self.probability)
        if known := "".join(self.surprisal):
            lists["s"] = known
        if any(kind for _, kind in self.runs):
            lists["y"] = _listed(number for run in self.runs for number in run)
        lists["h"] = _listed(self.drawn)
        if self.into or self.left:
            lists["cut"] = f"{self.into},{self.left}"
        if self.line:
            lists["l"] = str(self.line)
        if self.escaped and self.lines:
            lists["b"] = _listed(self.lines)
        return lists

    def html(self, base: int, features: Sequence[Shown] = (), kind: str = "chunks") -> str:
        lists = self.lists(base)
        inside = [each for each in features if each.end > self.at and each.start < self.at + self.size]
        if inside := sorted(inside, key=lambda each: (each.kind != "gene", each.start))[:MOST_FEATURES]:
            rows = [[base + each.start, base + each.end, each.kind, each.strand, escape(each.name)] for each in inside]
            lists["f"] = json.dumps(rows, separators=(",", ":"))
        return macro(TEMPLATE, "block")(lists, "".join(self.texts), kind)


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _units(text: str) -> int:
    """Length as scripts count it: UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _runs(text: str, drawn: bytes, syntax: bytes) -> Iterator[tuple[int, int]]:
    """(kind, UTF-16 units) along the text that shows `drawn`; no kind where it is not shown as it is, but escaped."""
    if text.encode("utf-8", "surrogateescape") != drawn:
        yield 0, _units(text)
        return
    at = 0
    for kind, run in groupby(syntax):
        end = at + sum(1 for _ in run)
        yield kind, _units(drawn[at:end].decode("utf-8", "replace"))
        at = end


def _digits(bits: Sequence[float] | np.ndarray) -> str:
    """One character of `DIGITS` per byte; what is not known counts as nothing."""
    quarters = np.nan_to_num(np.asarray(bits, dtype=np.float64) * 4, nan=0.0, posinf=63.0)
    return "".join(map(DIGITS.__getitem__, np.clip(np.rint(quarters), 0, 63).astype(int).tolist()))


def page(
    parts: Iterable[Part],
    show: Callable[[bytes], str],
    stages: Sequence[int],
    about: About = About(),
    note: Callable[[], str] = lambda: "",
    beside: tuple[Iterable[Part], int] | None = None,
) -> Iterator[str]:
    """Pieces of the page. `parts` in order. `stages`: numbers of the stages that are shown, ascending. `note` is asked
    at the end. `beside`: the same documents in the chunks of another model, and the number of its stages."""
    choices = [(str(n), f"stage {stage}", False) for n, stage in enumerate(stages)]
    show = _with_returns(show)
    yield macro(TEMPLATE, "head")([*choices, ("all", "nested", True)] if len(stages) > 1 else [], about)
    text = _Text(show, len(stages), about, beside and _Beside(*beside, show))
    before = None
    for part in parts:
        if before is None or before.document != part.document:
            text.begin(part, before)
        before = part
        for piece in part.pieces:
            text.add(piece)
        yield text.taken()
    counts = text.close()
    yield text.taken()
    told = [_told(stage, number, show, about.unit) for number, stage in zip(stages, counts, strict=True)]
    if len(stages) == 1:
        told[0]["title"] = "Chunks"
    told[0]["bits"] = text.bits / text.known if text.known else None
    kinds = [(kind, name) for kind, name in enumerate(SYNTAX) if name and kind in text.syntax]
    yield macro(TEMPLATE, "closing")(told, note(), about, len(stages), kinds, text.annotated)


def _with_returns(show: Callable[[bytes], str]) -> Callable[[bytes], str]:
    """`show` with carriage returns as they are: the page marks them, as it does the ends of lines."""

    def shown(data: bytes) -> str:
        return "\r".join(map(show, data.split(b"\r"))) if b"\r" in data else show(data)

    return shown


class _Text:
    """The text of a page, block by block, and its figures."""

    def __init__(self, show: Callable[[bytes], str], stages: int, about: About, beside: _Beside | None) -> None:
        self.show, self.about, self.beside = show, about, beside
        self.counts = [_Counts() for _ in range(stages)]
        self.part = Part(())
        self.block: _Block | None = None
        self.bits, self.known, self.line, self.end = 0.0, 0, 1, 0
        self.syntax: set[int] = set()
        """Kinds that were seen."""
        self.annotated = False
        self.written: list[str] = []

    def taken(self) -> str:
        """The pieces that can be written."""
        text, self.written = "".join(self.written), []
        return text

    def begin(self, part: Part, before: Part | None) -> None:
        """Begin a document."""
        self.close()
        same = before is not None and before.record == part.record
        if not same:
            self.line, self.end = 1, part.offset
            if part.heading:
                self.written.append(macro(TEMPLATE, "heading")(part.heading))
        if same and part.offset > self.end:
            self.written.append(macro(TEMPLATE, "gap")(part.offset - self.end, self.about.unit))
        self.part = part
        self.annotated |= bool(part.features)

    def close(self) -> list[_Counts]:
        """End the document."""
        for stage in self.counts:
            stage.close()
        self._end_block()
        return self.counts

    def _end_block(self) -> None:
        block, self.block = self.block, None
        if block is None or not block.size:
            return
        end = block.at + block.size
        self.end = self.part.offset + end
        html = block.html(self.part.offset, self.part.features)
        other = self.beside and self.beside.block(self.part.document, block.at, end)
        if other:
            html = macro(TEMPLATE, "pair")(html, other.html(self.part.offset, (), "chunks other"))
        self.written.append(html)

    def _new_block(self, at: int, into: int = 0) -> _Block:
        line = self.line if self.about.margin == "line" else 0
        return _Block(at, [stage.chunks for stage in self.counts], into, line)

    def add(self, piece: Piece) -> None:
        """Take the next chunk of the document."""
        block = self.block = self.block or self._new_block(piece.start)
        for stage, p in zip(self.counts, piece.probability, strict=True):
            stage.grow(piece, not math.isnan(p))
        if len(piece.surprisal):
            self.bits, self.known = self.bits + float(np.nansum(piece.surprisal)), self.known + len(piece.surprisal)
        self.syntax.update(piece.syntax)
        digits, size = _digits(piece.surprisal), piece.end - piece.start
        full = block.size + size
        line = self._cut(piece) if full >= BLOCK else 0
        inside = min(line, size)
        rest = piece.drawn[line:]
        self.line += piece.drawn.count(b"\n") if self.about.margin == "line" else 0
        if not line or not rest or inside == size:
            block.add(self.show(piece.drawn), size, piece.probability, digits, piece.drawn, piece.syntax)
            if line or (full >= LONGEST_BLOCK and self.about.margin != "row"):
                self._end_block()
            return
        head = piece.drawn[:line]
        block.add(self.show(head), inside, piece.probability, digits[:inside], head, piece.syntax[:line])
        block.left = size - inside
        self._end_block()
        self.block = self._new_block(piece.start + inside, into=inside)
        unknown = (math.nan,) * len(self.counts)
        self.block.add(self.show(rest), size - inside, unknown, digits[inside:], rest, piece.syntax[line:])

    def _cut(self, piece: Piece) -> int:
        """Bytes drawn for a piece up to the last end of a line, or of a row, in them; 0: there is none."""
        if self.about.margin != "row":
            return piece.drawn.rfind(b"\n") + 1
        start = self.part.offset + piece.start
        return max(0, (start + len(piece.drawn)) // ROW * ROW - start)


class _Beside:
    """The chunks of another model, handed out in the stretches of the first one's blocks."""

    def __init__(self, parts: Iterable[Part], stages: int, show: Callable[[bytes], str]) -> None:
        self.pieces = ((part.document, piece) for part in parts for piece in part.pieces)
        self.next = next(self.pieces, None)
        self.show, self.into, self.drawn = show, 0, [0] * stages

    def block(self, document: int, start: int, end: int) -> _Block | None:
        block = _Block(start, self.drawn.copy(), self.into)
        while self.next and self.next[0] <= document:
            number, piece = self.next
            size = end - piece.start
            if number == document and size <= 0:
                break
            for stage, p in enumerate(piece.probability):
                self.drawn[stage] += not math.isnan(p)
            if number < document or piece.end <= end:
                self.next, self.into = next(self.pieces, None), 0
            else:
                cut = size
                while cut < len(piece.drawn) and piece.drawn[cut] & 0xC0 == 0x80:  # not inside a character
                    cut += 1
                unknown = (math.nan,) * len(self.drawn)
                self.next, self.into = (number, Piece(end, piece.end, piece.drawn[cut:], unknown, [])), self.into + size
                block.left = piece.end - end
                piece = Piece(piece.start, end, piece.drawn[:cut], piece.probability, [])
            if number == document:
                block.add(self.show(piece.drawn), piece.end - piece.start, piece.probability, "", piece.drawn)
        return block if block.size else None


def lists_of(pieces: Iterable[Piece], stages: int) -> dict[str, str]:
    """The facts about a document that is shown as it stands, in one block."""
    block = _Block(0, [0] * stages)
    for piece in pieces:
        text = piece.drawn.decode("utf-8", "replace")
        size = piece.end - piece.start
        block.add(text, size, piece.probability, _digits(piece.surprisal), piece.drawn, piece.syntax)
    return block.lists(0)


def _told(counts: _Counts, stage: int, show: Callable[[bytes], str], unit: str) -> dict[str, Any]:
    """The figures of a stage as the template shows them."""
    total = sum(length * count for length, count in counts.lengths.items())
    bars, longest = _bars(counts.lengths, unit)
    return {
        "title": f"Stage {stage}",
        "chunks": counts.chunks,
        "mean": total / max(1, counts.chunks),
        "bits": None,
        "bars": bars,
        "longest": longest,
        "frequent": [(_visible(show(text)), count) for text, count in counts.texts.most_common(TOP)],
    }


def _visible(text: str) -> str:
    return text.replace("\r", "␍").replace("\n", "↵").replace("\t", "→").replace(" ", "␣")


def _bars(lengths: Counter[int], unit: str) -> tuple[list[tuple[str, str]], str]:
    """Height in percent and title of a bar per length of chunks, the longest together in the last; its length."""
    if not lengths:
        return [], ""
    total, most, seen = sum(lengths.values()), 1, 0
    for length in sorted(lengths):
        seen += lengths[length]
        most = length
        if seen >= 0.995 * total:
            break
    most = min(most, BARS)
    counts = [lengths[n] for n in range(1, most)] + [sum(c for n, c in lengths.items() if n >= most)]
    longest = f"{most}" + ("" if max(lengths) == most else " or more")
    names = [*(f"{n} {unit}{'s' * (n > 1)}" for n in range(1, most)), f"{longest} {unit}{'s' * (longest != '1')}"]
    return [
        (f"{100 * count / max(counts):.1f}", f"{name}: {count:,} ({100 * count / total:.1f}%)")
        for count, name in zip(counts, names, strict=True)
    ], longest
