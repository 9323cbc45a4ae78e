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
