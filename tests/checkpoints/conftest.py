"""A run with checkpoints for all tests of them."""

import shutil

import pytest
from runkit import dataset, tiny

from hnet_cli.training.loop import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(tiny("train.steps=3", "train.checkpoint_every=1", "train.eval_every=2"), dataset(folder), folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run with checkpoints of steps 2 (best or not) and 3."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"
