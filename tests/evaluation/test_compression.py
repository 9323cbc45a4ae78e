"""Bits per byte, their difference between two models, and baselines on the same bytes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnet_cli.data.baselines import order_k
from hnet_cli.evaluation import compression
from hnet_cli.evaluation.resampling import draws, ratio
from hnet_cli.inference.scoring import Scores, score


def test_differences_are_paired(model):
    """Two nearly equal models on documents of very different difficulty: the difference is far surer than either."""
    random = np.random.default_rng(0)
    documents = [bytes(random.integers(0, 4 if n % 2 else 250, 60, dtype=np.uint8)) for n in range(30)]
    first = score(model, documents, 64)
    second = type(first)(first.owner, first.bytes, first.nats * 1.01 + random.normal(0, 0.01, 30), first.stages)
    found = compression.difference(first, second)
    width = np.diff(found["bpb_ci95"])[0]
    assert width < 0.2 * np.diff(compression.figures(first)["bpb_ci95"])[0]
    assert found["bpb"] == pytest.approx(0.01 * compression.figures(first)["bpb"], rel=0.1)
    assert found["share_of_draws_second_better"] == 0.0
    swapped = compression.difference(second, first)
    assert swapped["bpb"] == pytest.approx(-found["bpb"])
    assert np.array_equal(
        draws(np.stack([first.nats, first.bytes], 1), ratio), draws(np.stack([first.nats, first.bytes], 1), ratio)
    )


def test_a_model_that_reads_whole_documents_is_compared_with_one_that_reads_blocks(model):
    documents = [b"a document of several blocks " * 9, b"and another " * 7]
    whole, blocks = (score(model, documents, None, block=block) for block in (None, 64))
    assert len(whole.owner) < len(blocks.owner)
    dearer = Scores(whole.owner, whole.bytes, whole.nats * [1.1, 1.2], whole.stages)
    found = compression.difference(blocks, dearer)
    expected = (whole.nats * [0.1, 0.2]).sum() / whole.bytes.sum() / math.log(2)
    assert found["bpb"] == pytest.approx(expected, rel=1e-4)
    assert compression.difference(dearer, blocks)["bpb"] == pytest.approx(-expected, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=60).map(lambda raw: bytes(byte % 3 for byte in raw)), st.integers(0, 3))
def test_the_adaptive_model_is_the_definition(data, order):
    """Interpolated Witten-Bell, counted anew before every byte."""
    bits = 0.0
    for at, byte in enumerate(data):
        p = 1 / 256
        for k in range(order + 1):
            if at < k:
                break
            context = data[at - k : at]
            after = [data[i] for i in range(k, at) if data[i - k : i] == context]
            if after:
                kinds = len(set(after))
                p = (after.count(byte) + kinds * p) / (len(after) + kinds)
        bits -= math.log2(p)
    assert compression.adaptive_order_k(data, order) == pytest.approx(bits / len(data))


def test_baselines_see_the_same_bytes():
    words = np.random.default_rng(0).choice(["fox", "dog", "lazy", "brown"], 6000)
    documents = [" ".join(words[at : at + 200]).encode() for at in range(0, 6000, 200)]
    train = b" ".join(documents)
    found = compression.baselines(documents, train)
    assert found["xz"] < found["xz_each_document"]
    assert found["xz_each_document_ci95"][0] < found["xz_each_document"] < found["xz_each_document_ci95"][1]
    assert found["order_k"] == order_k(train, b"".join(documents))[1]
    assert found["order_k_adaptive"] < found["xz"]
    assert found["order_k_bytes"] == sum(map(len, documents))
    assert "order_k" not in compression.baselines(documents)
