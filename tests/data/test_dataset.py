"""The reader of datasets: every byte is found again, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpuskit import make, text, tree

from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import DamagedError, InputError


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
