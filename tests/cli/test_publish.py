"""`hnet publish` on the command line."""

import json

import pytest
from clikit import hnet


def test_a_model_is_written_and_said(own, capsys):
    assert hnet("publish runs/fox out --max-bytes 500 --json") == 0
    told, said = capsys.readouterr()
    told = json.loads(told)
    assert (told["folder"], told["address"]) == ("out", None)
    assert told["figures"]["bytes"] <= 500
    assert "names no licence" in said
    assert hnet("sample out --prompt The --max-bytes 3 --device cpu") == 0


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("publish nowhere out", 3, "no model at nowhere"),
        ("publish runs/fox runs", 73, "runs"),
        ("publish runs/fox out --to me/model", 2, "hf:OWNER/NAME"),
        ("publish runs/fox out --to hf:nobody", 2, "no model of the Hub"),
        ("publish runs/fox out --to hf:me/model@main", 2, "names a revision"),
        ("publish runs/fox out --data missing.txt", 3, "missing.txt"),
    ],
)
def test_mistakes_leave_nothing(own, capsys, line, code, words):
    assert hnet(line) == code
    assert words in capsys.readouterr().err
    assert not (own / "out").exists()
