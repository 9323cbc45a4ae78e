"""Lengths of chunks that are asked for: met as nearly as can be, by thresholds that every form of reading heeds."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import tiny_config, tiny_model
from segmentkit import MODEL, written

import hnet_cli
from hnet_cli.errors import UsageError
from hnet_cli.inference import thresholds
from hnet_cli.inference.segment import Summary, segment_bytes
from hnet_cli.inference.thresholds import Compression, _Decision, calibrate

DATA = random.Random(5).randbytes(3000)
ONE = tiny_model(torch.float32, config=tiny_config(("m1", ("T1",), "m1")))


@given(st.lists(st.sampled_from(np.linspace(0, 1, 9).tolist()), max_size=30), st.integers(1, 3), st.floats(0, 40))
def test_no_threshold_comes_nearer(values, forced, wanted):
    """With many equal probabilities, 0 and 1 among them."""
    decision = _Decision(forced, np.sort(np.array(values, np.float32))[::-1])
    chosen = decision.threshold(wanted)
    assert 0 <= chosen <= 1
    assert chosen == np.float32(chosen)
    reachable = [decision.chunks(threshold) for threshold in (0.0, *values)]
    assert reachable == [forced + sum(p > threshold for p in values) for threshold in (0.0, *values)]
    assert abs(decision.chunks(chosen) - wanted) == min(abs(number - wanted) for number in reachable)


@pytest.mark.parametrize("length", [1.5, 3, 20])
def test_a_length_is_met(length):
    """What is counted on the sample is what segmenting then gives, over several windows."""
    found = calibrate(ONE, [DATA], [length])
    with ONE.set_thresholds(found.thresholds):
        chunks = segment_bytes(ONE, DATA)
    assert found.reached == [len(DATA) / len(chunks)]
    assert found.reached[0] == pytest.approx(length, rel=0.01)
    assert ONE.thresholds == [0.5]
    assert segment_bytes(ONE, DATA, compression=Compression((), (length,))) == chunks
    assert ONE.thresholds == [0.5]
    assert "nearest" not in str(found)


def test_stages_change_alike_or_as_they_are_told():
    usual = [len(DATA) / len(segment_bytes(MODEL, DATA, stage)) for stage in (0, 1)]
    found = calibrate(MODEL, [DATA], [usual[1] * 4])
    assert found.wanted == pytest.approx([usual[0] * 2, usual[1] * 4], rel=1e-5)
    assert found.reached == pytest.approx(found.wanted, rel=0.01)
    found = calibrate(MODEL, [DATA], [2, 9])
    assert found.reached == pytest.approx([2, 9], rel=0.01)
    with MODEL.set_thresholds(found.thresholds):
        made = [len(DATA) / len(segment_bytes(MODEL, DATA, stage)) for stage in (0, 1)]
    assert made == found.reached


def test_what_cannot_be_is_said_with_the_nearest():
    found = calibrate(ONE, [b"aaaa" * 100, b"b" * 100], [3000])
    assert found.reached == [250]
    assert str(found).endswith("250 bytes per chunk, the nearest to 3,000 that there is")
    assert segment_bytes(ONE, b"abc", compression=Compression((1,))) == [b"abc"]


def test_the_sample_is_the_beginning_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(thresholds, "SAMPLE_BYTES", 700)
    model, summary = tiny_model(torch.float32), Summary(MODEL.config)
    text = "Some words here, and others. " * 200
    expected = calibrate(MODEL, [text[:700].encode()], [6])
    pieces = written(text, "plain", 1, plugin=None, model=model, summary=summary, compression=Compression((), (6,)))
    assert summary.intake.applied == expected
    assert expected.sample_bytes == 700
    assert pieces.replace("|", "").strip() == text.strip()
    assert summary.bytes == len(text)
    assert summary.stages()[1]["bytes_per_chunk"] == pytest.approx(6, rel=0.2)


TEXTS = [b"It was the best of times, it was the worst of times, " * 3, b"", b"and it rained."]
CALLS = {
    "segment": (
        lambda model, data, **chosen: [np.frombuffer(b"|".join(model.segment(*data, **chosen)), "u1")],
        TEXTS[:1],
    ),
    "chunks": (lambda model, data, **chosen: [np.array([c.start for c in model.chunks(*data, **chosen)])], TEXTS[:1]),
    "bits": (lambda model, data, **chosen: [np.float64(model.bits(*data, **chosen))], TEXTS[:1]),
    "score": (lambda model, data, **chosen: model.score(data, **chosen), TEXTS),
    "embed": (lambda model, data, **chosen: [model.embed(data, per="chunk", **chosen).vectors], TEXTS[::2]),
}


@pytest.fixture(scope="module")
def starter():
    return hnet_cli.load("starter:text")


@pytest.mark.parametrize(("call", "data"), CALLS.values(), ids=CALLS)
def test_every_call_from_python_takes_them_for_itself(starter, call, data):
    plain, found = call(starter, data), calibrate(starter, data, [2])
    for chosen, at in (({"threshold": 0.2}, [0.2, 0.2]), ({"bytes_per_chunk": np.float32(2)}, found.thresholds)):
        own = call(starter, data, **chosen)
        assert starter.thresholds == [0.5, 0.5]
        with starter.set_thresholds(at):
            expected = call(starter, data)
        assert all(map(np.array_equal, own, expected))
        assert not all(map(np.array_equal, own, plain))
    with pytest.raises(UsageError, match="3 numbers"):
        call(starter, data, threshold=[0.2, 0.3, 0.4])
    assert starter.thresholds == [0.5, 0.5]


def test_it_stands_on_the_page():
    model, summary = tiny_model(torch.float32), Summary(MODEL.config)
    page = written("Some words.", "html", model=model, label="it", summary=summary, compression=Compression((0.25,)))
    assert "it, thresholds 0.25, 0.25" in page


@pytest.mark.parametrize(
    ("given", "config", "message"),
    [
        (Compression((0.3, 0.4)), ("m1", ("T1",), "m1"), "2 numbers"),
        (Compression((), (3.0,)), ("T1",), "has no chunks"),
    ],
)
def test_a_model_that_it_does_not_fit(given, config, message):
    with pytest.raises(UsageError, match=message):
        given.check(tiny_model(config=tiny_config(config)))


def test_a_rule_has_no_threshold():
    model = tiny_model(config=tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "space"}))
    for asked in (Compression((0.3,)), Compression((), (3,))):
        with pytest.raises(UsageError, match="fixed rule"), asked.used(model, list):
            raise AssertionError


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (((0.3,), (3,)), "exclude"),
        (((1.5,), ()), "no probability"),
        (((float("nan"),), ()), "no probability"),
        (((), (0.5,)), "no length"),
        (((), (float("inf"),)), "no length"),
        (((), (9, 3)), "falls"),
    ],
)
def test_numbers_that_mean_nothing(numbers, message):
    with pytest.raises(UsageError, match=message):
        Compression(*numbers)
