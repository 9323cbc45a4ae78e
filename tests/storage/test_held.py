"""Files kept open: what becomes of the name does not matter, what becomes of the content is found."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

import pytest

from hnet_cli.errors import DamagedError
from hnet_cli.storage import HeldFile


def test_it_stays_what_it_was_when_the_name_goes_to_another(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old content")
    held = HeldFile(path)
    (tmp_path / "y").write_bytes(b"new content")
    os.replace(tmp_path / "y", path)
    path.unlink()
    assert held.read(4, 7) == b"content"
    assert not held.has_changed()
    held.verify({"size": 11, "sha256": hashlib.sha256(b"old content").hexdigest()})


def test_a_cut_and_a_change_in_place_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old content")
    held, entry = HeldFile(path), {"size": 11, "sha256": hashlib.sha256(b"old content").hexdigest()}
    with open(path, "r+b") as file:
        file.write(b"new")
    os.utime(path, (1, 1))
    assert held.has_changed()
    held.seen = held.stamp()
    assert not held.has_changed()
    with pytest.raises(DamagedError, match="SHA-256"):
        held.verify(entry)
    os.truncate(path, 4)
    with pytest.raises(DamagedError, match="ends at byte 4, 11 were there"):
        held.read(2, 5)


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", "."):
        with pytest.raises(DamagedError, match="not a file"):
            HeldFile(tmp_path / name)
    with pytest.raises(DamagedError, match="missing"):
        HeldFile(tmp_path / "none")


def test_more_files_than_the_usual_limit(tmp_path: Path) -> None:
    """A dataset of a terabyte has 4,000 shards."""
    (tmp_path / "x").write_bytes(b"1")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 50
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, before[1]))
    try:
        assert [held.read(0, 1) for held in [HeldFile(tmp_path / "x") for _ in range(100)]] == [b"1"] * 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
