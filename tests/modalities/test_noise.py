"""Perturbations of every modality, and the mirror of DNA."""

from functools import cache
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality

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


@given(st.text(alphabet="ACGT"))
def test_the_reverse_complement_is_its_own_inverse(sequence):
    mirror = get("dna").mirror
    assert mirror(mirror(sequence.encode())) == sequence.encode()
