"""The page of chunks: the lists in it are the chunks, the text in it is the text, and it stands alone."""

import base64
import html
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model
from pagekit import checked
from segmentkit import MODEL, TEXT, written

from hnet_cli import modality
from hnet_cli.inference import chunks_page as chunkpage
from hnet_cli.inference.chunks_page import BLOCK, DIGITS, ROW, About, Part, Piece
from hnet_cli.inference.segment import Summary, segment
from hnet_cli.inference.thresholds import Compression
from hnet_cli.inference.windows import windows
from hnet_cli.modality import Document, Shown, Source


def page_of(data, **options):
    return written(data, "html", **options)


def blocks(page):
    """Per block: its lists as numbers (None where a stage has no chunk), its text, its surprisal."""
    found = []
    for attributes in (dict(a) for a in page.divs):
        lists = {key.removeprefix("data-"): value for key, value in attributes.items() if key.startswith("data-")}
        text, bits = attributes["text"], [DIGITS.index(d) / 4 for d in lists.pop("s", "")]
        lists["f"] = html.unescape(lists.get("f", "[]"))
        numbers = {
            k: json.loads(v) if k == "f" else [int(v) if v else None for v in v.split(",")] for k, v in lists.items()
        }
        found.append((numbers, text, bits))
    return found


def parsed(source, kind="chunks"):
    page = checked(source)
    page.divs = []
    for match in re.finditer(rf'<div class="{kind}"([^>]*)>([^<]*)</div>', source):
        page.divs.append({**dict(re.findall(r'(data-\w+)="([^"]*)"', match[1])), "text": html.unescape(match[2])})
    return page


@pytest.mark.slow
@pytest.mark.parametrize("data", [TEXT * 200, "no line ends here " * 900, "世界 and peace\n" * 900, TEXT, "x"])
def test_the_lists_are_the_chunks(data):
    source = page_of(data)
    wanted = [json.loads(line) for line in written(data, "jsonl").splitlines()]
    places = {stage: [(r["start"], r["probability"]) for r in wanted if r["stage"] == stage] for stage in (0, 1)}
    found, end, counted = {0: [], 1: []}, 0, [0, 0]
    for lists, text, bits in blocks(parsed(source)):
        (at,) = lists["at"]
        assert at == end
        assert lists["h"] == counted
        assert sum(lists.get("u", lists["n"])) == len(text.encode("utf-16-le")) // 2
        assert len(bits) == sum(lists["n"])
        into, left = lists.get("cut", (0, 0))
        assert (into > 0) == (lists["p0"][0] is None)  # the rest of a chunk that began in the block before
        for stage in (0, 1):
            start = at
            for size, p in zip(lists["n"], lists[f"p{stage}"], strict=True):
                if p is not None:
                    found[stage].append((start, p / 100))
                    counted[stage] += 1
                start += size
        end = start
        assert left >= 0
    assert end == len(data.encode())
    for stage in (0, 1):
        assert [start for start, _ in found[stage]] == [start for start, _ in places[stage]]
        assert [p for _, p in found[stage]] == pytest.approx([p for _, p in places[stage]], abs=0.0051)
    assert f">{len(places[0]):,}</b> chunks" in source


@pytest.mark.slow
def test_blocks_end_with_lines_where_they_can():
    found = [text for _, text, _ in blocks(parsed(page_of("A line of some words.\n" * 650)))]
    assert len(found) >= 3
    assert all(text.endswith("\n") for text in found)
    assert max(map(len, found)) < 2 * chunkpage.BLOCK
    without = [text for _, text, _ in blocks(parsed(page_of("word " * 4000)))]
    assert chunkpage.LONGEST_BLOCK <= max(map(len, without)) < 2 * chunkpage.LONGEST_BLOCK


def test_the_text_is_there_without_the_script_and_nothing_in_it_acts():
    page = parsed(page_of(TEXT * 3, name="<b>\x1b[2J.txt", headings=True, label="<i>model</i>"))
    shown = "".join(text for _, text, _ in blocks(page))
    assert shown.replace("\r", "\\x0d") == modality.get("text").display((TEXT * 3).encode())
    assert "<b>\\x1b[2J.txt" in page.text
    assert "<i>model</i>" in page.text


def test_surprisal_is_that_of_the_whole_model():
    data = b"Some words and some more of them."
    logits = MODEL(torch.tensor([[254, *data]])).logits[0].float()
    nats = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor([*data]), reduction="none").detach().numpy()
    ((_, _, bits),) = blocks(parsed(page_of(data)))
    assert bits == pytest.approx(np.minimum(nats / math.log(2), 15.75), abs=0.126)
    assert f"<b>{nats.mean() / math.log(2):.3f}</b> bits per byte" in page_of(data)


def test_asking_for_surprisal_changes_no_boundary():
    rng = np.random.default_rng(0)
    documents = [Document(rng.bytes(n), f"{n}", "a") for n in (5000, 3, 1, 900)]
    plain, asked = (list(windows(MODEL, documents, surprisal=yes)) for yes in (False, True))
    for a, b in zip(plain, asked, strict=True):
        assert a.surprisal is None
        assert b.surprisal.shape == (len(b.data),)
        assert np.isfinite(b.surprisal).all()
        assert np.array_equal(a.starts, b.starts)
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-5)


