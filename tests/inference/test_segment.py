"""Laws of segmentation: nothing is lost, reading does not matter, stages nest, and every format tells the same."""

import base64
import io
import json
import random
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modelkit import tiny_config, tiny_model

from hnet_cli import modality
from hnet_cli.errors import InputError, NumericalError, UsageError
from hnet_cli.inference import render
from hnet_cli.inference.chunks import Block
from hnet_cli.inference.segment import Summary, segment, segment_bytes, stages_of
from hnet_cli.inference.windows import Stream, window_of, windows
from hnet_cli.modality import Chunk, Document, Modality, Source

MODEL = tiny_model(torch.float32)
EXACT = tiny_model(torch.float64)
SMALL = {"width": 64, "warmup": 16, "batch_bytes": 200}
TEXT = "Chunks of “things”, 世界和平 & <script>alert(1)</script>.\n\tEsc \x1b[31m, bell \x07, C1 \x9b, bidi \u202e!\r\n"


def found(documents, model=MODEL, **options):
    """(starts, probability) of each document, from windows."""
    result = {}
    for window in windows(model, documents, **(SMALL | options)):
        result.setdefault(window.document.name, []).append(window)
    return {
        name: (np.concatenate([w.starts for w in own]), np.concatenate([w.probability for w in own]))
        for name, own in result.items()
    }


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def written(data, format, stage="all", plugin="text", name="a.txt", **options):
    source = Source.of_bytes(data if isinstance(data, bytes) else data.encode(), name)
    return "".join(segment(MODEL, [source], plugin and modality.get(plugin), format=format, stage=stage, **options))


# -- the laws ----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.binary(min_size=60, max_size=300), st.integers(5, 50), st.integers(1, 300), st.booleans())
def test_with_a_carried_state_windows_are_one_pass(data, width, block, surprisal):
    """However the document is read and wherever windows end; of the next document nothing is carried over."""
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    documents = [Stream(blocks, "a", "a"), Document(data[::-1], "b", "b")]
    asked = {"surprisal": surprisal, "longest_chunk": 1 << 30}
    once = list(windows(EXACT, [Document(data, "a", "a"), documents[1]], width=1000, **asked))
    parts = list(windows(EXACT, documents, batch_bytes=width, carried=True, **asked))
    assert len(parts) == 2 * -(-len(data) // width)
    for whole in once:
        own = [window for window in parts if window.document.name == whole.document.name]
        assert np.array_equal(np.concatenate([w.starts for w in own]), whole.starts)
        for name in ("probability", *["surprisal"] * surprisal):
            found = np.concatenate([getattr(window, name) for window in own])
            np.testing.assert_allclose(found, getattr(whole, name), rtol=1e-5, atol=1e-6)
        assert np.array_equal(sum(window.positions for window in own), whole.positions)


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 1))
def test_chunks_joined_are_the_input(data, stage):
    chunks = segment_bytes(MODEL, data, stage)
    assert b"".join(chunks) == data
    assert all(chunks)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=150), max_size=6))
def test_how_a_stream_is_read_changes_nothing(blocks):
    data = b"".join(blocks)
    as_document = found([Document(data, "a", "a")])
    as_stream = found([Stream(blocks, "a", "a")])
    assert as_document.keys() == as_stream.keys()
    assert all(same(as_document[name], as_stream[name]) for name in as_document)


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_read_blocks_of_any_size(size):
    data = random.Random(0).randbytes(1500)
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    assert same(found([Stream(blocks, "a", "a")])["a"], found([Document(data, "a", "a")])["a"])


def test_stages_nest():
    starts, p = found([Document(random.Random(1).randbytes(2000), "a", "a")])["a"]
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert not np.isnan(p[:, 0]).any()
    assert np.isnan(p[~np.isnan(p[:, 1])][:, 0]).sum() == 0
    assert 0 < (~np.isnan(p[:, 1])).sum() < len(starts) < 2000


