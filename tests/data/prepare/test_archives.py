"""Members of tar archives: hostile ones refused by reason, nothing written, nothing lost."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from corpuskit import Lines, bgzf, make, stored, text
from runkit import dataset, tiny

from hnet_cli import provenance
from hnet_cli.data.prepare.archives import Member, is_tar, members
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import InputError
from hnet_cli.modality import Document, Refused, Source
from hnet_cli.training.loop import train


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


def test_a_member_that_cannot_be_unpacked_is_named_for_what_it_is(tmp_path: Path) -> None:
    sound = zstandard.compress(text(1))
    wide = b"\x28\xb5\x2f\xfd\x00\xb8\x01\x00\x00"  # a window of 8 GiB
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in {"a.zst": sound, "b.zst": wide, "c.bgz": b"".join(bgzf(text(2))[:-1])}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    summary, dataset = make(tmp_path / "out", tmp_path / "x.tar", tolerated=1.0)
    assert stored(dataset) == text(1)
    assert {reason: where.rpartition(":")[2] for reason, (_, _, where) in summary.refused.items()} == {
        "file that cannot be read here, inside an archive": "b.zst",
        "damaged file inside an archive": "c.bgz",
    }


def packed(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for seed, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(text(seed))
            archive.addfile(member, io.BytesIO(text(seed)))
    return content.getvalue()


def test_what_follows_the_end_is_not_passed_over(tmp_path: Path) -> None:
    """`cat a.tar b.tar`: the second would vanish; padding with zeros, of any length, is none."""
    one = packed("a.txt", "b.txt")
    (tmp_path / "x.tar").write_bytes(one + bytes(3 << 20))
    _, dataset = make(tmp_path / "out", tmp_path / "x.tar")
    assert stored(dataset) == text(0) + text(1)
    for padding in (0, 512, 1 << 20):
        (tmp_path / "x.tar").write_bytes(one + bytes(padding) + packed("c.txt"))
        with pytest.raises(InputError, match=r"x\.tar: more data follows the archive's end"):
            make(tmp_path / "out2", tmp_path / "x.tar")


def test_a_tar_is_known_by_its_first_header() -> None:
    head = packed("a.txt")[:512]
    assert is_tar(head)
    assert not any(map(is_tar, (b"", bytes(512), b"x" * 512, head[:148] + b"1234567\0" + head[156:257] + bytes(255))))


def entry(content: bytes = b"", kind: bytes = tarfile.REGTYPE, name: str = "x.txt", size: int | None = None) -> bytes:
    """A header and its content as a tar holds them; `size` where the header tells another."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content) if size is None else size
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def record(key: str, value: bytes) -> bytes:
    """A record of PAX, which begins with its own length."""
    rest = f" {key}=".encode() + value + b"\n"
    length = next(n for n in range(len(rest), len(rest) + 9) if n == len(rest) + len(str(n)))
    return str(length).encode() + rest


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (entry(b"name\0", b"L") * 5000, "more than 16 headers"),
        (entry(b"13 comment=a\n", b"x") * 5000, "more than 16 headers"),
        (entry(b"13 comment=a\n", b"g") * 5000, "more than 16 headers"),
        (entry(b"", b"x", size=1 << 30), "or one of 1,048,576 bytes"),
        (entry(b"", b"L", size=-512), "or one of 1,048,576 bytes"),
        (entry(record("comment", b"a" * 20_000), b"g"), "16,384 bytes about all members"),
        (entry(b"9" * 1_000_000, b"x"), "a header of PAX that is none"),
        (entry(b"9" * 5000 + b" a=b\n", b"x"), "a header of PAX that is none"),
        (entry(b"0 a=b\n", b"x"), "a header of PAX that is none"),
        (entry(record("size", b"9" * 6000), b"x"), "a member of no size"),
        (entry(record("size", b"-512"), b"x"), "a member of no size"),
        (entry(size=-1), "a member of no size"),
    ],
)
def test_headers_about_members_are_bounded(headers: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(headers + entry(text(1)) + bytes(1024))
    with pytest.raises(InputError, match=rf"x\.tar is damaged or truncated: .*{reason}"):
        make(tmp_path / "out", tmp_path / "x.tar")


def test_names_beyond_a_path_and_files_with_holes_are_refused(tmp_path: Path) -> None:
    """A sparse member of 700 bytes can stand for 2^62 zeros."""
    map_of_holes = bytes(483) + tarfile.itn(1 << 62, 12, tarfile.GNU_FORMAT)
    sparse = bytearray(entry(text(3)[:512], b"S"))
    sparse[386:495] = map_of_holes[386:]
    sparse[482] = 1  # the map goes on in a further block
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + sum(sparse[156:512]) + 8 * ord(" "))
    sparse[512:512] = bytes(512)
    holes = record("GNU.sparse.major", b"1") + record("GNU.sparse.realsize", b"1" * 15)
    named, long = record("path", "é.txt".encode()), b"y" * 5000
    parts = [entry(text(1)), sparse, entry(holes, b"x"), entry(text(3)), entry(named, b"x"), entry(text(2))]
    parts += [entry(long + b"\0", b"L"), entry(text(3)), entry(b"y" * 99 + b"\0", b"L"), entry(text(4)), bytes(1024)]
    (tmp_path / "x.tar").write_bytes(b"".join(parts))
    summary, dataset = make(tmp_path / "out", tmp_path / "x.tar")
    assert stored(dataset) == text(1) + text(2) + text(4)
    assert summary.refused["sparse file in an archive"][0] == 2
    assert summary.refused["name longer than 4,096 letters in an archive"][0] == 1
    names = (tmp_path / "out" / "names.txt").read_text()
    assert "x.tar:é.txt" in names
    assert f"x.tar:{'y' * 99}" in names


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a run and a comparison, as hnet writes them."""
    home = tmp_path_factory.mktemp("ours")
    (home / "a.txt").write_bytes(text(4))
    make(home / "data", home / "a.txt")
    provenance.write(home / "data")
    told = home / "cmp"
    train(tiny("train.steps=1"), dataset(tmp_path_factory.mktemp("of")), told / "runs" / "x-s0")
    (told / "runs" / "x-s0" / "log.txt").write_text("made with hnet\n")
    (told / "plan.json").write_text('{"flops_per_byte": {}, "line_up": []}')
    (told / "members").mkdir()
    (told / "members" / "x.yaml").write_text("model: {}\n")
    return home


def pack(target: Path, folder: Path, first: Path | None, plain: dict[str, bytes]) -> None:
    """A tar of a folder, `first` before all else, with further members at the end."""
    with tarfile.open(target, "w") as archive:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path != first):
            archive.add(path, f"in/{path.relative_to(folder)}")
        for name, data in plain.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_what_hnet_wrote_is_left_out_of_archives(ours: Path, tmp_path: Path) -> None:
    """Whatever comes first in the archive; other files of such names are read."""
    others = {"in/log.txt": b"a log\n", "config.json": b'{"x": 1}\n'}
    refused = {"dataset made by hnet": (1, 0), "comparison made by hnet": (1, 0)}
    file = tmp_path / "x.tar"
    written = [path for path in ours.rglob("*") if path.is_file() and path.name != "a.txt"]
    assert len(written) > 15
    for first in written:
        pack(file, ours, first, others)
        items = list(members(str(file), file.open("rb"), lambda: file.open("rb"), Lines(), Counter(), True))
        kept = [item.name.removeprefix(f"{file}:") for item in items if isinstance(item, Member)]
        assert kept == ["in/a.txt", "in/log.txt", "config.json"], first
        told = {item.where.removeprefix(f"{file}:"): item.reason for item in items if isinstance(item, Refused)}
        assert told == {"in/data": "dataset made by hnet", "in/cmp": "comparison made by hnet"}, first
    summary, made = make(tmp_path / "out", file)
    assert {reason: counts[:2] for reason, counts in summary.refused.items()} == refused
    assert stored(made) == text(4) + b"".join(others.values())
    pack(file, ours / "data", None, {})
    with pytest.raises(InputError, match=r"dataset made by hnet \(.*x\.tar:in"):
        make(tmp_path / "out2", file)
