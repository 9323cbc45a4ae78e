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
        ("score starter:text", 2, "nothing to score with starter:text (name files"),
        ("score runs/fox", 3, "run made by hnet"),
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
        ("score runs/fox file.txt --field text", 2, "no rows"),
        ("score runs/fox file.txt --out runs", 2, "is a folder"),
        ("score runs/fox file.txt --out file.txt", 73, "is an input"),
        ("score runs/fox file.txt --out no/where", 74, "no/where"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


def test_the_documented_example(own, capsys):
    """docs/score.md: what is strange in a genome, and the same totals as `hnet eval`."""
    lines = Path("genome.fa").read_text().splitlines()[1:21]
    Path("genome.fa.gz").write_bytes(gzip.compress("\n".join([">chr1 x", *lines, ">chr2", "GATTACA" * 20]).encode()))
    line = "score starter:dna genome.fa.gz --both-strands --window 500 --format bedgraph --out genome.bedgraph.gz"
    assert hnet(line) == 0
    assert "1,340 bytes" in capsys.readouterr().err
    rows = [row.split("\t") for row in gzip.decompress(Path("genome.bedgraph.gz").read_bytes()).decode().splitlines()]
    places = [(name, int(start), int(end)) for name, start, end, _ in rows]
    assert places == [("chr1", 0, 500), ("chr1", 500, 1000), ("chr1", 1000, 1200), ("chr2", 0, 140)]
    bits = sum(float(row[3]) * (int(row[2]) - int(row[1])) for row in rows)
    assert hnet("eval starter:dna genome.fa.gz --context 600 --stride 200 --no-samples --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert hnet("score starter:dna genome.fa.gz --context 600 --stride 200") == 0
    table = [row.split("\t") for row in capsys.readouterr().out.splitlines()[1:]]
    assert sum(float(row[5]) for row in table) == pytest.approx(found["bpb"] * found["bytes"], abs=1e-3)
    assert hnet("eval starter:dna genome.fa.gz --no-samples --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert bits == pytest.approx(found["strands"]["mean"] * found["bytes"], abs=5e-5 * found["bytes"])


def test_rows_of_prompt_and_completion_as_eval_counts_them(own, capsys):
    """The sum of the completions' bits, with the mark that ends each; fields by name."""
    rows = [{"ask": "a fox:", "answer": " jumps"}, {"ask": "a dog:", "answer": " is lazy"}]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = "--prompt-field ask --completion-field answer"
    assert hnet(f"score runs/fox asked.jsonl {fields}") == 0
    out, err = capsys.readouterr()
    table = [row.split("\t") for row in out.splitlines()[1:]]
    assert [(int(start), int(end)) for _, _, start, end, *_ in table] == [(0, 7), (0, 9)]
    assert "16 bytes" in err
    assert hnet(f"eval runs/fox asked.jsonl {fields} --no-samples --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(float(row[5]) for row in table) == pytest.approx(found["bpb"] * found["bytes"], abs=1e-3)
    assert hnet(f"score runs/fox asked.jsonl {fields} --max-bytes 3") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "There is more: this is the first 7 bytes" in err
    assert hnet("score runs/fox asked.jsonl --prompt-field ask") == 2
    assert "go together" in capsys.readouterr().err


def test_rows_of_a_table_and_a_limit(own, capsys):
    Path("rows.jsonl").write_text('{"text": "a fox"}\n{"text": ""}\n{"text": "dogs"}\n')
    assert hnet("score runs/fox rows.jsonl --format jsonl") == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["source"], row["length"]) for row in rows] == [("rows.jsonl:1", 5), ("rows.jsonl:3", 4)]
    assert "left out: 1 x empty" in err
    assert hnet("score file.txt --model runs/fox --max-bytes 100") == 0
    out, err = capsys.readouterr()
    length = out.splitlines()[1].split("\t")[4]
    assert 90 < int(length) <= 100
    assert f"There is more: this is the first {length} bytes" in err


def test_a_damaged_file_is_left_out_and_said(own, capsys):
    Path("torn.txt.gz").write_bytes(gzip.compress(Path("file.txt").read_bytes())[:-9])
    assert hnet("score runs/fox torn.txt.gz rows.jsonl --modality text") == 3
    out, err = capsys.readouterr()
    assert "rows.jsonl:1" in out
    assert "the rest is scored" in err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(home):
    process = child("score file.txt --model runs/fox --per byte")
    assert process.stdout.readline().startswith("source\t")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0
    assert "Traceback" not in err
