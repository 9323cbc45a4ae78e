"""prepare and the reader: nothing lost, nothing half-written, the same bytes every time, hostile input named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from corpuskit import Lines, make, stored, text, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.detection import detect
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import InputError, UsageError
from hnet_cli.modality import Document, Refused, Source

# --- what is kept -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(files=st.lists(st.lists(st.binary(max_size=200), max_size=20), min_size=1, max_size=5))
def test_book_keeping_is_exact(files: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bytes and documents in = kept + refused, and what is kept can be read back."""
    root = tmp_path_factory.mktemp("books")
    (root / "in").mkdir()
    (root / "in" / "base").write_bytes(text(0))
    contents = [text(0)]
    for index, parts in enumerate(files):
        contents.append(b".\n" + b"\n".join(parts))  # what looks like an archive is another test's business
        (root / "in" / f"file{index}").write_bytes(contents[-1])
    summary, dataset = make(root / "out", root / "in")
    kept = [line for data in contents for line in data.splitlines(keepends=True) if not line.startswith(b"#")]
    dropped = [line for data in contents for line in data.splitlines(keepends=True) if line.startswith(b"#")]
    assert stored(dataset) == b"".join(kept)
    assert (summary.documents, summary.bytes) == (len(kept), sum(map(len, kept)))
    assert summary.refused.get("comment", (0, 0, ""))[:2] == (len(dropped), sum(map(len, dropped)))
    assert sorted(b"".join(dataset.documents(s)) != b"" for s in dataset.splits) == [True, True]
    assert sum(dataset.nbytes(split) for split in dataset.splits) == summary.bytes


