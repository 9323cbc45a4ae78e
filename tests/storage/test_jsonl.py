"""The journal of a run: cut back to a step, and never with numbers that JSON lacks."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.storage import jsonl
from hnet_cli.storage.jsonl import RecordFile, Spread, lines_of, number, record_of


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


@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_are_read_one_by_one_without_too_long_ones(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 8)
    texts = ["\ufeff1234", "1234567", "12345678", "x" * 99, "", "é", "last"]
    (tmp_path / "a").write_text("\n".join(texts) + end)
    assert list(lines_of(tmp_path / "a")) == ["1234", "1234567", "", "é", "last"]
    assert list(lines_of(tmp_path / "none")) == []


@given(st.integers(0, 300), st.sampled_from([2, 4, 16]), st.integers(0, 299))
def test_of_many_items_some_remain_evenly_and_the_highest(count: int, most: int, high: int) -> None:
    spread = Spread[int](most, lambda first, second: max(first, second, key=lambda n: n == high))
    for n in range(count):
        spread.add(n)
    kept = spread.items()
    assert kept == sorted(set(kept))
    assert kept == list(range(count)) or most / 2 <= len(kept) <= most + 1
    assert kept[-1:] == [count - 1] * bool(count)
    assert high in kept or high >= count
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps, default=1) < 2 * max(1, 2 * count / most)
