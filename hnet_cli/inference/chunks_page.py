"""`hnet segment --format html`: one page to read a text in its chunks, with their places, certainty and surprisal.

The text stands in the page once, as text, in blocks that end with a line where they can; what is known about the chunks
lies beside each block in a few short lists. The script draws only the blocks in view, so pages of megabytes stay quick,
and without it the text can still be read. Written as it comes: nothing here grows with the input but counts of lengths,
and of short chunks up to a limit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from hnet_cli.pages.html import macro

BLOCK, LONGEST_BLOCK = 4096, 16384
"""Bytes after which a block ends with the next line, and without one."""
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""Surprisal of a byte as one character: quarters of a bit, at most 15 3/4."""
COUNTED, COUNTED_BYTES = 50_000, 48
"""Different chunks that are counted, and the longest of them."""
TOP, BARS = 40, 32
TEMPLATE = "segment.html"


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

    def __init__(self, at: int, drawn: Sequence[int], into: int = 0) -> None:
        self.at, self.drawn, self.into = at, drawn, into
        """Its beginning; chunks drawn before it, per stage; bytes of its first chunk that lie before it."""
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
        return lists

    def html(self, base: int) -> str:
        return macro(TEMPLATE, "block")(self.lists(base), "".join(self.texts))


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
    parts: Iterable[tuple[str | None, int, Iterable[Piece]]],
    show: Callable[[bytes], str],
    stages: Sequence[int],
    label: str = "",
    note: Callable[[], str] = lambda: "",
) -> Iterator[str]:
    """Pieces of the page. `parts` come in order: (heading of a document that begins here or None where it goes on,
    offset of the document in its source, its next chunks). `stages`: numbers of the stages that are shown, ascending.
    `label` names the model; `note` is asked at the end."""
    choices = [(str(n), f"stage {stage}", False) for n, stage in enumerate(stages)]
    yield macro(TEMPLATE, "head")([*choices, ("all", "nested", True)] if len(stages) > 1 else [], label)
    counts = [_Counts() for _ in stages]
    bits, known, base = 0.0, 0, 0
    block: _Block | None = None
    for heading, offset, pieces in parts:
        written = []
        if heading is not None:
            if block:
                written.append(block.html(base))
            for stage in counts:
                stage.close()
            block, base = None, offset
            written.append(macro(TEMPLATE, "heading")(heading) if heading else "")
        for piece in pieces:
            if block is None:
                block = _Block(piece.start, [stage.chunks for stage in counts])
            for stage, p in zip(counts, piece.probability, strict=True):
                stage.grow(piece, not math.isnan(p))
            if len(piece.surprisal):
                bits, known = bits + float(np.nansum(piece.surprisal)), known + len(piece.surprisal)
            digits = _digits(piece.surprisal)
            block = _placed(block, piece, digits, show, counts, base, written)
        yield "".join(written)
    for stage in counts:
        stage.close()
    yield block.html(base) if block else ""
    told = [_told(stage, number, show) for number, stage in zip(stages, counts, strict=True)]
    if len(stages) == 1:
        told[0]["title"] = "Chunks"
    told[0]["bits"] = bits / known if known else None
    yield macro(TEMPLATE, "closing")(told, note())


def lists_of(pieces: Iterable[Piece], stages: int) -> dict[str, str]:
    """The facts about a document that is shown as it stands, in one block."""
    block = _Block(0, [0] * stages)
    for piece in pieces:
        text = piece.drawn.decode("utf-8", "replace")
        size = piece.end - piece.start
        block.add(text, size, piece.probability, _digits(piece.surprisal), piece.drawn, piece.syntax)
    return block.lists(0)


def _placed(
    block: _Block,
    piece: Piece,
    digits: str,
    show: Callable[[bytes], str],
    counts: Sequence[_Counts],
    base: int,
    written: list[str],
) -> _Block:
    """The block to go on with, after a piece was put into `block`; what was finished is added to `written`."""
    size, full = piece.end - piece.start, block.size + piece.end - piece.start
    line = piece.drawn.rfind(b"\n") + 1 if full >= BLOCK else 0
    inside = min(line, size)
    rest = piece.drawn[line:]
    if not line or not rest or inside == size:
        block.add(show(piece.drawn), size, piece.probability, digits, piece.drawn, piece.syntax)
        if not (line or full >= LONGEST_BLOCK):
            return block
        written.append(block.html(base))
        return _Block(piece.end, [stage.chunks for stage in counts])
    block.add(
        show(piece.drawn[:line]), inside, piece.probability, digits[:inside], piece.drawn[:line], piece.syntax[:line]
    )
    block.left = size - inside
    written.append(block.html(base))
    after = _Block(piece.start + inside, [stage.chunks for stage in counts], into=inside)
    after.add(show(rest), size - inside, (math.nan,) * len(counts), digits[inside:], rest, piece.syntax[line:])
    return after


def _told(counts: _Counts, stage: int, show: Callable[[bytes], str]) -> dict[str, Any]:
    """The figures of a stage as the template shows them."""
    total = sum(length * count for length, count in counts.lengths.items())
    bars, longest = _bars(counts.lengths)
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
    return text.replace("\n", "↵").replace("\t", "→").replace(" ", "␣")


def _bars(lengths: Counter[int]) -> tuple[list[tuple[str, str]], str]:
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
    names = [*(f"{n} byte{'s' * (n > 1)}" for n in range(1, most)), f"{longest} byte{'s' * (longest != '1')}"]
    return [
        (f"{100 * count / max(counts):.1f}", f"{name}: {count:,} ({100 * count / total:.1f}%)")
        for count, name in zip(counts, names, strict=True)
    ], longest
