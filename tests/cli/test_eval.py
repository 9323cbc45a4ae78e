"""`hnet eval` on the command line: mistakes, and options that would do nothing."""

import gzip
import json
import re

import pytest

from hnet_cli.cli import app as cli
from hnet_cli.cli.eval import _models_and_files


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("starter:text", 2, "nothing to evaluate"),
        ("nowhere", 3, "there is no model at nowhere"),
        ("nowhere x.txt", 3, "no model at nowhere"),
        ("starter:text starter:text starter:text", 2, "3 models"),
        ("starter:text starter:dna x.txt", 2, "starter:dna of dna"),
        ("starter:text missing.txt", 3, "does not exist"),
        ("starter:text x.txt --context 8 --stride 9", 2, "left out"),
        ("starter:text x.txt --stride 9999", 2, "left out"),
        ("starter:text x.txt --context 0 --stride 4", 2, "--stride"),
        ("starter:text --vcf x.vcf", 2, "--fasta"),
        ("starter:text --gold missing.conllu", 3, "does not exist"),
        ("starter:dna --gold x.txt", 2, "no gold files"),
        ("starter:text --annotation x.txt x.txt", 2, "no annotation"),
        ("starter:text --task x.txt", 3, "x.txt"),
        ("starter:text x.txt --scores x", 2, "--scores goes with --vcf"),
        ("starter:text x.txt --label AF", 2, "--label goes with --vcf"),
        ("starter:text x.txt --group g", 2, "--group goes with --probe"),
        ("starter:text x.txt --probe x.txt", 2, "--probe goes with --group"),
        ("starter:text --probe x.txt --group g", 2, "--probe goes with the files"),
        ("starter:text x.txt --probe x.txt --group g", 3, "no column 'name'"),
        ("starter:text x.txt --probe l.tsv --group g", 3, "l.tsv"),
        ("starter:text x.txt --fasta x", 2, "--fasta goes with --vcf or --annotation"),
        ("starter:text x.txt --limit 3", 2, "--limit goes with --task or --exact"),
        ("starter:text x.txt --exact", 2, "rows of prompt and completion, and there are none"),
        ("starter:text --gold x.txt --exact", 2, "--exact needs rows"),
        ("starter:text x.txt --prompt-field a", 2, "go together"),
        ("starter:text x.txt --prompt-field a --completion-field b", 2, "--prompt-field a --completion-field b"),
        ("starter:text x.jsonl --noise", 2, "--noise distorts documents"),
        ("starter:text x.jsonl --stride 7", 2, "--stride is of documents"),
        ("starter:text x.jsonl --elastic --no-samples", 2, "of stage 1 begins in the bytes that count"),
        ("starter:text --gold x.txt --noise", 2, "--noise goes with data to evaluate on, or --task"),
        ("starter:text --gold x.txt --samples", 2, "--samples goes with data to evaluate on"),
        ("starter:text x.txt --probe l.tsv --group g --stride 7", 2, "--stride goes with data to evaluate on"),
        ("starter:text x.txt --page e.html", 2, "--page goes with --elastic"),
        ("starter:text x.txt --elastic --page x.txt", 73, "x.txt is an input"),
        ("starter:text --gold x.txt --bytes-per-chunk 3", 2, "--bytes-per-chunk needs data"),
        ("starter:text --gold x.txt --elastic", 2, "--elastic needs data"),
        ("starter:text x.txt --threshold 0.3,0.4,0.5", 2, "--threshold has 3 numbers"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, code, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("Just some words.\nAnd a line.\n")
    (tmp_path / "x.jsonl").write_text('{"prompt": "a:", "completion": "b"}\n')
    ended = cli.run(["eval", *arguments.split()])
    out, err = capsys.readouterr()
    assert (ended, out) == (code, ""), err
    assert says in err
    assert len(err.strip().splitlines()) <= 2


def test_a_dataset_that_is_gone_is_named(own, capsys):
    config = own / "runs/fox/config.yaml"
    config.write_text(re.sub(r"^data: .*$", "data: data/gone", config.read_text(), flags=re.MULTILINE))
    assert cli.run(["eval", "runs/fox"]) == 3
    assert "data/gone, which runs/fox was trained on, is no longer there" in capsys.readouterr().err


def test_what_is_no_file_is_meant_as_a_model_but_for_standard_input_and_urls(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    there, url = str(tmp_path / "a.txt"), "https://example.org/a.txt"
    for given, models in (
        ("-", []),
        (url, []),
        (there, []),
        ("starter:txet", ["starter:txet"]),
        ("nowhere", ["nowhere"]),
    ):
        assert _models_and_files([given, there]) == (models, [*([given] if not models else []), there])


@pytest.mark.parametrize("option", ["--data", "--gold"])
def test_a_damaged_file_among_others_is_left_out_and_said(capsys, tmp_path, option):
    """As `segment` does: the rest is evaluated, and the exit code tells."""
    for name in ("1.txt", "3.txt"):
        (tmp_path / name).write_text("Just some words .\nAnd a line .\n" * 3)
    (tmp_path / "2.txt.gz").write_bytes(gzip.compress(b"Other words , to be lost .\n" * 30)[:-6])
    names = [str(tmp_path / name) for name in ("1.txt", "2.txt.gz", "3.txt")]
    given = [word for name in names for word in (option, name)]
    ended = cli.run(["eval", "starter:text", *given, "--no-samples", "--json"])
    out, err = capsys.readouterr()
    assert ended == 3
    assert f"{names[1]} is truncated" in err.splitlines()[-1]
    assert err.splitlines()[-1].count("the rest is evaluated") == 1
    figures = json.loads(out)
    if option == "--data":
        assert figures["bytes"] == 2 * (tmp_path / "1.txt").stat().st_size
    else:
        figures = figures["gold"]
    assert len(figures["damaged"]) == 1
