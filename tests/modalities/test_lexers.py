"""Tokens of programming languages, by the lexer of each."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.modalities._lexers import syntax, token_starts
from hnet_cli.modality import SYNTAX, Document

get = cache(modality.get)  # reads the metadata of all installed packages


def test_code_is_lexed_by_its_language():
    code = get("code")
    python = b'def f(x):\n    """A doc."""\n    return x + 1.5e-3  # why\n'
    starts = code.units(Document(python, "a.py", "dir/a.py"))["token"]
    tokens = [python[a:b].split()[0] for a, b in zip(starts, [*starts[1:], len(python)], strict=True)]
    assert tokens == [b"def", b"f", b"(", b"x", b")", b":", b'"""A', b"return", b"x", b"+", b"1.5e-3", b"#"]
    script = "const π = `a ${b}`; // été\n".encode()
    starts = code.units(Document(script, "a.js", "a.js"))["token"]
    assert script[starts[1] :].startswith("π".encode())
    assert script[starts[-1] :] == "// été\n".encode()
    broken = b"def f(:\n  'no end\n"
    assert code.units(Document(broken, "b.py", "b.py"))["token"][0] == 0
    unknown = code.units(Document(b"a  b", "x.unknown", "x.unknown"))["token"]
    assert unknown == [0, 3]


@given(st.text(st.sampled_from("ab_1 \n\t#'\"()é中\r\f\x0b;/*")), st.sampled_from(["a.py", "a.c", "a.js", "a.zzz"]))
def test_units_ascend_and_begin_where_something_is_seen(text, name):
    data = text.encode()
    starts = get("code").units(Document(data, name, name))["token"]
    assert starts == sorted(set(starts))
    assert all(0 <= start < len(data) for start in starts)


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"x = '\xff'\n", "a.py"), (b"a\x0cb\n", "a.py"), (b"int a;\r\n", "a.c"), (b"a b", "x.unknown")],
)
def test_what_a_lexer_would_shift_or_not_know_has_no_tokens(data, name):
    assert token_starts(data, name) is None


def test_a_kind_for_every_byte_of_a_file_that_is_no_utf8():
    data = b"# caf\xe9 \xc3\xa9\nx = 1\n"
    kinds = syntax(data, "archive.tar:dir/a.py")
    assert len(kinds) == len(data)
    assert {SYNTAX[kind] for kind in kinds[:9]} == {"comment"}
    assert SYNTAX[kinds[data.index(b"1")]] == "number"


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        (
            "a.f",
            "      PROGRAM HELLO\nC     a comment\n      I = I * 2\n   10 CONTINUE\n",
            ["PROGRAM", "HELLO", "C     a comment", "I", "=", "I", "*", "2", "10", "CONTINUE"],
        ),
        (
            "a.cr",
            "x = foo(<<-A, 3)\n  one\n  A\ny = 1\n",
            ["x", "=", "foo", "(", "<<-", "A", ",", "3", ")", "one\n  A", "y", "=", "1"],
        ),
        (
            "a.tf",
            "y = [<<A, 2]\n é t\nA\nb = 1\n",
            ["y", "=", "[", "<<", "A, 2]\n é t\nA", "b", "=", "1"],
        ),
    ],
)
def test_tokens_of_lexers_that_do_not_count_from_the_start_or_in_order(name, text, tokens):
    data = text.encode()
    starts = token_starts(data, name)
    assert [data[a:b].decode().strip() for a, b in zip(starts, [*starts[1:], len(data)], strict=True)] == tokens
    assert len(syntax(data, name)) == len(data)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.tf", "<<AA\n=['<<AA\n"), ("a.cr", '<<A  A\n="\n'), ("a.cr", "<<A#A\n"), ("a.tf", " <<A\n\n(")],
)
def test_a_here_document_without_an_end_leaves_tokens_in_order(name, text):
    starts = get("code").units(Document(text.encode(), name, name))["token"]
    assert starts == sorted(set(starts))
    assert len(starts) > 1


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *((f"a.{end}", unit) for end in ("c", "cc", "cs", "java", "m", "gradle") for unit in ("\n", " \n", "\n\t")),
        *((f"a.{end}", "/") for end in ("c", "d", "dart", "kt", "proto", "rs", "sol", "zig")),
        *((f"a.{end}", '"\\') for end in ("awk", "cs", "css", "go", "js", "pl", "py", "ts")),
        *((f"a.{end}", "a.") for end in ("coffee", "js", "nix", "ts")),
        *((f"a.{end}", "longword\n") for end in ("cs", "java", "gradle")),
        *((f"a.{end}", "Ab-1") for end in ("nix", "tf")),
        ("makefile", "$(a b), "),
        ("a.c", "\n\t \n"),
    ],
)
def test_a_file_that_lexers_do_not_end_with_has_no_tokens_of_its_language(name, unit):
    """Each takes hours or years: Pygments goes over the rest again from every place."""
    data = unit.encode() * 200_000
    assert token_starts(data, name) is None
    if not name.endswith(".py"):
        assert syntax(data, name) is None


@pytest.mark.parametrize("line", ["/" * 120, "-" * 120, "*" * 300, " " * 300 + "a", "\n" * 300, '"' + "ab" * 400 + '"'])
def test_rulers_and_gaps_are_lexed(line):
    """A block comment, with what is before and after it."""
    text = f"int a;\n/* {line} */\nint b;"
    starts = token_starts(text.encode(), "a.c")
    assert [text[start] for start in starts] == [*"ia;/ib;"]
