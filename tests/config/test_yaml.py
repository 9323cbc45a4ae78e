"""The YAML of configurations: what is read as people mean it, and what is refused in one line."""

import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.config.yaml import MOST_BYTES, Dumper, parse, read_text
from hnet_cli.errors import UsageError


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *[("3e-4", 3e-4), ("3.0e-4", 3e-4), (".5", 0.5), ("1_000", 1000), ("010", 10), ("1E+2", 100.0), ("-7", -7)],
        *[("true", True), ("False", False), ("null", None), ("", None), ("[1, a]", [1, "a"])],
        *[(word, word) for word in ("no", "on", "1:30", "2026-01-01", "0x10", "1e", "y", "~user", "<<", "=")],
    ],
)
def test_values_are_what_people_mean(written, read):
    value = parse(f"a: {written}\n", "x")[0]["a"]
    assert (value, type(value)) == (read, type(read))


def test_the_line_of_every_key():
    data, lines = parse("a: 1\n\nb:\n  c: { d: 2 }\n", "x")
    assert data == {"a": 1, "b": {"c": {"d": 2}}}
    assert lines == {"a": 1, "b": 3, "b.c": 4, "b.c.d": 4}
    assert parse("# nothing\n", "x") == parse("---\n", "x") == ({}, {})


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("a: 1\na: 2\n", ":2", "'a' stands twice"),
        ("a: {b: 1, b: 2}\n", ":1", "'b' stands twice"),
        ("1: 2\n", ":1", "must be a word"),
        ("true: 2\n", ":1", "must be a word"),
        ("a: 1\n? [a]\n: 2\n", ":2", "must be a word"),
        ("- a\n", "", "not a list"),
        ("a: [1\n", ":2", "expected"),
        ("a: 1\n---\nb: 1\n", ":2", "another document"),
        ("a: \x01\n", "", "special characters"),
        ("a: &x [1, 1]\nb: [*x, *x]\n", ":1", "anchors"),
        ("a: &a [*a]\n", ":1", "anchors"),
        ("a: *b\n", ":1", "anchors"),
        ("a: !!python/object:os.system {}\n", ":1", "!!python/object:os.system are not read"),
        ("a: !!bool maybe\n", ":1", "!!bool are not read"),
        ("a: !!timestamp x\n", ":1", "!!timestamp are not read"),
        ("a:\n  - !!float ''\n", ":2", "!!float are not read"),
        ("!!set {a, b}\n", ":1", "!!set are not read"),
        ("a: !x 1\n", ":1", "!x are not read"),
        ("a: 1__\n", "", "not readable"),
        ("a: " + "9" * 5000, "", "not readable"),
        ("a: " + "[" * 30_000, ":1", "nested too deeply"),
        ("a: " + "{a: " * 9000, ":1", "nested too deeply"),
        ("? " * 20_000, ":1", "nested too deeply"),
        ("- " * 20_000, ":1", "nested too deeply"),
        ("".join(" " * n + "a:\n" for n in range(300)), ":21", "nested too deeply"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_place(text, where, said):
    with pytest.raises(UsageError) as error:
        parse(text, "my.yaml")
    assert str(error.value).startswith(f"my.yaml{where}")
    assert said in str(error.value)


@given(st.text(alphabet="a1:-?[]{},&*!|>'\"# \n%@`~.\t", max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        data, _ = parse(text, "x")
    except UsageError:
        return
    assert isinstance(data, dict)


values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=8)
)


@given(st.dictionaries(st.from_regex("[a-z]{1,9}", fullmatch=True), values | st.lists(values, max_size=3), max_size=4))
def test_what_is_written_is_read_back(data):
    data.pop("null", None), data.pop("true", None), data.pop("false", None)
    assert parse(yaml.dump(data, Dumper=Dumper, allow_unicode=True), "x")[0] == data


def test_files_that_are_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_text("".join(f"k{n}: 1\n" for n in range(200_000)))
    (tmp_path / "latin").write_bytes(b"a: \xff\n")
    (tmp_path / "fits").write_text("#" * MOST_BYTES)
    cases = [
        ("pipe", "pipe"),
        (".", "folder"),
        ("huge", "larger than such a file"),
        ("latin", "UTF-8"),
        ("none", "does not exist"),
    ]
    for name, said in cases:
        with pytest.raises(UsageError, match=said):
            read_text(tmp_path / name, "configuration")
    assert len(read_text(tmp_path / "fits", "configuration")) == MOST_BYTES
    (tmp_path / "marked").write_text("a: 1\n", encoding="utf-8-sig")
    assert read_text(tmp_path / "marked", "configuration") == "a: 1\n"
    (tmp_path / "wide").write_text("a: 1\n", encoding="utf-16")
    with pytest.raises(UsageError, match="wide is text in UTF-16LE"):
        read_text(tmp_path / "wide", "configuration")
    with pytest.raises(UsageError, match="device"):
        read_text(tmp_path / "/dev/zero", "configuration")
