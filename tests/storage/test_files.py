"""Single files: replaced whole, and system errors translated."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hnet_cli import storage
from hnet_cli.errors import BusyError, StorageError


@pytest.mark.parametrize(("code", "error"), [(28, StorageError), (5, StorageError), (13, BusyError), (30, BusyError)])
def test_os_errors_are_translated(tmp_path: Path, code: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="some file") as caught, storage.os_errors(tmp_path / "some file", 12345):
        raise OSError(code, os.strerror(code))
    if code == 28:
        assert "12,345" in str(caught.value)
    with pytest.raises(error), storage.os_errors(tmp_path):
        raise RuntimeError(f"Error while serializing: I/O error: text (os error {code})")


def test_single_files(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "j", {"é": 1})
    assert (tmp_path / "j").read_text() == '{\n  "é": 1\n}\n'
    storage.write_text(tmp_path / "j", "x")
    assert (tmp_path / "j").read_text() == "x"
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "j", float("nan"))
    assert os.listdir(tmp_path) == ["j"]


IN_PLACE: list[Callable[[Path], object]] = [
    lambda path: storage.append_text(path, "more"),
    lambda path: storage.cut_file(path, 2),
    lambda path: storage.write_text(path, "new"),
    lambda path: storage.GrowingFile(path).close(),
]


@pytest.mark.parametrize("change", IN_PLACE)
def test_a_hard_linked_copy_stays_as_it_is(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "a").write_text("as it was")
    os.link(tmp_path / "a", tmp_path / "copy")
    change(tmp_path / "copy")
    assert (tmp_path / "a").read_text() == "as it was"
    assert (tmp_path / "copy").read_text() in ("as it wasmore", "as", "new", "")
    assert sorted(os.listdir(tmp_path)) == ["a", "copy"]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 3)])
def test_a_growing_file_takes_arrays_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.ones(shape, "<i8")
    file = storage.GrowingFile(tmp_path / "x")
    for data in (array, b"", array):
        file.write(data)
    assert file.close()["size"] == 2 * array.nbytes
    assert (tmp_path / "x").read_bytes() == 2 * array.tobytes()
