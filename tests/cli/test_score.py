"""`hnet score` on files and pipes."""

import gzip
import json
from pathlib import Path

import pytest
from clikit import check_mistake, child, hnet


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("score", 2, "FILE..."),
        ("score runs/fox", 2, "nothing to score with runs/fox (name files"),
        ("score nowhere.txt", 3, "nowhere.txt does not exist"),
        ("score empty.txt --model runs/fox", 3, "empty.txt"),
        ("score starter:klingon file.txt", 3, "starter:klingon"),
        ("score genome.fa --model runs/fox", 3, "looks like dna, but runs/fox is a model of text"),
        ("score runs/fox file.txt --per word", 2, "choose from document"),
        ("score runs/fox file.txt --format bedgraph", 2, "no records with coordinates"),
        ("score runs/fox file.txt --both-strands", 2, "text has no other strand"),
        ("score runs/fox file.txt --per chunk --stage 7", 2, "no stage '7'"),
        ("score runs/fox file.txt --window 0", 2, "--window"),
        ("score runs/fox file.txt --context 9 --stride 10", 2, "longer than the context"),
        ("score runs/fox file.txt --field text", 3, "no rows"),
        ("score runs/fox file.txt --out runs", 2, "is a folder"),
        ("score runs/fox file.txt --out file.txt", 73, "is an input"),
        ("score runs/fox file.txt --out no/where", 74, "no/where"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


def test_the_documented_example(own, capsys):
    """docs/score.md: what is strange in a genome, and the same total as `hnet eval`."""
    line = "score starter:dna genome.fa --both-strands --window 500 --format bedgraph --out genome.bedgraph.gz"
    assert hnet(line) == 0
    assert "2.0" in capsys.readouterr().err
    rows = [row.split("\t") for row in gzip.decompress(Path("genome.bedgraph.gz").read_bytes()).decode().splitlines()]
    assert [row[:3] for row in rows] == [["chr1", str(at), str(at + 500)] for at in range(0, 20_000, 500)]
    assert hnet("eval starter:dna genome.fa --max-bytes 0 --no-samples --json") == 0
    found = json.loads(capsys.readouterr().out)
    bits = sum(float(row[3]) * 500 for row in rows)
    assert bits == pytest.approx(found["strands"]["mean"] * found["bytes"], abs=0.05 * 500)
    assert hnet("score starter:dna genome.fa --context 600 --stride 200") == 0
    row = capsys.readouterr().out.splitlines()[1].split("\t")
    assert hnet("eval starter:dna genome.fa --context 600 --stride 200 --max-bytes 0 --no-samples --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert float(row[6]) == pytest.approx(found["bpb"], abs=1e-6)


def test_rows_of_a_table_standard_input_and_a_limit(own, capsys, monkeypatch):
    Path("rows.jsonl").write_text('{"text": "a fox"}\n{"text": ""}\n{"text": "dogs"}\n')
    assert hnet("score runs/fox rows.jsonl --format jsonl") == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["source"], row["length"]) for row in rows] == [("rows.jsonl:1", 5), ("rows.jsonl:3", 4)]
    assert "left out: 1 x empty" in err
    assert hnet("score file.txt --model runs/fox --max-bytes 100") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split("\t")[3] == "100"
    assert "There is more" in err


def test_a_damaged_file_is_left_out_and_said(own, capsys):
    Path("torn.txt.gz").write_bytes(gzip.compress(Path("file.txt").read_bytes())[:-9])
    assert hnet("score runs/fox torn.txt.gz rows.jsonl --modality text") == 3
    out, err = capsys.readouterr()
    assert "rows.jsonl:1" in out
    assert "the rest is scored" in err


def test_a_reader_that_has_seen_enough(home):
    process = child("score file.txt --model runs/fox --per byte")
    assert process.stdout.readline().startswith("source\t")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0
    assert "Traceback" not in err
