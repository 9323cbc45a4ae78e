"""The reader of datasets: every byte is found again, and damage is named."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from corpuskit import make, text, tree
from strangerkit import changed, resealed

from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import DamagedError, InputError


@pytest.mark.slow
def test_flips_anywhere_are_found_and_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, tree(tmp_path / "in", 40), val=0.1)
    whole = b"".join(b"".join(Dataset.open(out).documents(split)) for split in ("train", "val"))
    rng = np.random.default_rng(0)
    for file in sorted(out.iterdir()):
        good = file.read_bytes()
        for _ in range(20):
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            file.write_bytes(bad)
            try:
                dataset = Dataset.open(out)
                found = b"".join(b"".join(dataset.documents(split)) for split in dataset.splits)
            except DamagedError as error:
                named = str(error)
            else:
                named = "nothing"
                assert found == whole
            # The manifest may differ in white space, or in entries of files for which dataset.json has the digest.
            assert file.name in named or file.name in ("dataset.json", "manifest.json")
            assert (named != "nothing") or file.name == "manifest.json"
        file.write_bytes(good[:-2])
        with pytest.raises(DamagedError):
            Dataset.open(out)
        file.unlink()
        with pytest.raises(DamagedError, match=file.name):
            Dataset.open(out)
        file.write_bytes(good)
    with pytest.raises(InputError, match="no dataset"):
        Dataset.open(tmp_path / "none")


def test_coordinates_names_and_sources(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(text(1))
    (tmp_path / "b").write_bytes(text(2))
    _, dataset = make(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    files = [(tmp_path / name).read_bytes() for name in "ab"]
    for document, (start, length, source, offset, _, _) in enumerate(dataset.table.tolist()):
        assert dataset.shards.read(start, start + length) == files[source][offset : offset + length]
        assert dataset.name(document).endswith(f"{'ab'[source]}@{offset}")
    assert [entry["size"] for entry in dataset.about["sources"]] == [len(file) for file in files]


@pytest.mark.slow
def test_a_dataset_in_use_stays_what_it_was(tmp_path: Path) -> None:
    """Made anew with another text, then deleted."""
    _, dataset = make(tmp_path / "out", tree(tmp_path / "in", 20), val=0.2)
    before = {split: b"".join(dataset.documents(split)) for split in dataset.splits}
    again = Dataset.open(tmp_path / "out")  # its shards are not read before the change
    names = [dataset.name(document) for document in range(len(dataset.table))]
    make(tmp_path / "out", tree(tmp_path / "other", 7), val=0.2, overwrite=True)
    shutil.rmtree(tmp_path / "out")
    again.verify()
    for each in (dataset, again):
        assert {split: b"".join(each.documents(split)) for split in each.splits} == before
        assert [each.name(document) for document in range(len(each.table))] == names


@pytest.mark.parametrize("name", ["shard-00000.bin", "documents.bin", "split-val.bin"])
def test_what_is_cut_or_changed_in_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The same size and all: looked at when first read, and when the file has changed since."""
    monkeypatch.setattr("hnet_cli.data.dataset.TABLE_BYTES", 0)
    _, dataset = make(tmp_path / "out", tree(tmp_path / "in", 20), val=0.2)
    whole, file = b"".join(dataset.documents("val")), tmp_path / "out" / name
    good = file.read_bytes()
    file.write_bytes(good)
    os.utime(file, (1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert b"".join(dataset.documents("val")) == whole, "written anew, but the same"
    with open(file, "r+b") as opened:
        opened.write(bytes(255 - byte for byte in good))
    os.utime(file, (2, 2))
    with pytest.raises(DamagedError, match=name), pytest.warns() if "shard" in name else nullcontext():
        b"".join(dataset.documents("val"))
    os.truncate(file, 5)
    with pytest.raises(DamagedError, match=name), pytest.warns() if "shard" in name else nullcontext():
        b"".join(dataset.documents("val"))


def test_of_a_name_without_end_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnet_cli.data.dataset.NAME_BYTES", 4)
    monkeypatch.setattr("hnet_cli.data.dataset.LONGEST_NAME", 8)
    _, dataset = make(tmp_path / "out", tree(tmp_path / "in", 20), val=0.2)
    names = (tmp_path / "out" / "names.txt").read_text()
    assert dataset.name(0) == names[:8]


def test_large_tables_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnet_cli.data.dataset.PART_ROWS", 3)
    monkeypatch.setattr("hnet_cli.data.dataset.TABLE_BYTES", 0)
    _, dataset = make(tmp_path / "out", tree(tmp_path / "in", 20), val=0.2)
    table, rows = np.asarray(dataset.table), np.random.default_rng(0).integers(0, len(dataset.table), 9)
    assert np.array_equal(dataset.table[rows, 0], table[rows, 0])
    assert np.array_equal(dataset.table[rows], table[rows])
    assert np.array_equal(dataset.table[:, 1], table[:, 1])
    assert np.array_equal(dataset.table[1:17:2], table[1:17:2])
    assert np.array_equal(dataset.table[rows[:0], 0], table[rows[:0], 0])
    assert dataset.table[3, 1] == table[3, 1]
    with pytest.raises(DamagedError, match="there is none"):
        dataset.table[np.array([0, len(table)])]


def test_a_description_of_a_stranger_is_refused_or_can_be_read(tmp_path):
    """Sealed anew, as its owner can."""
    shutil.copytree(Path(__file__).parents[1] / "golden/run-1/dataset", tmp_path / "x")
    stored = json.loads((tmp_path / "x/dataset.json").read_text())
    for number in range(150):
        text, what = changed(stored, random.Random(number))
        (tmp_path / "x/dataset.json").write_text(text)
        resealed(tmp_path / "x")
        with contextlib.suppress(DamagedError):
            dataset = Dataset.open(tmp_path / "x")
            assert all(sum(map(len, dataset.documents(s))) == dataset.nbytes(s) for s in dataset.splits), what


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        *(("documents.bin", 0, value) for value in (-1, 5491, 1 << 62, -(1 << 63))),
        *(("documents.bin", 8, value) for value in (-1, 5491, 1 << 62)),
        *(("documents.bin", 32, value) for value in (-1, 9, 1 << 62)),
        *(("split-train.bin", 0, value) for value in (-1, 1, 1 << 62)),
        *(("split-train.bin", 8, value) for value in (-1, 5491)),
        *(("split-train.bin", 16, value) for value in (0, -1, 4939, 1 << 62)),
        ("documents.bin", 24, -(1 << 40)),  # a prompt that leaves nothing
    ],
)
def test_tables_that_point_elsewhere_are_damage(name, at, value, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(Path(__file__).parents[1] / "golden/run-1/dataset", folder)
    content = bytearray((folder / name).read_bytes())
    content[at : at + 8] = value.to_bytes(8, "little", signed=True)
    (folder / name).write_bytes(content)
    resealed(folder)
    about = json.loads((folder / "dataset.json").read_text())
    about["files"] = json.loads((folder / "manifest.json").read_text())["files"]
    about["files"].pop("dataset.json")
    (folder / "dataset.json").write_text(json.dumps(about))
    resealed(folder)
    with pytest.raises(DamagedError, match=name):
        Dataset.open(folder)


@pytest.mark.parametrize("entries", [255, 257, 300])
def test_tables_of_bytes_have_an_entry_for_each(entries, tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "golden/run-1/dataset", tmp_path / "x")
    file = tmp_path / "x/dataset.json"
    for name in ("input_table", "loss_weights"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: [1] * entries}))
        resealed(tmp_path / "x")
        with pytest.raises(DamagedError, match=f"has {entries} entries, not 256"):
            Dataset.open(tmp_path / "x")
