"""Gold files of languages: words of a treebank (CoNLL-U) or separated by spaces (SIGHAN), morphemes (SIGMORPHON)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from typing import BinaryIO

from hnet_cli.errors import InputError
from hnet_cli.modality import Gold, Refused, Source, wide_reason

from ._utf8 import cut_character

TREEBANK_ROW = re.compile(r"\d{1,9}([-.]\d{1,9})?\t\S")

LONGEST = 100  # letters of a word; aligning it with its morphemes takes the square of that
LONGEST_LINE = 1 << 20  # bytes
MOST_WORDS = 100_000  # words of a sentence


def gold(source: Source, *, spaced: bool) -> Iterator[Gold | Refused]:
    """The sentences of a gold file, whose format is known by its first lines.

    `spaced`: whether this language is written with spaces between words; else the spaces of a segmented file are marks
    and no part of the text. Raises InputError for a file that is not UTF-8 or holds no sentence.
    """
    empty, cut = True, list[Refused]()
    with source.open() as stream:
        lines = _lines(stream, source.name, cut, "LATIN1" if spaced else "GB18030")
        first = []
        for line in lines:
            first.append(line)
            if line.strip() and not line.startswith("#"):
                break
        telling = first[-1] if first else ""
        if TREEBANK_ROW.match(telling) or telling.startswith("#"):
            items = _treebank(chain(first, lines), source.name, spaced)
        elif "\t" in telling:
            items = _morphemes(chain(first, lines), source.name)
        else:
            items = _segmented(chain(first, lines), source.name, spaced)
        for item in items:
            empty = empty and isinstance(item, Refused)
            yield item
    yield from cut
    if empty:
        hint = "give CoNLL-U, words set apart by spaces, or SIGMORPHON's columns"
        raise InputError(f"{source.name} holds no marked sentence", hint)


def _lines(stream: BinaryIO, name: str, cut: list[Refused], other: str) -> Iterator[str]:
    """Lines, without a last one that ends inside a character, as `head -c` leaves it: that is added to `cut`.

    `other`: the likely encoding of a file that is not UTF-8.
    """
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), 1):
        where = f"{name}, line {number}"
        if len(line) == LONGEST_LINE:
            raise InputError(f"{where}: a line of {LONGEST_LINE:,} bytes or more", "give a sentence a line")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            if number > 1 and cut_character(line, "utf-8"):
                cut.append(Refused("line cut off at the end", where, len(line)))
                return
            if number == 1 and (reason := wide_reason(line)):
                raise InputError(f"{name} is {reason}") from error
            hint = f"convert the file, perhaps with iconv -f {other} -t UTF-8"
            raise InputError(f"{where}: byte 0x{line[error.start]:02x} is not UTF-8", hint) from error
        yield text.removeprefix("\ufeff").rstrip("\r\n")


def _marked(words: Iterable[str], spaces: Iterable[bool], name: str) -> Gold:
    """A sentence of words, each followed by a space or not."""
    parts, edges, at = [], [], 0
    for word, space in zip(words, spaces, strict=True):
        edges.append(at)
        parts.append(word.encode() + b" " * space)
        at += len(parts[-1])
    return Gold(b"".join(parts).rstrip(b" "), {"word": edges}, name)


def _treebank(lines: Iterator[str], name: str, spaced: bool) -> Iterator[Gold | Refused]:
    """Sentences of surface words: a range such as `8-9` (don't) is one word; empty nodes such as `8.1` are none.

    White space between words is that of the comment `# text`, else of SpaceAfter where words are `spaced`.
    """
    words: list[str] = []
    spaces: list[bool] = []
    inside, text = 0, ""  # the last word of a range; the sentence as it was written
    for number, line in enumerate(chain(lines, [""]), 1):
        columns = line.split("\t")
        if not line.strip():
            if words:
                yield _written(words, text, name) or _marked(words, [*spaces[:-1], False], name)
            words, spaces, inside, text = [], [], 0, ""
        elif line.startswith("#") and len(columns) < 4:
            text = line.partition("=")[2].strip() if line.startswith("# text =") else text
        elif len(columns) < 2 or not TREEBANK_ROW.match(line):
            yield Refused("line is no row of CoNLL-U", f"{name}, line {number}")
        elif "-" in columns[0] or (columns[0].isdecimal() and int(columns[0]) > inside):
            if len(words) == MOST_WORDS:
                raise InputError(f"{name}, line {number}: a sentence of more than {MOST_WORDS:,} words")
            words.append(columns[1])
            spaces.append(spaced and "SpaceAfter=No" not in columns[-1])
            inside = int(columns[0].partition("-")[2] or 0) or inside


def _written(words: list[str], text: str, name: str) -> Gold | None:
    """The sentence as it was written; None where its words are not those of the text."""
    edges, at = [], 0
    for word in words:
        start = text.find(word, at)
        if start < 0 or text[at:start].strip():
            return None
        edges.append(start)
        at = start + len(word)
    offsets = [0, *accumulate(len(char.encode()) for char in text)]
    return None if text[at:].strip() else Gold(text.encode(), {"word": [offsets[edge] for edge in edges]}, name)


def _segmented(lines: Iterator[str], name: str, spaced: bool) -> Iterator[Gold]:
    for number, line in enumerate(lines, 1):
        if words := line.split():
            yield _marked(words, [spaced] * (len(words) - 1) + [False], f"{name}:{number}")


def _morphemes(lines: Iterator[str], name: str) -> Iterator[Gold | Refused]:
    """A word or sentence a row, and the same in canonical morphemes, with `@@` before each but the first of a word."""
    for number, line in enumerate(lines, 1):
        columns = line.split("\t")
        if not line.strip():
            continue
        if len(columns) < 2:
            yield Refused("line without two columns", f"{name}, line {number}")
            continue
        words = columns[0].split()
        morphemes: list[list[str]] = []
        for part in columns[1].split():
            if part.startswith("@@") and morphemes:
                morphemes[-1].append(part[2:])
            else:
                morphemes.append([part])
        if len(words) != len(morphemes):
            yield Refused("the columns differ in their number of words", f"{name}, line {number}")
            continue
        if any(max(len(word), sum(map(len, parts))) > LONGEST for word, parts in zip(words, morphemes, strict=True)):
            yield Refused(f"word of more than {LONGEST} letters", f"{name}, line {number}")
            continue
        sentence = _marked(words, [True] * (len(words) - 1) + [False], f"{name}:{number}")
        starts = [
            start + len(word[:inner].encode())
            for start, word, parts in zip(sentence.edges["word"], words, morphemes, strict=True)
            for inner in (0, *surface_starts(word, parts))
        ]
        yield Gold(sentence.data, dict(sentence.edges) | {"morpheme": starts}, sentence.name)


def surface_starts(word: str, morphemes: list[str]) -> list[int]:
    """Positions in `word` where its canonical `morphemes` after the first begin ("running" is run + ing: 4).

    The joined morphemes are aligned with the word by the fewest edits; among equal alignments letters stay as far left
    as possible. A morpheme of which nothing is left on the surface gives no start.
    """
    canonical = "".join(morphemes)
    rows, columns = len(canonical) + 1, len(word) + 1
    cost = [[i + j if not (i and j) else 0 for j in range(columns)] for i in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            same = canonical[i - 1].lower() == word[j - 1].lower()
            cost[i][j] = min(cost[i - 1][j] + 1, cost[i][j - 1] + 1, cost[i - 1][j - 1] + (0 if same else 2))
    # From the end: place[i] is where canonical letter i stands in the word, or would if it were there.
    place, i, j = [0] * rows, rows - 1, columns - 1
    place[i] = j
    while i:
        same = j > 0 and canonical[i - 1].lower() == word[j - 1].lower()
        if same and cost[i][j] == cost[i - 1][j - 1]:
            j -= 1
            i -= 1
            place[i] = j
        elif j and cost[i][j] == cost[i][j - 1] + 1:
            j -= 1
        else:
            i -= 1
            place[i] = j
    starts = [place[end] for end in accumulate(map(len, morphemes[:-1]))]
    return sorted({start for start in starts if 0 < start < len(word)})
