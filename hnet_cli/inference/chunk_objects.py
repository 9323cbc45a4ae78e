"""The chunks of one document as objects for Python and notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise, takewhile
from typing import overload

import numpy as np

from hnet_cli.inference.render import SEPARATOR, shower, whole_characters
from hnet_cli.inference.score import score_bytes
from hnet_cli.inference.segment import boundaries, table_of
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.inference.windows import own_modality
from hnet_cli.modality import Modality
from hnet_cli.model import HNetForCausalLM

SHOWN = 20_000
"""Bytes that a notebook shows."""
BACKGROUNDS = (("#aecbfa", "#d2e3fc"), ("#fdd7a3", "#feebd0"), ("#b5e2b5", "#d8f0d8"), ("#f5c2e0", "#fae0ef"))
"""A hue per chunk of the innermost stage, in two shades for the chunks of the outermost inside it; black text on them
has a contrast of at least 10."""


@dataclass(frozen=True, slots=True)
class LearnedChunk:
    """A chunk of a document."""

    data: bytes
    start: int
    """Offset of its first byte in the document."""
    end: int
    """Offset behind its last byte."""
    stage: int
    """0: the outermost."""
    probabilities: tuple[float, ...]
    """Boundary probabilities at its start: of its stage, then of the further ones that also begin a chunk there."""
    bits: float
    """The sum of -log2 P over its bytes, given all before them."""

    @property
    def text(self) -> str:
        """Its bytes as UTF-8; those of a character that it cuts as \\xff."""
        return self.data.decode("utf-8", "backslashreplace")

    @property
    def probability(self) -> float:
        """Boundary probability at its start, of its own stage."""
        return self.probabilities[0]

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 40 else f"{self.text[:39]}…"
        return f"<{text!r} {self.start}:{self.end}, p {self.probability:.2f}, {self.bits:.1f} bits>"


class Chunks(Sequence[LearnedChunk]):
    """The chunks of a document at one stage, in order, coloured in a notebook; joined they are the document."""

    def __init__(self, items: Sequence[LearnedChunk], modality: Modality | None = None) -> None:
        self._items, self._modality = items, modality

    @overload
    def __getitem__(self, index: int) -> LearnedChunk: ...

    @overload
    def __getitem__(self, index: slice) -> Chunks: ...

    def __getitem__(self, index: int | slice) -> LearnedChunk | Chunks:
        return Chunks(self._items[index], self._modality) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Chunks) else NotImplemented

    @property
    def data(self) -> bytes:
        """All their bytes."""
        return b"".join(chunk.data for chunk in self._items)

    @property
    def bits(self) -> float:
        """The sum of their bits."""
        return sum(chunk.bits for chunk in self._items)

    def _shown(self) -> list[LearnedChunk]:
        """The first chunks, `SHOWN` bytes or more."""
        base = self._items[0].start if self._items else 0
        return list(takewhile(lambda chunk: chunk.start < base + SHOWN, self._items))

    def _drawn(self) -> Iterator[tuple[LearnedChunk, str]]:
        """The first chunks and their safe text, none of which begins inside a character."""
        items, show = self._shown(), shower(self._modality)
        drawn = whole_characters([chunk.data for chunk in items])
        return ((chunk, show(data)) for chunk, data in zip(items, drawn, strict=True) if data)

    def __str__(self) -> str:
        drawn = self._drawn()
        first = (text for _, text in islice(drawn, 1))
        return "".join(chain(first, (SEPARATOR * len(chunk.probabilities) + text for chunk, text in drawn)))

    def __repr__(self) -> str:
        if not self:
            return "<no chunks>"
        size, text = self[-1].end - self[0].start, str(self[:12])
        return f"<{len(self):,} chunks of {size / len(self):.1f} bytes: {text[:60]}{'…' if len(text) > 60 else ''}>"

    def _repr_html_(self) -> str:
        """Spans with what each chunk is under the pointer; a stronger line before a boundary that is surer."""
        furthest = max((len(chunk.probabilities) for chunk in self._items), default=1)
        parts, hue, shade = list[str](), -1, 0
        for chunk, text in self._drawn():
            hue, shade = (hue + 1, 0) if len(chunk.probabilities) == furthest else (max(hue, 0), 1 - shade)
            chances = ", ".join(f"{p:.2f}" for p in chunk.probabilities)
            title = f"bytes {chunk.start} to {chunk.end}, p {chances}, {chunk.bits:.1f} bits"
            style = f"background:{BACKGROUNDS[hue % len(BACKGROUNDS)][shade]};"
            style += f"border-left:2px solid rgba(0,0,0,{max(0.0, chunk.probability) ** 2:.2f})"
            shown = html.escape(text.replace("\t", "→   ").replace("\n", "↵\n"))
            parts.append(f'<span title="{title}" style="{style}">{shown}</span>')
        more = sum(chunk.end - chunk.start for chunk in self._items[len(self._shown()) :])
        rest = f"<p>{more:,} bytes more</p>" if more else ""
        frame = "white-space:pre-wrap;overflow-wrap:anywhere;font:14px/1.7 ui-monospace,monospace;color:#000"
        return f'<div style="{frame}">{"".join(parts)}</div>{rest}'


def chunks_of(model: HNetForCausalLM, data: bytes, stage: int = 0, compression: Compression = UNCHANGED) -> Chunks:
    """The chunks of one document at a stage (0 = outermost), read as the model's modality does.

    `compression` holds for this call. Raises UsageError for a stage that the model does not have, NumericalError.
    """
    with compression.used(model, lambda: [data.translate(table_of(model))]):
        starts, probability = boundaries(model, data, stage)
        (bits,) = score_bytes(model, [data])
    sums = np.concatenate([[0.0], np.cumsum(bits)])
    places = pairwise([*starts.tolist(), len(data)])
    chunks = [
        LearnedChunk(data[a:b], a, b, stage, tuple(p for p in row if p == p), float(sums[b] - sums[a]))
        for (a, b), row in zip(places, probability[:, stage:].tolist(), strict=True)
    ]
    return Chunks(chunks, own_modality(model))
