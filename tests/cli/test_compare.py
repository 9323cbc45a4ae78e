"""`hnet compare` on the command line: mistakes in one line, and a plan that is only printed."""

import json

import pytest
from commands import SMALLER
from runkit import SETTINGS, dataset

from hnet_cli.cli import app as cli
from hnet_cli.config.run import resolve, to_yaml


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dataset and a member as a file."""
    folder = tmp_path_factory.mktemp("place")
    dataset(folder)
    settings = [line for line in SETTINGS if "_every" not in line]
    (folder / "learned.yaml").write_text(to_yaml(resolve("nano", [*settings, *SMALLER, "train.batch_bytes=512"])))
    return folder


@pytest.fixture
def compared(place, tmp_path, monkeypatch, capsys):
    """Runs `hnet compare` of the member with more arguments: the exit code, standard output and standard error."""
    monkeypatch.chdir(place)

    def run(*more):
        usual = ["--line-up", "learned.yaml", "--device", "cpu", "--run", str(tmp_path / "c")]
        usual += [] if "--data" in more else ["--data", "dataset"]
        return cli.run(["compare", *usual, *more]), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--line-up", "1stge"], 2, "did you mean '1stage'"),
        (["--line-up", "learned.yaml,learned.yaml"], 2, "twice"),
        (["--bytes", "300"], 2, "less than 10 steps"),
        (["--gpus", "0,x"], 2, "no list of GPUs"),
        (["--data", "nowhere"], 3, "nowhere does not exist"),
        (["--data", "dataset", "--data", "nowhere"], 2, "a comparison is of one dataset"),
        (["--max-bytes", "100"], 3, "100 held-out bytes of dataset are less than 8 windows"),
    ],
)
def test_mistakes_are_one_line(compared, arguments, code, words):
    ended, _, err = compared(*arguments)
    assert ended == code, err
    assert words in err
    assert "Traceback" not in err


def test_a_plan_is_printed_and_nothing_is_written(compared, tmp_path):
    code, out, err = compared("--dry-run", "--json", "--bytes", "5120")
    assert code == 0, err
    (model,) = json.loads(out)["models"]
    assert model["name"] == "learned"
    assert model["estimated_seconds"] > 0
    assert not (tmp_path / "c").exists()
