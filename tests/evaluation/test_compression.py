"""Bits per byte, their difference between two models, and baselines on the same bytes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import tiny_config, tiny_model

from hnet_cli.data.baselines import order_k
from hnet_cli.evaluation import compression
from hnet_cli.evaluation.compression import worth
from hnet_cli.evaluation.resampling import draws, ratio
from hnet_cli.inference.scoring import Scores, score
from hnet_cli.inference.windows import BATCH_BYTES


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


# -- worth of the chunks -----------------------------------------------------------------------------------------------


def reader(stages=1):
    """A model whose layers change nothing and whose chunks, of two bytes, alone reach the decoder of level 0: it reads
    the last byte before a chunk and predicts both bytes of it, b after a, c after b, a after c and at first."""
    layout = ("m1", ("T1",), "m1") if stages == 1 else ("m1", ("m1", ("T1",), "m1"), "m1")
    model = tiny_model(config=tiny_config(layout, chunker={"kind": "fixed", "k": 2})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1)
            elif name.endswith(("out_proj.weight", "fc2.weight")) or "residual_proj" in name or "pad" in name:
                weight.fill_(0)
        model.embeddings.weight.zero_()
        model.lm_head.weight.zero_()
        for place, (byte, following) in enumerate([(97, 98), (98, 99), (99, 97), (254, 97)]):
            model.embeddings.weight[byte, place] = 1
            model.lm_head.weight[following, place] = 5
    return model


CYCLE = b"aabbcc" * 20


def test_chunks_that_alone_know_what_comes_are_worth_the_uncertainty_without_them():
    model = reader()
    (found,) = worth(model, lambda: score(model, [CYCLE] * 9, None))
    assert score(model, [CYCLE], None).bits.sum() < 0.01
    assert found["worth"] == pytest.approx(math.log2(3), rel=0.02)
    assert found["worth_ci95"] == pytest.approx([found["worth"]] * 2)


def test_chunks_that_carry_nothing_are_worth_nothing():
    model = reader(stages=2)
    with torch.no_grad():
        for level in (model.backbone, model.backbone.main_network):
            level.residual_proj.weight.copy_(torch.eye(len(level.residual_proj.weight)))
    inner = model.backbone.main_network.main_network
    stages = worth(model, lambda: score(model, [CYCLE] * 9, None))
    assert [stage["worth"] > 0.01 for stage in stages] == [True, True]
    with torch.no_grad():
        inner.main_network.rmsnorm.weight.zero_()
    outer, nothing = worth(model, lambda: score(model, [CYCLE] * 9, None))
    assert outer["worth"] > 0.01
    assert nothing == {"worth": 0, "worth_ci95": [0, 0]}


def test_worth_depends_on_no_packing(monkeypatch):
    model = tiny_model().eval()
    documents = [bytes(np.random.default_rng(n).integers(97, 104, 40 + n, dtype=np.uint8)) for n in range(8)]
    found = []
    for size in (64, 200, 8192):
        monkeypatch.setitem(BATCH_BYTES, "cpu", size)
        found.append(worth(model, lambda: score(model, documents, 32)))
    for stage in (0, 1):
        rows = [[each[stage]["worth"], *each[stage]["worth_ci95"]] for each in found]
        assert rows[0] == pytest.approx(rows[2], rel=1e-9)
        assert rows[1] == pytest.approx(rows[2], rel=1e-9)


def test_the_interval_of_the_worth_covers_it():
    """Documents of the cycle and of bytes that nothing predicts, drawn at random, against very many of them."""
    model, random = reader(), np.random.default_rng(0)
    noise = [bytes(random.integers(97, 100, 60, dtype=np.uint8)) for _ in range(60)]
    documents = [CYCLE[:60] if n % 2 else noise[n] for n in range(60)]
    (true,) = worth(model, lambda: score(model, documents, None))
    covered = 0
    for _ in range(8):
        drawn = [documents[n] for n in random.integers(0, 60, 16)]
        low, high = worth(model, lambda drawn=drawn: score(model, drawn, None))[0]["worth_ci95"]
        covered += low <= true["worth"] <= high
    assert covered >= 7
