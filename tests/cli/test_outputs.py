"""Every option that names a file to write: nothing is overwritten that hnet did not write, devices stay devices."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from clikit import hnet
from typer.models import ArgumentInfo

from hnet_cli.cli.app import COMMANDS, run

FILES = {
    "segment --out": "segment file.txt --model runs/fox --out",
    "runs --out": "runs runs/fox --out",
    "score --out": "score file.txt --model runs/fox --out",
    "embed --out": "embed file.txt --model runs/fox --out",
    "compare --out": "compare --data data/file --out",
    "eval --scores": "eval starter:dna --vcf calls.vcf --fasta genome.fa --scores",
    "eval --page": "eval starter:text file.txt --elastic --page",
    "convert dst": "convert runs/fox",
}
"""Options and arguments that name a file to write, and command lines that end before it."""
FOLDERS = {
    "prepare --out": "prepare file.txt --overwrite --out",
    "train --run": "train --preset tiny.yaml --data data/file --run",
    "compare --run": "compare --data data/file --line-up 1stage,bpe --size nano --bytes 100000 --run",
    "retrofit dst": "retrofit file.txt --overwrite",
    "publish folder": "publish runs/fox --overwrite",
    "quickstart --out": "quickstart --out",
}
READ = {
    *("prepare inputs", "prepare --val-input", "train --preset", "train --data", "segment files", "segment --model"),
    *("sample model", "sample --prompt-file", "eval models", "eval --data", "eval --gold", "eval --annotation"),
    *("eval --vcf", "eval --fasta", "eval --task", "compare --data", "compare --line-up", "runs paths"),
    *("convert src", "convert --config", "retrofit src", "retrofit --preset", "presets name"),
    *("score files", "score --model", "embed files", "embed --model", "eval --probe", "train --start"),
    *("segment --compare", "segment --annotation"),
    *("play names", "publish model", "publish --data"),
}
WORDS = {
    *(
        "modality",
        "--modality",
        "--field",
        "--part",
        "--settings",
        "--device",
        "--stage",
        "--format",
        "--prompt",
        "--label",
    ),
    *(
        "--size",
        "--gpus",
        "--sort",
        "--dtype",
        "--per",
        "--layer",
        "--pool",
        "--group",
        "--prompt-field",
        "--completion-field",
        "--threshold",
        "--to",
        "--licence",
        "--language",
        "--base-model",
        "--bytes-per-chunk",
        "--track",
    ),
}
"""Options that are no path, whatever the command."""


def named() -> set[str]:
    """The options and arguments that take a path or any text: COMMAND --OPTION, COMMAND ARGUMENT."""
    found = set()
    for name, command in COMMANDS.items():
        for parameter, hint in get_type_hints(command, include_extras=True).items():
            if parameter != "return" and any(kind in str(hint.__origin__) for kind in ("str", "Path")):
                about = hint.__metadata__[0]
                option = next(iter(about.param_decls or ()), "--" + parameter.replace("_", "-"))
                found.add(f"{name} {parameter if isinstance(about, ArgumentInfo) else option}")
    return found


def test_every_option_is_classified() -> None:
    """A new one that names a file to write must be added above, and so is tested below."""
    paths = {option for option in named() if option.split()[1] not in WORDS}
    assert paths == FILES.keys() | FOLDERS.keys() | READ


@pytest.mark.parametrize("option", FILES)
def test_a_file_of_somebody_stays(option: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thesis = own / f"thesis{ {'convert': '.pt', 'embed': '.jsonl'}.get(option.split()[0], '.txt') }"
    thesis.write_text("five years")
    (own / "calls.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
    (own / f"link{thesis.suffix}").symlink_to(thesis)
    for path in (thesis, own / f"link{thesis.suffix}"):
        assert hnet(f"{FILES[option]} {path}") == 73
        assert "exists already" in capsys.readouterr().err
    assert thesis.read_text() == "five years"
    assert sorted(own.glob(".*")) == []


@pytest.mark.parametrize("option", FOLDERS)
def test_a_folder_of_somebody_stays(option: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = own / "site"
    site.mkdir()
    files = {"manifest.json": '{"name": "app", "start_url": "/"}', "index.html": "<p>", "config.yaml": "site: mine\n"}
    for name, text in files.items():
        (site / name).write_text(text)
    assert hnet(f"{FOLDERS[option]} {site}") != 0 or option == "compare --run"
    assert "a bug of ours" not in capsys.readouterr().err
    assert {name: (site / name).read_text() for name in files} == files


def test_an_input_is_no_output(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("file.txt").read_bytes()
    assert hnet("segment file.txt --model runs/fox --out file.txt") == 73
    assert hnet("runs runs/fox --out page.html") == 0
    assert hnet("runs runs/fox --out page.html") == 0, "a page of ours may be replaced by a newer one"
    assert hnet("segment page.html --model runs/fox --out page.html") == 73
    assert "is an input" in capsys.readouterr().err
    assert Path("file.txt").read_bytes() == before
    Path("old.txt").write_text("old")
    assert hnet("segment file.txt --model runs/fox --out old.txt --overwrite --max-bytes 200") == 0
    assert "fox" in Path("old.txt").read_text()


def test_a_device_stays_a_device(own: Path) -> None:
    Path("null").symlink_to(os.devnull)
    for path in (os.devnull, "null"):
        for line in ("segment file.txt --model runs/fox --max-bytes 200", "runs runs/fox"):
            assert hnet(f"{line} --out {path}") == 0
    assert Path(os.devnull).is_char_device()
    assert Path("null").is_symlink()


@pytest.mark.parametrize(
    "line",
    [
        "sample runs/fox --prompt Größe世界 --max-bytes 4 --json",
        "sample runs/fox --prompt Größe世界 --max-bytes 4",
        "segment 世界.txt --model runs/fox --format jsonl",
        "segment 世界.txt --model runs/fox --format pretty",
        "runs 世界 --json",
        "runs 世界",
        "presets",
        "--help",
    ],
)
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_standard_output_is_utf8_in_any_locale(
    line: str, encoding: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("世界.txt").write_text("Größe 世界. " * 9, encoding="utf-8")
    Path("runs/fox").rename("世界") if line.startswith("runs") else None
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert run(line.split()) == 0
    sys.stdout.flush()
    text = written.getvalue().decode("utf-8")
    assert "世界" in text or not set("世界") & set(line) or "runs" in line
    if "json" in line:
        records: list[Any] = [json.loads(row) for row in text.splitlines()]
        assert records


def test_one_damaged_file_hides_no_other(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("corpus")
    folder.mkdir()
    (folder / "a.txt").write_text("The first quick brown fox.\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress(os.urandom(3000).hex().encode())[:-500])
    (folder / "c.txt").write_text("The last quick brown fox.\n")
    assert hnet("segment corpus --model runs/fox --format jsonl") == 3
    out, err = capsys.readouterr()
    texts = {Path(row["source"]).name: row for row in map(json.loads, out.splitlines())}
    assert texts.keys() == {"a.txt", "c.txt"}
    assert err.splitlines()[-1].startswith("hnet: corpus/b.txt.gz is truncated")
    assert "the rest is segmented" in err
    assert hnet("segment corpus --model runs/fox --out all.txt") == 3
    assert Path("all.txt").read_text().replace("|", "").endswith("The last quick brown fox.\n")
    assert hnet("segment corpus/b.txt.gz --model runs/fox --out none.txt") == 3
    assert not Path("none.txt").exists()
