"""Stretches of large files: always the bytes of one go."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from corpuskit import Lines, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import planning
from hnet_cli.data.prepare.preparation import join, prepare
from hnet_cli.errors import InputError


def same(one: Path, other: Path) -> bool:
    return {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in other.iterdir()}


def in_parts(out: Path, parts: int, *inputs: Path, **options: Any) -> list[Path]:
    plugin = options.pop("modality", Lines())
    return [
        prepare(list(inputs), plugin, out, part=(part, parts), measure=False, **options).path
        for part in range(1, parts + 1)
    ]


LINE = st.one_of(st.sampled_from(["", "a", "word " * 9, "é中🙂" * 4]), st.text(max_size=60))


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.slow
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


@pytest.mark.parametrize("field", [None, "content"])
def test_large_rows_by_any_name_are_read_in_stretches(
    field: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a byte order mark, at the beginning of a stretch too; a list of rows is not divided."""
    rows = [{"id": n, "content": f"{n} " * (1 + n % 50 * 5)} for n in range(300)]
    texts = "".join(str(row["content"]) for row in rows).encode()
    mark = b"\xef\xbb\xbf"
    (tmp_path / "c4.json").write_bytes(mark + mark.join(json.dumps(row).encode() + b"\n" for row in rows))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    monkeypatch.setattr(planning, "UNIT_BYTES", 1000)
    for name, divided in (("c4.json", True), ("list.json", False)):
        prepare([tmp_path / name], modality.get("text"), tmp_path / f"{name}.out", measure=False, field=field)
        dataset = Dataset.open(tmp_path / f"{name}.out")
        assert dataset.shards.read(0, dataset.about["bytes"]) == texts
        assert (len(dataset.about["sources"]) > 50) == divided
        assert not dataset.about["refused"]


@pytest.mark.parametrize("name", ["x.fa", "x.txt.gz", "x.tar"])
def test_what_cannot_be_divided_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

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


@pytest.mark.slow
def test_large_tables_are_read_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups with the columns of FineWeb-Edu: every row once, by its number, with any number of processes."""
    import pyarrow
    from pyarrow import parquet

    rows = [f"document {number} " + "of the web " * 40 for number in range(1000)]
    columns = {
        "text": rows,
        "id": [f"<urn:uuid:{n}>" for n in range(1000)],
        "dump": ["CC-MAIN-2024-10"] * 1000,
        "url": ["https://example.org"] * 1000,
        "file_path": ["s3://commoncrawl"] * 1000,
        "language": ["en"] * 1000,
        "language_score": [0.9] * 1000,
        "token_count": [90] * 1000,
        "score": [3.1] * 1000,
        "int_score": [3] * 1000,
    }
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


@pytest.mark.slow
def test_stretches_that_cannot_be_used_count_their_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of their file each time: what is refused is a share of what was read."""
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(text(0, 90_000))
    table = pyarrow.table({"title": [f"number {n} " + "of many " * 40 for n in range(1000)]})
    parquet.write_table(
        table, tmp_path / "in" / "b.parquet", row_group_size=50, compression="none", use_dictionary=False
    )
    monkeypatch.setattr(planning, "UNIT_BYTES", 30_000)
    done: list[int] = []
    plugin = modality.get("text")
    with pytest.raises(InputError, match="damaged"):
        prepare([tmp_path / "in"], plugin, tmp_path / "out", measure=False, progress=lambda now, _: done.append(now))
    size = sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
    assert done[-1] <= 1.1 * size
    summary = prepare([tmp_path / "in"], plugin, tmp_path / "out", measure=False, tolerated=1.0)
    count, refused, _ = summary.refused["file without the field"]
    assert count > 5
    assert refused == (tmp_path / "in" / "b.parquet").stat().st_size
