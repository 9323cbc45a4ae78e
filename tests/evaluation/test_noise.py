"""Distorted documents: the perturbations themselves, and what they cost."""

import math

import numpy as np
import pytest

from hnet_cli import modality
from hnet_cli.evaluation import noise
from hnet_cli.inference.scoring import score


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
    """Bits and bytes of every document, paired with the clean ones of the same part."""
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
