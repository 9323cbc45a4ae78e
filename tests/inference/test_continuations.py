"""Log-probabilities of continuations: those of each read alone, wherever they leave what they have in common."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from laws import one_in
from modelkit import nats, tiny_model

from hnet_cli.inference.continuations import Branch, Track, loglikelihoods, read_tracks
from hnet_cli.inference.windows import BATCH_BYTES

BOS = 254


@pytest.fixture(scope="module")
def model():
    return tiny_model(torch.float32).eval()


def test_loglikelihoods_of_pairs(model):
    pairs = [(b"\xfeThe fox", b" jumps"), (b"\xfe", b"a"), (b"\xfex", b""), (b"mid", b"dle")]
    log, greedy = loglikelihoods(model, pairs)
    for (before, after), found in zip(pairs, log, strict=True):
        assert found == pytest.approx(-sum(nats(model, before, after)), rel=1e-5, abs=1e-9)
    assert greedy[2]
    with torch.no_grad():
        likeliest = bytes([int(model(torch.tensor([[BOS, 65]])).logits[0, -1].argmax())])
    assert loglikelihoods(model, [(b"\xfeA", likeliest)])[1].tolist() == [True]
    assert loglikelihoods(model, [(b"\xfeA", bytes([likeliest[0] ^ 1]))])[1].tolist() == [False]


def test_a_long_pair_is_read_in_blocks(model, monkeypatch):
    """The score is the same to rounding, whatever part of a block counts."""
    pairs = [
        (bytes([BOS]) + b"some words before" * n, b" and after" * m) for n, m in ((1, 30), (20, 1), (3, 3), (7, 9))
    ]
    logs, greedy = loglikelihoods(model, pairs)
    for block in (64, 100, 1 << 12):
        monkeypatch.setitem(BATCH_BYTES, "cpu", block)
        cut, same = loglikelihoods(model, pairs)
        np.testing.assert_allclose(cut, logs, rtol=1e-5)
        assert (same == greedy).all()


TEXTS = st.binary(min_size=1, max_size=12)


@pytest.fixture(scope="module")
def exact():
    return tiny_model().eval()


@pytest.mark.slow
@one_in(5)
@given(st.lists(st.tuples(TEXTS, st.lists(st.binary(max_size=12), max_size=4)), max_size=4), st.integers(12, 60))
def test_pairs_with_the_same_before_are_scored_as_alone(exact, groups, block):
    """Pairs that fit into a pass or do not; continuations may be empty or repeat, and texts of several groups too."""
    pairs = [(bytes([BOS]) * (len(before) > 6) + before, each) for before, all_of_it in groups for each in all_of_it]
    alone = [loglikelihoods(exact, [pair]) for pair in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATCH_BYTES, "cpu", block)
        logs, greedy = loglikelihoods(exact, pairs)
    np.testing.assert_allclose(logs, [log for (log,), _ in alone], rtol=1e-9)
    assert greedy.tolist() == [yields for _, (yields,) in alone]


LEAVES = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), min_size=1, max_size=6)


@one_in(5)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=90), LEAVES), min_size=1, max_size=4), st.integers(12, 200))
def test_a_branch_is_scored_as_if_it_were_the_text(exact, tracks, block):
    """Anywhere in it, at its end, several in one place; texts side by side of any length, in passes of any size."""
    wanted = []
    for text, leaves in tracks:
        branches = sorted((1 + int(share * (len(text) - 1)), continuation) for share, continuation in leaves)
        branches += [(len(text), b"after it")] * (len(text) % 2)
        wanted.append(Track(text, [Branch(*each) for each in branches]))

    def alone(whole, low):
        with torch.no_grad():
            logs = exact(torch.tensor([list(whole[:-1])])).logits[0].log_softmax(-1) if len(whole) > 1 else None
        return [] if logs is None else [float(-logs[at - 1, whole[at]]) for at in range(low, len(whole))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATCH_BYTES, "cpu", block)
        patch.setattr("hnet_cli.inference.continuations.MOST_ROWS", 2 + block % 9)
        found = list(read_tracks(exact, wanted))
    assert len(found) == len(wanted)
    for track, (text, branches) in zip(wanted, found, strict=True):
        np.testing.assert_allclose(text.nats, alone(track.text, 1), rtol=1e-5, atol=1e-6)
        for (at, continuation), judged in zip(track.branches, branches, strict=True):
            np.testing.assert_allclose(judged.nats, alone(track.text[:at] + continuation, at), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@one_in(5)
@given(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=6), st.integers(1, 60))
@example([[2] * 5] * 2, 10)
def test_no_call_reads_more_than_a_pass_and_a_branch(exact, branches, size):
    """However long branches are beside their texts, and however many: of rows too there is a most."""
    tracks = [Track(b"x" * size, [Branch(size, b"y" * length) for length in each]) for each in branches]
    longest, calls, rows = max(map(max, branches)), [], []
    extend = type(exact).extend
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATCH_BYTES, "cpu", 100)
        patch.setattr("hnet_cli.inference.continuations.MOST_ROWS", 4)

        def counted(self, ids, state):
            calls.append(sum(map(len, ids)))
            rows.append(len(ids))
            return extend(self, ids, state)

        patch.setattr(type(exact), "extend", counted)
        assert [len(found) for _, found in read_tracks(exact, tracks)] == list(map(len, branches))
    assert max(calls) <= 100 + longest
    assert max(rows) <= 4