def test_a_document_of_one_window_is_what_the_model_computes():
    width, warmup = window_of(MODEL.config)
    assert (width, warmup) == (2048, 512)
    data = random.Random(2).randbytes(width)
    routing = MODEL(torch.tensor([[254, *data]])).routing
    outer = routing[0].boundary_mask.nonzero()[:, 0]
    inner = outer[routing[1].boundary_mask]
    expected = [sorted({max(0, at - 1) for at in stage.tolist()}) for stage in (outer, inner)]
    got = [np.cumsum([0, *map(len, segment_bytes(MODEL, data, stage))])[:-1].tolist() for stage in (0, 1)]
    assert got == expected


def test_probabilities_are_the_models():
    data = random.Random(3).randbytes(60)
    prob = MODEL(torch.tensor([[254, *data]])).routing[0].boundary_prob.detach().numpy()
    starts, p = found([Document(data, "a", "a")])["a"]
    assert p[0, 0] == 1
    np.testing.assert_allclose(p[1:, 0], prob[starts[1:] + 1], atol=1e-5)
    assert (p[:, 0] > 0.5).all()


def test_later_windows_follow_from_the_bytes_before_them_alone():
    data = random.Random(4).randbytes(256)
    starts, p = found([Document(data, "a", "a")])["a"]
    prob = MODEL(torch.tensor([[*data[128 - 16 : 192]]])).routing[0].boundary_prob.detach().numpy()
    own = (starts >= 128) & (starts < 192)
    assert starts[own].tolist() == (np.flatnonzero(prob[16:] > 0.5) + 128).tolist()
    np.testing.assert_allclose(p[own, 0], prob[starts[own] - 112], atol=1e-5)


def test_strangers_in_the_same_pass_change_nothing():
    rng = random.Random(5)
    documents = [Document(rng.randbytes(rng.randrange(200)), f"{i}", "a") for i in range(12)]
    together = found(documents, batch_bytes=1 << 20)
    for document in documents:
        if document.data:
            (alone,) = found([document]).values()
            assert np.array_equal(alone[0], together[document.name][0])
            np.testing.assert_allclose(alone[1], together[document.name][1], atol=1e-5)


def fixed(k):
    return tiny_model(torch.float32, config=tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "fixed", "k": k}))


@pytest.mark.parametrize("carried", [False, True])
def test_fixed_chunks_stay_in_step_over_windows(carried):
    starts, _ = found([Document(bytes(500), "a", "a")], fixed(7), carried=carried)["a"]
    assert starts.tolist() == [0, *range(6, 500, 7)]


def test_every_byte_a_boundary():
    chunks = segment_bytes(fixed(1), b"a" * 5000)
    assert chunks == [b"a"] * 5000


@pytest.mark.parametrize("carried", [False, True])
def test_a_model_of_no_numbers_has_no_chunks(carried):
    """Not a number is no boundary either: the document would pass for one chunk."""
    broken = tiny_model(torch.float32)
    with torch.no_grad():
        broken.backbone.encoder.layers[0].mixer.in_proj.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        list(windows(broken, [Document(b"some bytes", "a", "a")], carried=carried))


def test_a_chunk_cannot_grow_without_end():
    model = fixed(10_000)
    for limit, expected in ((100, [0, 128, 256, 384]), (1 << 20, [0])):
        starts, p = found([Document(bytes(400), "a", "a")], model, longest_chunk=limit)["a"]
        assert starts.tolist() == expected
        assert p[1:, 0].tolist() == [0.0] * (len(expected) - 1)


def test_a_forced_end_keeps_stages_nested():
    starts, p = found([Document(random.Random(6).randbytes(3000), "a", "a")], longest_chunk=64)["a"]
    begun = starts[~np.isnan(p[:, 1])]
    assert not np.isnan(p[:, 0]).any()
    assert np.diff(begun).max() < 3 * 64


