"""Rules that read bytes: equal to `re` and to longest matches by hand, at linear cost, without looking ahead."""

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.model.automaton import byte_letters, of_pattern, of_tokens, of_vocabulary

ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\s", r"\w", "(?:ab|c)", "(a|bc)", r"\x62", "[b-d]", r"\."])
PIECES = st.tuples(ATOMS, st.sampled_from(["", "", "", "+", "*", "?", "{2}", "{1,3}", "{2,}"])).map("".join)
PATTERNS = st.lists(PIECES, min_size=1, max_size=4).map("".join)


@given(st.lists(PATTERNS, min_size=1, max_size=2).map("|".join), st.text("ab c.\nd", max_size=24))
def test_a_boundary_is_where_a_match_ends(pattern, text):
    rule = re.compile(f"(?:{pattern})".encode())
    if rule.fullmatch(b""):
        with pytest.raises(ValueError, match="empty string"):
            of_pattern(pattern)
        return
    data = text.encode()
    wanted = [any(rule.fullmatch(data, begin, end) for begin in range(end)) for end in range(1, len(data) + 1)]
    found, _ = of_pattern(pattern).run(data)
    assert found.tolist() == wanted


@given(st.binary(max_size=40), st.integers(0, 40))
def test_a_document_may_be_cut_anywhere(data, at):
    rule = of_pattern("[^a-z][a-z]|é|.{3}x")
    whole, end = rule.run(data)
    first, state = rule.run(data[:at])
    second, last = rule.run(data[at:], state)
    assert np.array_equal(np.concatenate([first, second]), whole)
    assert last == end


def test_no_backtracking():
    found, _ = of_pattern("(a*)*b").run(b"a" * 100_000 + b"b")
    assert found.nonzero()[0].tolist() == [100_000]


def test_characters_beyond_ascii_are_their_bytes():
    found, _ = of_pattern("[^é]é?é".replace("[^é]", "x")).run("xéé é".encode())
    assert found.nonzero()[0].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "empty"),
        ("a*", "empty"),
        ("(?=a)", "lookarounds"),
        ("(?i)a", "lookarounds"),
        (r"\bword", "not known"),
        ("^a", "not known"),
        ("a$", "not known"),
        ("(a", "without a"),
        ("a)", "without a"),
        ("[a", "without a"),
        ("[", "without a"),
        ("[é]", "several"),
        ("[z-a]", "range"),
        ("+a", "nothing to repeat"),
        ("a**", "two quantifiers"),
        ("a{", "number of repetitions"),
        ("a{2,1}", "at most"),
        ("a{0}", "at most"),
        ("a{9999}", "at most"),
        ("a{٣}", "number of repetitions"),
        (r"\xg0", "hexadecimal"),
        ("\\", "not known"),
        ("a" * 501, "500 characters"),
        ("(" * 30 + "a" + ")" * 30, "deep"),
        ("((a{64}){64}){64}", "repeats too much"),
        ("[ab]*a" + "[ab]" * 14, "too many states"),
        ("(.{60}){40}a", "too many positions"),
        ("\\d|\ud800", "surrogate"),
    ],
)
def test_other_expressions_are_refused(pattern, reason):
    with pytest.raises(ValueError, match=reason):
        of_pattern(pattern)


def longest(tokens, data):
    """Starts of chunks: each goes on while what was read begins a token."""
    starts, begin = [], 0
    for i in range(len(data)):
        if i == 0 or not any(token.startswith(data[begin : i + 1]) for token in tokens):
            starts.append(i)
            begin = i
    return starts


def test_longest_matches_of_a_vocabulary():
    tokens = [b"the", b"then", b"he", b" the", b"\xc3\xa9t"]
    data = "then the hen, été".encode() * 3 + bytes(random.Random(0).choices(b"then ", k=300))
    rule = of_vocabulary(tokens)
    found, _ = rule.run(data)
    every = [*tokens, *(bytes([byte]) for byte in range(256))]
    assert found.nonzero()[0].tolist() == longest(every, data)
    letters = byte_letters()
    same = of_tokens(" ".join("".join(letters[byte] for byte in token) for token in tokens))
    assert np.array_equal(same.following, rule.following)
    assert np.array_equal(same.boundary, rule.boundary)


def test_a_vocabulary_is_checked():
    with pytest.raises(ValueError, match="stands for no byte"):
        of_tokens("the 中")
    rng = random.Random(1)
    with pytest.raises(ValueError, match="take a smaller one"):
        of_vocabulary([rng.randbytes(20) for _ in range(1000)])
