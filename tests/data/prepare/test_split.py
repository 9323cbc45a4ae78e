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
from hnet_cli.data.prepare.split import ON_BOTH, TO_TRAIN, TO_VAL, make_split
from hnet_cli.data.prepare.store import Writer, content_hash
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


CONTENTS = st.integers(0, 30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    groups=st.integers(1, 60),
    copies=st.booleans(),
    val=st.floats(0.01, 0.5),
    at_once=st.sampled_from([1, 7, 1 << 20]),
)
def test_the_split_goes_by_the_order_of_keys(
    data: st.DataObject,
    groups: int,
    copies: bool,
    val: float,
    at_once: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """However little of the tables is looked at at once, the groups held out are those the rule says; and no content
    is on both sides unless that is said."""
    folder = tmp_path_factory.mktemp("x") / "done"
    folder.mkdir()
    writer = Writer(folder)
    drawn = data.draw(st.lists(st.tuples(CONTENTS, st.integers(0, groups - 1)), min_size=60, max_size=120))
    documents = [
        ((b"%d" % (content if copies else 1000 + n)).ljust(40 + content), f"group {group}")
        for n, (content, group) in enumerate(drawn)
    ]
    for document, group in documents:
        writer.add(document, 0, 0, "n", group)
    writer.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hnet_cli.data.prepare.split._ROWS_AT_ONCE", at_once)
        split = make_split(folder, writer.bytes, val, None, lambda data, near: near)
    assert list(folder.parent.iterdir()) == [folder]

    keys: dict[str, int] = {}
    for document, group in documents:
        keys[group] = keys.get(group, 0) + content_hash(document)
    sizes: dict[int, int] = {}
    for group in keys:
        keys[group] = (keys[group] + 2**63) % 2**64 - 2**63
        size = sum(len(document) for document, other in documents if other == group)
        sizes[keys[group]] = sizes.get(keys[group], 0) + size
    wanted, taken, chosen = val * writer.bytes, 0, set()
    for key in sorted(sizes):
        if taken < 0.9 * wanted and taken + sizes[key] <= 1.5 * wanted:
            chosen.add(key)
            taken += sizes[key]
    lengths = np.zeros((2, len(documents)), int)
    for side, name in enumerate(("train", "val")):
        for document, _, length in np.fromfile(folder / f"split-{name}.bin", "<i8").reshape(-1, 3).tolist():
            lengths[side, document] += length
    assert lengths.sum(axis=0).tolist() == [len(document) for document, _ in documents]
    assert lengths.sum(axis=1).tolist() == [split.counts[name]["bytes"] for name in ("train", "val")]
    assert split.groups == len(keys)
    if len(keys) < 20 or taken < 0.5 * wanted:
        assert split.rule == "the end of the corpus"
        assert split.notes or abs(split.counts["val"]["bytes"] - wanted) <= 1
    else:
        assert split.rule == "whole groups"
        moved = {n for n, (_, group) in enumerate(documents) if (lengths[1, n] > 0) != (keys[group] in chosen)}
        assert len(moved) == sum(split.notes[note] for note in (TO_TRAIN, TO_VAL))
    divided = lengths.all(axis=0)
    assert divided.sum() <= 1
    sides = [{documents[n][0] for n in np.flatnonzero(lengths[side] * ~divided).tolist()} for side in (0, 1)]
    assert not sides[0] & sides[1] or split.notes[ON_BOTH]
    assert copies or not split.notes
