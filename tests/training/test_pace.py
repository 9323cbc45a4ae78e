"""A run with limited time: it uses it, ends in it, and its schedule with it, whatever its steps take."""

import itertools
import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runkit import dataset, metrics, tiny

from hnet_cli.checkpoints.find import newest
from hnet_cli.config.run import resolve
from hnet_cli.report.stages import AT_BUDGET
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("step", [0.01, 1.0, 20.0])
def test_the_time_has_a_handful_of_validations_whatever_the_steps_take(step):
    pace, now, steps, made = Pace(200, MOST, 0.0, 1000), 0.0, 0, []
    while steps < (pace.steps if steps else 1):
        now, steps, cost = now + step, steps + 1, 1.5
        pace.total(now, steps, cost * (1 + pace.validations_left(now, cost)))
        if pace.is_due(now, cost):
            made.append(now)
            now += cost
            pace.pause(cost)
    assert 6 <= len(made) <= 40
    assert max(b - a for a, b in itertools.pairwise([0, *made, 200])) <= 2 * 200 / len(made) + step
    assert now + 1.5 == pytest.approx(200, rel=0.1)


def test_a_slow_machine_validates_on_less():
    pace = Pace(80, MOST, 0.0, 1000)
    pace.total(10.0, 1)
    assert not pace.is_known
    pace.total(12.0, 2)
    assert pace.is_known
    assert pace.affordable(1024) == 3072  # a fifth of 80 s for 8, a pass at three times the speed of steps of 2 s


@pytest.mark.slow
def test_a_run_grows_beyond_its_preset_and_one_that_is_finished_goes_on(tmp_path):
    data, run, config = dataset(tmp_path / "data"), tmp_path / "run", tiny("train.steps=8", "train.warmup=0.2")
    clock = Clock(first=3.0, step=1.0, eval=1.0, checkpoint=0.5)
    result = train(config, data, run, seconds=50, clock=clock, listen=clock.hear)
    assert clock.now == pytest.approx(50, rel=0.1)
    assert result.state.step > 20
    scored = [record for record in metrics(run) if "val_bpb" in record]
    assert 6 <= len(scored) <= 12
    assert len({record["val_sample"] for record in scored}) == 1

    config = resolve(str(run / "config.yaml"))
    assert config.train.steps == result.state.step
    said, clock = [], Clock(first=0.0, step=1.0, eval=1.0, checkpoint=0.5)

    def listen(kind, record):
        said.append(record.get("message", ""))
        clock.hear(kind, record)

    again = train(config, data, run, resume=True, seconds=20, clock=clock, listen=listen)
    assert clock.now == pytest.approx(20, rel=0.1)
    assert again.state.step > result.state.step + 8
    assert any("learning rate" in message and "goes on at" in message for message in said)


@pytest.mark.slow
def test_passes_at_other_budgets_are_in_the_time(tmp_path):
    """Each takes as long as the validation at the end."""

    class Slow(Clock):
        def hear(self, kind, record):
            super().hear(kind, record)
            if kind == "eval" and any(AT_BUDGET in key for key in record):
                self.now += 2 * self.seconds["eval"]

    clock = Slow(first=1.0, step=1.0, eval=5.0, checkpoint=0.0)
    settings = ["train.steps=8", "train.budgets=[0.5, 1, 1.5]"]
    train(tiny(*settings), dataset(tmp_path / "d"), tmp_path / "run", seconds=80, clock=clock, listen=clock.hear)
    assert clock.now == pytest.approx(80, rel=0.1)


def test_steps_that_were_asked_for_are_the_most(tmp_path):
    clock = Clock(first=1.0, step=1.0)
    result = train(
        tiny("train.steps=8"),
        dataset(tmp_path / "d"),
        tmp_path / "run",
        seconds=50,
        most=8,
        clock=clock,
        listen=clock.hear,
    )
    assert result.state.step == 8
