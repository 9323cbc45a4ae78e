"""`hnet presets`."""

import pytest
from clikit import check_mistake


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("presets nanno", 2, "did you mean 'nano'?"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)
