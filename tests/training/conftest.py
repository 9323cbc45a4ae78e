"""A small dataset and a run on it that nothing happened to, shared by the tests of training. Neither is changed."""

import signal
from dataclasses import replace

import pytest
from runkit import dataset, tiny

from hnet_cli.config.sources import DataSource
from hnet_cli.training.loop import train


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("fox"))


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory):
    """A run that nothing happened to; unlike the others it leaves samples."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(tiny("train.samples=true"), data, run)
    return run


@pytest.fixture(scope="session")
def sources(data, tmp_path_factory):
    """The fox and a smaller text of numbers, weighing 3 and 1."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "numbers.txt").write_text("".join(f"{n * n} is the square of {n}\n" for n in range(300)))
    return DataSource(path=str(data), weight=3), DataSource(path=str(dataset(folder, folder / "numbers.txt")), weight=1)


@pytest.fixture(scope="session")
def mixed(sources, tmp_path_factory):
    """A run on a mixture."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    train(replace(tiny(), data=list(sources)), sources, run)
    return run


@pytest.fixture
def signals():
    """SIGINT and SIGHUP as in a terminal, whatever the tests were started from."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
