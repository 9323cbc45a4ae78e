"""Every format shows the same chunks, whole characters, and nothing that a terminal would obey."""

import base64
import io
import json
import random
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segmentkit import MODEL, TEXT, written

from hnet_cli import modality
from hnet_cli.errors import InputError
from hnet_cli.inference import render
from hnet_cli.inference.chunks import Block
from hnet_cli.inference.segment import segment
from hnet_cli.modalities import _utf8
from hnet_cli.modality import Chunk, Document, Modality, Source


@pytest.mark.parametrize("stage", [0, 1])
def test_jsonl_has_every_byte_once(stage):
    text = TEXT * 60
    records = [json.loads(line) for line in written(text, "jsonl", stage).splitlines()]
    data, end, cut = text.encode(), 0, 0
    for record in records:
        assert record["source"] == "a.txt"
        assert (record["document"], record["stage"], record["start"]) == (0, stage, end)
        end = record["end"]
        payload = data[record["start"] : end]
        if "bytes" in record:
            assert base64.b64decode(record["bytes"]) == payload
            assert None in (record["char_start"], record["char_end"])
            cut += 1
        else:
            assert record["text"].encode() == payload
            assert text[record["char_start"] : record["char_end"]] == record["text"]
        assert 0.5 <= record["probability"] <= 1
    assert end == len(data)
    assert 0 < cut < len(records)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_byte_order_mark_is_a_character_of_its_source(stage):
    text = "\ufeff" + (TEXT * 20 + "end\n") + "\ufeff" + TEXT * 20  # the second where files were joined
    source = Source("a.txt", lambda: io.BytesIO(text.encode()), "a.txt")
    lines = "".join(segment(MODEL, [source], modality.get("text"), format="jsonl", stage=stage)).splitlines()
    records = [json.loads(line) for line in lines]
    assert (records[0]["start"], records[0]["document"]) == (3, 0)
    assert records[-1]["document"] == 1
    for record in records:
        assert record.keys() >= {"char_start", "char_end"}
        if "text" in record:
            assert text[record["char_start"] : record["char_end"]] == record["text"]


@pytest.mark.parametrize("stage", [0, 1])
def test_an_end_inside_a_character_has_no_offset(stage):
    """Also where the next chunk is of the next window."""
    text = "我们在北京 Привет 吃了一顿非常好吃的晚饭。" * 200
    lines = "".join(segment(MODEL, [Source.of_bytes(text.encode(), "a")], None, format="jsonl", stage=stage))
    cut = 0
    for record in map(json.loads, lines.splitlines()):
        before = text.encode()[: record["end"]].decode(errors="ignore")
        whole = len(before.encode()) == record["end"]
        assert record["char_end"] == (len(before) if whole else None)
        cut += not whole
    assert cut > 3


def test_the_same_source_twice_has_its_characters_twice():
    sources = [Source.of_bytes(b"some words", "a.txt")] * 2
    lines = "".join(segment(MODEL, sources, modality.get("text"), format="jsonl", stage=0)).splitlines()
    records = [json.loads(line) for line in lines]
    half = len(records) // 2
    assert [record["char_start"] for record in records[:half]] == [record["char_start"] for record in records[half:]]
    assert None not in [record["char_start"] for record in records]


@pytest.mark.parametrize("names", [("a.fa", "b.fa"), ("a.fa", "a.fa")])
@pytest.mark.parametrize("format", ["bed", "bedgraph"])
def test_records_of_one_name_do_not_lie_over_each_other(format, names):
    sources = [Source.of_bytes(b">chr1\nACGTACGTNNNNNNNNNNGGATTACA\n>chr2\nAC\n", name) for name in names]
    alone = "".join(segment(MODEL, sources[:1], modality.get("dna"), format=format))
    assert "chr2" in alone
    with pytest.raises(InputError, match="lie over each other"):
        "".join(segment(MODEL, sources, modality.get("dna"), format=format))


def test_only_short_chunks_are_kept():
    """Long ones do not repeat, and would fill the memory."""
    asked = []
    show = render.kept(lambda data: asked.append(len(data)) or data.decode())
    for _ in range(2):
        assert (show(b"word"), show(b"x" * 100)) == ("word", "x" * 100)
    assert asked == [4, 100, 100]