# -- what is written ---------------------------------------------------------------------------------------------------


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
            assert "char_start" not in record
            cut += 1
        else:
            assert record["text"].encode() == payload
            assert text[record["char_start"] : record["char_end"]] == record["text"]
        assert 0.5 <= record["probability"] <= 1
    assert end == len(data)
    assert 0 < cut < len(records)


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


def test_without_a_modality_bytes_are_bytes():
    data = random.Random(8).randbytes(3000)
    records = [json.loads(line) for line in written(data, "jsonl", 0, plugin=None).splitlines()]
    assert b"".join(base64.b64decode(r["bytes"]) if "bytes" in r else r["text"].encode() for r in records) == data


# -- the summary -------------------------------------------------------------------------------------------------------


def test_summary_counts_what_was_written():
    summary = Summary(tiny_model(config=tiny_config(target_ratios=[3, 2])).config, modality.get("text"))
    records = [json.loads(line) for line in written("Some words here. " * 400, "jsonl", summary=summary).splitlines()]
    assert (summary.bytes, summary.documents) == (17 * 400, 1)
    for stage, facts in enumerate(summary.stages()):
        own = [r for r in records if r["stage"] == stage]
        assert facts["chunks"] == len(own)
        assert facts["bytes_per_chunk"] == pytest.approx(17 * 400 / len(own))
        assert facts["target"] == (3, 6)[stage]
        assert 0 < facts["mean_boundary_prob"] < 1
        starts = {r["start"] for r in own} - {0}
        edges = {m.start() for m in re.finditer(r"\b", "Some words here. " * 400)} - {0, 17 * 400}
        assert facts["edges"]["word"]["precision"] == pytest.approx(len(starts & edges) / len(starts))
        assert facts["edges"]["word"]["recall"] == pytest.approx(len(starts & edges) / len(edges))


def test_what_is_refused_is_counted_and_an_input_of_nothing_is_an_error():
    told, summary = [], Summary(MODEL.config)
    with pytest.raises(InputError, match="nothing to segment"):
        written(b"\xff\xfe\xfd" * 9, "plain", summary=summary, on_refused=told.append)
    assert sum(summary.refused.values()) == len(told) == 1
    with pytest.raises(InputError):
        written(b"", "plain", plugin=None)


def test_wrong_choices_are_named_at_once():
    with pytest.raises(UsageError, match="stage"):
        stages_of(MODEL.config, 2)
    with pytest.raises(UsageError, match="format"):
        segment(MODEL, [], format="bed")
    isotropic = tiny_model(config=tiny_config(("m1",)))
    with pytest.raises(UsageError, match="no chunking stages"):
        list(windows(isotropic, [Document(b"a", "a", "a")]))


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


def test_a_compressed_track_is_blocks_with_an_index(tmp_path):
    """BGZF by its definition: gzip members that tell their size, and an empty one at the end. In order, for tabix."""
    from Bio import bgzf

    from hnet_cli.cli.app import run

    (tmp_path / "a.fa").write_text(">one\n" + "ACGTTGCA" * 40 + "\n>two\n" + "GGGATTACA" * 30 + "\n")
    for format in ("bed", "bedgraph"):
        out = tmp_path / f"a.{format}.gz"
        command = ["segment", str(tmp_path / "a.fa"), "--model", "starter:dna", "--format", format, "--out", str(out)]
        assert run([*command, "--device", "cpu"]) == 0
        assert out.read_bytes()[-28:] == bgzf._bgzf_eof
        with bgzf.open(out, "rt") as file:
            rows = [line.split("\t") for line in file]
        places = [(row[0], int(row[1])) for row in rows]
        assert places == sorted(places)
        assert {row[0] for row in rows} == {"one", "two"}
        assert format == "bed" or all(0.5 < float(row[3]) <= 1 for row in rows)
        try:
            import pysam
        except ImportError:
            continue
        with pysam.TabixFile(str(out)) as track:
            assert len(list(track.fetch("two"))) == sum(name == "two" for name, _ in places)
