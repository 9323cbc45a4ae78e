"""Perturbations of every modality, and the mirror of DNA."""

from functools import cache
from itertools import product
from random import Random
from string import ascii_letters, ascii_lowercase, ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.modalities._noise import RESERVED

get = cache(modality.get)  # reads the metadata of all installed packages


def perturb(kind, name, text, seed=0):
    return get(kind).perturbations()[name](text.encode(), Random(seed)).decode()


def test_the_five_of_the_paper():
    assert perturb("text", "AntSpeak", "Ant, é") == "A N T ,   É"
    assert perturb("text", "UpperCase", "a Ss é") == "A SS É"
    words = "the quick brown fox " * 200
    assert perturb("text", "RandomCase", words).lower() == words
    upper = sum(char.isupper() for char in perturb("text", "RandomCase", words))
    assert 0.4 < upper / sum(char.isalpha() for char in words) < 0.6
    assert 0.08 < 1 - len(perturb("text", "Drop", words)) / len(words) < 0.12
    repeated = perturb("text", "Repeat", words)
    assert 1.3 < len(repeated) / len(words) < 1.5  # a fifth stands three times on average


@pytest.mark.parametrize("kind", ["text", "chinese", "code", "dna"])
def test_a_seed_gives_the_same_noise(kind):
    data = "def f(x): return 我们的 在 ACGT" if kind != "dna" else "ACGTTGCA" * 20
    for name, distort in get(kind).perturbations().items():
        assert distort(data.encode(), Random(1)) == distort(data.encode(), Random(1)), name


def test_noise_in_other_modalities():
    assert perturb("chinese", "FullWidth", "a1 中") == "ａ１\u3000中"
    assert perturb("chinese", "HalfWidth", "ａ１，中。") == "a1,中."
    swapped = perturb("chinese", "Homophone", "的在他" * 50)
    assert set(swapped) <= set("的地得再在他她它")
    assert swapped != "的在他" * 50
    renamed = perturb("code", "Rename", "def total(count):\n    return count + count.total")
    defined, argument = renamed.split("(")[0].split()[1], renamed.split("(")[1].split(")")[0]
    assert renamed == f"def {defined}({argument}):\n    return {argument} + {argument}.{defined}"
    assert defined != "total"
    assert perturb("code", "Indent", "a\n    b\n\tc") == "a\n\tb\n  c"
    changed = perturb("dna", "Substitution", "ACGT" * 500)
    assert 0.07 < sum(a != b for a, b in zip(changed, "ACGT" * 500, strict=True)) / 2000 < 0.13
    assert perturb("dna", "ReverseComplement", "AACGT") == "ACGTT"


@pytest.mark.parametrize(
    "names",
    [
        [f"{letter}1" for letter in ascii_uppercase[:14]],
        [f"{letter}1" for letter in ascii_uppercase],
        [f"_{letter}" for letter in ascii_lowercase[:25]],
        [f"x{number}" for number in range(1, 10)] + [f"{letter}0" for letter in ascii_lowercase],
        [*map("".join, product(ascii_lowercase, repeat=2))],
        ["_1", "__2", "is", "is_"],
    ],
    ids=["14 of A1", "all of A1", "25 of _a", "all of x0", "all of aa", "none to change"],
)
def test_names_stay_apart_where_their_form_has_few(names):
    """Among names of one letter, or of two, there may be none that is free."""
    changed = perturb("code", "Rename", " + ".join([*names, *reversed(names)])).split(" + ")
    new = changed[: len(names)]
    assert new == changed[len(names) :][::-1]
    assert len(set(new)) == len(names)
    case = str.maketrans(ascii_letters, "a" * 26 + "A" * 26)
    assert [name.translate(case) for name in new] == [name.translate(case) for name in names]
    kept = RESERVED | {"_1", "__2"}
    assert [name == old for old, name in zip(names, new, strict=True)] == [name in kept for name in names]


@pytest.mark.parametrize(
    ("kind", "name", "text", "distorted"),
    [
        ("text", "BlankLines", "one  two\nthree four", "one\n\ntwo\nthree\n\nfour"),
        ("text", "Tabs", "one two\n three", "one\ttwo\n\tthree"),
        ("text", "NoSpaces", "one two\nthree four", "onetwo\nthreefour"),
        ("text", "LineSeparator", "a\r\nb\n\nc\rd", "a\u2028b\u2028\u2028c\u2028d"),
        ("text", "CRLF", "a\nb\r\nc\rd", "a\r\nb\r\nc\r\nd"),
        ("text", "CR", "a\nb\r\nc\rd", "a\rb\rc\rd"),
        ("chinese", "WideSpaces", "中文 a\n字", "中\u3000文 a\n字"),
        ("chinese", "LineBreaks", "字" * 45 + "\n" + "文" * 20, "\n".join(["字" * 20] * 2 + ["字" * 5, "文" * 20])),
        ("chinese", "CRLF", "中\n文", "中\r\n文"),
        ("code", "BlankLines", "a\n  b\r\nc", "a\n\n  b\n\nc"),
        ("code", "CR", "a\nb", "a\rb"),
    ],
)
def test_layout(kind, name, text, distorted):
    assert perturb(kind, name, text) == distorted


def test_trailing_spaces_and_filled_gaps():
    code = "def f(x):\n\n    return x\n" * 20
    spaced = perturb("code", "Trailing", code)
    assert [line.rstrip() for line in spaced.split("\n")] == [line.rstrip() for line in code.split("\n")]
    assert all(1 <= len(line) - len(line.rstrip()) <= 3 for line in spaced.split("\n")[:-1])
    genome = "ACGTA" * 2000
    filled = perturb("dna", "Filled", genome)
    changed = [filled[at : at + 50] != genome[at : at + 50] for at in range(0, len(genome), 50)]
    assert len(filled) == len(genome)
    assert 0.03 < sum(changed) / len(changed) < 0.2


@given(st.binary(max_size=60), st.sampled_from(["text", "chinese", "code"]))
def test_any_bytes_survive_another_layout(data, kind):
    """What is no UTF-8 is no reason to fail, and no letter is lost."""
    for name in ("CRLF", "CR"):
        distorted = get(kind).perturbations()[name](data, Random(0))
        assert distorted.replace(b"\r", b"").replace(b"\n", b"") == data.replace(b"\r", b"").replace(b"\n", b"")


def test_the_score_of_tasks_stays_the_paper_s():
    assert get("text").scored_noise == ("AntSpeak", "Drop", "RandomCase", "Repeat", "UpperCase")
    assert set(get("text").scored_noise) < get("text").perturbations().keys()


@given(st.text(alphabet="ACGT"))
def test_the_reverse_complement_is_its_own_inverse(sequence):
    mirror = get("dna").mirror
    assert mirror(mirror(sequence.encode())) == sequence.encode()
