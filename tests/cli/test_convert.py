"""`hnet convert`: what cannot be asked for."""

import pytest
from clikit import check_mistake


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("convert nowhere.pt x", 3, "nowhere.pt"),
        ("convert runs/fox x.pt --modality text", 2, "model folders only"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)
