"""Vectors: those of the model's own pass, whatever is beside a document and however it is read."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model

from hnet_cli import modality
from hnet_cli.errors import InputError, NumericalError, UsageError
from hnet_cli.inference import embed as embedding
from hnet_cli.inference.embed import Pool, Wanted, embed, embed_bytes
from hnet_cli.inference.intake import Intake
from hnet_cli.inference.segment import segment_bytes
from hnet_cli.inference.thresholds import Compression
from hnet_cli.inference.windows import BOS, Stream, windows
from hnet_cli.modality import Document, Source
from hnet_cli.model.hidden import LAYERS, Layer, caught, stack_of

MODEL = tiny_model(torch.float64)
DATA = random.Random(0).randbytes(150)
ALL = [
    Wanted(per, stage, layer, pool)
    for per in ("document", "chunk")
    for stage in (0, 1)
    for layer in LAYERS
    for pool in ("mean", "last")
]


def pooled(wanted, documents, model=MODEL, texts=False, aligned=False, **options):
    """(starts, ends, vectors) of every document by its name, and the texts."""
    layer = wanted.layer_of(model)
    pool, found = Pool(wanted, layer, texts, aligned), {}
    for window in windows(model, documents, layers=[layer], **options):
        block = pool(window, window.vectors[0])
        assert len(block.starts) == len(block.ends) == len(block.vectors)
        found.setdefault(window.document.name, []).append(block)
    parts = ("starts", "ends", "vectors")
    return {
        name: (
            *(np.concatenate([getattr(block, part) for block in own]) for part in parts),
            [text for block in own for text in block.texts or ()],
        )
        for name, own in found.items()
    }


def alike(one, other):
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
    np.testing.assert_allclose(one[2], other[2], rtol=1e-4, atol=1e-5)
    assert one[3] == other[3]


def whole_pass(model, layer, data):
    """The layer's vectors (n, D) and where their bytes or chunks begin, from one pass of the model."""
    ids = torch.tensor(list(BOS + data))
    with torch.no_grad(), caught([stack_of(model, layer)]) as outputs:
        out = model(ids[None])
    at = np.arange(len(ids))
    for routing in out.routing[: layer.level]:
        at = at[routing.boundary_mask.numpy()]
    values = outputs[stack_of(model, layer)].numpy()
    keep = at > 0 if not layer.level or (at[1:2] == 1).all() else at >= 0
    return np.maximum(at - 1, 0)[keep], values[keep]


@pytest.mark.parametrize("wanted", ALL[::2] + ALL[1::6], ids=lambda w: f"{w.per}-{w.stage}-{w.layer}-{w.pool}")
def test_vectors_are_the_means_of_the_models_own(wanted):
    """Of one pass, though they are read in five."""
    places, values = whole_pass(MODEL, Layer(wanted.stage, wanted.layer), DATA)
    ((starts, ends, vectors, _),) = pooled(wanted, [Document(DATA, "a", "a")], carried=True, batch_bytes=37).values()
    sizes = [len(DATA)] if wanted.per == "document" else list(map(len, segment_bytes(MODEL, DATA, wanted.stage)))
    assert (ends - starts).tolist() == sizes
    for start, end, vector in zip(starts, ends, vectors, strict=True):
        own = values[(places >= start) & (places < end)]
        np.testing.assert_allclose(vector, own.mean(0) if wanted.pool == "mean" else own[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@one_in(5)
@given(
    st.binary(min_size=1, max_size=100),
    st.integers(12, 60),
    st.sampled_from([*ALL, Wanted("window", 0, "decoder", window=7), Wanted("window", 1, "main", "last", window=3)]),
)
def test_however_a_document_is_cut_or_batched(data, size, wanted):
    """With a carried state: of blocks, among strangers, the vectors of one pass. Without: the same windows."""
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    strangers = [Document(b"stranger " * 3, "b", "b"), Stream(blocks, "a", "a"), Document(data[::-1], "c", "c")]
    alone = pooled(wanted, [Document(data, "a", "a")], texts=True)["a"]
    alike(pooled(wanted, strangers, texts=True)["a"], alone)
    alike(pooled(wanted, strangers, texts=True, carried=True, batch_bytes=size)["a"], alone)
    strangers[1] = Stream(blocks, "a", "a")
    small = {"width": 16, "warmup": 4, "texts": True}
    alike(
        pooled(wanted, strangers, batch_bytes=90, **small)["a"],
        pooled(wanted, [Document(data, "a", "a")], batch_bytes=1, **small)["a"],
    )


def test_the_mean_over_the_chunks_of_a_document_is_the_documents():
    chunks, whole = (embed_bytes(MODEL, DATA, Wanted(per, 1, "main")).vectors for per in ("chunk", "document"))
    np.testing.assert_allclose(chunks.mean(0), whole[0], rtol=1e-5)


def test_chunks_and_windows_cover_a_document():
    for wanted in (Wanted("chunk", 0), Wanted("chunk", 1), Wanted("window", window=40)):
        ((starts, ends, _, texts),) = pooled(wanted, [Document(DATA, "a", "a")], texts=True, width=64).values()
        assert starts[0] == 0
        assert ends[-1] == len(DATA)
        assert starts[1:].tolist() == ends[:-1].tolist()
        assert b"".join(texts) == DATA
        assert [len(text) for text in texts] == (ends - starts).tolist()


def test_windows_of_records_lie_in_one_grid():
    """Whatever gaps divide a record; else they begin with the document."""
    part = Document(DATA[:50], "chr1", "g.fa", offset=1013)
    starts, ends, _, _ = pooled(Wanted("window", window=20), [part], aligned=True)["chr1"]
    assert starts.tolist() == [1013, 1020, 1040, 1060]
    assert ends.tolist() == [1020, 1040, 1060, 1063]
    assert pooled(Wanted("window", window=20), [part])["chr1"][0].tolist() == [1013, 1033, 1053]


def test_a_window_inside_a_chunk_has_the_vector_of_the_chunk():
    fixed = tiny_model(config=tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "fixed", "k": 40}))
    data, wanted = DATA[:100], Wanted("window", layer="main", window=10)
    for options in ({}, {"carried": True, "batch_bytes": 7}):
        _, _, vectors, _ = pooled(wanted, [Document(data, "a", "a")], fixed, **options)["a"]
        chunks = embed_bytes(fixed, data, Wanted("chunk", layer="main"))
        owner = np.searchsorted(chunks.start, np.arange(0, 100, 10) + 9, "right") - 1
        np.testing.assert_allclose(vectors, chunks.vectors[owner], rtol=1e-5, atol=1e-6)


