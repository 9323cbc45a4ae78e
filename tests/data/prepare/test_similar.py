"""Near-duplicates across the split are found, with bounded work, and what is merely of one kind is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import similar
from hnet_cli.data.prepare.preparation import Summary, prepare

WORDS = ["".join(random.Random(n).choices("abcdefghijklmnop", k=2 + n % 8)) for n in range(3000)]


def page(seed: int, words: int = 150) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "\n"


def reworded(text: str, seed: int) -> str:
    """One word in twelve is another."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) if rng.random() < 1 / 12 else word for word in text.split(" "))


def moved(text: str, seed: int) -> str:
    """Something new stands before it, and the second half before the first."""
    words = text.split(" ")
    return "\n".join([page(10_000 + seed, 20), " ".join(words[75:]), " ".join(words[:75])])


def written(folder: Path, texts: dict[str, str], name: str = "text") -> Summary:
    (folder / "in").mkdir()
    for file, text in texts.items():
        (folder / "in" / file).write_text(text)
    return prepare([folder / "in"], modality.get(name), folder / "out", val=0.1, measure=False)


@pytest.mark.parametrize("changed", [reworded, moved])
def test_old_and_new_versions_are_found(changed: Callable[[str, int], str], tmp_path: Path) -> None:
    texts = {f"{n:03}-old.txt": page(n) for n in range(60)}
    texts |= {f"{n:03}-new.txt": changed(page(n), n) for n in range(60)}
    summary = written(tmp_path, texts)
    found = summary.near_duplicates
    dataset = Dataset.open(tmp_path / "out")
    held_out = {Path(dataset.name(n)).name for n in dataset.ranges("val")[:, 0].tolist()}
    partners = {name[:4] + {"old": "new", "new": "old"}[name[4:7]] + ".txt" for name in held_out}
    assert found["held_out"] == len(held_out)
    assert found["found"] == len(partners - held_out) > 5
    for name, like in found["first"]:
        assert name[:-7] == like[:-7]
    assert dataset.about["near_duplicates"]["first"] == [list(pair) for pair in found["first"]]


def test_pages_of_the_same_words_are_not(tmp_path: Path) -> None:
    summary = written(tmp_path, {f"{n}.txt": page(n) for n in range(120)})
    assert summary.near_duplicates["found"] == 0
    assert summary.near_duplicates["held_out"] > 5
    assert summary.near_duplicates["trained_on"] > 100


def test_what_the_model_reads_is_compared(tmp_path: Path) -> None:
    """A record in upper case and the same soft-masked with a few other bases."""
    rng, texts = random.Random(0), {}
    for n in range(60):
        bases = rng.choices("ACGT", k=600)
        texts[f"{n}a.fa"] = f">a{n}\n{''.join(bases)}\n"
        for at in range(0, 600, 100):
            bases[at] = "A"
        texts[f"{n}b.fa"] = f">b{n}\nAC{''.join(bases).lower()}\n"
    found = written(tmp_path, texts, "dna").near_duplicates
    assert found["found"] >= found["held_out"] / 2 > 3


def test_work_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many documents of each split, spread over it, and so many bytes of each, are looked at."""
    monkeypatch.setattr(similar, "HELD_OUT", 5)
    monkeypatch.setattr(similar, "TRAINED_ON", 20)
    monkeypatch.setattr(similar, "TRAINED_ON_BYTES", 20 * 300)
    read: list[int] = []

    def read_shards(folder: Path, start: int, end: int) -> bytes:
        read.append(end - start)
        return random.Random(start).randbytes(end - start)

    monkeypatch.setattr(similar, "read_shards", read_shards)
    summary = written(tmp_path, {f"{n}.txt": page(n) for n in range(120)})
    held_out = summary.splits["val"]["documents"]
    assert sum(read[-summary.near_duplicates["trained_on"] :]) <= (20 + 2 * 5) * 300
    assert min(5, held_out) - 2 <= len(read) - summary.near_duplicates["trained_on"] <= 5
    assert 10 <= summary.near_duplicates["trained_on"] <= 20 + 2 * 5


def test_a_corpus_that_repeats_itself_is_sampled_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old and new versions in turn: both are looked at though only one document in four is."""
    monkeypatch.setattr(similar, "TRAINED_ON", 60)
    texts = {f"{n:03}-{kind}.txt": page(n) + kind for n in range(120) for kind in ("a", "b")}
    found = written(tmp_path, texts).near_duplicates
    assert 40 <= found["trained_on"] <= 60 + 2 * found["held_out"]
    assert {name[-5] for _, name in found["first"]} == {"a", "b"}


def test_neighbours_are_compared_however_large_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "TRAINED_ON", 5)
    texts = {f"{n:03}-{kind}.txt": page(n) + kind for n in range(120) for kind in ("a", "b")}
    found = written(tmp_path, texts).near_duplicates
    assert found["found"] > found["held_out"] / 2 > 5


@given(st.binary(max_size=400), st.binary(max_size=40), st.binary(max_size=40))
def test_shingles_do_not_depend_on_what_stands_around(data: bytes, before: bytes, after: bytes) -> None:
    alone, around = similar.shingles(data), similar.shingles(before + data + after)
    assert np.isin(alone, around).all()
