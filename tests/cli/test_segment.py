"""`hnet segment` on files and pipes."""

import gzip
import json
import re
from pathlib import Path

import pytest
from clikit import check_mistake, child, hnet

from hnet_cli import load
from hnet_cli.data import tokens
from hnet_cli.terminal import console


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("segment", 2, "FILE..."),
        ("segment nowhere.txt", 3, "nowhere.txt does not exist"),
        ("segment empty.txt --model runs/fox", 3, "empty.txt"),
        ("segment file.txt --model nowhere", 3, "there is no model at nowhere"),
        ("segment file.txt --model runs/fox --compare starter:text", 2, "--compare is for a page"),
        ("segment file.txt --model runs/fox --track mine", 2, "--track is for --format bed or bedgraph"),
        ("segment - --model runs/fox --compare starter:text --format html", 2, "--compare reads the input twice"),
        ("segment file.txt --model runs/fox --compare nowhere --format html", 3, "there is no model at nowhere"),
        ("segment file.txt --model runs/fox --compare rows.jsonl --format html", 3, "is not a byte-level BPE"),
        ("segment file.txt --model runs/fox --annotation bad.yaml --format html", 2, "has no annotation"),
        ("segment genome.fa --model starter:dna --annotation bad.yaml --format html", 3, "holds no gene"),
        ("segment file.txt --model data/file", 4, "is not a model"),
        ("segment file.txt --model starter:klingon", 3, "starter:klingon"),
        ("segment genome.fa --model runs/fox", 3, "looks like dna, but runs/fox is a model of text"),
        ("segment file.txt --model runs/fox --stage 7", 2, "no stage '7' (this model has one: 0)"),
        ("segment file.txt --model runs/fox --format bed", 2, "bed"),
        ("segment file.txt --model runs/fox --modality klingon", 2, "installed: "),
        ("segment file.txt --model runs/fox --out runs", 2, "is a folder"),
        ("segment file.txt --model runs/fox --threshold 2", 2, "--threshold 2 is no probability"),
        ("segment file.txt --model runs/fox --threshold 0.5 --bytes-per-chunk 3", 2, "exclude each other"),
        ("segment file.txt --model runs/fox --bytes-per-chunk three", 2, "'three' is no number"),
        ("segment file.txt --model runs/fox --bytes-per-chunk 3,9", 2, "has 2 numbers"),
        ("segment empty.txt --model runs/fox --bytes-per-chunk 3", 3, "empty.txt"),
        ("segment file.txt --model runs/fox --out no/where", 74, "no/where"),
        ("segment file.txt --model runs/fox --workers 2 --carry", 2, "--workers 2 does not go with --carry"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


@pytest.mark.parametrize(
    ("format", "file", "line"),
    [("html", "long.txt", r"segmenting: \d+%"), ("tsv", "long.txt.gz", r"segmenting: [\d.]+ kB$")],
)
def test_a_long_file_is_not_read_in_silence(home, monkeypatch, capsys, format, file, line):
    """A page is written at its end, and of a compressed file nobody knows the length before."""
    monkeypatch.setattr(console.Task, "EVERY", 0.0)
    text = b"A line of a text that is long.\n" * 600
    Path(file).write_bytes(gzip.compress(text) if file.endswith(".gz") else text)
    assert hnet(f"segment {file} --model runs/fox --format {format} --out long.out") == 0
    assert len(re.findall(line, capsys.readouterr().err, re.MULTILINE)) > 2


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(home):
    process = child("segment file.txt --model runs/fox --format tsv")
    assert process.stdout.readline().startswith("source\t")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0
    assert "Traceback" not in err
    assert "hnet: " not in err


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--format jsonl --threshold 0.4", "--format html --max-bytes 5000"])
def test_workers_write_the_bytes_of_one(own, capsys, options):
    Path("bad.gz").write_bytes(gzip.compress(Path("file.txt").read_bytes())[:-9])
    written = []
    for number in (1, 3):
        line = f"segment file.txt bad.gz file.txt --model runs/fox --workers {number} {options} --out {number}.out"
        assert hnet(line) == (3 if "jsonl" in options else 0)
        written.append(Path(f"{number}.out").read_bytes())
    assert written[0] == written[1]
    err = capsys.readouterr().err
    assert "jsonl" not in options or err.count("bad.gz is truncated: ") == err.count("; the rest is segmented") == 2


def test_chunks_of_a_chosen_length(home, capsys):
    """The documented example, and the same in Python."""
    assert hnet("segment file.txt --model runs/fox --max-bytes 6000 --bytes-per-chunk 3 --format jsonl") == 0
    out, err = capsys.readouterr()
    chunks = [json.loads(line)["text"] for line in out.splitlines()]
    data = "".join(chunks)
    assert Path("file.txt").read_text().startswith(data)
    assert len(data) / len(chunks) == pytest.approx(3, rel=0.01)
    assert "Chunks at threshold 0." in err
    assert load("runs/fox").segment(data.encode(), bytes_per_chunk=3) == [chunk.encode() for chunk in chunks]
    assert load("runs/fox").segment(data.encode(), threshold=1) == [data.encode()]


def test_segment_tells_what_prepare_would(own, capsys):
    """Offsets of documents that differ from the file; a limit of bytes falls between characters."""
    Path("twice.fa").write_text(">alpha\nACGTACGTAA\n>alpha\nACGTTTTGGA\n")
    assert hnet("segment twice.fa --model starter:dna --format bed") == 0
    out, err = capsys.readouterr()
    assert "\nalpha#2\t0\t" in out
    assert "name of an earlier record, told apart as NAME#2, NAME#3: 1" in err
    Path("law.txt").write_bytes(("中华人民共和国城市绿化条例" * 9).encode("gb18030"))
    assert hnet("segment law.txt --model starter:chinese --format jsonl --max-bytes 100") == 0
    out, err = capsys.readouterr()
    assert "converted from GB18030 to UTF-8: 1" in err
    assert "There is more: this is the first 99 bytes" in err
    assert all("text" in json.loads(line) for line in out.splitlines())


def test_a_page_beside_a_tokenizer(own, capsys):
    Path("tokenizer.json").write_text(tokens.learn([b"the quick brown fox jumps " * 50], 270))
    line = "segment file.txt --model runs/fox --max-bytes 3000 --format html --compare tokenizer.json"
    assert hnet(f"{line} --out a.html") == 0
    page = Path("a.html").read_text()
    assert "<title>file.txt</title>" in page
    assert "beside them those of tokenizer.json" in page
    sizes = [int(n) for lists in re.findall('class="chunks other".*? data-n="([^"]*)"', page) for n in lists.split(",")]
    data = Path("file.txt").read_bytes()[: sum(sizes)]
    tokenizer = tokens.Tokenizer(Path("tokenizer.json").read_text())
    assert sizes == [int(tokenizer.lengths[token]) for token in tokenizer.encode([data])[0]]


def test_an_annotation_of_other_records_is_refused(own, capsys):
    Path("a.gff").write_text("chr9\t.\tgene\t5\t90\t.\t+\t.\tID=a\n")
    line = "segment genome.fa --model starter:dna --max-bytes 200 --format html --annotation a.gff --out a.html"
    assert hnet(line) == 3
    assert "the sequence has chr1, the annotation chr9" in capsys.readouterr().err
    assert not Path("a.html").exists()
    Path("a.gff").write_text("chr1\t.\tgene\t5\t90\t.\t+\t.\tID=a;Name=b%3C\n")
    assert hnet(line) == 0
    assert "[[4,90,&#34;gene&#34;,1,&#34;b&lt;&#34;]]" in Path("a.html").read_text()


def test_a_bigwig_and_a_track_line(own, capsys):
    line = "segment genome.fa --model starter:dna --max-bytes 500"
    assert hnet(f"{line} --format bedgraph --track mine --out a.bedgraph") == 0
    head, *rows = Path("a.bedgraph").read_text().splitlines()
    assert head.startswith('track type=bedGraph name="mine"')
    pyBigWig = pytest.importorskip("pyBigWig")
    assert hnet(f"{line} --format bigwig") == 2
    assert hnet(f"{line} --format bigwig --out a.bw") == 0
    with pyBigWig.open("a.bw") as file:
        assert file.chroms() == {"chr1": 500}
        assert [start for start, *_ in file.intervals("chr1")] == [int(row.split("\t")[1]) for row in rows]
    Path("b.fa").write_text(">chr1\nACGTACGT\n")
    assert hnet("segment b.fa b.fa --model starter:dna --format bigwig --out b.bw") == 3
    assert "two sequences are called chr1" in capsys.readouterr().err
    assert not Path("b.bw").exists()
    assert hnet("segment file.txt --model runs/fox --format bigwig --out c.bw") == 2
