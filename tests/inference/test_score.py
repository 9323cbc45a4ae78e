"""Bits of documents, chunks, windows and bytes: they add up to what `hnet eval` counts, in the source's coordinates."""

import base64
import io
import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import tiny_config, tiny_model

import hnet_cli
from hnet_cli import modality
from hnet_cli.errors import InputError, UsageError
from hnet_cli.inference import score as scoring
from hnet_cli.inference import scoring as likelihood
from hnet_cli.inference.intake import Intake
from hnet_cli.inference.score import PER, Part, ScoreRequest, score, score_bytes
from hnet_cli.inference.segment import segment
from hnet_cli.inference.thresholds import Compression
from hnet_cli.inference.windows import READ_BYTES, windows
from hnet_cli.modality import MARK, Document, Refused, Source
from hnet_cli.model.config import EOS

TEXT, DNA, CHINESE = modality.get("text"), modality.get("dna"), modality.get("chinese")
MODEL = tiny_model(torch.float32).eval()
TINY = {"context": 48, "stride": 20}
GENOME = b">one first\nACGTTGCAAC" + b"ACGTTacgtaGGAT" * 9 + b"\nNNNNNNN" + b"GATTACA" * 11 + b"\r\n>two\nGGGATTACA\n"
SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=4)


def rows_of(data, plugin=TEXT, name="a", **request):
    """The JSON lines of one source or of several."""
    sources = [Source.of_bytes(each, name) for each in ([data] if isinstance(data, bytes) else data)]
    request = ScoreRequest(format="jsonl", **TINY | request)
    return [json.loads(line) for line in "".join(score(MODEL, sources, plugin, request)).splitlines()]


def written(sources, plugin, intake=None, **request):
    return "".join(score(MODEL, sources, plugin, ScoreRequest(**TINY | request), intake))


def total(data, plugin, mirrored=False):
    """Bits of the documents of a source as `hnet eval` counts them."""
    items = [item for item in plugin.documents(Source.of_bytes(data)) if not isinstance(item, Refused)]
    read = [item.data.translate(plugin.input_table) for item in items]
    read = [plugin.mirror(each) for each in read] if mirrored else read
    return likelihood.score(MODEL, read, **TINY).bits.sum()


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize(("data", "plugin"), [(b"Bits of \xe4\xb8\x96 add up. " * 20, TEXT), (GENOME, DNA)])
def test_rows_add_up_to_what_eval_counts(per, data, plugin):
    rows = rows_of(data, plugin, per=per, window=17 if per == "window" else None)
    assert sum(row["bits"] for row in rows) == pytest.approx(total(data, plugin), abs=1e-6 * len(rows) + 1e-3)
    if per != "document":
        alone = rows_of(data, plugin, per="byte")
        at = {(row.get("record"), row["start"]): row["bits"] for row in alone}
        for row in rows:
            bits = sum(at[row.get("record"), place] for place in range(row["start"], row["end"]))
            assert row["bits"] == pytest.approx(bits, abs=1e-5 * (row["end"] - row["start"]))


def test_a_record_is_one_row_in_its_own_coordinates():
    """Gaps are in its span and not in its length; lower case is read as upper."""
    one, two = rows_of(GENOME, DNA)
    assert (one["record"], one["start"], one["end"], one["length"]) == (
        "one",
        0,
        10 + 14 * 9 + 7 + 77,
        10 + 14 * 9 + 77,
    )
    assert (two["record"], two["start"], two["end"], two["length"]) == ("two", 0, 9, 9)
    assert one["bits_per_byte"] == pytest.approx(one["bits"] / one["length"], abs=1e-6)
    assert one["perplexity"] == pytest.approx(2 ** one["bits_per_byte"], rel=1e-5)
    assert [row["bits"] for row in rows_of(GENOME.upper(), DNA)] == [one["bits"], two["bits"]]
    windows = rows_of(GENOME, DNA, per="window", window=50)
    edges = [(row["start"], row["end"]) for row in windows if row["record"] == "one"]
    assert edges == [(0, 50), (50, 100), (100, 136), (143, 150), (150, 200), (200, 220)]


def test_chunks_are_those_of_segment():
    data = "Some words here, 世界. ".encode() * 90  # more than a window of either
    source = Source.of_bytes(data, "a")
    for stage in ("1", "all"):
        lines = "".join(segment(MODEL, [source], TEXT, format="jsonl", stage=stage)).splitlines()
        keys = ("stage", "start", "end")
        expected = [(*(row[key] for key in keys), row.get("text", row.get("bytes"))) for row in map(json.loads, lines)]
        rows = rows_of(data, per="chunk", stage=stage)
        assert [(*(row[key] for key in keys), row.get("text", row.get("bytes"))) for row in rows] == expected


