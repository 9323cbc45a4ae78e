"""Distorted documents: the perturbations themselves, and what they cost."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.evaluation import noise
from hnet_cli.evaluation.scoring import score


def perturb(kind, name, text, seed=0):
    return modality.get(kind).perturbations()[name](text.encode(), Random(seed)).decode()


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
    for name, distort in modality.get(kind).perturbations().items():
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
    mirror = modality.get("dna").mirror
    assert mirror(mirror(sequence.encode())) == sequence.encode()


def test_dearer_is_measured_in_bits_of_the_same_content(model):
    documents = [f"document number {n} of a few".encode() for n in range(9)]
    found = noise.robustness(lambda data: score(model, data, 64), documents, modality.get("text").perturbations())
    clean = score(model, documents, 64)
    spaced = score(model, [b" ".join(bytes([byte]) for byte in each.upper()) for each in documents], 64)
    ant = found["AntSpeak"]
    assert ant["bpb"] == pytest.approx(spaced.nats.sum() / math.log(2) / spaced.bytes.sum())
    assert ant["bits_per_clean_byte"] == pytest.approx(spaced.nats.sum() / math.log(2) / clean.bytes.sum())
    assert ant["ratio"] == pytest.approx(spaced.nats.sum() / clean.nats.sum())
    assert ant["ratio_ci95"][0] < ant["ratio"] < ant["ratio_ci95"][1]


def test_few_documents_are_paired_window_by_window(model):
    """As many bits and bytes as there are, each with the clean ones of the same part of its document."""
    documents = [bytes(range(97, 122)) * 40, b"another, of a few windows " * 9]
    doubled = {"Doubled": lambda data, random: b"".join(bytes([byte] * 2) for byte in data)}
    found = noise.robustness(lambda data: score(model, data, 64), documents, doubled)
    clean = score(model, documents, 64)
    noisy = score(model, [doubled["Doubled"](each, None) for each in documents], 64)
    rows = noise._paired(clean, noisy, np.arange(2))
    assert len(rows) == len(clean.owner)
    assert rows[:, 1].tolist() == (2 * clean.bytes).tolist()
    assert rows[:, 2].sum() == pytest.approx(clean.nats.sum() / math.log(2))
    assert rows[3, 0] == pytest.approx(noisy.nats[6:8].sum() / math.log(2))
    low, high = found["Doubled"]["ratio_ci95"]
    assert low < found["Doubled"]["ratio"] < high
    nothing = noise._paired(clean, score(model, documents[1:], 64), np.array([1]))  # the first has lost all its bytes
    assert nothing[:, 1].sum() == len(documents[1])
    assert nothing[:, 3].sum() == sum(map(len, documents))
