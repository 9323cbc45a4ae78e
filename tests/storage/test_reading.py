"""Reading back what may come from anybody: regular files, bounded, and never a wait."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.errors import DamagedError
from hnet_cli.storage import reading
from hnet_cli.storage.reading import is_file, json_object, open_file, read_bytes, read_json, read_text


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Everything that can stand where a file should, by kind."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to zeros").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(8 << 30)
    places = {path.name: path for path in tmp_path.iterdir()}
    kernel = {name: Path(name) for name in ("/dev/zero", "/proc/kmsg", "/proc/self/mem", "/proc/cpuinfo")}
    return places | {name: path for name, path in kernel.items() if path.exists()}


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json], ids=lambda read: read.__name__)
def test_what_is_no_file_is_refused_at_once(places, read):
    for name, path in places.items():
        with pytest.raises(DamagedError) as refused:
            read(path)
        assert "\n" not in str(refused.value), name
        assert is_file(path) == (name == "sparse")


def test_files_are_bounded_before_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(DamagedError, match="5 bytes, at most 4 are read"):
        read_bytes(tmp_path / "x", 4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "y")
    (tmp_path / "x").write_bytes(b"caf\xe9")
    with pytest.raises(DamagedError, match="byte 3 is not UTF-8"):
        read_text(tmp_path / "x")
    assert read_text(tmp_path / "x", errors="replace") == "caf\ufffd"
    (tmp_path / "x").write_bytes(b"")
    with open_file(tmp_path / "x") as file:
        assert file.readline() == b""


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b"7",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff{}",
        b"\0" * 99,
    ],
    ids=lambda text: repr(text[:9]),
)
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(DamagedError, match=r"x\.json is damaged") as refused:
        json_object(text, "x.json")
    assert len(str(refused.value)) < 300


def test_parts_are_counted_before_they_are_made(monkeypatch):
    monkeypatch.setattr(reading, "MOST_PARTS", 100)
    assert json_object(b'{"a": [' + b"[]," * 50 + b"0]}", "x")["a"][50] == 0
    with pytest.raises(DamagedError, match="more than 100 lists"):
        json_object(b'{"a": [' + b"[]," * 100 + b"0]}", "x")


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_anything_is_an_object_or_refused(content):
    with contextlib.suppress(DamagedError):
        assert isinstance(json_object(content if isinstance(content, bytes) else content.encode(), "x"), dict)
