"""The time of a training step, measured for plans."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from hnet_cli.config.run import RunConfig
from hnet_cli.data.loader import Batch
from hnet_cli.distributed import threads
from hnet_cli.distributed.device import this_machine
from hnet_cli.terminal.console import say
from hnet_cli.training import budget
from hnet_cli.training.build import build_model, precision_context
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import train_step

TOLERANCE = 0.1
"""Largest difference of two successive times, as a share of the longer, at which measuring ends."""


def seconds_per_byte(
    config: RunConfig, device: str, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
) -> float:
    """Seconds to train one byte on this machine, from steps of one micro-batch of random bytes.

    The first step, which may compile, is left out. Steps are made until two successive times agree or `seconds` (of
    `clock`) have passed since then, but at least one. On a CPU the same is done with one thread, unless the user has
    decided on a number, and what is faster stays for this process.
    """
    config = budget.settled(config, this_machine(device))
    train, length = config.train, config.train.sequence_length
    rows = train.rows // train.pieces
    model = build_model(config).to(device)
    optimizer = build_optimizer(model, config)
    text = np.random.default_rng(0).integers(97, 123, rows * length + 1, dtype=np.uint8)
    cu_seqlens = np.arange(0, rows * length + 1, length, dtype=np.int32)
    batch = Batch(text[:-1], text[1:], None, cu_seqlens, np.zeros(rows, np.int64), np.zeros(rows, np.int64))
    autocast = precision_context(config, torch.device(device))

    def step() -> float:
        train_step(model, optimizer, [batch], 0, config, autocast)()
        if device != "cpu":
            torch.accelerator.synchronize(torch.device(device))  # the weights change after the metrics have arrived
        return clock()

    best, number = _step_time(step, seconds, clock), torch.get_num_threads()
    if device == "cpu" and number > 1 and not threads.decided():
        torch.set_num_threads(1)
        alone = _step_time(step, seconds, clock)
        faster = alone < (1 - TOLERANCE) * best
        threads.use(1 if faster else number)
        if faster:
            say(
                f"1 thread is used: it is {best / alone:.1f} times as fast here as {number:d} "
                f"(hnet --threads {number:d})."
            )
            best = alone
    return best / (rows * length)


def settle_threads(config: RunConfig, seconds: float) -> None:
    """Measure for about `seconds` whether one thread of the CPU trains faster than all, if that is undecided."""
    if torch.get_num_threads() > 1 and not threads.decided():
        seconds_per_byte(config, "cpu", seconds / 2)


def _step_time(step: Callable[[], float], seconds: float, clock: Callable[[], float]) -> float:
    """Seconds of the faster of the last steps; `step` makes one and tells the time after it."""
    ends = [step()]
    while len(ends) < 2 or ends[-1] < ends[0] + seconds:
        ends.append(step())
        times = [after - before for before, after in pairwise(ends[-3:])]
        if len(times) == 2 and max(times) - min(times) <= TOLERANCE * max(times):
            break
    return min(times)
