"""Text in any language that is written in UTF-8: books, web pages, notes, logs.

Units known without training: `word` edges, see `Text.reference_edges`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hnet_cli.modality import Gold, Perturbation, Refused, Source, suffix

from ._bytes import binary_reason, words
from ._gold import gold
from ._noise import PAPER, TEXT
from ._utf8 import Utf8, code_points, decoded, han_count

SUFFIXES = words(".txt .text .md .markdown .rst .adoc .org .tex .srt .vtt .log")


class Text(Utf8):
    name = "text"
    summary = "Text in UTF-8: one document per file, long files divided at paragraphs"
    example = (
        "The lighthouse keeper wrote down the weather every evening at nine o'clock: wind from the north-west, rain "
        "before midnight, two ships.\nNobody had asked him to. When the inspectors came, in the spring of his eleventh "
        "year, they found 4,015 entries, and not one of them was longer than a line.\n"
    )
    scored_noise = PAPER

    def detect(self, name: str, head: bytes) -> float:
        """A moderate score for whatever is UTF-8, so that the modalities that know their own better come first."""
        if binary_reason(head):
            return 0.0
        named = suffix(name) in SUFFIXES
        text = decoded(head)
        if text is None or not head:
            return 0.3 if named else 0.0  # this plugin can say what is wrong with a file of such a name
        sample = text[:4096]
        if han_count(sample) > 0.2 * len("".join(sample.split())):
            return 0.2
        return 0.6 if named else 0.5

    def reference_edges(self, data: bytes) -> Mapping[str, Sequence[int]]:
        """`word`: every position where a word begins or ends: a letter, digit or combining mark after another character
        (or the start), or the reverse. Both, because a learned boundary that respects words stands on the space before
        a word or on its first letter."""
        codes, starts = code_points(data)
        table = np.zeros(codes.max(initial=0) + 1, bool)
        for code in np.flatnonzero(np.bincount(codes)).tolist():
            table[code] = _is_word(chr(code))
        inside = table[codes]
        return {"word": starts[inside != np.concatenate(([False], inside[:-1]))].tolist()}

    def gold(self, source: Source) -> Iterator[Gold | Refused]:
        """CoNLL-U, sentences of words separated by spaces, one a line, or SIGMORPHON's morphemes; see `_gold`."""
        return gold(source, spaced=True)

    def perturbations(self) -> Mapping[str, Perturbation]:
        return TEXT


def _is_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")
