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
    halves = noise._paired(clean, noisy, np.arange(2), [0, 0])  # both are stretches of one: still window by window
    assert halves.tolist() == rows.tolist()
    nothing = noise._paired(clean, score(model, documents[1:], 64), np.array([1]))  # the first has lost all its bytes
    assert nothing[:, 1].sum() == len(documents[1])
    assert nothing[:, 3].sum() == sum(map(len, documents))


def test_stretches_of_a_document_count_as_one(model):
    """Documents enough for pairs of documents, each in three stretches."""
    stretches = [f"stretch {n % 3} of number {n // 3}, {'x' * n}".encode() for n in range(30)]
    owners = [n // 3 for n in range(30)]
    doubled = {"Doubled": lambda data, random: b"".join(bytes([byte] * 2) for byte in data)}
    clean, noisy = score(model, stretches, 64), score(model, [doubled["Doubled"](s, None) for s in stretches], 64)
    rows = noise._paired(clean, noisy, np.arange(30), owners)
    assert rows[:, 3].tolist() == [sum(len(s) for s in stretches[at : at + 3]) for at in range(0, 30, 3)]
    assert rows[:, 1].tolist() == (2 * rows[:, 3]).tolist()
    assert rows[4, 0] == pytest.approx(noisy.per_document(noisy.bits)[12:15].sum())
    alone, grouped = (
        noise.robustness(lambda data: score(model, data, 64), stretches, doubled, o) for o in (None, owners)
    )
    assert grouped["Doubled"]["ratio"] == pytest.approx(alone["Doubled"]["ratio"])
    assert grouped["Doubled"]["ratio_ci95"] != alone["Doubled"]["ratio_ci95"]
    assert grouped["clean"]["bpb_ci95"] != alone["clean"]["bpb_ci95"]
