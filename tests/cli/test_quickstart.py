"""`hnet quickstart`: what is refused."""

import pytest
from clikit import check_mistake


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("quickstart --out data", 73, "exists already"),
        ("quickstart --out file.txt", 73, "exists already"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)
