"""The journal of a run: cut back to a step, and never with numbers that JSON lacks."""

import json
import math
from pathlib import Path

import pytest

from hnet_cli.storage.jsonl import RecordFile, number, record_of


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_journal_is_cut_back_to_the_step_it_is_opened_at(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = RecordFile(path, 0)
    for step in (1, 2, 3):
        journal.write({"step": step, "loss": 0.5, "grad": float("nan")})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # torn by a kill
    journal = RecordFile(path, 2)
    assert journal.last("loss")["step"] == 2
    journal.write({"step": 3})
    journal.sync()
    assert lines(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}, {"step": 3}]
    silent = RecordFile(path, 0, silent=True)
    silent.write({"step": 9})
    silent.sync()
    assert len(lines(path)) == 3


@pytest.mark.parametrize("value", [True, "1", None, [1], math.nan, math.inf, 1e31, -1e31, 10**400])
def test_what_is_no_number_of_a_record(value: object) -> None:
    assert number(value) is None


@pytest.mark.parametrize(
    "line", ["", "[1]", '{"a": 1', '{"a":' * 100_000, '{"a": %s}' % ("9" * 5000), '{"a": "%s"}' % ("x" * (1 << 20))]
)
def test_what_is_no_record(line: str) -> None:
    assert record_of(line) is None
