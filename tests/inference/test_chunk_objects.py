"""Chunks as objects: they are those of `segment`, their bits those of `score`, and their pictures are harmless."""

import re
from html import unescape

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model
from segmentkit import MODEL, TEXT

from hnet_cli.errors import UsageError
from hnet_cli.inference.chunk_objects import chunks_of
from hnet_cli.inference.score import score_bytes
from hnet_cli.inference.segment import segment_bytes
from hnet_cli.inference.thresholds import Compression

NAMED = tiny_model(torch.float32, config=tiny_config(extra={"modality": "text"})).eval()


@one_in(5)
@given(st.binary(max_size=300), st.integers(0, 1), st.sampled_from([None, 0.45, 0.55]))
def test_chunks_are_those_of_segment_and_bits_those_of_score(data, stage, threshold):
    compression, before = Compression.of(threshold, None), MODEL.thresholds
    chunks = chunks_of(MODEL, data, stage, compression)
    assert [chunk.data for chunk in chunks] == segment_bytes(MODEL, data, stage, compression)
    assert [(chunk.start, len(chunk)) for chunk in chunks] == [
        (sum(len(earlier) for earlier in chunks[:n]), len(chunk.data)) for n, chunk in enumerate(chunks)
    ]
    assert MODEL.thresholds == before
    for chunk in chunks:
        assert 1 <= len(chunk.probabilities) <= 2 - stage
        assert chunk.start == 0 or chunk.probability > (threshold or 0.5)
    with compression.used(MODEL, lambda: [data]):
        assert chunks.bits == pytest.approx(score_bytes(MODEL, [data])[0].sum())


def test_a_chunk_tells_what_it_is():
    chunks = chunks_of(NAMED, "Über 世界. ".encode() * 20)
    first = chunks[0]
    assert (first.start, first.probability, first.stage) == (0, 1.0, 0)
    assert "".join(chunk.text for chunk in chunks if not chunk.data.startswith(b"\x80")).startswith("Über")
    assert str(first) == first.text
    assert repr(first).startswith(f"<{first.text!r} 0:{first.end}, p 1.00, ")
    assert chunks[:2].data == chunks.data[: chunks[1].end]
    assert chunks[2:4] == chunks[2:4] != chunks[1:3]
    assert str(chunks).replace("|", "") == "Über 世界. " * 20
    assert repr(chunks).startswith(f"<{len(chunks)} chunks of ")
    assert repr(chunks[:0]) == "<no chunks>"
    assert str(chunks[:0]) == ""
    with pytest.raises(UsageError, match="stage 7"):
        chunks_of(NAMED, b"abc", 7)


def test_the_picture_shows_every_chunk_and_obeys_nothing():
    data = TEXT.encode() + bytes(range(256))
    chunks = chunks_of(NAMED, data)
    page = chunks._repr_html_()
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert set(re.findall(r"</?(\w+)", page)) == {"div", "span"}
    titles = re.findall(r'<span title="bytes (\d+) to (\d+), p', page)
    assert titles[0][0] == "0"
    assert titles[-1][1] == str(len(data))
    shown = unescape("".join(re.findall(r"<span[^>]*>([^<]*)</span>", page)))
    assert "世界和平 & <script>alert(1)</script>.↵\n→" in shown


@pytest.mark.parametrize("text", ["a é", "日本", "é", "b\r\n€ é", "Zoë"])
def test_nothing_is_missing_of_a_short_document(text):
    """Though its last chunk begin inside a character, which is drawn with the one before."""
    with NAMED.set_thresholds(0):
        page = chunks_of(NAMED, text.encode())._repr_html_()
    assert "more" not in page


def test_a_long_document_is_shown_in_part(monkeypatch):
    monkeypatch.setattr("hnet_cli.inference.chunk_objects.SHOWN", 100)
    chunks = chunks_of(MODEL, b"words of a text " * 20)
    rest = int(re.search(r"<p>(\d+) bytes more</p>$", chunks._repr_html_())[1])
    shown = str(chunks).replace("|", "")
    assert 100 <= len(shown) < 120
    assert shown == chunks.data[: len(shown)].decode()
    assert rest == 320 - len(shown)
