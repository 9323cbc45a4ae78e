"""`hnet runs`: what cannot be asked for."""

import json
from pathlib import Path

import pytest
from clikit import check_mistake, hnet

import hnet_cli


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("runs runs/fox --out .", 73, "it is a folder already"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


def test_datasets_and_model_folders_say_what_they_were_made_with(tmp_path, monkeypatch, capsys):
    """What others wrote there is escaped."""
    monkeypatch.chdir(tmp_path)
    Path("fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 900)
    assert hnet("prepare fox.txt --out data") == 0
    Path("model").mkdir()
    made = {"hnet": "\x1b[31m9", "command": "hnet [red]convert", "packages": {"torch": "2"}}
    Path("model/config.json").write_text(json.dumps({"hnet": {"made": made}}))
    capsys.readouterr()
    assert hnet("runs data model") == 0
    out = capsys.readouterr().out
    assert "data was made with" in out
    assert "\x1b" not in out
    assert "hnet [red]convert" in out
    assert hnet("runs data model --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [part["path"] for part in told["made"]] == ["data", "model"]
    assert told["made"][0]["made"]["hnet"] == hnet_cli.__version__
    assert told["made"][1]["made"] == made
    assert hnet("runs data --out page.html") == 2
