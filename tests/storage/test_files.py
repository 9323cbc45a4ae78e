"""Durable files: atomic under kills and full disks, damage named, one writer at a time; truncated input is seen."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hnet_cli import storage
from hnet_cli.errors import BusyError, DamagedError, InputError, StorageError

CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


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
    (tmp_path / ".b.tmp-1-00000000").mkdir()
    (tmp_path / ".b.del-00000000").mkdir()
    write(tmp_path / "b", x=b"1")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


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


@pytest.mark.parametrize(("code", "error"), [(28, StorageError), (5, StorageError), (13, BusyError), (30, BusyError)])
def test_os_errors_are_translated(tmp_path: Path, code: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="some file") as caught, storage.os_errors(tmp_path / "some file", 12345):
        raise OSError(code, os.strerror(code))
    if code == 28:
        assert "12,345" in str(caught.value)
    with pytest.raises(error), storage.os_errors(tmp_path):
        raise RuntimeError(f"Error while serializing: I/O error: text (os error {code})")


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, a=b"")
    with pytest.raises(BusyError, match="cannot create"):
        write(tmp_path / "a" / "b", x=b"1")


@settings(max_examples=60, deadline=None)
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


def test_single_files(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "j", {"é": 1})
    assert (tmp_path / "j").read_text() == '{\n  "é": 1\n}\n'
    storage.write_text(tmp_path / "j", "x")
    assert (tmp_path / "j").read_text() == "x"
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "j", float("nan"))
    assert os.listdir(tmp_path) == ["j"]


def test_folder_lock(tmp_path: Path) -> None:
    with storage.FolderLock(tmp_path / "run"):
        program = "import sys; from hnet_cli.storage import FolderLock; FolderLock(sys.argv[1]).__enter__()"
        other = subprocess.run([sys.executable, "-c", program, tmp_path / "run"], capture_output=True, text=True)
        assert f"in use by process {os.getpid()} on host" in other.stderr
    with storage.FolderLock(tmp_path / "run"):
        pass


def test_a_lock_leaves_no_empty_folder_of_its_own(tmp_path: Path) -> None:
    """But what is written in it, and folders that were there before."""
    with storage.FolderLock(tmp_path / "runs" / "a"):
        storage.make_folder(tmp_path / "runs" / "b")
    assert os.listdir(tmp_path / "runs") == ["b"]
    for _ in range(2):
        with storage.FolderLock(tmp_path / "runs" / "b"):
            pass
    with storage.FolderLock(tmp_path / "runs" / "c"):
        storage.write_text(tmp_path / "runs" / "c" / "log.txt", "x")
    assert (tmp_path / "runs" / "b").exists()
    assert (tmp_path / "runs" / "c" / "log.txt").exists()


def test_a_lock_that_was_taken_away_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes its empty folder between our opening and locking of the file: ours is a new one."""
    import fcntl

    other, lock = storage.FolderLock(tmp_path / "run"), fcntl.flock
    other.__enter__()

    def late(descriptor: int, how: int) -> None:
        monkeypatch.undo()
        other.__exit__(None, None, None)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with storage.FolderLock(tmp_path / "run"):
        with pytest.raises(BusyError):
            storage.FolderLock(tmp_path / "run").__enter__()
        assert (tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()


# --- compressed input -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(codec=st.sampled_from(sorted(CODECS)), parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
def test_members_joined_are_read_through(codec: str, parts: list[bytes]) -> None:
    packed = b"".join(map(CODECS[codec], parts))
    assert storage.decompressed(io.BytesIO(packed), "x").read() == b"".join(parts)


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_plain_bytes_pass(data: bytes) -> None:
    data = b"plain" + data
    stream = storage.decompressed(io.BytesIO(data), "x")
    assert stream.peek(512)[:512] == data
    assert stream.read() == data
    unbuffered = storage.decompressed(io.BytesIO(data), "x")
    assert unbuffered.raw.read(1000) == data


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_truncation_and_damage_are_noticed(codec: str, tmp_path: Path) -> None:
    random.seed(codec)
    data = b"".join(b"%d " % random.randrange(10**9) for _ in range(30000))
    packed = CODECS[codec](data)
    file = tmp_path / f"x.{codec}"
    for length in [len(packed) - 1, *(random.randrange(12, len(packed)) for _ in range(40))]:
        file.write_bytes(packed[:length])
        with pytest.raises(InputError, match=r"x\..* is truncated"):
            storage.open_input(file).read()
    file.write_bytes(packed + b"trailing rubbish")
    with pytest.raises(InputError, match="damaged"):
        storage.open_input(file).read()
    if codec == "zst":
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    for _ in range(40):
        flipped = bytearray(packed)
        flipped[random.randrange(12, len(packed))] ^= 1 << random.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(InputError, match=r"damaged|truncated"):
            storage.open_input(file).read()


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_bombs_stay_small_in_memory(codec: str, tmp_path: Path) -> None:
    size = 1 << 30
    if codec == "zst":
        (tmp_path / "x").write_bytes(zstandard.compress(bytes(size)))
    else:
        with gzip.open(tmp_path / "x", "wb", compresslevel=1) as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    program = (
        "import resource, sys; from hnet_cli.storage import open_input; stream = open_input(sys.argv[1])\n"
        # a limit rather than a measured peak, which would count what the parent had before exec
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "print(sum(len(block) for block in iter(lambda: stream.read(1 << 20), b'')))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert int(done.stdout) == size


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in [(tmp_path, "folder"), (tmp_path / "fifo", "pipe"), (Path("/dev/zero"), "device")]:
        with pytest.raises(InputError, match=why):
            storage.open_input(path)
    with pytest.raises(InputError, match="does not exist"):
        storage.open_input(tmp_path / "none")
    with pytest.raises(InputError, match="null"):
        storage.open_input(Path("a\0b"))


def test_awkward_names_are_shown_safely() -> None:
    assert storage.shown("a\nb\x1b[31m") == "a\\x0ab\\x1b[31m"
    assert storage.shown(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert storage.shown("汉字 é") == "汉字 é"
