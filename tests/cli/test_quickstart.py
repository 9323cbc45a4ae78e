"""`hnet quickstart`: its time is divided among all phases at any speed, a poor result is explained, and refusals."""

import json
import math
import re
import shlex
import time

import pytest
from clikit import check_mistake, hnet

from hnet_cli.cli.quickstart import ENOUGH, closing_seconds, poor, run


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("quickstart --out data", 73, "exists already"),
        ("quickstart --out file.txt", 73, "exists already"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


@pytest.mark.parametrize("speed", [10, 36, 400, 5000, 100_000])
@pytest.mark.parametrize("minutes", [0.1, 5.0, 60.0])
def test_every_phase_has_a_share_of_the_time_at_any_speed(speed, minutes):
    """At `speed` bytes per second of training, a sampled byte takes as long as fifteen."""
    left = 60 * minutes
    kept = closing_seconds(1 / speed, left)
    training = left - kept
    assert training >= 0.75 * left
    assert kept >= min(left / 4, 300 * 15 / speed)


def test_a_poor_result_is_explained_with_what_would_do():
    busy = poor(11, 45_056, 480.0, "other work takes 1.8 of 2 CPUs")
    assert "only 11 steps (45.1 kB)" in busy
    assert "other work takes 1.8 of 2 CPUs" in busy
    slow = poor(11, 45_056, 480.0, "")
    assert "this machine trains 94 bytes/s" in slow
    minutes = int(re.search(r"--minutes (\d+)", slow)[1])
    assert ENOUGH / 94 / 60 <= minutes <= ENOUGH / 94 / 60 + 2 + math.ceil(0.01 * minutes)
    assert poor(0, 0, 0.0, "")


@pytest.mark.slow
def test_the_whole_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert hnet("quickstart --minutes 0.3 --device cpu") == 0
    out, err = capsys.readouterr()
    assert [f"{n}. {name}" in err for n, name in enumerate(("prepare", "train", "sample", "segment"), 1)] == [True] * 4
    rows = map(json.loads, (tmp_path / "hnet-quickstart/run/metrics.jsonl").read_text().splitlines())
    bits, xz = [(row["val_bpb"], row["val_xz"]) for row in rows if "val_bpb" in row][-1]
    assert ("too few to learn words" in err) == (bits >= xz)  # a machine may be fast
    assert out
    assert (tmp_path / "hnet-quickstart/run/report.html").exists()


@pytest.mark.slow
def test_a_machine_that_takes_all_the_time_to_read_trains_nevertheless(tmp_path, capsys):
    """And the commands shown can be copied, whatever the folder is called."""
    out = tmp_path / "my [b]'dir"
    run(out, 0.1, "cpu", began=time.monotonic() - 60)
    err = capsys.readouterr().err.replace("\n", "")
    assert (out / "run/report.html").exists()
    words = shlex.split(re.search(r"hnet train --preset nano (.*?) --minutes 0\.01", err)[1])
    assert words == ["--data", str(out / "data"), "--run", str(out / "run")]
