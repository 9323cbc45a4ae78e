"""The journal of a run: cut back to a step, and never with numbers that JSON lacks."""

import json
from pathlib import Path

from hnet_cli.storage.jsonl import RecordFile


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
