"""Folders: atomic under kills and full disks, damage named, one writer at a time."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import storage
from hnet_cli.errors import BusyError, DamagedError, StorageError


def fill(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write(target: Path, overwrite: bool = False, **files: bytes) -> None:
    with storage.staged_folder(target, overwrite=overwrite) as folder:
        fill(folder, **files)


def in_child(work: Callable[[], None]) -> int:
    """Exit status of `work` in a forked process."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def test_staged_folder_appears_whole(tmp_path: Path) -> None:
    with storage.staged_folder(tmp_path / "a", manifest={"kind": "model"}) as folder:
        assert folder.parent == tmp_path
        (folder / "deep").mkdir()
        fill(folder, x=b"1")
        fill(folder / "deep", y=b"22")
        assert not (tmp_path / "a").exists()
    manifest = storage.verify_folder(tmp_path / "a")
    assert manifest["kind"] == "model"
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {"x": 1, "deep/y": 2}
    assert os.listdir(tmp_path) == ["a"]


def test_staged_folder_leaves_nothing_after_an_exception(tmp_path: Path) -> None:
    def interrupted() -> None:
        with storage.staged_folder(tmp_path / "a") as folder:
            fill(folder, x=b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_existing_folder_is_replaced_only_on_demand(tmp_path: Path) -> None:
    write(tmp_path / "a", x=b"old")
    with pytest.raises(BusyError, match="exists already"):
        write(tmp_path / "a", x=b"new")
    assert (tmp_path / "a" / "x").read_bytes() == b"old"
    write(tmp_path / "a", overwrite=True, x=b"new")
    assert (tmp_path / "a" / "x").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_foreign_folders_are_never_overwritten(tmp_path: Path) -> None:
    fill(tmp_path, thesis=b"five years")
    with pytest.raises(BusyError, match="not written by hnet"):
        write(tmp_path, overwrite=True, x=b"1")
    assert (tmp_path / "thesis").exists()


def test_a_second_writer_is_refused_and_dead_ones_are_swept(tmp_path: Path) -> None:
    with (
        storage.staged_folder(tmp_path / "a"),
        pytest.raises(BusyError, match=f"process {os.getpid()}"),
        storage.staged_folder(tmp_path / "a"),
    ):
        pass
    for name in (".b.hnet-tmp-1-00000000", ".b.hnet-del-00000000"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, **{".hnet": b"", "half": b"1"})
    (tmp_path / ".b.hnet-tmp-1-00000001").mkdir()  # killed before it could be marked
    write(tmp_path / "b", x=b"1")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


STRANGERS = [
    ".foo.tmp-deadbeef",
    ".x.del-0000cafe",
    ".work.old-12345678",
    ".b.hnet-del-0000cafe",
    ".b.hnet-old-12345678",
]


@pytest.mark.parametrize("name", [*STRANGERS, ".b.partial"])
def test_what_is_called_like_ours_but_holds_no_mark_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    fill(tmp_path / name, thesis=b"five years", **{"manifest.json": b'{"name": "app", "files": {}}'})
    write(tmp_path / "b", x=b"1")
    if name == ".b.partial":
        with pytest.raises(BusyError, match="in the way"), storage.resumable_folder(tmp_path / "b", overwrite=True):
            pass
    else:
        storage.remove_folder(tmp_path / "b")
    assert (tmp_path / name / "thesis").read_bytes() == b"five years"


def test_files_called_like_ours_stay(tmp_path: Path) -> None:
    fill(tmp_path, **{".foo.tmp-deadbeef": b"mine", ".foo.hnet-tmp-deadbeef": b"left by a kill"})
    (tmp_path / ".foo.hnet-tmp-deadbeee").mkdir()
    with storage.FolderLock(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".foo.hnet-tmp-deadbeee", ".foo.tmp-deadbeef", ".lock"]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"manifest.json": b'{"name": "app", "start_url": "/"}', "index.html": b""}, "not written by hnet as a model"),
        ({"index.html": b""}, "not written by hnet"),
        ({}, ""),
    ],
)
def test_only_what_carries_our_mark_is_overwritten(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    target = tmp_path / "a"
    target.mkdir()
    fill(target, **files)
    model = {"kind": "model"}
    if why:
        with pytest.raises(BusyError, match=why), storage.staged_folder(target, overwrite=True, manifest=model):
            pass
        assert sorted(os.listdir(target)) == sorted(files)
        return
    with storage.staged_folder(target, overwrite=True, manifest=model) as folder:
        fill(folder, x=b"1")
    another = storage.resumable_folder(target, overwrite=True, manifest={"kind": "dataset"})
    with pytest.raises(BusyError, match="not written by hnet as a dataset"), another:
        pass
    fill(target, **{"notes.txt": b"mine"})
    with (
        pytest.raises(BusyError, match=r"holds .*notes.txt"),
        storage.staged_folder(target, overwrite=True, manifest=model),
    ):
        pass
    assert (target / "notes.txt").exists()


def test_a_link_is_followed_for_writing_and_never_for_deleting(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big" / "a")
    for overwrite in (False, True):
        write(tmp_path / "link", overwrite=overwrite, x=b"1")
        assert (tmp_path / "link").is_symlink()
        assert os.listdir(tmp_path / "big") == ["a"]
    storage.discard(tmp_path / "link")
    assert (tmp_path / "big" / "a" / "x").exists()
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [("d", 1200), ("a folder with a long name " * 8, 60)])
def test_deep_folders_are_deleted(tmp_path: Path, name: str, depth: int) -> None:
    """Deeper than Python's stack, and than the longest path the system takes."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.mkdir(tmp_path / "a")
        os.chdir(tmp_path / "a")
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        Path("file").write_text("at the bottom")
    finally:
        os.chdir(here)
        os.close(here)
    try:
        storage.discard(tmp_path / "a")
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # pytest cannot


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_operation_leaves_old_or_new(tmp_path: Path, overwrite: bool) -> None:
    """A process that dies at its n-th operation on files, for every n: what is there verifies, and can be replaced."""
    target = tmp_path / "a"
    operations = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
    died = True
    number = 0
    while died:
        number += 1
        if overwrite:
            write(target, overwrite=target.exists(), x=b"old", y=b"old")

        def work(limit: int = number) -> None:
            left = limit

            def watch(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal left
                if event in operations:
                    left -= 1
                    if left == 0:
                        os._exit(9)

            sys.addaudithook(watch)
            write(target, overwrite=overwrite, x=b"new", y=b"new")

        died = os.waitstatus_to_exitcode(in_child(work)) == 9
        if target.exists():
            storage.verify_folder(target)
            assert len({(target / name).read_bytes() for name in "xy"}) == 1
        else:
            assert died
            assert not overwrite
        write(target, overwrite=True, x=b"next", y=b"next")
        assert os.listdir(tmp_path) == ["a"]
        if not overwrite:
            storage.remove_folder(target)
    assert number > 10


def test_full_disk_is_one_clear_error_and_keeps_the_old(tmp_path: Path) -> None:
    write(tmp_path / "a", x=b"old")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(StorageError, match="limit"):
            write(tmp_path / "a", overwrite=True, x=bytes(1 << 20))
        with pytest.raises(StorageError, match="limit"):
            storage.write_bytes(tmp_path / "a" / "x", bytes(1 << 20))

    assert in_child(work) == 0
    storage.verify_folder(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest.json", "x"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, a=b"")
    with pytest.raises(BusyError, match="cannot create"):
        write(tmp_path / "a" / "b", x=b"1")


@given(data=st.data())
def test_damage_is_found_and_named(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damage") / "a"
    write(folder, x=os.urandom(500), y=os.urandom(50))
    storage.verify_folder(folder)
    name = data.draw(st.sampled_from(["x", "y", "manifest.json"]))
    content = bytearray((folder / name).read_bytes())
    kind = data.draw(st.sampled_from(["flip", "truncate", "missing"]))
    if kind == "flip":
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        (folder / name).write_bytes(content)
    elif kind == "truncate":
        (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    else:
        (folder / name).unlink()
    # a flip in a digest of the manifest is told as damage of the file it belongs to
    with pytest.raises(DamagedError, match="x|y|manifest" if name == "manifest.json" else f"/{name} "):
        storage.verify_folder(folder)


def test_manifests_cannot_point_outside(tmp_path: Path) -> None:
    write(tmp_path / "a", x=b"1")
    text = (tmp_path / "a" / "manifest.json").read_text()
    storage.write_text(tmp_path / "a" / "manifest.json", text.replace('"x"', '"../x"'))
    with pytest.raises(DamagedError, match="malformed"):
        storage.verify_folder(tmp_path / "a")
