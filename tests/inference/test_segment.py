"""Segmenting whole sources: nothing is lost, and what is reported is what was written."""

import base64
import json
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model
from segmentkit import MODEL, TEXT, written

from hnet_cli import modality
from hnet_cli.data import tokens
from hnet_cli.errors import InputError, UsageError
from hnet_cli.inference.segment import Beside, Summary, segment, segment_bytes, stages_of
from hnet_cli.inference.thresholds import UNCHANGED
from hnet_cli.inference.windows import window_of, windows
from hnet_cli.modality import Document, Source


@one_in(5)
@given(st.binary(max_size=300), st.integers(0, 1))
def test_chunks_joined_are_the_input(data, stage):
    chunks = segment_bytes(MODEL, data, stage)
    assert b"".join(chunks) == data
    assert all(chunks)


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


def test_every_byte_a_boundary():
    model = tiny_model(torch.float32, config=tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "fixed", "k": 1}))
    chunks = segment_bytes(model, b"a" * 5000)
    assert chunks == [b"a"] * 5000


def test_without_a_modality_bytes_are_bytes():
    data = random.Random(8).randbytes(3000)
    records = [json.loads(line) for line in written(data, "jsonl", 0, plugin=None).splitlines()]
    assert b"".join(base64.b64decode(r["bytes"]) if "bytes" in r else r["text"].encode() for r in records) == data


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
    summary = Summary(MODEL.config)
    with pytest.raises(InputError, match="nothing to segment"):
        written(b"\xff\xfe\xfd" * 9, "plain", summary=summary)
    assert sum(summary.intake.refused.values()) == 1
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


def test_the_model_beside_carries_its_state_too():
    """Its past is then as long as the first one's."""
    sources = [Source.of_bytes(TEXT.encode() * 60, "a")]
    beside = Beside(MODEL, "another", lambda: sources)
    found = {}
    for carried in (False, True):
        shown, _, _ = beside.windows(None, None, UNCHANGED, carried)
        own = windows(MODEL, [Document(TEXT.encode() * 60, "a", "a")], carried=carried)
        found[carried] = [window.probability for window in shown]
        assert all(np.array_equal(a, b.probability, True) for a, b in zip(found[carried], own, strict=True))
    assert not np.array_equal(*map(np.concatenate, found.values()), True)


def test_tokens_beside_are_those_of_what_models_read():
    """Lower case of DNA is upper case, to a tokenizer as to a model."""
    plugin = modality.get("dna")
    tokenizer = tokens.Tokenizer(tokens.learn([b"ACGTTGCAGG" * 90], 270))
    found = []
    for sequence in (b"ACGTTGCAGG" * 9, b"ACGT" + b"tgcaggacgt" * 8 + b"tgcagg"):
        source = Source.of_bytes(b">a\n" + sequence + b"\n", "a.fa")
        shown, _, _ = Beside(tokenizer, "tokens", lambda source=source: [source]).windows(
            plugin, None, UNCHANGED, False
        )
        found.append([window.starts.tolist() for window in shown])
    assert found[0] == found[1]
    assert len(found[0][0]) < 60


def test_ends_of_records_are_by_the_names_of_the_rows():
    """NCBI sets names apart by ^A, which rows escape."""
    plugin, source = modality.get("dna"), Source.of_bytes(b">chr\x011\nGATTACAGATTACA\n>two\nGGATTACA\n", "a.fa")
    summary = Summary(MODEL.config, plugin)
    rows = "".join(segment(MODEL, [source], plugin, format="bedgraph", summary=summary)).splitlines()
    assert {row.split("\t")[0] for row in rows} == {"chr\\x011", "two"}
    assert summary.ends == {"chr\\x011": 14, "two": 8}
