"""`hnet retrofit`: what is refused, in one line and with nothing written. What it makes: tests/training."""

from __future__ import annotations

import pytest
from clikit import check_mistake


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("retrofit", 2, "Missing argument"),
        ("retrofit nowhere out", 3, "nowhere"),
        ("retrofit file.txt out", 4, "file.txt"),
        ("retrofit nowhere out --preset nothing", 2, "no preset is called 'nothing'"),
        ("retrofit nowhere out --set train.stepz=1", 2, "stepz"),
        ("retrofit data/file out", 4, "data/file"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line: str, code: int, message: str) -> None:
    check_mistake(home, capsys, line, code, message)
