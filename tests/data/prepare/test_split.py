"""The split, by a plain account of the rule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from corpuskit import Lines, make, text, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.data.prepare.split import make_split
from hnet_cli.data.prepare.store import Writer
from hnet_cli.errors import InputError
from hnet_cli.modality import Document, Refused, Source


def test_whole_groups_are_held_out(tmp_path: Path) -> None:
    summary, dataset = make(tmp_path / "out", tree(tmp_path / "in", 60), val=0.1)
    assert summary.rule == "whole groups"
    assert 0.05 < dataset.nbytes("val") / summary.bytes < 0.15
    groups = [set(dataset.table[dataset.ranges(split)[:, 0], 5].tolist()) for split in ("train", "val")]
    assert not groups[0] & groups[1]


def test_the_end_is_held_out_where_groups_are_few(tmp_path: Path) -> None:
    class Whole(Lines):
        def documents(self, source: Source) -> Iterator[Document | Refused]:
            with source.open() as stream:
                yield Document(stream.read(), source.name, source.name, source.group)

        def cut(self, data: bytes, near: int) -> int:
            return data.rfind(b"\n", 0, near) + 1

    data = text(1, 90000)
    (tmp_path / "x").write_bytes(data)
    summary = prepare([tmp_path / "x"], Whole(), tmp_path / "out", val=0.1, measure=False)
    dataset = Dataset.open(tmp_path / "out")
    train, val = (b"".join(dataset.documents(split)) for split in ("train", "val"))
    assert summary.rule == "the end of the corpus"
    assert train + val == data
    assert train.endswith(b"\n")
    assert abs(len(val) / len(data) - 0.1) < 0.01


def test_validation_inputs(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 10)
    summary, dataset = make(tmp_path / "out", source, val_inputs=[source / "003.txt"])
    assert b"".join(dataset.documents("val")) == text(3)
    assert b"".join(dataset.documents("train")) == b"".join(text(n) for n in range(10) if n != 3)
    assert summary.notes == {"files held out by --val-input, so not trained on": 1}


@pytest.mark.parametrize("data", [b"x", b"a\n" * 500, b"x" * 2047])
def test_too_little_data_is_explained(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match=f"too little data.*{len(data):,}"):
        make(tmp_path / "out", tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), groups=st.integers(1, 60), val=st.floats(0.01, 0.5), at_once=st.sampled_from([1, 7, 1 << 20]))
def test_the_split_goes_by_the_order_of_groups(
    data: st.DataObject, groups: int, val: float, at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However little of the table is looked at at once, the groups held out are those the rule says."""
    folder = tmp_path_factory.mktemp("x")
    writer = Writer(folder)
    for size in data.draw(st.lists(st.integers(1, 400), min_size=40, max_size=120)):
        writer.add(b"x" * size, 0, 0, "n", f"group {data.draw(st.integers(0, groups - 1))}")
    if writer.bytes < 2048:
        writer.add(b"x" * 2048, 0, 0, "n", "group 0")
    writer.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hnet_cli.data.prepare.split._ROWS_AT_ONCE", at_once)
        rule, counts, _ = make_split(folder, writer.bytes, val, None, lambda data, near: near)

    table = np.fromfile(folder / "documents.bin", "<i8").reshape(-1, 6)
    wanted, taken, chosen = val * writer.bytes, 0, set()
    sizes: dict[int, int] = {}
    for row in table.tolist():
        sizes[row[5]] = sizes.get(row[5], 0) + row[1]
    for group in sorted(sizes):
        if taken < 0.9 * wanted and taken + sizes[group] <= 1.5 * wanted:
            chosen.add(group)
            taken += sizes[group]
    if len(sizes) < 20 or taken < 0.5 * wanted:
        assert rule == "the end of the corpus"
        assert abs(counts["val"]["bytes"] - wanted) <= 1
    else:
        assert rule == "whole groups"
        held_out = np.fromfile(folder / "split-val.bin", "<i8").reshape(-1, 3)[:, 0]
        assert held_out.tolist() == [n for n, row in enumerate(table.tolist()) if row[5] in chosen]
    assert counts["train"]["bytes"] + counts["val"]["bytes"] == writer.bytes