def test_coordinates_names_and_sources(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(text(1))
    (tmp_path / "b").write_bytes(text(2))
    _, dataset = make(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    files = [(tmp_path / name).read_bytes() for name in "ab"]
    for document, (start, length, source, offset, _, _) in enumerate(dataset.table.tolist()):
        assert dataset.shards.read(start, start + length) == files[source][offset : offset + length]
        assert dataset.name(document).endswith(f"{'ab'[source]}@{offset}")
    assert [entry["size"] for entry in dataset.about["sources"]] == [len(file) for file in files]


def test_all_containers_give_the_same_documents(tmp_path: Path) -> None:
    data = text(5, 30000)
    plain = tmp_path / "x"
    plain.write_bytes(data)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(plain, "folder/x")
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": 1, "content": data.decode()}) + "\n\n")
    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
    for name, pack in packers.items():
        for inner in ("x", "x.tar", "x.jsonl"):
            (tmp_path / f"{inner}.{name}").write_bytes(pack((tmp_path / inner).read_bytes()))
    inputs = sorted(tmp_path.iterdir())
    assert len(inputs) == 15
    for number, file in enumerate(inputs):
        _, dataset = make(tmp_path / f"out{number}", file)
        assert stored(dataset) == data, file


def test_standard_input(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from corpuskit import Lines; from hnet_cli.data.prepare.preparation import prepare\n"
        "print(prepare(['-'], Lines(), sys.argv[2], measure=False).bytes)"
    )
    for number, data in enumerate([text(1), gzip.compress(text(1))]):
        kits, out = Path(__file__).parents[2] / "kits", tmp_path / f"out{number}"
        command = [sys.executable, "-c", program, str(kits), str(out)]
        done = subprocess.run(command, input=data, capture_output=True, check=True)
        assert int(done.stdout) == len(text(1))
    assert Dataset.open(tmp_path / "out0").about["sources"][0]["size"] == len(text(1))


def test_large_members_of_archives_can_be_opened_twice(tmp_path: Path) -> None:
    class Twice(Lines):
        def documents(self, source: Source) -> Iterator[Document | Refused]:
            with source.open() as stream:
                first = stream.read(10)
            with source.open() as stream:
                data = stream.read()
            assert data.startswith(first)
            yield Document(data, source.name, source.name, source.group)

    data = text(3) * 4000  # more than is kept in memory
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", compresslevel=1) as archive:
        for name in ("a", "b"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    summary = prepare([tmp_path / "x.tar.gz"], Twice(), tmp_path / "out", measure=False)
    assert (summary.documents, summary.bytes) == (2, 2 * len(data))


def test_bad_rows_are_refused_by_reason_and_number(tmp_path: Path) -> None:
    rows = [
        json.dumps({"text": text(1).decode()}),
        "{",
        "[1]",
        '{"text": 3}',
        "{}",
        '{"text": "\\ud800"}',
        "[" * 100000,
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"is damaged, more than 1%: row is not JSON: 2, first .*x\.jsonl:2;"):
        make(tmp_path / "out", tmp_path / "x.jsonl")
    summary, _ = make(tmp_path / "out", tmp_path / "x.jsonl", tolerated=1.0)
    reasons = {reason: (count, where.split(":")[-1]) for reason, (count, _, where) in summary.refused.items()}
    assert reasons == {
        "row is not JSON": (2, "2"),
        "row is not a JSON object": (1, "3"),
        "row has no text in field 'text'": (2, "4"),
        "row with half a surrogate pair": (1, "6"),
    }
    (tmp_path / "y.jsonl").write_text('{"prose": "x"}\n')
    with pytest.raises(UsageError, match="none of the fields"):
        make(tmp_path / "out2", tmp_path / "y.jsonl")


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_same_bytes_whatever_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnet_cli.data.prepare.planning.UNIT_FILES", 4)
    source = tree(tmp_path / "in")
    (source / "z.gz").write_bytes(gzip.compress(text(77) + b"# refused\n"))
    seen: list[int] = []
    for out, workers in (("one", 1), ("two", 2), ("again", 1)):
        make(tmp_path / out, source, workers=workers, measure=True, progress=lambda done, total: seen.append(done))
    for file in (tmp_path / "one").iterdir():
        for other in ("two", "again"):
            assert (tmp_path / other / file.name).read_bytes() == file.read_bytes(), file.name
    assert max(seen) == sum(file.stat().st_size for file in source.iterdir())


def test_errors_in_workers_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnet_cli.data.prepare.planning.UNIT_FILES", 4)
    source = tree(tmp_path / "in")
    (source / "015.txt.gz").write_bytes(gzip.compress(text(1))[:-20])
    with pytest.raises(InputError, match=r"damaged file: 1, first .*015\.txt\.gz is truncated"):
        make(tmp_path / "out", source, workers=2)
    assert os.listdir(tmp_path) == ["in"]


# --- the split --------------------------------------------------------------------------------------------------------


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


# --- detection --------------------------------------------------------------------------------------------------------


def test_a_stray_file_does_not_decide_for_a_folder(tmp_path: Path) -> None:
    """The larger files do, and the stray one is named, whatever is more certain of itself."""
    genome = b">chr1\n" + b"ACGTTGCAACGGTTAC\n" * 40
    (tmp_path / "a.fa").write_bytes(genome)
    (tmp_path / "b.txt").write_text("It was the best of times, it was the worst of times.\n" * 500)
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.7\n")
    name, _, why = detect([tmp_path])
    assert name == "text"
    assert f"{tmp_path}/a.fa looks like dna and would be read as text" in why
    (tmp_path / "a.fa").write_bytes(genome * 400)
    assert detect([tmp_path])[0] == "dna"
    # nor does a long README for the sources beside it
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "README.md").write_text("What this program is about and how to use it.\n" * 500)
    for n in range(6):
        (tmp_path / "p" / f"{n}.py").write_text("import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 20)
    assert detect([tmp_path / "p"])[0] == "code"


def test_detection(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genome = b">chr1\n" + b"\n".join(rng.choice([b"A", b"C", b"G", b"T"], 60).tobytes() for _ in range(200)) + b"\n"
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "genome.fa.gz").write_bytes(gzip.compress(genome))
    (tmp_path / "g" / "notes.tsv").write_bytes(text(1))
    (tmp_path / "prose.txt").write_text("It was the best of times, it was the worst of times.\n" * 50)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "一个人在北京的街道上慢慢地走着。" * 50}) + "\n")
    (tmp_path / "program.py").write_text("import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 20)
    (tmp_path / "noise").write_bytes(rng.bytes(5000))
    (tmp_path / "empty").write_bytes(b"")
    found = {name: detect([tmp_path / name])[0] for name in ("g", "prose.txt", "rows.jsonl", "program.py")}
    assert found == {"g": "dna", "prose.txt": "text", "rows.jsonl": "chinese", "program.py": "code"}
    annotation = b"##gff-version 3\n" + b"chr1\tx\tgene\t5\t20\t.\t+\t.\tID=h\n" * 3000
    (tmp_path / "g" / "genome.gff").write_bytes(annotation)
    assert detect([tmp_path / "g"])[0] == "dna"
    with pytest.raises(InputError, match="no known modality"):
        detect([tmp_path / "noise"])
    with pytest.raises(InputError, match="no data"):
        detect([tmp_path / "empty"])
    program = (
        "from hnet_cli.data.prepare.detection import detect\n"
        "import sys; print(detect(['-'])[0], len(sys.stdin.buffer.read()))"
    )
    for data in (genome, gzip.compress(genome)):
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
        assert done.stdout.split() == [b"dna", b"%d" % len(data)]
