"""Bits of a passage and of its repetition, as `benchmarks/repeats.py` describes them."""

import pytest
import torch
from modelkit import tiny_model

from benchmarks import repeats
from hnet_cli.inference.scoring import score


def test_passages_are_spread_and_whole():
    documents = [bytes([65 + n]) * (repeats.LENGTH * 100 + 7) for n in range(3)] + [b"short"]
    found = repeats.excerpts(documents)
    assert len(found) == repeats.EXCERPTS
    assert {len(each) for each in found} == {repeats.LENGTH}
    counts = [sum(each[0] == 65 + n for each in found) for n in range(3)]
    assert max(counts) - min(counts) <= 1
    assert repeats.excerpts([b"short"]) == []


def test_the_second_time_is_what_the_longer_document_costs_more():
    model, passages = tiny_model(torch.float64).eval(), [b"one passage", b"another, longer one"]
    found = repeats.repeated(model, passages)
    bits = [float(score(model, [text], None).bits.sum()) for each in passages for text in (each, each + b"\n" + each)]
    sizes = [len(each) for each in passages]
    assert found["first"] == pytest.approx((bits[0] + bits[2]) / sum(sizes))
    assert found["second"] == pytest.approx((bits[1] - bits[0] + bits[3] - bits[2]) / (sum(sizes) + 2))
