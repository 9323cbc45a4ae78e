"""`hnet embed` on files and pipes."""

import json

import numpy as np
import pytest
from clikit import check_mistake, hnet

from hnet_cli.checkpoints.find import load


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("embed", 2, "FILE..."),
        ("embed nowhere.txt", 3, "nowhere.txt does not exist"),
        ("embed empty.txt --model runs/fox --out x.npz", 3, "nothing to embed"),
        ("embed file.txt --model nowhere", 3, "there is no model at nowhere"),
        ("embed genome.fa --model runs/fox", 3, "looks like dna, but runs/fox is a model of text"),
        ("embed file.txt --model runs/fox --stage 7", 2, "no stage 7 (this model has one: 0)"),
        ("embed file.txt --model runs/fox --per page", 2, "document, chunk, window"),
        ("embed file.txt --model runs/fox --layer head", 2, "encoder, main, decoder"),
        ("embed file.txt --model runs/fox --pool max", 2, "mean, last"),
        ("embed file.txt --model runs/fox --dtype int8", 2, "float32, float16"),
        ("embed file.txt --model runs/fox --window 9", 2, "--per window"),
        ("embed file.txt --model runs/fox --per window --window 0", 2, "1 to 1,048,576 bytes"),
        ("embed file.txt --model runs/fox --text", 2, "the text of a document is the file"),
        ("embed file.txt --model runs/fox --out x.csv", 2, ".npz, .parquet, .jsonl"),
        ("embed file.txt --model runs/fox --out file.txt", 2, "no known format"),
        ("embed rows.jsonl --model runs/fox --out rows.jsonl", 73, "is an input"),
        ("embed file.txt --model runs/fox --out no/where.npz", 74, "no/where"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


def test_the_documented_examples(own, capsys):
    """Those of docs/embeddings.md, on a file of this folder."""
    model = load("runs/fox")
    data = (own / "file.txt").read_bytes()[:1500]
    (own / "file.txt").write_bytes(data)
    (own / "genome.fa").write_bytes((own / "genome.fa").read_bytes()[:2000])
    assert hnet("embed file.txt --model runs/fox --out vectors.npz") == 0
    assert hnet("embed file.txt --model runs/fox --per chunk --text") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(line["text"] for line in lines) == data.decode()
    assert hnet("embed genome.fa --model starter:dna --per window --window 500 --dtype float16 --out g.npz") == 0
    with np.load("vectors.npz") as vectors, np.load("g.npz") as windows:
        np.testing.assert_allclose(vectors["vectors"], model.embed(data).vectors, rtol=1e-4, atol=1e-5)
        assert vectors["source"].tolist() == ["file.txt"]
        assert windows["name"].tolist() == ["chr1"]
        assert windows["start"].tolist() == [0, 500, 1000, 1500]
        assert windows["vectors"].dtype == np.float16
    assert model.embed([data.decode(), "more"], per="chunk", layer="decoder", pool="last").document[-1] == 1
