"""`hnet prepare`: its summary, and what cannot be asked for."""

import io
import json
import random
import re
import tarfile
from pathlib import Path

import pytest
from clikit import check_mistake, hnet

from hnet_cli.storage.outputs import PAGE_MARK, is_output, write_output


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
        ("prepare rows.jsonl --prompt-field text --out x", 2, "--prompt-field and --completion-field go together"),
        ("prepare rows.jsonl --completion-field text --out x", 2, "go together"),
        ("prepare rows.jsonl --prompt-field a --completion-field a --out x", 2, "are both a"),
        ("prepare rows.jsonl --field a --prompt-field a --completion-field b --out x", 2, "--field excludes"),
        ("prepare rows.jsonl --prompt-field text --completion-field b --out x", 3, "row has no text in field 'b'"),
        ("prepare file.txt --prompt-field a --completion-field b --out x", 2, "--prompt-field a --completion-field b"),
        ("prepare --join data/file --prompt-field a --completion-field b", 2, "--join"),
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


def sentences(seed, count=60):
    words = random.Random(0).choices(range(10**6), k=2000)
    return "".join(f"{word} " for word in random.Random(seed).choices(words, k=count)) + "\n"


def corpus(folder, files=60):
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:02}.txt").write_text(sentences(number), encoding="utf-8")


def told(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_the_summary_names_held_out_documents(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpus(Path("in"))
    assert hnet("prepare in --val 0.2") == 0
    said = told(capsys)
    assert hnet("prepare in --val 0.2 --out again --json") == 0
    summary = json.loads(capsys.readouterr().out)
    names = json.loads(Path("data/in/dataset.json").read_bytes())["held_out"]
    assert summary["held_out"] == names
    assert len(names) == 5
    assert f"Held out: whole groups: {', '.join(names)}, ..." in said
    assert "much like" not in said
    assert summary["near_duplicates"]["found"] == 0


@pytest.mark.parametrize(("files", "why"), [(1, "all documents are of one group"), (3, "there are only 3 groups")])
def test_why_the_end_is_held_out_is_said(tmp_path, monkeypatch, capsys, files, why):
    monkeypatch.chdir(tmp_path)
    corpus(Path("in"), files)
    Path("in/00.txt").write_text("".join(map(sentences, range(99))), encoding="utf-8")
    assert hnet("prepare in --val 0.02") == 0
    assert f"Held out: the end of the corpus, for {why}: " in told(capsys)


def test_near_duplicates_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpus(Path("in"))
    for file in list(Path("in").iterdir()):
        file.with_name(f"new-{file.name}").write_text(f"Changed. {file.read_text()}", encoding="utf-8")
    assert hnet("prepare in --val 0.1") == 0
    said = told(capsys)
    assert re.search(
        r"\d+ of \d+ held-out documents looked at are much like one to train on \(in/.*\.txt like in/", said
    )


def test_a_project_folder_is_prepared_twice(tmp_path, monkeypatch, capsys):
    """Also into itself, over the first dataset: what hnet wrote there is not read again."""
    monkeypatch.chdir(tmp_path)
    corpus(Path("texts"))
    sizes = []
    for out in ("data/one", "data/two", "data/two"):
        assert hnet(f"prepare . --out {out} --overwrite --json") == 0
        captured = capsys.readouterr()
        sizes.append(json.loads(captured.out)["bytes"])
    assert len(set(sizes)) == 1
    assert json.loads(captured.out)["refused"] == {"dataset made by hnet": [2, 0, "data/one"]}
    assert hnet("prepare data/one") == 3
    assert "no data in data/one: dataset made by hnet (data/one)" in told(capsys)


def test_outputs_in_a_folder_are_not_read(tmp_path, monkeypatch, capsys):
    """Nor pages, wherever they are; what is named is read, and said."""
    monkeypatch.chdir(tmp_path)
    corpus(Path("texts"))
    page = b"<!doctype html><head>" + PAGE_MARK + b"</head>" + b"chunks " * 90
    Path("report.html").write_bytes(page)
    write_output(Path("chunks.txt"), "some|chunks|" * 90)
    with tarfile.open("x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data, more in (
            ("r.html", page, {}),
            ("c.txt", b"chunks " * 90, {"SCHILY.xattr.user.hnet.output": "1"}),
            ("text.txt", b"Some words.\n" * 9, {}),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), more
            archive.addfile(member, io.BytesIO(data))
    assert hnet("prepare . --out data --json") == 0
    told = json.loads(capsys.readouterr().out)
    marked = is_output("chunks.txt")
    assert told["refused"]["page made by hnet"][0] == 2
    assert told["refused"]["output made by hnet"][0] == 1 + marked
    assert told["documents"] == len(list(Path("texts").iterdir())) + 1 + (not marked)
    assert hnet("prepare texts chunks.txt --out two --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"].get("file named that hnet wrote", 0) == marked
    assert told["documents"] == len(list(Path("texts").iterdir())) + 1
