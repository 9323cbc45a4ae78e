"""The split, by a plain account of the rule."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from corpuskit import Lines, make, text, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rowkit import rows_dataset, rows_file

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.data.prepare.split import LEFT_OUT, ON_BOTH, TO_NONE, TO_TRAIN, TO_VAL, make_split
from hnet_cli.data.prepare.store import Writer, content_hash
from hnet_cli.errors import InputError
from hnet_cli.modality import Document, Modality, Refused, Source


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


@pytest.mark.parametrize("number", [60, 12])
def test_a_conversation_is_on_one_side(number: int, tmp_path: Path) -> None:
    """Though all begin alike: rows of equal prompts are all trained on or all held out, and none is moved for it."""
    path = tmp_path / "x.jsonl"
    with path.open("w") as file:
        for n in range(number):
            said = ["Hi", "Hello.", f"What is {n} and {n}?", f"{2 * n}, " + "as everybody knows " * 5]
            roles = ["user", "assistant"] * 2
            talk = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
            file.write(json.dumps({"messages": talk}) + "\n")
    summary = prepare([path], modality.get("text"), tmp_path / "out", val=0.2, measure=False)
    dataset = Dataset.open(tmp_path / "out")
    talks = {
        split: {dataset.name(n).rpartition(".")[0] for n in dataset.ranges(split)[:, 0].tolist()}
        for split in ("train", "val")
    }
    assert summary.rule == ("whole groups" if number > 20 else "the end of the corpus")
    assert summary.notes[LEFT_OUT] == len(talks["val"]) > number / 12
    assert not talks["train"] & talks["val"]
    prompts = {}
    for split in talks:
        rows = dataset.table[dataset.ranges(split)[:, 0]]
        stored = (dataset.shards.read(int(row[0]), int(row[0] - row[3])) for row in rows)
        prompts[split] = {bytes(prompt) for prompt in stored}
    assert not prompts["train"] & prompts["val"]


@pytest.mark.parametrize("data", [b"x", b"a\n" * 500, b"x" * 2047])
def test_too_little_data_is_explained(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match=f"too little data.*{len(data):,}"):
        make(tmp_path / "out", tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 99),
    groups=st.integers(1, 60),
    copies=st.booleans(),
    val=st.floats(0.01, 0.5),
    at_once=st.sampled_from([1, 7, 1 << 20]),
)
def test_the_split_goes_by_the_order_of_keys(
    seed: int,
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
    rng = np.random.default_rng(seed)
    drawn = zip(rng.integers(0, 30, 100).tolist(), rng.integers(0, groups, 100).tolist(), strict=True)
    documents = [
        ((b"%d" % (content if copies else 1000 + n)).ljust(40 + 10 * content), f"group {group}")
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


BLOCK = 1 << 16
"""Rows of a table that are looked at at once."""


@pytest.mark.parametrize(
    ("groups", "first_val", "rule", "sides"),
    [
        (["", BLOCK + 464, "", 2000], BLOCK + 464, "the inputs given for validation", (BLOCK + 464, 2000)),
        (["", 300, "", BLOCK + 2000], 300, "the inputs given for validation", (300, BLOCK + 2000)),
        (["all", 2 * BLOCK + 100], None, "the end of the corpus", (None, None)),
        (["large", BLOCK + 10, "", 3000], None, "whole groups", (None, None)),
        (["", 3000, "large", 2 * BLOCK], None, "whole groups", (None, None)),
    ],
)
def test_blocks_of_the_table_that_are_of_one_side(
    groups: list[str | int], first_val: int | None, rule: str, sides: tuple[int | None, ...], tmp_path: Path
) -> None:
    """In whichever block: no documents are lost."""
    folder = tmp_path / "done"
    folder.mkdir()
    writer, documents = Writer(folder), 0
    for group, count in zip(groups[::2], groups[1::2], strict=True):
        for _ in range(int(count)):
            writer.add(b"document %d\n" % documents, 0, 0, "n", str(group))
            documents += 1
    writer.close()
    split = make_split(folder, writer.bytes, 0.01, first_val, lambda data, near: near)
    assert split.rule == rule
    assert split.counts["train"]["bytes"] + split.counts["val"]["bytes"] == writer.bytes
    if first_val is not None:
        assert tuple(split.counts[name]["documents"] for name in ("train", "val")) == sides
    else:
        assert split.counts["val"]["bytes"] == pytest.approx(0.01 * writer.bytes, rel=0.5)
        assert split.groups == len({group for group in groups[::2] if group}) + 3000 * ("" in groups)


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def pages(count: int) -> list[str]:
    return [text(seed, 400).decode() for seed in range(count)]


def contents_of(dataset: Dataset, split: str) -> set[bytes]:
    """Documents of a split, as the model reads them."""
    table = modality.get(dataset.modality).input_table if dataset.modality != "lines" else None
    return {document.translate(table) for document in dataset.documents(split)}


@pytest.mark.parametrize("count", [100, 30, 10])
@pytest.mark.parametrize("order", ["one after the other", "again and again"])
def test_rows_five_times_are_on_one_side(count: int, order: str, tmp_path: Path) -> None:
    found = pages(count)
    given = found * 5 if order == "again and again" else [page for page in found for _ in range(5)]
    prepare([rows(tmp_path / "x.jsonl", given)], modality.get("text"), tmp_path / "out", val=0.1, measure=False)
    dataset = Dataset.open(tmp_path / "out")
    assert not contents_of(dataset, "train") & contents_of(dataset, "val")
    assert 0.05 < dataset.nbytes("val") / dataset.about["bytes"] < 0.2
    assert dataset.about["notes"] == {"row read from its field 'text'": 5 * count}


def test_files_records_and_members_that_are_copies_are_on_one_side(tmp_path: Path) -> None:
    """Small files, files of several documents, compressed ones, members of archives; records of FASTA."""
    folder = tmp_path / "in"
    folder.mkdir()
    for n, page in enumerate(pages(30)):
        (folder / f"{n}.txt").write_text(page)
        (folder / f"{n}-copy.txt.gz").write_bytes(gzip.compress(page.encode()))
    with tarfile.open(folder / "all.tar", "w") as archive:
        for n in range(30):
            archive.add(folder / f"{n}.txt", f"{n}.txt")
    prepare([folder], modality.get("text"), tmp_path / "out", val=0.1, measure=False)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.about["split_rule"] == "whole groups"
    assert not contents_of(dataset, "train") & contents_of(dataset, "val")
    assert 0.05 < dataset.nbytes("val") / dataset.about["bytes"] < 0.15

    rng = np.random.default_rng(0)
    records = ["".join("ACGT"[base] for base in rng.integers(0, 4, 300)) for _ in range(40)]
    masked = [record[:100] + record[100:200].lower() + record[200:] for record in records]
    rna = [record.replace("T", "U") for record in records]
    given = enumerate(records + masked + rna)
    (tmp_path / "x.fa").write_text("".join(f">{n}\n{record}\n" for n, record in given))
    prepare([tmp_path / "x.fa"], modality.get("dna"), tmp_path / "dna", val=0.1, measure=False)
    dataset = Dataset.open(tmp_path / "dna")
    assert not contents_of(dataset, "train") & contents_of(dataset, "val")
    assert dataset.nbytes("val") == pytest.approx(0.1 * dataset.about["bytes"], rel=0.3)


@pytest.mark.slow
def test_groups_of_many_documents_that_are_copies_count_as_one(tmp_path: Path) -> None:
    """Each file a group of lines, each there twice under another name."""
    source = tree(tmp_path / "in", 30)
    for file in list(source.iterdir()):
        (source / f"copy-{file.name}").write_bytes(file.read_bytes())
    summary, dataset = make(tmp_path / "out", source, val=0.1)
    assert summary.rule == "whole groups"
    assert summary.notes == {}
    assert not contents_of(dataset, "train") & contents_of(dataset, "val")
    names = {dataset.name(n).split("\t")[0] for n in dataset.ranges("val")[:, 0].tolist()}
    assert {name.replace("copy-", "") for name in names} == {name for name in names if "copy-" not in name}


def test_what_groups_have_in_common_is_trained_on(tmp_path: Path) -> None:
    """A licence in every repository."""
    source = tree(tmp_path / "in", 30)
    for file in source.iterdir():
        file.write_bytes(file.read_bytes() + b"The licence is the same in all.\n")
    summary, dataset = make(tmp_path / "out", source, val=0.1)
    held_out = len({dataset.table[n, 2] for n in dataset.ranges("val")[:, 0].tolist()})
    assert summary.notes == {TO_TRAIN: held_out}
    assert not contents_of(dataset, "train") & contents_of(dataset, "val")
    assert sum(dataset.nbytes(split) for split in dataset.splits) == summary.bytes


def test_copies_of_documents_that_the_user_holds_out_are_not_trained_on(tmp_path: Path) -> None:
    found = pages(50)
    train = rows(tmp_path / "train.jsonl", found + found[:10])
    val = rows(tmp_path / "val.jsonl", [*found[5:10], "of its own " * 20])
    options = {"val_inputs": [val], "measure": False}
    summary = prepare([train], modality.get("text"), tmp_path / "out", **options)
    assert summary.notes[TO_NONE] == 10
    assert summary.splits["train"]["documents"] == 50
    assert summary.splits["val"]["documents"] == 6
    dataset = Dataset.open(tmp_path / "out")
    assert not contents_of(dataset, "train") & contents_of(dataset, "val")
    copy = rows(tmp_path / "copy.jsonl", found)
    with pytest.raises(InputError, match="nothing is left to train on"):
        prepare([copy], modality.get("text"), tmp_path / "none", val_inputs=[train], measure=False)


def test_a_divided_document_with_a_copy_is_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [b"".join(b"%d of %d\n" % (n, seed) for n in range(count)) for seed, count in ((1, 3000), (2, 1000))]
    for name, data in (("1.txt", lines[0]), ("2.txt", lines[1]), ("3.txt", lines[1])):
        (tmp_path / "in" / name).write_bytes(data)
    summary = prepare([tmp_path / "in"], modality.get("text"), tmp_path / "out", val=0.02, measure=False)
    dataset = Dataset.open(tmp_path / "out")
    assert summary.notes[TO_VAL] == 1
    assert contents_of(dataset, "train") == {lines[0]}
    assert list(dataset.documents("val")) == [lines[1], lines[1]]


def test_a_corpus_of_one_document_many_times_is_split_and_said(tmp_path: Path) -> None:
    page = "all the same, " + text(1, 400).decode()
    prepare([rows(tmp_path / "x.jsonl", [page] * 50)], modality.get("text"), tmp_path / "out", val=0.1, measure=False)
    about = Dataset.open(tmp_path / "out").about
    assert about["notes"][ON_BOTH] == 5
    assert about["near_duplicates"]["found"]


def test_the_split_does_not_depend_on_names_or_order(tmp_path: Path) -> None:
    """It goes by contents: rows in another file in another order are held out as before."""
    found = pages(200)
    sides = []
    for name, texts in (("a", found), ("b", found[::-1])):
        prepare([rows(tmp_path / f"{name}.jsonl", texts)], modality.get("text"), tmp_path / name, measure=False)
        sides.append(contents_of(Dataset.open(tmp_path / name), "val"))
    assert sides[0] == sides[1]


class Ungrouped(Lines):
    """A plugin that names no groups."""

    group = ""

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        for item in super().documents(source):
            yield item._replace(group=self.group) if isinstance(item, Document) else item


class Together(Ungrouped):
    group = "all"


class InHalves(Ungrouped):
    """Puts each half of a folder's files into a group."""

    def select(self, root: Path, files: Iterable[Path]) -> Iterator[tuple[Path, str] | Refused]:
        for file in files:
            yield file, f"{int(file.stem) // 30}"