def test_documents_in_memory():
    texts = ["The quick", b"brown", "世界"]
    together = embed_bytes(MODEL, texts)
    assert together.document.tolist() == [0, 1, 2]
    assert together.end.tolist() == [9, 5, 6]
    assert np.asarray(together).dtype == np.float32
    for text, vector in zip(texts, together.vectors, strict=True):
        np.testing.assert_allclose(embed_bytes(MODEL, text).vectors[0], vector, atol=1e-6)
    chunks = embed_bytes(MODEL, texts, Wanted("chunk", 0, dtype="float16"))
    assert chunks.vectors.dtype == np.float16
    assert np.bincount(chunks.document).tolist() == [
        len(segment_bytes(MODEL, t if isinstance(t, bytes) else t.encode())) for t in texts
    ]
    assert embed_bytes(MODEL, []).vectors.shape == (0, 32)
    with pytest.raises(UsageError, match="document 1 is empty"):
        embed_bytes(MODEL, ["a", ""])


def test_records_have_their_own_coordinates():
    fasta = b">one\nACGTACGTAC" + b"ACGT" * 20 + b"NNNN" + b"GATTACA" * 10 + b"\n>two\n" + b"TTGA" * 20 + b"\n"
    blocks = list(embed(MODEL, [Source.of_bytes(fasta, "g.fa")], modality.get("dna")))
    assert [(b.document.name, *b.starts, *b.ends) for b in blocks] == [("one", 0, 90), ("one", 94, 164), ("two", 0, 80)]


def test_a_model_without_stages_has_vectors_of_bytes():
    plain = tiny_model(config=tiny_config(("T2",)))
    _, values = whole_pass(plain, Layer(-1, "main"), DATA)
    np.testing.assert_allclose(embed_bytes(plain, DATA).vectors[0], values.mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="no chunking stages"):
        embed_bytes(plain, DATA, Wanted("chunk"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"per": "page"}, "--per is 'page'"),
        ({"layer": "head"}, "--layer"),
        ({"pool": "max"}, "--pool"),
        ({"dtype": "float8"}, "--dtype"),
        ({"window": 5}, "--window"),
        ({"per": "window", "window": 1 << 30}, "--window"),
        ({"stage": 2}, "no stage 2"),
        ({"stage": -1}, "no stage -1"),
    ],
)
def test_what_does_not_exist_is_named(choice, message):
    with pytest.raises(UsageError, match=message):
        embed_bytes(MODEL, DATA, Wanted(**choice))


def test_text_is_of_chunks_and_windows_and_nothing_gives_nothing():
    with pytest.raises(UsageError, match="is the file"):
        embed(MODEL, [], texts=True)
    with pytest.raises(InputError, match="nothing to embed"):
        list(embed(MODEL, [Source.of_bytes(b"")]))


def test_what_half_precision_cannot_hold_is_said(monkeypatch):
    big = tiny_model(torch.float32)
    with torch.no_grad():
        stack_of(big, Layer(0, "decoder")).rmsnorm.weight.mul_(1e6)
    assert len(embed_bytes(big, DATA)) == 1
    with pytest.raises(NumericalError, match="float16"):
        embed_bytes(big, DATA, Wanted(dtype="float16"))
    assert embedding.WINDOW == 1000


def test_a_chosen_length_is_met():
    model, intake = tiny_model(torch.float32), Intake()
    sources = [Source.of_bytes(np.random.default_rng(0).bytes(800), "a")]
    chosen = {"intake": intake, "compression": Compression((), (4, 20))}
    made = sum(len(block.starts) for block in embed(model, sources, None, Wanted(per="chunk"), **chosen))
    assert intake.applied.reached == pytest.approx([4, 20], rel=0.05)
    assert made == pytest.approx(200, rel=0.05)
