"""Tokens of programming languages: Python's own tokenizer, Pygments for the others."""

from __future__ import annotations

import io
import tokenize
from itertools import accumulate
from pathlib import Path

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String
from pygments.util import ClassNotFound

LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
# Kinds of Pygments and their index into `modality.SYNTAX`; the first that fits counts.
KINDS = [(Comment, 5), (Keyword, 1), (Operator.Word, 1), (Number, 4), (String, 3), (Literal, 3)]
KINDS += [(kind, 2) for kind in (Name.Function, Name.Class, Name.Decorator, Name.Namespace, Name.Tag)]


def token_starts(data: bytes, name: str) -> list[int] | None:
    """Byte positions where the tokens of a source file begin, white space left out.

    None for a language that is not known by the name, or a file that its lexer rejects.
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
    """The kind of each byte of a source file, as `Modality.syntax` wants it; None where the language is not known."""
    text = data.decode("utf-8", "surrogateescape")
    if (lexer := _lexer(text, name)) is None:
        return None
    parts = []
    for _, kind, value in lexer.get_tokens_unprocessed(text):
        number = next((number for parent, number in KINDS if kind in parent), 0)
        parts.append(bytes([number]) * len(value.encode("utf-8", "surrogateescape")))
    kinds = b"".join(parts)
    return kinds if len(kinds) == len(data) else None


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
    if len(lines) - 1 != len(io.StringIO(text).readlines()):
        return None  # form feeds and their like: lines of str are not those of Python
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in LAYOUT]
    except (tokenize.TokenError, SyntaxError):
        return None
    return [lines[token.start[0] - 1] + token.start[1] for token in tokens]


def _other(text: str, name: str) -> list[int] | None:
    if (lexer := _lexer(text, name)) is None:
        return None
    starts, last = [], None
    for start, kind, value in lexer.get_tokens_unprocessed(text):
        # Pygments cuts strings and comments into pieces of one kind: they are one token, as in a compiler.
        joined = bool(value.strip()) and (kind in String or kind in Comment)
        if value.strip() and not (joined and last == start):
            starts.append(start + len(value) - len(value.lstrip()))
        last = start + len(value) if joined else None
    return starts
