"""Safetensors files as data from anywhere: read as the library reads them, or refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from strangerkit import KINDS, changed

from hnet_cli.checkpoints.safetensors_file import elements, open_safetensors, write_safetensors
from hnet_cli.errors import DamagedError
from hnet_cli.storage import HeldFile, NewFile

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(3.5),
    "ids": torch.tensor([1, 2]),
    "flags": torch.tensor([True, False]),
}


def read(path: Path) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in open_safetensors(HeldFile(path)).items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape)
        and torch.equal(left[name], right[name])
        for name in left
    )


def test_it_reads_what_the_library_and_we_write(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x", {"format": "pt"})
    assert same(read(tmp_path / "x"), TENSORS)
    ours = {name: TENSORS[name] for name in ("a", "b", "scalar")}
    with NewFile(tmp_path / "y") as file:
        write_safetensors(file, ours, lambda tensor: tensor)
    assert same(read(tmp_path / "y"), ours)


def file_of(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> bytes:
    return file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 63) + b"{}",
        file_of(b"[1, 2]"),
        file_of(b"x" * 20),
        file_of(b'{"a":' * 50_000),
        file_of({"a": 1}),
        file_of({}, b"rest"),
        entry(dtype="X99"),
        entry(dtype=["F32"]),
        entry(shape=[1 << 40, 1 << 40]),
        entry(shape=[-1, -2]),
        entry(shape=[2.0]),
        entry(shape="2"),
        entry(shape=[1] * 100_000 + [2]),
        entry(data_offsets=[0, 1 << 40]),
        entry(data_offsets=[8, 0]),
        entry(data_offsets=[4, 12]),
        entry(data_offsets=[0]),
        entry(data_offsets=None),
        file_of(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}'),
        file_of({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_what_is_not_whole_is_refused_in_a_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DamagedError, match="x is damaged") as caught:
        open_safetensors(HeldFile(tmp_path / "x"))
    assert "\n" not in str(caught.value)


def test_a_file_that_changes_before_it_is_read(tmp_path: Path) -> None:
    for name in ("cut", "written"):
        save_file(TENSORS, tmp_path / name)
    cut, written = (open_safetensors(HeldFile(tmp_path / name)) for name in ("cut", "written"))
    os.truncate(tmp_path / "cut", 600)
    with pytest.raises(DamagedError, match=r"cut ends at byte 600|cut was written to"):
        [stored.read() for stored in cut.values()]
    with open(tmp_path / "written", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    os.utime(tmp_path / "written", (1, 1))
    with pytest.raises(DamagedError, match="was written to"):
        [stored.read() for stored in written.values()]


def test_a_header_of_a_stranger_is_refused_or_lies_in_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.ones(2)}, tmp_path / "sound", {"format": "pt"})
    whole = (tmp_path / "sound").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    for number in range(300):
        text, what = changed(header, random.Random(number))
        (tmp_path / "x").write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + whole[8 + length :])
        with contextlib.suppress(DamagedError):
            stored = open_safetensors(HeldFile(tmp_path / "x"))
            assert elements(stored) <= len(whole), what
            assert all(each.read().shape == each.shape for each in stored.values()), what


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "x")
    with pytest.raises(DamagedError):
        open_safetensors(HeldFile(tmp_path / "x"))