def test_characters_after_a_gap_are_unknown_in_every_line(monkeypatch):
    monkeypatch.setattr(_utf8, "PIECE", 1000)
    data = b"x" * 900 + b"\n" + b"\xff\xff" * 90 + b"\n" + "some é words\n".encode() * 200
    source = Source("a.txt", lambda: io.BytesIO(data), "a.txt")
    lines = "".join(segment(MODEL, [source], modality.get("text"), format="jsonl", stage=0)).splitlines()
    records = [json.loads(line) for line in lines]
    texts = [record for record in records if "text" in record]
    assert {record["char_start"] is None for record in texts if record["start"] < 900} == {False}
    assert {record["char_start"] for record in texts if record["start"] > 900} == {None}
    assert all(record.keys() >= {"char_start", "char_end"} for record in texts)


def test_converted_text_says_so_in_each_line():
    chinese = "道可道，非常道。名可名，非常名。无名天地之始；有名万物之母。\n" * 30
    files = {
        "utf8.txt": chinese.encode(),
        "gbk.txt": chinese.encode("gbk"),
        "mark.txt": ("\ufeff" + chinese).encode("gb18030"),
    }
    sources = [Source(name, lambda data=data: io.BytesIO(data), name) for name, data in files.items()]
    lines = "".join(segment(MODEL, sources, modality.get("chinese"), format="jsonl", stage=0)).splitlines()
    records = [json.loads(line) for line in lines]
    assert {(record["source"], record["encoding"]) for record in records} == {
        ("utf8.txt", "UTF-8"),
        ("gbk.txt", "GB18030"),
        ("mark.txt", "GB18030"),
    }
    for record in records:
        if "text" in record:
            text = files[record["source"]].decode("utf-8" if record["encoding"] == "UTF-8" else "gb18030")
            assert text[record["char_start"] : record["char_end"]] == record["text"]
            assert text.encode()[record["start"] : record["end"]].decode() == record["text"]
    assert not any("encoding" in line for line in written(TEXT, "jsonl").splitlines())


def test_records_have_their_name_in_every_line():
    """Also one that is called like its file."""
    lines = written(">a.txt\nACGTTGCA\n>b\nTTTTGCA\n", "jsonl", plugin="dna").splitlines()
    assert {json.loads(line)["record"] for line in lines} == {"a.txt", "b"}
    assert not any("char_start" in line for line in lines)


def test_formats_agree():
    records = [json.loads(line) for line in written(TEXT * 60, "jsonl").splitlines()]
    rows = [line.split("\t") for line in written(TEXT * 60, "tsv").splitlines()]
    assert rows[0] == ["source", "record", "document", "stage", "start", "end", "probability", "text"]
    assert [(r["stage"], r["start"], r["end"]) for r in records] == [
        (int(r[3]), int(r[4]), int(r[5])) for r in rows[1:]
    ]
    count = sum(record["stage"] == 0 for record in records)
    assert 0 < written(TEXT * 60, "plain", 0).count("|") <= count - 1
    assert written(b"plain ascii, nothing to cut " * 90, "plain", 0).count("|") == (
        written(b"plain ascii, nothing to cut " * 90, "jsonl", 0).count("\n") - 1
    )


@pytest.mark.parametrize("format", ["plain", "pretty", "html"])
def test_no_character_is_broken_where_windows_meet(format):
    text = "世界和平，" * 900
    page = written(text, format)
    if format == "html":
        assert "".join(re.findall(r'<div class="chunks"[^>]*>([^<]*)</div>', page)) == text
    else:
        assert re.sub("\x1b\\[[0-9;]*m|[|\n]", "", page) == text


def test_plain_without_its_separators_is_the_text():
    assert written("Two lines\nof words.\n" * 50, "plain").replace("|", "") == "Two lines\nof words.\n" * 50


@pytest.mark.parametrize("format", ["pretty", "plain", "jsonl", "tsv", "html"])
def test_nothing_in_a_file_reaches_the_terminal_as_a_command(format):
    output = written(TEXT * 3, format, name="evil\x1b[2J.txt", headings=True)
    output = re.sub("\x1b\\[(0|1|38;5;16;48;5;[0-9]+)m", "", output) if format == "pretty" else output
    assert not set(map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E])) & set(output)


