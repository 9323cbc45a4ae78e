"""One process at a time in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnet_cli import storage
from hnet_cli.errors import BusyError


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


def test_a_hard_linked_copy_has_a_lock_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / ".lock").write_text("elsewhere 1\n")
    os.link(tmp_path / "a" / ".lock", tmp_path / "copy" / ".lock")
    with storage.FolderLock(tmp_path / "copy"):
        assert (tmp_path / "a" / ".lock").read_text() == "elsewhere 1\n"
        with storage.FolderLock(tmp_path / "a"):
            pass
        with pytest.raises(BusyError, match="in use"), storage.FolderLock(tmp_path / "copy"):
            pass