def test_several_files_and_records_begin_anew():
    fasta = ">one\nACGTACGTTTGACA\n>two\nGGGTACCA\n"
    page = parsed(page_of(fasta, plugin="dna"))
    assert [lists["at"] for lists, _, _ in blocks(page)] == [[0], [0]]
    assert re.findall(r"a\.txt: \w+", page.text) == ["a.txt: one", "a.txt: two"]


def test_one_stage_has_no_choice_of_stages():
    model = tiny_model(torch.float32, config=tiny_config(("m1", ("T1",), "m1")))
    assert 'name="stage"' not in page_of(TEXT, model=model)
    assert 'name="stage"' not in page_of(TEXT, stage=1)
    assert 'value="all" checked' in page_of(TEXT)


@pytest.mark.parametrize("name", ["-", "a.txt"])
def test_the_only_source_needs_no_heading(name):
    """Standard input has another name for people."""
    titles = {"-": "standard input"}
    page = "".join(
        segment(MODEL, [Source.of_bytes(b"some words", name)], None, format="html", title=titles.get(name, name))
    )
    assert 'class="source"' not in page


@pytest.mark.parametrize("format", ["html", "jsonl"])
def test_what_is_too_long_is_cut_and_said(format):
    summary = Summary(MODEL.config)
    output = written("0123456789" * 1000, format, stage=0, plugin=None, max_bytes=5005, summary=summary)
    assert summary.intake.cut
    assert summary.bytes == 5005
    if format == "html":
        assert "Only the first 5,005 bytes" in checked(output).text
    else:
        found = [json.loads(line) for line in output.splitlines()]
        assert (
            b"".join(base64.b64decode(r["bytes"]) if "bytes" in r else r["text"].encode() for r in found)
            == (b"0123456789" * 501)[:5005]
        )
    whole = Summary(MODEL.config)
    written("0123456789" * 10, format, plugin=None, max_bytes=100, summary=whole)
    assert (whole.intake.cut, whole.bytes) == (False, 100)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.booleans()), min_size=1, max_size=60))
def test_counts_are_those_of_the_chunks(given_chunks):
    at, pieces = 0, []
    for n, (data, inner) in enumerate(given_chunks):
        p = (0.9, 0.8 if inner or not n else math.nan)
        pieces.append(Piece(at, at + len(data), data, p, []))
        at += len(data)
    source = "".join(chunkpage.page([Part(pieces)], lambda data: data.hex(), [0, 1]))
    deep = 1 + sum(inner for _, inner in given_chunks[1:])
    told = re.findall(r">([\d,]+)</b> chunks, <b class=\"mean\">([\d.]+)</b> bytes each", source)
    assert told == [(str(len(pieces)), f"{at / len(pieces):.2f}"), (str(deep), f"{at / deep:.2f}")]
    assert "</b> bits per byte" not in source
    checked(source)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_different_chunks():
    counts = chunkpage._Counts()
    for n in range(3 * chunkpage.COUNTED):
        counts.grow(Piece(0, 8, b"%08d" % n, (1.0,), []), True)
        if n % 3 == 0:
            counts.grow(Piece(0, 3, b"the", (1.0,), []), True)
    counts.close()
    assert len(counts.texts) <= chunkpage.COUNTED
    assert counts.texts.most_common(1) == [(b"the", chunkpage.COUNTED)]


CODE = 'def größe(x):  # wie groß? 🙂🙂 ist das\n    """Doc: 世界"""\n    return f"{x:03d}" + 0x1F\n\n\nclass A: pass\n'


def coloured(data, stage):
    """(character, kind) along the page of a Python file."""
    shown = []
    for lists, text, _ in blocks(parsed(page_of(data, stage=stage, plugin="code", name="a.py"))):
        units, runs, at = text.encode("utf-16-le"), lists["y"], 0
        assert 2 * sum(runs[::2]) == len(units)
        for length, kind in zip(runs[::2], runs[1::2], strict=True):
            shown += [(char, kind) for char in units[at : at + 2 * length].decode("utf-16-le")]
            at += 2 * length
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["0", "all"])
@pytest.mark.parametrize("times", [1, 120])
def test_code_is_shown_over_its_syntax(stage, times):
    """Every character has the kind that the lexer gave its bytes."""
    data = CODE * times
    kinds = modality.get("code").syntax(Document(data.encode(), "a.py", "a.py"))
    assert len(kinds) == len(data.encode())
    starts = np.cumsum([0] + [len(char.encode()) for char in data])
    assert coloured(data, stage) == [(char, kinds[at]) for char, at in zip(data, starts[:-1], strict=True)]
    words = ["".join(char for char, at in zip(CODE, starts, strict=False) if kinds[at] == kind) for kind in range(6)]
    assert words[1:] == ["defreturnclasspass", "größeA", '"""Doc: 世界"""f"{:03d}"', "0x1F", "# wie groß? 🙂🙂 ist das"]


