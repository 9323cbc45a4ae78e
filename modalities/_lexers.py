"""Tokens of programming languages: Python's own tokenizer, Pygments for the others."""

from __future__ import annotations

import io
import re
import tokenize
from itertools import accumulate
from pathlib import Path
from typing import Any

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String
from pygments.util import ClassNotFound

LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
# Kinds of Pygments and their index into `modality.SYNTAX`; the first that fits counts.
KINDS = [(Comment, 5), (Keyword, 1), (Operator.Word, 1), (Number, 4), (String, 3), (Literal, 3)]
KINDS += [(kind, 2) for kind in (Name.Function, Name.Class, Name.Decorator, Name.Namespace, Name.Tag)]

# Time of many lexers grows with the square of the length of what they go over again at each of its places.
LONG_RUN = re.compile(r"(?<!\s)\s{501}|(.)(?<!\1\1)\1{999}|(..)(?<!\2\2)\2{499}", re.DOTALL)
"""Looked for where a run begins only: from each of its letters the search would be as slow as those lexers."""
LONG_WORD, LONG_LINE = re.compile(r"[\w-]{1001}"), re.compile(r".{2001}")
MANY_WORDS = re.compile(r"(?<!\S)(?:[\w.$<>\[\]]++\s++){501}")
SLOW = {
    **dict.fromkeys(("C#", "Groovy", "Java"), MANY_WORDS),
    **dict.fromkeys(("Nix", "OCaml", "REBOL", "Terraform", "WebGPU Shading Language"), LONG_WORD),
    "Makefile": LONG_LINE,
}
"""By the name of a lexer: what takes that one too long, besides a run."""


def token_starts(data: bytes, name: str) -> list[int] | None:
    """Byte positions where the tokens of a source file begin, white space left out.

    None for a language that is not known by the name, or a file that its lexer rejects or would take too long for.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    starts = _python(text) if name.endswith((".py", ".pyi")) else _other(text, name)
    if starts is None or text.isascii():
        return starts
    offsets = [0, *accumulate(len(char.encode()) for char in text)]
    return [offsets[start] for start in starts]


def syntax(data: bytes, name: str) -> bytes | None:
    """The kind of each byte of a source file, as `Modality.syntax` wants it; None where `token_starts` gives none, for
    Python too."""
    text = data.decode("utf-8", "surrogateescape")
    if (pieces := _pieces(text, name)) is None:
        return None
    parts = []
    for _, kind, value in pieces:
        number = next((number for parent, number in KINDS if kind in parent), 0)
        parts.append(bytes([number]) * len(value.encode("utf-8", "surrogateescape")))
    kinds = b"".join(parts)
    return kinds if len(kinds) == len(data) else None


def _pieces(text: str, name: str) -> list[tuple[int, Any, str]] | None:
    """The pieces of a text in order: the start of each, its kind, and itself. None where `token_starts` gives none."""
    lexer = _lexer(text, name)
    if lexer is None or LONG_RUN.search(text) or (lexer.name in SLOW and SLOW[lexer.name].search(text)):
        return None
    pieces = [*lexer.get_tokens_unprocessed(text)]
    # Some lexers count from the start of a line, so that sorting would mix them up and comes second. Some give a
    # here-document after the line that announces it.
    for ordered in (pieces, sorted(pieces, key=lambda piece: piece[0])):
        if "".join(value for _, _, value in ordered) == text:
            starts = accumulate((len(value) for _, _, value in ordered), initial=0)
            return [(start, kind, value) for start, (_, kind, value) in zip(starts, ordered, strict=False)]
    # Others leave out the rest of what does not end.
    end = 0
    for start, _, value in pieces:
        if start < end or not text.startswith(value, start):
            return None
        end = start + len(value)
    return pieces


def _lexer(text: str, name: str) -> Lexer | None:
    """The Pygments lexer for a file name, which neither strips nor adds anything."""
    if "\r" in text:  # Pygments would make line feeds of these, and shift the rest
        return None
    try:
        return get_lexer_for_filename(Path(name.rpartition(":")[2]).name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def _python(text: str) -> list[int] | None:
    lines = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    if LONG_RUN.search(text) or len(lines) - 1 != len(io.StringIO(text).readlines()):
        return None  # form feeds and their like: lines of str are not those of Python
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in LAYOUT]
    except (tokenize.TokenError, SyntaxError):
        return None
    return [lines[token.start[0] - 1] + token.start[1] for token in tokens]


def _other(text: str, name: str) -> list[int] | None:
    starts, last = [], None
    if (pieces := _pieces(text, name)) is None:
        return None
    for start, kind, value in pieces:
        # Pygments cuts strings and comments into pieces of one kind: they are one token, as in a compiler.
        joined = bool(value.strip()) and (kind in String or kind in Comment)
        if value.strip() and not (joined and last == start):
            starts.append(start + len(value) - len(value.lstrip()))
        last = start + len(value) if joined else None
    return starts
