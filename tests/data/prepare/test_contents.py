"""Archives, rows and containers: the same documents, and hostile ones named in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from corpuskit import Lines, make, stored, text

from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import InputError, UsageError
from hnet_cli.modality import Document, Refused, Source


def test_archives_full_of_traps(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, link
            archive.addfile(member, io.BytesIO(data))

        add("../../escape.txt", text(1))
        add("/absolute.txt", text(2))
        add("link", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("hard", kind=tarfile.LNKTYPE, link="/etc/passwd")
        add("device", kind=tarfile.CHRTYPE)
        add("folder", kind=tarfile.DIRTYPE)
        add(".git/config", text(3))
    before = sorted(tmp_path.parent.rglob("*escape*"))
    summary, dataset = make(tmp_path / "out", tmp_path / "x.tar")
    assert stored(dataset) == text(1) + text(2)
    assert summary.refused["link or device in an archive"][0] == 3
    assert summary.refused["hidden file or folder"][:2] == (1, len(text(3)))
    assert sorted(tmp_path.parent.rglob("*escape*")) == before
    packed = (tmp_path / "x.tar").read_bytes()
    for length in (600, 1024, 2048, len(text(1)) + 1100, 5000):
        (tmp_path / "cut.tar").write_bytes(packed[:length])
        with pytest.raises(InputError, match=r"cut\.tar is (damaged or )?truncated"):
            make(tmp_path / "out2", tmp_path / "cut.tar")
    assert sorted(os.listdir(tmp_path)) == ["cut.tar", "out", "x.tar"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty", b"", "nothing to use in .*empty"),
        ("comments", b"# a\n# b\n", r"comment \(.*comments:0\)"),
        ("x.zip", b"PK\x03\x04" + bytes(50), "zip archive"),
        ("x.gz", gzip.compress(text(1), mtime=0)[:-9], "truncated"),
        ("x.tar", b"not a tar" * 500, "damaged or truncated"),
        ("x.jsonl", b"\0\1\2\n" * 9, "row is not JSON"),
        ("cut.parquet", b"PAR1" + bytes(40), "parquet|damaged"),
    ],
)
def test_a_named_input_that_gives_nothing(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good").write_bytes(text(1))
    with pytest.raises(Exception, match=why) as caught:
        make(tmp_path / "out", tmp_path / "good", tmp_path / name)
    assert caught.value.exit_code in (3, 69)  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()


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
