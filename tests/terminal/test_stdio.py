"""Standard streams as shells and daemons leave them: closed, full, with nobody at the other end."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from runkit import TINY, fox

from hnet_cli.checkpoints.find import newest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path, monkeypatch):
    fox(tmp_path).rename(tmp_path / "file.txt")
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def through_shell(line, redirections):
    """The exit code of a command line with its standard streams as a shell makes them, at the end of a pipe or not."""
    command = shlex.join([sys.executable, "-m", "hnet_cli", *line.split()])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    subprocess.run(f"({command}; echo $? >code) {redirections}", shell=True, env=environment, timeout=120, check=True)
    return int(Path("code").read_text())


def test_what_cannot_be_said_ends_no_work(own):
    """Messages go to a full disk, or to a reader that is gone."""
    assert through_shell("prepare file.txt --out x", "2>/dev/full") == 0
    assert through_shell("train --preset tiny.yaml --data x --run y", "2>&1 | true") == 0
    assert newest(own / "y").is_dir()
    assert through_shell("prepare nowhere --out z", "2>/dev/full") == 3
    assert through_shell("presets nano", ">/dev/full 2>/dev/null") == 74  # data are not messages


@pytest.mark.parametrize(
    ("line", "closed", "code"),
    [("presets", ">&-", 0), ("prepare -", "<&- 2>/dev/null", 3), ("presets nano", "<&- >&- 2>&-", 0)],
)
def test_closed_streams_are_as_empty_ones(own, line, closed, code):
    assert through_shell(line, closed) == code
