"""The order-k model against a plain definition, and sane figures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from corpuskit import Lines, tree
from hypothesis import given
from hypothesis import strategies as st
from rowkit import PAIRS, rows_file

from hnet_cli import modality
from hnet_cli.data import baselines as module
from hnet_cli.data.baselines import baselines, beside, order_k, sample
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.figures import to_beat
from hnet_cli.data.loader import Windows
from hnet_cli.data.prepare.preparation import prepare


def definition(train: bytes, val: bytes, before: bytes, order: int) -> float:
    """Witten-Bell bits per byte of `val` (which follows `before`), byte by byte."""
    counts: dict[bytes, Counter[int]] = defaultdict(Counter)
    for length in range(order + 1):
        for end in range(length, len(train)):
            counts[train[end - length : end]][train[end]] += 1
    bits = 0.0
    past = before
    for byte in val:
        p = 1 / 256
        for length in range(order + 1):
            seen = counts.get(past[len(past) - length :]) if length <= len(past) else None
            if seen:
                p = (seen[byte] + len(seen) * p) / (seen.total() + len(seen))
        bits -= math.log2(p)
        past += bytes([byte])
    return bits / len(val)


@given(
    train=st.binary(min_size=40, max_size=600) | st.text("ACGT", min_size=40, max_size=900).map(str.encode),
    val=st.binary(min_size=1, max_size=100) | st.text("ACGT", min_size=1, max_size=100).map(str.encode),
    bucket=st.sampled_from([50, 1 << 20]),
)
def test_order_k_is_what_it_says(train: bytes, val: bytes, bucket: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BUCKET", bucket)
        k, bits = order_k(train, val)
    aside = len(train) // 16
    assert bits == pytest.approx(definition(train[:-aside], val, train[-aside:], k), rel=1e-9)


def test_known_sources() -> None:
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 4, 300_000)
    letters = np.frombuffer(b"ACGT", np.uint8)
    found = baselines(letters[uniform[:250_000]].tobytes(), letters[uniform[250_000:]].tobytes())
    assert found["order_k"] == pytest.approx(2, abs=0.01)
    assert found["xz"] > 2
    assert found["bytes"] == 50_000
    period = b"the cat sat on the mat. " * 3000
    found = baselines(period, period[:10_000])
    assert found["order_k"] < 0.2
    assert found["xz"] < 0.2


@pytest.mark.parametrize("size", [50, 3000])
def test_bits_to_beat_on_letters_are_at_most_those_of_their_number(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng(1)
    bases = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 4000 + size)].tobytes()
    found = baselines(bases[size:], bases[:size], b"ACGT")
    assert found["uniform"] == 2.0
    assert found["xz"] > 2.0
    assert to_beat(found)[1] <= 2.0
    assert found["order_k"] < 2.1  # its last resort is the uniform distribution over the four, not over 256 bytes
    assert "uniform" not in baselines(bases[size:], b"N" + bases[:size], b"ACGT")


def test_what_stands_beside_a_sample_is_measured_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    easy, hard = tmp_path / "easy.txt", tmp_path / "hard.txt"
    easy.write_bytes(b"the same line\n" * 700)
    hard.write_bytes(np.random.default_rng(0).integers(33, 126, 10_000, np.uint8).tobytes())
    prepare([tree(tmp_path / "in", 30)], Lines(), tmp_path / "out", val_inputs=[easy, hard])
    dataset = Dataset.open(tmp_path / "out")
    whole, some = Windows(dataset, "val", 100), Windows(dataset, "val", 100, 4000)
    assert beside(whole) == dataset.about["baselines"]
    assert beside(whole)["xz"] == pytest.approx(module.xz_bits(whole.read()) / whole.bytes, abs=1e-4)
    found = beside(some)
    assert 3900 <= some.bytes <= 4000
    assert found["bytes"] == some.bytes
    assert found["xz"] == pytest.approx(module.xz_bits(some.read()) / some.bytes, abs=1e-4)
    assert some.read().count(b"the same") == pytest.approx(2000 / 13, rel=0.1)  # half of it
    monkeypatch.setattr(module, "baselines", lambda *_: pytest.fail("it is known"))
    assert beside(some) == found
    assert beside(Windows(dataset, "val", 100, 4000)) == found
    dataset.about["baselines"] = {}
    assert beside(some) == {}


def test_samples_are_spread(tmp_path: Path) -> None:
    summary = prepare([tree(tmp_path / "in", 30)], Lines(), tmp_path / "out", val=0.1)
    assert set(summary.baselines) == {"xz", "zstd", "order_k", "k", "bytes", "method"}
    dataset = Dataset.open(tmp_path / "out")
    ranges = dataset.ranges("train")
    starts = dataset.table[ranges[:, 0], 0] + ranges[:, 1]
    divided = zip(np.array_split(starts, 7), np.array_split(ranges[:, 2], 7), strict=True)
    parts = [(begin, begin + size) for begin, size in divided]
    everything = b"".join(dataset.documents("train"))
    assert sample(dataset.shards.read, parts, len(everything), 1 << 30) == everything
    some = sample(dataset.shards.read, parts, len(everything), 6400)
    assert len(some) == 6400
    for part in range(64):
        at = part * len(everything) // 64
        assert some[part * 100 : (part + 1) * 100] == everything[at : at + 100]


def test_what_does_not_count_is_context_only() -> None:
    random = np.random.default_rng(0)
    train, val = (random.integers(97, 101, size).astype(np.uint8).tobytes() for size in (3200, 60))
    marks = [random.integers(0, 2, size).astype(np.uint8).tobytes() for size in (3200, 60)]
    k, bits = order_k(train, val, 256, (marks[0], marks[1]))
    each = [definition(train[:3000], val[at : at + 1], train[3000:] + val[:at], k) for at in range(60)]
    assert bits == pytest.approx(np.array(each)[np.frombuffer(marks[1], bool)].mean())
    assert order_k(train, val, 256, (bytes([1]) * 3200, bytes([1]) * 60)) == order_k(train, val)
    assert baselines(train, val, b"", (marks[0], marks[1])).keys() == {"order_k", "k", "bytes", "method"}


def test_completions_have_one_figure_wherever_they_are_measured(tmp_path: Path) -> None:
    text = modality.get("text")
    summary = prepare([rows_file(tmp_path / "rows.jsonl", PAIRS * 2)], text, tmp_path / "out", val=0.2)
    dataset = Dataset.open(tmp_path / "out")
    windows = Windows(dataset, "val", 1000)
    assert summary.baselines["bytes"] == windows.bytes == windows.of
    assert beside(windows) == summary.baselines
    shorter = Windows(dataset, "val", 15, windows.of)  # some prompts lose their beginning
    assert beside(shorter)["bytes"] == shorter.bytes


def test_where_no_byte_counts_there_is_no_figure():
    """Prompts alone, since their completions are empty."""
    assert baselines(b"abc" * 400, b"abc" * 40, counted=(b"\1" * 1200, b"\0" * 120)) == {}