@given(
    st.integers(1, 30), st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), max_size=3), st.integers(0, 40)
)
def test_windows_are_a_grid_over_the_source(width, documents, offset):
    parts, expected = [], []
    for sizes in documents:
        document = Document(bytes(sum(sizes)), "r", "s", offset=offset)
        bits = np.arange(sum(sizes)) + 1.0
        for at, size in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False):
            parts.append(Part(document, at, b"", bits[at : at + size]))
        place = offset + np.arange(sum(sizes))
        for number in np.unique(place // width):
            inside = place // width == number
            expected.append((place[inside][0], place[inside][-1] + 1, bits[inside].sum()))
    rows = [
        row
        for each in scoring._by_window(parts, width)
        for row in zip(each.starts.tolist(), each.ends.tolist(), each.bits.tolist(), strict=True)
    ]
    assert rows == expected


def test_both_strands_are_averaged_base_by_base():
    sequence = b"ACGTTGCAACGGATTCCAGTTTACGC" * 5
    request = ScoreRequest(**TINY)
    forward, backward = score_bytes(MODEL, [sequence, DNA.mirror(sequence)], request)
    record = b">r\n" + sequence + b"\n"
    both = [row["bits"] for row in rows_of(record, DNA, per="byte", both_strands=True)]
    assert both == pytest.approx(((forward + backward[::-1]) / 2).tolist(), abs=1e-5)
    halves = total(GENOME, DNA) + total(GENOME, DNA, mirrored=True)
    assert sum(row["bits"] for row in rows_of(GENOME, DNA, both_strands=True)) == pytest.approx(halves / 2, rel=1e-6)


PAIRS = [("dog\n", "dogs"), ("mouse\n" * 12, "mice and more mice " * 5), ("", "no prompt"), ("an empty one:", "")]
PAIRS += [("a prompt longer than a window " * 90, "its answer, longer too " * 150)]


def in_rows(pairs):
    """Sources of rows of prompt and completion."""
    return [
        Source.of_bytes((prompt + completion).encode(), f"rows.jsonl:{number}", "", len(prompt.encode()))
        for number, (prompt, completion) in enumerate(pairs, start=1)
    ]


@pytest.mark.parametrize("plugin", [TEXT, None])
@pytest.mark.parametrize("context", [0, 16, 48])
@pytest.mark.parametrize("per", PER)
def test_of_rows_the_completions_count(per, context, plugin):
    """Prompts shorter and longer than a window, as `hnet eval` counts them, from 0 where the completion begins."""
    request = ScoreRequest(format="jsonl", context=context, per=per, window=7 if per == "window" else None)
    rows = [json.loads(line) for line in "".join(score(MODEL, in_rows(PAIRS), plugin, request)).splitlines()]
    counted = likelihood.score(
        MODEL,
        [(prompt + completion).encode() + bytes([EOS]) for prompt, completion in PAIRS],
        context or None,
        prompts=[len(prompt) for prompt, _ in PAIRS],
    )
    for number, (_, completion) in enumerate(PAIRS, start=1):
        own = [row for row in rows if row["source"] == f"rows.jsonl:{number}"]
        edges = [row["start"] for row in own] + [own[-1]["end"]]
        assert edges[0] == 0
        assert edges[-1] == len(completion) + 1
        assert edges[1:-1] == [row["end"] for row in own[:-1]]
        bits = counted.by_document().bits[number - 1]
        assert sum(row["bits"] for row in own) == pytest.approx(bits, abs=1e-6 * len(own) + 1e-3)
        if per in ("byte", "chunk"):
            read = b"".join(row["text"].encode() if "text" in row else base64.b64decode(row["bytes"]) for row in own)
            assert read == completion.encode() + bytes([EOS])


@pytest.mark.parametrize("width", [3, 4, 8])
def test_chunks_open_since_the_prompt_have_their_bits(monkeypatch, width):
    """Those of every stage, over as many windows as they span."""
    monkeypatch.setattr(scoring, "windows", partial(windows, width=width, warmup=4))
    sources = in_rows([(f"{number:x}" * number, "mice and more mice") for number in range(1, 16)])
    found = {}
    for per, stage in (("byte", None), ("chunk", "all")):
        request = ScoreRequest(format="jsonl", per=per, stage=stage)
        rows = map(json.loads, "".join(score(MODEL, sources, TEXT, request)).splitlines())
        found[per] = [(row.get("stage"), row["source"], row["start"], row["end"], row["bits"]) for row in rows]
    at = {(source, start): bits for _, source, start, _, bits in found["byte"]}
    for stage in (0, 1):
        own = [row for row in found["chunk"] if row[0] == stage]
        assert sum(end - start for _, _, start, end, _ in own) == len(at)
        for _, source, start, end, bits in own:
            assert bits == pytest.approx(sum(at[source, place] for place in range(start, end)), abs=1e-4)


def test_a_block_that_is_all_prompt_has_no_rows(monkeypatch):
    """A row longer than a pass, read whole: the state is carried through its prompt."""
    monkeypatch.setattr(scoring, "carried_block", lambda model: 16)
    (source,) = in_rows([("a long prompt of several passes\n" * 4, "short")])
    (row,) = "".join(score(MODEL, [source], TEXT, ScoreRequest(format="jsonl", context=0))).splitlines()
    text = source.open().read() + bytes([EOS])
    expected = likelihood.score(MODEL, [text], None, prompts=[source.completion]).bits
    assert json.loads(row)["bits"] == pytest.approx(expected.sum(), abs=1e-4)


def test_rows_of_prompt_and_completion_stay_whole():
    """The same as in `hnet eval --max-bytes`; and they have one direction."""
    pairs = [("four", "five"), ("four", "six")]
    rows = "".join(score(MODEL, in_rows(pairs), TEXT, ScoreRequest(format="jsonl"), max_bytes=3)).splitlines()
    assert [json.loads(row)["length"] for row in rows] == [5]
    with pytest.raises(UsageError, match="read in one direction"):
        "".join(score(MODEL, in_rows([("ACGT", "ACGTAC" * 9)]), DNA, ScoreRequest(both_strands=True)))


def test_bytes_without_a_modality_come_in_blocks():
    """Whatever they are; nothing is read twice, and no more is held than windows need."""
    data = np.random.default_rng(0).integers(0, 250, 2500, np.uint8).tobytes()
    (whole,) = score_bytes(MODEL, [data], ScoreRequest(**TINY))
    rows = rows_of(data, None, per="byte")
    assert [row["bits"] for row in rows] == pytest.approx(whole.tolist(), abs=1e-4)
    chunks = rows_of(data, None, per="chunk")
    assert chunks[0]["start"] == 0
    assert [row["end"] for row in chunks[:-1]] == [row["start"] for row in chunks[1:]]
    assert sum(row["bits"] for row in chunks) == pytest.approx(whole.sum(), rel=1e-6)


@pytest.mark.parametrize("per", PER[1:])
def test_no_more_is_read_than_the_rows_need(per):
    read = 0

    class Zeros(io.RawIOBase):
        def read(self, size=-1):
            nonlocal read
            read += size
            return bytes(size)

    pieces = score(MODEL, [Source("zeros", Zeros)], None, ScoreRequest(per=per, context=256))
    assert all([next(pieces), next(pieces)])
    assert read <= 2 * READ_BYTES


def test_formats_agree():
    rows = rows_of(GENOME, DNA, per="window", window=40)
    source = Source.of_bytes(GENOME, "a")
    head, *lines = written([source], DNA, per="window", window=40).splitlines()
    assert head == "source\trecord\tstart\tend\tbits\tbits_per_byte"
    assert [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines] == [
        {key: f"{value:.6f}" if isinstance(value, float) else str(value) for key, value in row.items()} for row in rows
    ]
    track = [line.split("\t") for line in written([source], DNA, format="bedgraph", window=40).splitlines()]
    assert [line[:3] for line in track] == [[row["record"], str(row["start"]), str(row["end"])] for row in rows]
    assert [float(line[3]) for line in track] == pytest.approx([row["bits_per_byte"] for row in rows], abs=6e-5)


def test_a_track_is_of_bases_and_sorted():
    rows = [line.split("\t") for line in written([Source.of_bytes(GENOME)], DNA, format="bedgraph").splitlines()]
    assert len(rows) == len(GENOME.translate(None, b"N\r\n")) - len(b">one first>two")
    for one, other in pairwise(rows):
        assert one[0] != other[0] or int(one[2]) <= int(other[1])
    assert all(int(row[2]) == int(row[1]) + 1 for row in rows)
    with pytest.raises(InputError, match="b has a record 'one', and so has a"):
        written([Source.of_bytes(GENOME, "a"), Source.of_bytes(GENOME, "b")], DNA, format="bedgraph", per="document")


def test_names_and_texts_are_safe_and_whole():
    row = written([Source.of_bytes(b"tab\tand \xe4\xb8\x96", "a\tb\x1b")], TEXT, per="byte").splitlines()
    assert all(len(line.split("\t")) == 6 for line in row)
    assert row[1].startswith("a\\tb\\x1b\ta\\tb\\x1b\t0\t1\t")
    assert [line.split("\t")[5] for line in row[4:]] == ["\\t", "a", "n", "d", " ", "\\xe4", "\\xb8", "\\x96"]
    last = rows_of(b"\xe4\xb8\x96", per="byte")[-1]
    assert (last["start"], last["bytes"]) == (2, "lg==")


def test_converted_text_says_its_encoding():
    """Offsets are those of the UTF-8 form then, as in `hnet segment`; a mark at the beginning is in the offsets."""
    text = "中华人民共和国城市绿化条例" * 9
    (row,) = rows_of(text.encode("gb18030"), CHINESE)
    assert (row["encoding"], row["start"], row["end"]) == ("GB18030", 0, len(text.encode()))
    (row,) = rows_of(MARK + b"marked", TEXT)
    assert (row["start"], row["end"]) == (3, 9)


@pytest.mark.parametrize(
    ("request_", "plugin", "message"),
    [
        ({"per": "word"}, TEXT, "choose from document, chunk, window, byte"),
        ({"format": "bed"}, DNA, "choose from tsv, jsonl, bedgraph"),
        ({"format": "bedgraph"}, TEXT, "text has no records with coordinates"),
        ({"format": "bedgraph"}, None, "raw bytes has no records"),
        ({"format": "bedgraph", "per": "chunk", "stage": "all"}, DNA, "lie over each other"),
        ({"window": 0}, TEXT, "--window is 0"),
        ({"window": 5, "per": "byte"}, TEXT, "the length of windows"),
        ({"stage": "0"}, TEXT, "say --per chunk too"),
        ({"per": "chunk", "stage": "2"}, TEXT, "no stage '2'"),
        ({"both_strands": True}, TEXT, "text has no other strand"),
        ({"both_strands": True}, None, "no other strand"),
        ({"context": 8, "stride": 9}, TEXT, "longer than the context"),
        ({"context": 0, "stride": 9}, TEXT, "--stride is of windows"),
        ({"stride": 99999}, TEXT, "longer than the context"),
    ],
)
def test_contradictions_are_named_at_once(request_, plugin, message):
    with pytest.raises(UsageError) as error:
        score(MODEL, [], plugin, ScoreRequest(**request_))
    assert error.value.hint
    assert message in f"{error.value} ({error.value.hint})"


def test_the_same_file_again_has_rows_of_its_own():
    assert [(row["start"], row["end"]) for row in rows_of([b"one file", b"one file"])] == [(0, 8), (0, 8)]
    with pytest.raises(InputError, match="record 'one', twice"):
        written([Source.of_bytes(GENOME, "a")] * 2, DNA, format="bedgraph", per="byte")


def test_nothing_to_score_is_an_error():
    with pytest.raises(InputError, match="nothing to score: empty"):
        written([Source.of_bytes(b"")], None)
    intake = Intake()
    written([Source.of_bytes(b""), Source.of_bytes(b"some")], TEXT, intake=intake)
    assert intake.refused == {"empty": 1}


def test_a_model_of_tokens_has_no_chunks():
    isotropic = tiny_model(config=tiny_config(("m1",)))
    with pytest.raises(UsageError, match="no chunking stages"):
        score(isotropic, [], TEXT, ScoreRequest(per="chunk"))


def test_scores_from_python(tmp_path):
    model = hnet_cli.load("starter:dna")
    one = model.score("ACGTTGCA")
    many = model.score([b"acgttgca", b"", "GGGATT"])
    assert one.tolist() == pytest.approx(many[0].tolist())
    assert [len(each) for each in many] == [8, 0, 6]
    mirrored = model.score(DNA.mirror(b"ACGTTGCA"))
    assert model.score("ACGTTGCA", both_strands=True).tolist() == pytest.approx(((one + mirrored[::-1]) / 2).tolist())
    with pytest.raises(UsageError, match="--stride"):
        model.score("ACGT", context=2, stride=3)


def test_a_chosen_length_is_met():
    model, intake = tiny_model(torch.float32), Intake()
    options = {"request": ScoreRequest(per="chunk"), "intake": intake, "compression": Compression((), (4, 20))}
    source = Source.of_bytes(np.random.default_rng(0).bytes(800), "a")
    _, *rows = "".join(score(model, [source], **options)).splitlines()
    assert intake.applied.reached == pytest.approx([4, 20], rel=0.05)
    assert len(rows) == pytest.approx(200, rel=0.05)
