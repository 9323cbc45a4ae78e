"""`hnet prepare`: its summary, and what cannot be asked for."""

from pathlib import Path

import pytest
from clikit import check_mistake, hnet


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("prepare", 2, "INPUT..."),
        ("prepare nowhere --out x", 3, "nowhere does not exist"),
        ("prepare empty.txt --out x", 3, "empty.txt"),
        ("prepare file.txt", 73, "exists already"),
        ("prepare file.txt --modality dna --out x", 3, "file.txt"),
        ("prepare file.txt --modality klingon --out x", 2, "installed: "),
        ("prepare file.txt --val 2 --out x", 2, "--val"),
        ("prepare file.txt --val 0.1 --val-input file.txt --out x", 2, "exclude each other"),
        ("prepare --join data/file --val 0.1", 2, "--join"),
        ("prepare file.txt --out . --overwrite", 73, "it is a folder already"),
        ("prepare file.txt --out / --overwrite", 73, "it is a folder already"),
        ("prepare rows.jsonl --field nope --out x", 3, "rows.jsonl:1: row has no text in field 'nope'"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


@pytest.mark.parametrize(("share", "few"), [(0.01, True), (0.5, False)])
def test_prepare_says_when_too_little_is_held_out(tmp_path, monkeypatch, capsys, share, few):
    monkeypatch.chdir(tmp_path)
    Path("fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 1000, encoding="utf-8")
    assert hnet(f"prepare fox.txt --val {share}") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "To beat on the held-out bytes: xz" in said
    assert ("held-out bytes are too few" in said) == few
