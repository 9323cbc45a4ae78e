"""A run with limited time: it uses it, ends in it, and its schedule with it, whatever its steps take."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runkit import dataset, metrics, tiny

from hnet_cli.checkpoints.find import newest
from hnet_cli.config.run import resolve
from hnet_cli.training.loop import train
from hnet_cli.training.pace import Pace

MOST = 100_000


def simulated(seconds, times, most=MOST):
    """(time that it ends at, totals after each step) of a run whose step n takes `times(n)` seconds."""
    pace, now, totals = Pace(seconds, most, 0.0, most), 0.0, []
    while len(totals) < (totals[-1] if totals else most):
        now += times(len(totals))
        totals.append(pace.total(now, len(totals) + 1))
    return now, totals


@given(
    st.floats(0.01, 1.0),
    st.floats(0, 0.5),
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 0.02)), max_size=3),
    st.integers(0, 9),
)
def test_a_run_with_slow_steps_ends_in_time_and_uses_it(step, first, others, seed):
    """The first may take half of the time, some later ones more than the rest; the others vary by a fifth."""
    noise, slow = random.Random(seed), dict(others)
    times = [step * noise.uniform(0.9, 1.1) + 100 * (first if n == 0 else slow.get(n, 0)) for n in range(20_000)]
    ends, totals = simulated(100, times.__getitem__)
    assert 95 <= ends <= 102
    assert totals[-1] == len(totals)
    assert all(total > n for n, total in enumerate(totals[:-1], 1))


def test_a_slow_first_step_counts_for_nothing_once_others_are_known():
    _, totals = simulated(30, lambda n: 0.05 if n else 8.0)
    assert totals[0] == MOST
    assert totals[1] == pytest.approx(440, abs=2)
    assert min(totals[1:]) > 430


def test_steps_grow_again_up_to_what_was_asked_for():
    def times(n):
        return 1.0 if 20 <= n < 40 else 0.1

    _, totals = simulated(100, times)
    assert totals[18] == pytest.approx(1000, abs=2)
    assert min(totals[20:40]) < 120
    assert totals[-1] == pytest.approx(820, abs=2)
    _, totals = simulated(100, times, most=500)
    assert min(totals) < 120
    assert len(totals) == totals[-1] == 500


def test_a_pace_that_changes_for_good_is_followed():
    ends, totals = simulated(100, lambda n: 0.1 if n < 500 else 0.5)
    assert ends == pytest.approx(100, abs=1)
    assert totals[-1] == pytest.approx(600, abs=2)


def test_time_that_is_up_leaves_one_more_step_for_the_end_of_the_schedule():
    assert simulated(10, lambda n: 100.0) == (200.0, [2, 2])


def test_what_comes_after_the_last_step_has_its_time():
    pace = Pace(100, MOST, 0.0, MOST)
    for step in range(1, 21):
        total = pace.total(float(step), step, closing=30.0)
    assert total == 70


class Clock:
    """Seconds that pass only where a run says that it has done something."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.totals = 0.0, seconds, []

    def __call__(self):
        return self.now

    def hear(self, kind, record):
        if kind == "step" and record["step"] == 1:
            self.now += self.seconds["first"]
        elif kind in self.seconds:
            self.now += self.seconds[kind]
        if kind == "shortened":
            self.totals.append(record["steps"])


def test_a_run_whose_first_step_is_slow_uses_its_time_and_ends_decayed(tmp_path):
    data, run = dataset(tmp_path / "data"), tmp_path / "run"
    settings = ["train.eval_every=30", "train.checkpoint_every=50", "train.min_lr_ratio=0.02", "train.warmup=0.2"]
    config = tiny("train.steps=5000", *settings)
    clock = Clock(first=40.0, step=1.0, eval=5.0, checkpoint=1.0)
    result = train(config, data, run, seconds=160, clock=clock, listen=clock.hear)
    assert 0.9 * 160 <= clock.now <= 1.1 * 160
    assert result.seconds == clock.now
    steps = result.state.step
    assert clock.totals[-1] == steps
    assert resolve(str(run / "config.yaml")).train == replace(config.train, steps=steps)
    rates = [record["lr"] / config.train.lr for record in metrics(run) if "lr" in record]
    assert rates[-1] == pytest.approx(0.02)
    assert max(rates[:5]) < 0.5
    assert json.loads((newest(run) / "state.json").read_text())["step"] == steps
