"""Warnings: each failure is named once per episode, and ordinary noise is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.training.watch import EARLY, PATIENCE, WINDOW, Watch

BYTES, DOCUMENTS = 4096, 16


def record(step, share=0.2, loss=1.5, target=5.0, undecided=0.2):
    """Record of a step whose free positions are boundaries with probability `share`."""
    chunks = DOCUMENTS + share * (BYTES - DOCUMENTS)
    numbers = {
        "step": step,
        "loss": loss,
        "stage0_bytes_per_chunk": BYTES / round(chunks),
        "stage0_target_fraction": 1 / target,
    }
    return numbers | ({} if undecided is None else {"stage0_undecided": undecided})


def told(records, warmup=0, alpha=0.03, learned=True, memory=None):
    """Steps at which each warning came."""
    memory = {} if memory is None else memory
    watch = Watch([learned], warmup, memory)
    found = [(each["step"], name) for each in records for name, _ in watch.observe(each, BYTES, DOCUMENTS, alpha)]
    assert all(isinstance(value, float | int) and np.isfinite(value) for value in memory.values())
    return found


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.15), st.floats(0.11, 0.38))
def test_ordinary_noise_is_no_reason_to_warn(seed, noise, share):
    """A loss that falls from 5.5 with noise that is not Gaussian, chunks between half and nearly twice the target."""
    random = np.random.default_rng(seed)
    steps = np.arange(1, 3 * WINDOW)
    losses = 1 + 4.5 * np.exp(-steps / 100) + noise * random.laplace(size=len(steps)).clip(-6, 6)
    shares = (share + random.normal(0, 0.02, len(steps))).clip(0.06, 0.9)
    records = [record(int(s), share, loss) for s, share, loss in zip(steps, shares, losses, strict=True)]
    assert told(records, warmup=50) == []


@pytest.mark.parametrize("share", [0.97, 1.0, 0.04, 0.0])
def test_a_collapse_is_told_once_after_fifty_steps(share):
    fine, bad = (lambda step: record(step)), (lambda step: record(step, share))
    records = [fine(s) for s in range(1, 101)] + [bad(s) for s in range(101, 301)]
    assert [each for each in told(records, alpha=0) if each[1] == "collapse"] == [(100 + PATIENCE, "collapse")]
    interrupted = [bad(s) if s % PATIENCE else fine(s) for s in range(1, 301)]
    assert told(interrupted, alpha=0) == []
    again = [bad(s) for s in range(1, 61)] + [fine(61)] + [bad(s) for s in range(62, 200)]
    assert [s for s, _ in told(again, alpha=0)] == [PATIENCE, 61 + PATIENCE]


def test_document_starts_are_no_decisions():
    """A batch of documents of two bytes, each with the boundary it must have: half of all positions."""
    watch = Watch([True], 0, {})
    for step in range(1, 2 * PATIENCE):
        half = {"step": step, "loss": 1.0, "stage0_bytes_per_chunk": 2.0, "stage0_target_fraction": 0.2}
        names = [name for name, _ in watch.observe(half, 2048, 1024, 0.0)]
        assert names == (["collapse"] if step == PATIENCE else [])  # of the free half none is a boundary
    watch = Watch([True], 0, {})
    alone = half | {"stage0_bytes_per_chunk": 1.0}
    assert not any(watch.observe(alone | {"step": step}, 1024, 1024, 0.0) for step in range(1, 2 * PATIENCE))


def test_fixed_chunks_cannot_collapse():
    assert told([record(s, share=1.0) for s in range(1, 3 * WINDOW)], learned=False) == []


def test_a_ratio_that_is_stuck_is_told_after_two_windows():
    """A boundary fraction of 0.31 with a target of 0.125 (openai/parameter-golf #2105)."""
    stuck = [record(s, 0.31, target=8.0) for s in range(1, 5 * WINDOW)]
    assert told(stuck, warmup=100) == [(100 + 2 * WINDOW, "undershoot")]
    assert told(stuck, alpha=0) == []
    moving = [record(s, 0.9 * 0.9 ** (s / WINDOW), target=8.0) for s in range(1, 12 * WINDOW)]
    assert told(moving) == []


def test_a_router_that_does_not_decide_is_told():
    """Also where histograms come with every tenth step only."""
    vague = [record(s, undecided=0.8 if s % 10 == 0 else None) for s in range(1, 4 * WINDOW)]
    assert told(vague) == [(2 * WINDOW, "undecided")]


def test_a_spike_is_told_once_and_again_when_it_comes_again():
    random = np.random.default_rng(0)
    losses = 2 + 0.05 * random.normal(size=400)
    losses[200:210] = 3.5
    losses[300] = 3.0
    assert told([record(s + 1, loss=loss) for s, loss in enumerate(losses)]) == [(201, "spike"), (301, "spike")]


def test_a_loss_that_stays_high_is_one_spike():
    random = np.random.default_rng(0)
    losses = np.where(np.arange(1000) < 200, 2, 4) + 0.05 * random.normal(size=1000)
    assert told([record(s + 1, loss=loss) for s, loss in enumerate(losses)]) == [(201, "spike")]


@pytest.mark.slow
@given(st.integers(1, 699))
def test_what_was_stopped_and_resumed_warns_the_same(cut):
    """Its memory is all it needs."""
    records = [record(s, 0.97 if s > 300 else 0.5, 9.0 if s == 450 else 2.0, undecided=0.9) for s in range(1, 701)]
    memory = {}
    assert told(records[:cut], memory=memory) + told(records[cut:], memory=memory) == told(records)
    assert {name for _, name in told(records)} == {"collapse", "spike", "undecided", "undershoot"}


def validated(*rows, warmup=0, after=EARLY):
    """Places of the validations, of (worth, upper end), at which it is said that chunks are worth nothing."""
    watch, found = Watch([True], warmup, {}), []
    for step, (worth, high) in enumerate(rows, start=1):
        record = {"step": after + step, "val_stage0_worth": worth}
        record |= {} if high is None else {"val_stage0_worth_high": high}
        found += [step for name, _ in watch.validated(record) if name == "worthless"]
    return found


def test_chunks_that_stay_worth_nothing_are_told_once():
    nothing, some, vague, short = (0.0003, 0.0008), (0.4, 0.5), (0.005, 0.02), (0.001, None)
    assert validated(*[nothing] * 10) == validated(nothing, short, nothing, nothing) == [3]
    assert validated(*[nothing, nothing, some] * 3) == validated(*[vague] * 9) == validated(*[some] * 9) == []
    assert validated(*[nothing] * 4, some, *[nothing] * 4) == [3, 8]
    assert validated(*[nothing] * 9, warmup=EARLY + 4) == [7]
    assert validated(*[nothing] * 9, after=EARLY - 2) == [5]  # a short run is not alarmed
    assert Watch([True], 0, {}).validated({"step": 9}) == []
