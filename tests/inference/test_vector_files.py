"""Vectors in files: the same in each format, as their libraries read them."""

import base64
import json
import sys

import numpy as np
import pytest
import torch
from modelkit import tiny_model

from hnet_cli.errors import BusyError, EnvironmentLimit, UsageError
from hnet_cli.inference import vector_files
from hnet_cli.inference.embed import Wanted, embed
from hnet_cli.inference.segment import segment_bytes
from hnet_cli.modality import Source

MODEL = tiny_model(torch.float32)
TEXT = "A naïve café, 世界和平!\n" * 3
SOURCES = [TEXT.encode(), b"another", b"\xff\xfe"]
NAMES = ["a.txt", "b\n\x1b.txt", "c" * 1200]


def blocks(wanted):
    sources = [Source.of_bytes(data, name) for data, name in zip(SOURCES, NAMES, strict=True)]
    return embed(MODEL, sources, None, wanted, texts=wanted.per != "document")


def write(path, wanted=Wanted("chunk", 0), overwrite=False):  # noqa: B008
    layer = wanted.layer_of(MODEL)
    texts, width = wanted.per != "document", MODEL.config.d_model[layer.level]
    with vector_files.writer(path, width, wanted.dtype, texts, {"pool": "mean"}, overwrite, []) as add:
        for block in blocks(wanted):
            add(block)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_formats_hold_the_same(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(vector_files, "COPIED", 1 << 10)
    monkeypatch.setattr(vector_files, "GROUP_BYTES", 1 << 10)
    parquet = pytest.importorskip("pyarrow.parquet")
    wanted = Wanted("chunk", 0, dtype=dtype)
    found = list(blocks(wanted))
    expected = np.concatenate([block.vectors for block in found])
    chunks = [chunk for data in SOURCES for chunk in segment_bytes(MODEL, data)]

    with np.load(write(tmp_path / "x.npz", wanted)) as arrays:
        assert arrays["vectors"].dtype == dtype
        assert np.array_equal(arrays["vectors"], expected)
        assert arrays["source"].tolist() == ["a.txt", r"b\x0a\x1b.txt", "c" * 1000]
        assert np.bincount(arrays["document"]).tolist() == [len(segment_bytes(MODEL, data)) for data in SOURCES]
        ends = arrays["text_end"].tolist()
        text = arrays["text"].tobytes()
        assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == chunks
        assert json.loads(str(arrays["about"])) == {"pool": "mean"}
        numbers = arrays["start"], arrays["end"]

    table = parquet.read_table(write(tmp_path / "x.parquet", wanted))
    assert np.array_equal(np.stack(table["vector"].to_numpy()), expected)
    assert json.loads(table.schema.metadata[b"hnet"]) == {"pool": "mean"}
    rows = table.drop_columns("vector").to_pylist()

    lines = [json.loads(line) for line in write(tmp_path / "x.jsonl", wanted).read_text().splitlines()]
    assert np.array_equal(np.array([line.pop("vector") for line in lines], dtype), expected)
    for line, row, chunk, start, end in zip(lines, rows, chunks, *numbers, strict=True):
        raw = line.pop("bytes", None)
        assert raw is None or base64.b64decode(raw) == chunk == row["bytes"]
        assert line == {key: row[key] for key in line}
        assert line.get("text", chunk) in (chunk, chunk.decode("utf-8", "replace"))
        assert (line["start"], line["end"]) == (start, end)
    assert {line["name"] for line in lines} == set(NAMES)


@pytest.mark.parametrize("name", ["x.npz", "x.parquet", "x.jsonl"])
def test_what_fails_leaves_nothing(tmp_path, name):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), vector_files.writer(tmp_path / name, 64, "float32", False, {}, False, []):
        fail()
    assert not list(tmp_path.iterdir())
    (tmp_path / name).write_text("mine")
    with pytest.raises(BusyError):
        write(tmp_path / name, Wanted())
    assert (tmp_path / name).read_text() == "mine"
    write(tmp_path / name, Wanted(), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_formats_are_told_by_name(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no known format"):
        vector_files.check(tmp_path / "x.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentLimit, match="pyarrow"):
        vector_files.check(tmp_path / "x.parquet")
