"""Tokens of programming languages: Python's own tokenizer, Pygments for the others."""

from __future__ import annotations

import io
import tokenize
from itertools import accumulate
from pathlib import Path

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String, Token
from pygments.util import ClassNotFound


def token_starts(data: bytes, name: str) -> list[int] | None:
    """Where the tokens of a source file begin, white space left out; None for a language that is not known by the name,
    or a file that its lexer does not take."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    file = Path(name.rpartition(":")[2]).name
    starts = _python(text) if file.endswith((".py", ".pyi")) else _other(text, file)
    if starts is None or text.isascii():
        return starts
    offsets = [0, *accumulate(len(char.encode()) for char in text)]
    return [offsets[start] for start in starts]


LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}


def _python(text: str) -> list[int] | None:
    lines = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    if len(lines) - 1 != len(io.StringIO(text).readlines()):
        return None  # form feeds and their like: lines of str are not those of Python
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in LAYOUT]
    except (tokenize.TokenError, SyntaxError):
        return None
    return [lines[token.start[0] - 1] + token.start[1] for token in tokens]


def lexer_of(file: str) -> Lexer | None:
    """The Pygments lexer for a file name, which neither strips nor adds anything."""
    try:
        return get_lexer_for_filename(file, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


KINDS = [(Comment, 5), (Keyword, 1), (Operator.Word, 1), (Number, 4), (String, 3), (Literal, 3)]
KINDS += [(kind, 2) for kind in (Name.Function, Name.Class, Name.Decorator, Name.Namespace, Name.Tag)]


def syntax(data: bytes, name: str) -> bytes | None:
    """What each byte of a source file is, as `Modality.syntax` wants it; None where the language is not known."""
    lexer = lexer_of(Path(name.rpartition(":")[2]).name)
    text = data.decode("utf-8", "surrogateescape")
    if lexer is None or "\r" in text:
        return None
    kinds = []
    for _, kind, value in lexer.get_tokens_unprocessed(text):
        number = next((number for parent, number in KINDS if kind in parent), 0)
        kinds.append(bytes([number]) * len(value.encode("utf-8", "surrogateescape")))
    found = b"".join(kinds)
    return found if len(found) == len(data) else None


def _other(text: str, file: str) -> list[int] | None:
    lexer = lexer_of(file)
    if lexer is None or "\r" in text:  # Pygments would make line feeds of these, and shift the rest
        return None
    starts, last = [], None
    for start, kind, value in lexer.get_tokens_unprocessed(text):
        if not value.strip():
            last = None
            continue
        # Pygments cuts strings and comments into pieces of one kind: they are one token, as in a compiler
        joined = kind in Token.Literal.String or kind in Token.Comment
        if not (joined and last is not None and last == start):
            starts.append(start + len(value) - len(value.lstrip()))
        last = start + len(value) if joined else None
    return starts
