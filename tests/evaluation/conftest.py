"""One model and one way to call the command for all tests of evaluation."""

import json

import pytest
import torch
from modelkit import tiny_model

from hnet_cli.cli import app as cli


@pytest.fixture(scope="session")
def model():
    return tiny_model(torch.float32).eval()


@pytest.fixture
def hnet(capsys):
    """Runs `hnet ARGUMENTS`: the exit code, standard output and standard error."""

    def run(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def evaluated(hnet):
    """Runs `hnet eval ARGUMENTS --json`, which must succeed: the result object."""

    def run(*arguments):
        code, out, err = hnet("eval", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run