def test_pretty_paints_every_character_and_ends_the_line():
    output = written("a b\tc\nd", "pretty")
    assert re.sub("\x1b\\[[0-9;]*m", "", output) == "a b→   c↵\nd\n"
    assert all(line.endswith("\x1b[0m") for line in output.splitlines())


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert render.use_colour(Terminal())
    assert not render.use_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not render.use_colour(Terminal())


def test_dna_in_bed_and_jsonl_has_the_coordinates_of_the_record():
    rng = random.Random(7)
    left, right = ("".join(rng.choices("ACGT", k=size)) for size in (3000, 50))
    fasta = f">chr7 test\n{left}{'N' * 100}{right}\n>chr8\n{right}\n"
    bed = [line.split("\t") for line in written(fasta, "bed", plugin="dna").splitlines()]
    records = [json.loads(line) for line in written(fasta, "jsonl", plugin="dna").splitlines()]
    assert [(r[0], int(r[1]), int(r[2]), r[3]) for r in bed] == [
        (r["record"], r["start"], r["end"], f"stage{r['stage']}")
        for r in sorted(records, key=lambda r: (r["record"], r["start"], r["stage"]))
    ]
    sequence = {"chr7": left + "N" * 100 + right, "chr8": right}
    assert all(sequence[r["record"]][r["start"] : r["end"]] == r["text"] for r in records)
    covered = sum(r["end"] - r["start"] for r in records if r["stage"] == 0)
    assert covered == len(left) + 2 * len(right)
    assert not any("char_start" in r for r in records)
    assert {r["document"] for r in records} == {0, 1, 2}


class Lazy(Modality):
    name, formats = "lazy", ("first",)

    def documents(self, source):
        for offset in (0, 100):
            yield Document(bytes(100), source.name, source.name, offset=offset)

    def render(self, document, chunks, format):
        yield f"{document.offset} {next(iter(chunks))}"


def test_a_plugin_need_not_take_all_chunks():
    lines = "".join(segment(MODEL, [Source.of_bytes(b"", "x")], Lazy(), format="first")).splitlines()
    assert lines == [f"{offset} {line.partition(' ')[2]}" for offset, line in zip((0, 100), lines, strict=True)]
    assert lines[0].startswith(f"0 {Chunk(0, 0, 1, 1.0)}"[:20])


def test_several_sources_are_named_and_kept_apart():
    sources = [Source.of_bytes(b"no newline at the end", "a.txt"), Source.of_bytes(b"second\n", "b.txt")]
    output = "".join(segment(MODEL, sources, modality.get("text"), format="plain", headings=True))
    assert output.replace("|", "") == "==> a.txt <==\nno newline at the end\n==> b.txt <==\nsecond\n"


@given(st.text(alphabet="aé中🙂 \n", max_size=30), st.lists(st.integers(0, 120), max_size=12))
def test_characters_are_drawn_whole(text, cuts):
    data = text.encode()
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    chunks = [data[a:b] for a, b in pairwise(edges)]
    drawn = render.whole_characters(chunks)
    assert b"".join(drawn) == data
    assert len(drawn) == len(chunks)
    for piece in drawn:
        piece.decode()  # raises if a character is cut


@given(st.lists(st.binary(max_size=6), max_size=8))
def test_no_byte_is_lost_in_drawing(chunks):
    assert b"".join(render.whole_characters(chunks)) == b"".join(chunks)


@given(st.text(alphabet="aé中🙂 ", min_size=1, max_size=12), st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)))
def test_characters_are_drawn_whole_over_windows(text, cuts, ends):
    """`cuts`: where chunks begin; `ends`: those that also end a block."""
    data, whole, drawn, exact = text.encode(), render._WholeCharacters(), [], []
    edges = [0, *sorted(cut for cut in cuts | ends if cut < len(data)), len(data)]
    stops = [*sorted(end for end in ends if end < len(data)), len(data)]
    for first, last in pairwise([0, *stops]):
        starts = [edge for edge in edges if first <= edge <= last]
        window = SimpleNamespace(last=last == len(data))
        chunks = [data[a:b] for a, b in pairwise(starts)]
        block, pieces = whole(Block(window, starts, chunks, np.ones((len(chunks), 1))))
        drawn += pieces
        exact += block.chunks
    assert exact == [data[a:b] for a, b in pairwise(edges)]
    assert "".join(piece.decode() for piece in drawn) == text