def test_what_is_escaped_has_no_syntax():
    shown = coloured(CODE.replace("+", "\x07"), "0")
    assert "\\x07" in "".join(char for char, _ in shown)
    assert all(kind == 0 for char, kind in shown if char == "\\")
    assert {kind for _, kind in shown} == set(range(6))


def test_other_pages_have_no_syntax():
    assert "data-y=" not in page_of(TEXT)
    assert "data-y=" not in page_of(CODE, plugin="code", name="a.unknown")
    assert modality.get("code").syntax(Document(b"int a;\r\n", "a.c", "a.c")) is None


CUTS = st.lists(st.integers(1, 400), min_size=1, max_size=80)


def cut(sizes, at=0, letters="ACGT", p=0.9):
    """Pieces of these sizes."""
    found = []
    for size in sizes:
        drawn = (letters * (size + 2))[at % len(letters) :][:size].encode()
        found.append(Piece(at, at + size, drawn, (p,), []))
        at += size
    return found


def shown(parts, margin="row", **rest):
    about = About(unit="base" if margin == "row" else "byte", margin=margin)
    return "".join(chunkpage.page(parts, bytes.decode, [0], about, **rest))


@one_in(5)
@given(CUTS, st.integers(0, 500))
def test_blocks_of_rows_end_with_rows_of_their_record(sizes, offset):
    sizes = sizes * 20
    source = shown([Part(cut(sizes), offset=offset)])
    found, at = blocks(parsed(source)), offset
    for lists, text, _ in found:
        assert lists["at"] == [at]
        at += len(text)
    assert at == offset + sum(sizes)
    assert all(lists["at"][0] % ROW == 0 for lists, _, _ in found[1:])
    assert all(len(text) < BLOCK + max(sizes) + ROW for _, text, _ in found)
    checked(source)


def test_a_record_goes_on_behind_a_gap_at_its_own_place():
    parts = [Part(cut([50]), 0, 100, 0, "one"), Part(cut([30]), 1, 1150, 0, "one"), Part(cut([9]), 2, 0, 1, "two")]
    page = parsed(shown(parts))
    assert [lists["at"] for lists, _, _ in blocks(page)] == [[100], [1150], [0]]
    assert "1,000 bases left out" in page.text
    assert re.findall("one|two", page.text) == ["one", "two"]


def test_features_stand_beside_the_blocks_that_they_lie_in():
    features = [Shown("gene", 10, 5000, -1, '<"a">'), Shown("CDS", 40, 90, -1), Shown("gene", 4900, 9000, 1, "b")]
    found = blocks(parsed(shown([Part(cut([60] * 100), offset=600, features=features)])))
    assert [len(lists["f"]) for lists, _, _ in found] == [2, 2]
    assert found[0][0]["f"] == [[610, 5600, "gene", -1, '<"a">'], [640, 690, "CDS", -1, ""]]
    many = [Shown("CDS", n, n + 1) for n in range(3000)] + [Shown("gene", 5, 9, 1, "a")]
    first = blocks(parsed(shown([Part(cut([60] * 50), features=many)])))[0][0]["f"]
    assert (len(first), first[0][2]) == (chunkpage.MOST_FEATURES, "gene")


def test_lines_are_counted_over_the_blocks_of_a_document():
    parts = [Part(cut([90] * 100, letters="a line of words\n"), n, 0, n) for n in range(2)]
    found = blocks(parsed(shown(parts, "line")))
    assert len(found) > 4
    line = 1
    for lists, text, _ in found:
        line = 1 if lists["at"] == [0] else line
        assert lists["l"] == [line]
        line += text.count("\n")


@one_in(5)
@given(CUTS, CUTS, st.sampled_from(["row", "line"]))
def test_another_model_stands_beside_in_the_same_stretches(sizes, others, margin):
    sizes, others = sizes * 30, others * 30
    total = min(sum(sizes), sum(others))
    both = []
    for lengths in (sizes, others):
        starts = [at for at in np.cumsum([0, *lengths]).tolist() if at < total]
        both.append(np.diff([*starts, total]).tolist())
    parts = [[Part(cut(lengths, letters="ab\n"), n) for n in range(2)] for lengths in both]
    source = shown(parts[0], margin, beside=(parts[1], 1))
    mine, theirs = blocks(parsed(source)), blocks(parsed(source, "chunks other"))
    assert [(lists["at"], text) for lists, text, _ in mine] == [(lists["at"], text) for lists, text, _ in theirs]
    for found, lengths in ((mine, both[0]), (theirs, both[1])):
        starts = []
        for lists, _, _ in found:
            at = np.cumsum([lists["at"][0], *lists["n"]]).tolist()
            starts += [start for start, p in zip(at, lists["p0"], strict=False) if p is not None]
        assert starts == 2 * np.cumsum([0, *lengths[:-1]]).tolist()


def test_the_slider_begins_at_the_threshold():
    with MODEL.set_thresholds(0.25):  # which other tests share
        source = page_of(TEXT, compression=Compression([0.25]))
    assert 'name="least" min="25" max="100" value="25"' in source
