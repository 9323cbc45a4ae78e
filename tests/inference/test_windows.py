"""Windows: how a document is read and what is beside it changes nothing, stages nest, nothing grows without end."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model
from segmentkit import MODEL

from hnet_cli.errors import NumericalError
from hnet_cli.inference.windows import Stream, _Rules, _stretches, windows
from hnet_cli.modality import Document

EXACT = tiny_model(torch.float64)
SMALL = {"width": 64, "warmup": 16, "batch_bytes": 200}


def found(documents, model=MODEL, **options):
    """(starts, probability) of each document, from windows."""
    result = {}
    for window in windows(model, documents, **(SMALL | options)):
        result.setdefault(window.document.name, []).append(window)
    return {
        name: (np.concatenate([w.starts for w in own]), np.concatenate([w.probability for w in own]))
        for name, own in result.items()
    }


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@one_in(5)
@given(st.binary(min_size=60, max_size=300), st.integers(5, 50), st.integers(1, 300), st.booleans())
def test_with_a_carried_state_windows_are_one_pass(data, width, block, surprisal):
    """However the document is read and wherever windows end; of the next document nothing is carried over."""
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    documents = [Stream(blocks, "a", "a"), Document(data[::-1], "b", "b")]
    asked = {"surprisal": surprisal, "longest_chunk": 1 << 30}
    once = list(windows(EXACT, [Document(data, "a", "a"), documents[1]], width=1000, **asked))
    parts = list(windows(EXACT, documents, batch_bytes=width, carried=True, **asked))
    assert len(parts) == 2 * -(-len(data) // width)
    for whole in once:
        own = [window for window in parts if window.document.name == whole.document.name]
        assert np.array_equal(np.concatenate([w.starts for w in own]), whole.starts)
        for name in ("probability", *["surprisal"] * surprisal):
            found = np.concatenate([getattr(window, name) for window in own])
            np.testing.assert_allclose(found, getattr(whole, name), rtol=1e-5, atol=1e-6)
        assert np.array_equal(sum(window.positions for window in own), whole.positions)


@one_in(5)
@given(st.lists(st.binary(max_size=150), max_size=6))
def test_how_a_stream_is_read_changes_nothing(blocks):
    data = b"".join(blocks)
    as_document = found([Document(data, "a", "a")])
    as_stream = found([Stream(blocks, "a", "a")])
    assert as_document.keys() == as_stream.keys()
    assert all(same(as_document[name], as_stream[name]) for name in as_document)


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_read_blocks_of_any_size(size):
    data = random.Random(0).randbytes(1500)
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    assert same(found([Stream(blocks, "a", "a")])["a"], found([Document(data, "a", "a")])["a"])


def test_stages_nest():
    starts, p = found([Document(random.Random(1).randbytes(2000), "a", "a")])["a"]
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert not np.isnan(p[:, 0]).any()
    assert np.isnan(p[~np.isnan(p[:, 1])][:, 0]).sum() == 0
    assert 0 < (~np.isnan(p[:, 1])).sum() < len(starts) < 2000


def test_probabilities_are_the_models():
    data = random.Random(3).randbytes(60)
    prob = MODEL(torch.tensor([[254, *data]])).routing[0].boundary_prob.detach().numpy()
    starts, p = found([Document(data, "a", "a")])["a"]
    assert p[0, 0] == 1
    np.testing.assert_allclose(p[1:, 0], prob[starts[1:] + 1], atol=1e-5)
    assert (p[:, 0] > 0.5).all()


def test_later_windows_follow_from_the_bytes_before_them_alone():
    data = random.Random(4).randbytes(256)
    starts, p = found([Document(data, "a", "a")])["a"]
    prob = MODEL(torch.tensor([[*data[128 - 16 : 192]]])).routing[0].boundary_prob.detach().numpy()
    own = (starts >= 128) & (starts < 192)
    assert starts[own].tolist() == (np.flatnonzero(prob[16:] > 0.5) + 128).tolist()
    np.testing.assert_allclose(p[own, 0], prob[starts[own] - 112], atol=1e-5)


def test_strangers_in_the_same_pass_change_nothing():
    rng = random.Random(5)
    documents = [Document(rng.randbytes(rng.randrange(200)), f"{i}", "a") for i in range(12)]
    together = found(documents, batch_bytes=1 << 20)
    for document in documents:
        if document.data:
            (alone,) = found([document]).values()
            assert np.array_equal(alone[0], together[document.name][0])
            np.testing.assert_allclose(alone[1], together[document.name][1], atol=1e-5)


def fixed(k):
    return tiny_model(torch.float32, config=tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "fixed", "k": k}))


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("k", [7, 60, 150])
def test_fixed_chunks_stay_in_step_over_windows(k, carried):
    """Longer than a context too, which then goes back to the beginning."""
    starts, _ = found([Document(bytes(500), "a", "a")], fixed(k), carried=carried)["a"]
    assert starts.tolist() == [0, *range(k - 1, 500, k)]


def chained(*chunkers):
    layout = ("m1", ("m1", ("T1",), "m1"), "m1") if len(chunkers) == 2 else ("m1", ("T1",), "m1")
    return tiny_model(torch.float32, config=tiny_config(layout, chunker=list(chunkers)))


RULES = {
    "fixed": chained({"kind": "fixed", "k": 70}),
    "fixed, fixed": chained({"kind": "fixed", "k": 3}, {"kind": "fixed", "k": 7}),
    "regex": chained({"kind": "regex", "pattern": "a[^b]*b"}),
    "space": chained({"kind": "space"}),
    "space, fixed": chained({"kind": "space"}, {"kind": "fixed", "k": 5}),
    "regex, fixed": chained({"kind": "regex", "pattern": "a[^b]*b|c"}, {"kind": "fixed", "k": 3}),
    "bpe, fixed": chained({"kind": "bpe", "tokens": "ab ac bc abc Ġa"}, {"kind": "fixed", "k": 4}),
}


@pytest.mark.parametrize("name", RULES)
@one_in(5)
@example(data=b"a" + b"c" * 150 + b"bcb", width=30)
@given(data=st.text("abc \n中", min_size=150, max_size=400).map(str.encode), width=st.integers(20, 90))
def test_rules_do_not_know_of_windows(name, data, width):
    """However far back what they have matched or counted begins."""
    documents = [Document(data, "a", "a"), Document(data[::-1], "b", "b")]
    whole, parts = (found(documents, RULES[name], width=each) for each in (1000, width))
    assert all(same(parts[document], whole[document]) for document in "ab")
    counts = []
    for each in (1000, width):
        counts.append(sum(window.positions for window in windows(RULES[name], documents, **(SMALL | {"width": each}))))
    assert np.array_equal(*counts)


def test_a_long_rule_needs_no_long_context():
    stretches = list(_stretches([Document(bytes(3000), "a", "a")], 64, 16, _Rules(RULES["fixed"])))
    assert max(len(stretch.context) for stretch in stretches) == 16


@pytest.mark.parametrize("carried", [False, True])
def test_a_model_of_no_numbers_has_no_chunks(carried):
    """Not a number is no boundary either: the document would pass for one chunk."""
    broken = tiny_model(torch.float32)
    with torch.no_grad():
        broken.backbone.encoder.layers[0].mixer.in_proj.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        list(windows(broken, [Document(b"some bytes", "a", "a")], carried=carried))


def test_a_chunk_cannot_grow_without_end():
    model = fixed(10_000)
    for limit, expected in ((100, [0, 128, 256, 384]), (1 << 20, [0])):
        starts, p = found([Document(bytes(400), "a", "a")], model, longest_chunk=limit)["a"]
        assert starts.tolist() == expected
        assert p[1:, 0].tolist() == [0.0] * (len(expected) - 1)


def test_a_forced_end_keeps_stages_nested():
    starts, p = found([Document(random.Random(6).randbytes(3000), "a", "a")], longest_chunk=64)["a"]
    begun = starts[~np.isnan(p[:, 1])]
    assert not np.isnan(p[:, 0]).any()
    assert np.diff(begun).max() < 3 * 64
