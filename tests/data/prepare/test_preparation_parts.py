"""Parts on many machines, stretches of large files, several processes: always the bytes of one go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from corpuskit import Lines, text, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.cli.app import run
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import planning
from hnet_cli.data.prepare.preparation import join, part_folder, prepare, whole_folder
from hnet_cli.data.prepare.split import make_split
from hnet_cli.data.prepare.store import Writer
from hnet_cli.errors import DamagedError, InputError, UsageError


def same(one: Path, other: Path) -> bool:
    return {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in other.iterdir()}


def in_parts(out: Path, parts: int, *inputs: Path, **options: Any) -> list[Path]:
    plugin = options.pop("modality", Lines())
    return [
        prepare(list(inputs), plugin, out, part=(part, parts), measure=False, **options).path
        for part in range(1, parts + 1)
    ]


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 5, 40])
def test_parts_joined_are_the_whole(parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, in any order given, also with more parts than units, with refusals and with --val-input."""
    monkeypatch.setattr(planning, "UNIT_FILES", 3)
    source = tree(tmp_path / "in", 20)
    (source / "loop").symlink_to(source)
    (source / "bad.txt").write_bytes(b"# refused\n" * 40)
    (source / "x.jsonl").write_text(json.dumps({"text": "from a row\n" * 30}) + "\n{\n")
    options: dict[str, Any] = {"val_inputs": [source / "004.txt"], "modality": modality.get("text"), "tolerated": 0.2}
    whole = tmp_path / "whole"
    prepare([source], options["modality"], whole, measure=False, tolerated=0.2, val_inputs=options["val_inputs"])
    del options["tolerated"]
    folders = in_parts(tmp_path / "x", parts, source, **options)
    assert folders[-1] == part_folder(tmp_path / "x", parts, parts)
    assert whole_folder(folders[0]) == tmp_path / "x"
    summary = join(folders[::-1], tmp_path / "x", measure=False, tolerated=0.2)
    assert same(whole, tmp_path / "x")
    assert summary.documents == Dataset.open(whole).about["documents"]


def test_wrong_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "UNIT_FILES", 3)
    source = tree(tmp_path / "in", 12)
    one, two, three = in_parts(tmp_path / "x", 3, source, modality=modality.get("text"))
    other = in_parts(tmp_path / "y", 3, source, val=0.2, modality=modality.get("text"))
    for folders, why in (
        ([one, three], "part 2 of 3 is missing"),
        ([one, two, two, three], "part 2 of 3 is there twice"),
        ([one, other[1], three], "part-2-of-3 and .*part-1-of-3 are not parts of one dataset"),
        ([one, two, tmp_path / "whole"], "whole is not a part"),
    ):
        if folders[-1].name == "whole":
            prepare([source], modality.get("text"), tmp_path / "whole", measure=False)
        with pytest.raises(DamagedError, match=why):
            join(folders, tmp_path / "joined", measure=False)
    with pytest.raises(InputError, match="no folder"):
        join([one, tmp_path / "none"], tmp_path / "joined")
    for name in ("part.json", "manifest.json", "shard-00000.bin", "documents.bin"):
        copy = tmp_path / "copy"
        shutil.copytree(two, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 4
        (copy / name).write_bytes(data)
        with pytest.raises(DamagedError, match=name):
            join([one, copy, three], tmp_path / "joined", measure=False)
        shutil.rmtree(copy)
    assert not (tmp_path / "joined").exists()
    assert not list(tmp_path.glob(".*"))


def test_parts_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "in", 6)
    for part in ("1/2", "2/2"):
        assert run(["prepare", "in", "--modality", "text", "--part", part]) == 0
    assert "hnet prepare --join" in capfd.readouterr().err
    assert run(["prepare", "--join", "data/in.part-1-of-2"]) == 4
    assert "part 2 of 2 is missing" in capfd.readouterr().err
    assert run(["prepare", "--join", "data/in.part-2-of-2", "data/in.part-1-of-2"]) == 0
    assert Dataset.open(tmp_path / "data" / "in").about["modality"] == "text"
    for wrong in (["in", "--part", "3/2"], ["in", "--part", "x"], ["in", "--join", "--part", "1/2"]):
        assert run(["prepare", *wrong]) == 2
    with pytest.raises(UsageError, match="standard input cannot be prepared in parts"):
        prepare(["-"], Lines(), tmp_path / "y", part=(1, 2))


# --- stretches of large files -----------------------------------------------------------------------------------------


