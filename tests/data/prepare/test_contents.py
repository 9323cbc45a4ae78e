"""Hostile input and damage: named in one line, nothing half-written."""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from corpuskit import Lines, make, stored, text, tree

from hnet_cli.data.dataset import Dataset, Shards
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.data.prepare.store import Writer, read_shards
from hnet_cli.errors import BusyError, DamagedError, InputError, StorageError
from hnet_cli.modality import Document, Refused, Source


class Grown(Lines):
    """Writes to its file while reading it."""

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        yield from super().documents(source)
        with open(source.name, "ab") as file:
            file.write(b"more\n")


# --- hostile input ----------------------------------------------------------------------------------------------------


def test_folders_full_of_traps(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    (source / "loop").symlink_to(source)
    (source / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "fifo")
    (source / ".hidden").write_bytes(text(9))
    (source / "empty folder").mkdir()
    (source / "archive.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    for name in (b"caf\xe9", b"new\nline", b"\x1b[31mred"):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(text(4))
    summary, dataset = make(tmp_path / "out", source)
    assert {reason: count for reason, (count, _, _) in summary.refused.items()} == {
        "link to a folder read already": 1,
        "link to nothing": 1,
        "device, pipe or socket": 1,
        "hidden file or folder": 1,
        "zip archive: unpack it first": 1,
    }
    assert summary.bytes == sum(len(text(n)) for n in range(3)) + 3 * len(text(4))
    for entry in dataset.about["sources"]:
        assert entry["name"].isprintable()
    for document in range(summary.documents):
        assert dataset.name(document).isascii()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    (source / "001.txt").chmod(0)
    summary, _ = make(tmp_path / "out", source)
    assert list(summary.refused) == ["unreadable: permission denied"]
    with pytest.raises(InputError, match="permission denied"):
        make(tmp_path / "out2", source / "001.txt")


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
        ("x.gz", gzip.compress(text(1))[:-9], "truncated"),
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


def test_missing_empty_and_busy_places(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text(1))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="none does not exist"):
        make(tmp_path / "out", tmp_path / "none")
    with pytest.raises(InputError, match=r"nothing to use in .*folder"):
        make(tmp_path / "out", tmp_path / "folder")
    with pytest.raises(BusyError, match="cannot create"):
        make(tmp_path / "x" / "out", tmp_path / "x")
    make(tmp_path / "out", tmp_path / "x")
    with pytest.raises(BusyError, match="exists already"):
        make(tmp_path / "out", tmp_path / "x")
    make(tmp_path / "out", tmp_path / "x", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["folder", "out", "x"]


def test_a_file_that_changes_while_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text(1))
    with pytest.raises(InputError, match="x changed while it was read"):
        prepare([tmp_path / "x"], Grown(), tmp_path / "out", measure=False)
    assert os.listdir(tmp_path) == ["x"]


def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text(1, 1 << 20))
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
            make(tmp_path / "out", tmp_path / "x")
        except StorageError:
            os._exit(74)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 74
    assert os.listdir(tmp_path) == ["x"]


# --- damage -----------------------------------------------------------------------------------------------------------


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


def test_shards_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that cross shards, with small shards."""
    for module in ("dataset", "prepare.store"):
        monkeypatch.setattr(f"hnet_cli.data.{module}.SHARD", 4096)
        monkeypatch.setattr(f"hnet_cli.data.{module}.BLOCK", 1024)
    rng = np.random.default_rng(1)
    documents = [rng.bytes(int(size)) for size in rng.integers(1, 9000, 40)]
    writer = Writer(tmp_path)
    for data in documents:
        writer.add(data, 0, 0, "x", "x")
    writer.close()
    joined = b"".join(documents)
    shards = Shards(tmp_path, len(joined), np.fromfile(tmp_path / "blocks.bin", "<u4"))
    starts = rng.integers(0, len(joined) - 6000, 200)
    lengths = rng.integers(1, 6000, 200)
    expected = b"".join(joined[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True))
    assert shards.gather(starts, lengths).tobytes() == expected
    assert shards.read(0, len(joined)) == joined
    assert read_shards(tmp_path, 5000, 17_000) == joined[5000:17_000]
    assert len(list(tmp_path.glob("shard-*"))) == -(-len(joined) // 4096)
