"""Text in any language that is written in UTF-8: books, web pages, notes, logs.

Units known without training: `word` edges, see `Text.reference_edges`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from hnet_cli.modality import Gold, Perturbation, Refused, Source, suffix

from ._bytes import binary_reason, words
from ._gold import gold
from ._noise import TEXT
from ._utf8 import Utf8, code_points, decoded, han_count

SUFFIXES = words(".txt .text .md .markdown .rst .adoc .org .tex .srt .vtt .log")


class Text(Utf8):
    name = "text"
    summary = "Text in UTF-8: one document per file, long files divided at paragraphs"

    def detect(self, name: str, head: bytes) -> float:
        """A moderate score for whatever is UTF-8, so that the modalities that know their own better come first."""
        if binary_reason(head):
            return 0.0
        named = suffix(name) in SUFFIXES
        text = decoded(head)
        if text is None or not head:
            return 0.3 if named else 0.0  # text by its name: text shall be the one to say what is wrong with it
        sample = text[:4096]
        if han_count(sample) > 0.2 * len("".join(sample.split())):
            return 0.2
        return 0.6 if named else 0.5

    def reference_edges(self, data: bytes) -> Mapping[str, Sequence[int]]:
        """`word`: where a word begins or ends, that is where a letter, digit or combining mark follows something else
        (or the start) and where something else follows one of these. Both, because a learned boundary that respects
        words stands on the space before a word or on its first letter."""
        codes, starts = code_points(data)
        inside = _word_characters()[codes] if codes.max(initial=0) < 128 else _in_words(codes)
        edges = inside != np.concatenate(([False], inside[:-1]))
        return {"word": starts[edges].tolist()}

    def gold(self, source: Source) -> Iterator[Gold | Refused]:
        """CoNLL-U, one sentence of words set apart by spaces a line, or SIGMORPHON's morphemes; see `_gold`."""
        return gold(source, spaced=True)

    def perturbations(self) -> Mapping[str, Perturbation]:
        return TEXT


def _in_words(codes: np.ndarray) -> np.ndarray:
    """Which of these code points belong to words."""
    table = np.zeros(int(codes.max()) + 1, dtype=bool)
    ascii_table = _word_characters()
    table[: len(ascii_table)] = ascii_table
    for code in np.unique(codes[codes > 127]).tolist():
        table[code] = _is_word(chr(code))
    return table[codes]


@lru_cache(maxsize=1)
def _word_characters() -> np.ndarray:
    return np.array([_is_word(chr(code)) for code in range(128)])


def _is_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")