LINE = st.one_of(st.sampled_from(["", "a", "word " * 9, "é中🙂" * 4]), st.text(max_size=60))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, min_size=1, max_size=60), end=st.sampled_from(["\n", "\r\n"]), unit=st.integers(40, 400))
def test_large_text_is_read_in_stretches(
    lines: list[str], end: str, unit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever the borders fall, every byte is in exactly one document, at the offset that the document says."""
    place = tmp_path_factory.mktemp("x")
    data = (end.join(lines).replace("\0", "") + end).encode() + text(1, 3000)
    (place / "x.txt").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "UNIT_BYTES", unit)
        prepare([place / "x.txt"], modality.get("text"), place / "out", measure=False)
    dataset = Dataset.open(place / "out")
    kept = dataset.shards.read(0, dataset.about["bytes"])
    lost = sum(entry["bytes"] for entry in dataset.about["refused"].values())
    assert len(kept) + lost == len(data)
    assert "empty" not in dataset.about["refused"]
    for start, length, _, offset, _, _ in dataset.table.tolist():
        assert kept[start : start + length] == data[offset : offset + length]
    sources = dataset.about["sources"]
    assert len(sources) > 2
    assert sum(source["size"] for source in sources) == len(data)
    assert len(set(dataset.table[:, 5].tolist())) == 1  # one file is one group


def test_large_rows_are_read_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows longer than a stretch too; the field is told by the first row of the file, and rows by their byte."""
    rows = [{"id": n, "content": f"{n} " * (1 + n % 50 * 5)} for n in range(300)]
    rows[100]["content"] = "long " * 2000
    lines = [json.dumps(row) for row in rows]
    lines[200] = "{"
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    text = modality.get("text")
    prepare([tmp_path / "x.jsonl"], text, tmp_path / "one", measure=False)
    monkeypatch.setattr(planning, "UNIT_BYTES", 1000)
    for workers in (1, 2):
        prepare([tmp_path / "x.jsonl"], text, tmp_path / f"many{workers}", measure=False, workers=workers)
    assert same(tmp_path / "many1", tmp_path / "many2")
    one, many = Dataset.open(tmp_path / "one"), Dataset.open(tmp_path / "many1")
    assert one.shards.read(0, one.about["bytes"]) == many.shards.read(0, many.about["bytes"])
    assert one.about["notes"] == many.about["notes"]
    where = len("\n".join(lines[:200])) + 1
    assert many.about["refused"]["row is not JSON"]["first"].endswith(f"x.jsonl@{where}")
    assert len(many.about["sources"]) > 50


@pytest.mark.parametrize("name", ["x.fa", "x.txt.gz", "x.tar"])
def test_what_cannot_be_divided_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip
    import io
    import tarfile

    monkeypatch.setattr(planning, "UNIT_BYTES", 500)
    data = text(1, 40_000)
    if name == "x.fa":
        data = b">a\n" + b"ACGTTGCA\n" * 4000
        (tmp_path / name).write_bytes(data)
    elif name == "x.tar":
        with tarfile.open(tmp_path / name, "w") as archive:
            member = tarfile.TarInfo("a.txt")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    else:
        (tmp_path / name).write_bytes(gzip.compress(data))
    plugin = modality.get("dna" if name == "x.fa" else "text")
    prepare([tmp_path / name], plugin, tmp_path / "out", measure=False)
    assert len(Dataset.open(tmp_path / "out").about["sources"]) == 1


# --- the split, by a plain account of the rule ------------------------------------------------------------------------


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
    import numpy as np

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


def test_large_tables_are_read_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups with the columns of FineWeb-Edu: every row once, by its number, with any number of processes."""
    import pyarrow
    from pyarrow import parquet

    rows = [f"document {number} " + "of the web " * 40 for number in range(1000)]
    columns = {
        "text": rows, "id": [f"<urn:uuid:{n}>" for n in range(1000)], "dump": ["CC-MAIN-2024-10"] * 1000,
        "url": ["https://example.org"] * 1000, "file_path": ["s3://commoncrawl"] * 1000, "language": ["en"] * 1000,
        "language_score": [0.9] * 1000, "token_count": [90] * 1000, "score": [3.1] * 1000, "int_score": [3] * 1000,
    }  # fmt: skip
    table = pyarrow.table(columns)
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=50, compression="none", use_dictionary=False)
    text = modality.get("text")
    prepare([tmp_path / "x.parquet"], text, tmp_path / "one", measure=False)
    monkeypatch.setattr(planning, "UNIT_BYTES", 30_000)
    for workers in (1, 2):
        prepare([tmp_path / "x.parquet"], text, tmp_path / f"many{workers}", measure=False, workers=workers)
    join(in_parts(tmp_path / "joined", 3, tmp_path / "x.parquet", modality=text), tmp_path / "joined", measure=False)
    assert same(tmp_path / "many1", tmp_path / "many2")
    assert same(tmp_path / "many1", tmp_path / "joined")
    one, many = Dataset.open(tmp_path / "one"), Dataset.open(tmp_path / "many1")
    assert many.shards.read(0, many.about["bytes"]) == "".join(rows).encode()
    assert [many.name(n) for n in range(1000)] == [one.name(n) for n in range(1000)]
    assert many.name(777).endswith("x.parquet:778")
    sources = many.about["sources"]
    assert len(sources) > 5
    assert sum(source["size"] for source in sources) == (tmp_path / "x.parquet").stat().st_size