@pytest.mark.parametrize(
    ("plugin", "groups", "rule"),
    [
        (Ungrouped(), None, "whole groups"),
        (Together(), 1, "the end of the corpus"),
        (InHalves(), 2, "the end of the corpus"),
        (Lines(), 60, "whole groups"),
    ],
)
def test_documents_without_a_group_are_groups_of_their_own(
    plugin: Modality, groups: int | None, rule: str, tmp_path: Path
) -> None:
    source = tree(tmp_path / "in", 60)
    summary = prepare([source], plugin, tmp_path / "out", val=0.1, measure=False)
    assert (summary.rule, summary.groups) == (rule, groups or len(set(text_lines(source))))


def text_lines(folder: Path) -> list[bytes]:
    return [line for file in folder.iterdir() for line in file.read_bytes().splitlines()]


def test_held_out_documents_are_named(tmp_path: Path) -> None:
    summary, dataset = make(tmp_path / "out", tree(tmp_path / "in", 60), val=0.1)
    held_out = [dataset.name(n) for n in dataset.ranges("val")[:, 0].tolist()]
    assert summary.held_out == dataset.about["held_out"] == held_out[:5]


def test_rows_of_one_prompt_are_on_one_side(tmp_path: Path) -> None:
    pairs = [(f"{'many words ' * 3}{n % 40}\n", f"answer {n}") for n in range(160)]
    dataset = rows_dataset(tmp_path, pairs)
    prompts = [{bytes(row).partition(b"\n")[0] for row in dataset.documents(split)} for split in ("train", "val")]
    assert len(prompts[0]) + len(prompts[1]) == 40
    assert not prompts[0] & prompts[1]


def test_few_rows_are_not_divided(tmp_path: Path) -> None:
    rows = rows_file(tmp_path / "rows.jsonl", [(f"{'many words ' * 60}{n}\n", "x" * 400) for n in range(4)])
    summary = prepare([rows], modality.get("text"), tmp_path / "out", val=0.1, measure=False)
    dataset = Dataset.open(tmp_path / "out")
    assert summary.rule == "the end of the corpus"
    assert [row[1:] for row in dataset.ranges("val").tolist()] == [[0, 1063]]
    assert len(dataset.ranges("train")) == 3
    rows_file(rows, [("many words " * 400, "x")])
    with pytest.raises(InputError, match="too little data to hold some out"):
        prepare([rows], modality.get("text"), tmp_path / "two", val=0.1, measure=False)
