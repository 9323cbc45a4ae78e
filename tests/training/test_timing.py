"""The time per byte that a plan announces, measured with a clock that tells times of the test's choice."""

import pytest
import torch
from runkit import tiny

from hnet_cli.training.timing import seconds_per_byte


class Ticks:
    """A clock that tells how long each step took."""

    def __init__(self, *seconds):
        self.left, self.now = list(seconds), 100.0

    def __call__(self):
        self.now += self.left.pop(0)
        return self.now


@pytest.mark.parametrize(
    ("seconds", "taken", "left"),
    [
        ([60, 20, 1.0, 1.05, 9], 1.0, 1),  # what is compiled, also for another shape, does not count
        ([1, 1, 1, 1], 1.0, 1),
        ([5, 2, 1, 4, 3, 5, 40, 2, 9], 5.0, 2),  # never two that agree: 30 seconds are over
        ([5, 40, 9], 40.0, 1),
    ],
)
def test_the_time_of_a_byte_is_that_of_a_step_when_two_agree(seconds, taken, left):
    clock = Ticks(*seconds)
    assert seconds_per_byte(tiny("train.micro_batches=2"), "cpu", 30.0, clock) == pytest.approx(taken / 128)
    assert len(clock.left) == left


@pytest.mark.parametrize(
    ("seconds", "threads", "taken"),
    [([1, 4, 4, 4, 1, 1, 1, 1], 1, 1.0), ([1, 1, 1, 1, 9, 4, 4, 4], 2, 1.0), ([1, 1, 1, 1, 1, 1, 1, 1], 2, 1.0)],
)
def test_one_thread_is_tried_against_all_and_the_faster_is_kept(monkeypatch, capsys, seconds, threads, taken):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        clock = Ticks(*seconds)
        assert seconds_per_byte(tiny(), "cpu", 30.0, clock) == pytest.approx(taken / 256)
        assert torch.get_num_threads() == threads
        assert ("4.0 times as fast here as 2" in capsys.readouterr().err) == (threads == 1)
        left = len(clock.left)
        clock.left += [1, 1, 1]
        seconds_per_byte(tiny(), "cpu", 30.0, clock)  # decided: not measured again
        assert len(clock.left) == left
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
        monkeypatch.undo()


@pytest.mark.slow
def test_the_time_of_a_byte_is_of_the_micro_batch_that_will_be_trained():
    clock = Ticks(1, 1, 1)
    large = tiny("train.batch_bytes=65536", "train.micro_batches=auto")  # on a CPU in pieces of 16 KiB
    assert seconds_per_byte(large, "cpu", 30.0, clock) == pytest.approx(1 / 16384)
