"""Calls in other processes: results in order, errors and deaths that arrive, nobody left behind."""

import multiprocessing
import os
from functools import partial

import pytest

from hnet_cli.distributed.workers import Workers
from hnet_cli.errors import EnvironmentLimit, InputError


def failing():
    raise InputError("no such thing", "take another")


def test_results_are_in_order_and_errors_arrive():
    taken, found = [], []

    def calls():
        for number in range(9):
            taken.append(number)
            yield None if number == 4 else partial(int.__add__, number, 1)
        yield failing

    def run():
        with Workers(1) as workers:
            for result in workers.in_order(calls(), partial(os.nice, 1)):
                found.append(result)
                assert len(taken) <= len(found) + 2  # so many calls are taken ahead, however many there are

    with pytest.raises(InputError, match="no such thing") as caught:
        run()
    assert found == [1, 2, 3, 4, None, 6, 7, 8, 9]
    assert caught.value.hint == "take another"
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_said_and_the_others_end():
    with pytest.raises(EnvironmentLimit, match="died") as caught, Workers(2) as workers:
        list(workers.in_order([partial(os._exit, 9)]))
    assert "--workers" in caught.value.hint
    assert not multiprocessing.active_children()
