"""Safetensors files: written as the library writes them, and no header is believed."""

import contextlib
import json
import math
import os
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from strangerkit import KINDS, changed

from hnet_cli.checkpoints import safetensors_file
from hnet_cli.checkpoints.safetensors_file import elements, read_safetensors, write_safetensors
from hnet_cli.errors import DamagedError
from hnet_cli.storage import NewFile

TENSORS = {
    "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "wide": torch.linspace(0, 1, 5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(2.5),
}


def test_what_is_written_is_read_by_the_library_and_by_us(tmp_path):
    with NewFile(tmp_path / "x") as file:
        write_safetensors(file, TENSORS, lambda tensor: tensor, {"format": "pt"})
    ours = {name: stored.read() for name, stored in read_safetensors(tmp_path / "x").items()}
    for read in (ours, load_file(tmp_path / "x")):
        assert read.keys() == TENSORS.keys()
        assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in read)
    assert elements(read_safetensors(tmp_path / "x")) == 12


def test_a_header_is_bounded_and_read_before_any_tensor(tmp_path, monkeypatch):
    file = tmp_path / "x"
    save_file({"a": torch.zeros(3)}, file)
    whole = file.read_bytes()
    for length in (0, 1, len(whole), 1 << 40, (1 << 64) - 1):
        file.write_bytes(struct.pack("<Q", length) + whole[8:])
        with pytest.raises(DamagedError):
            read_safetensors(file)
    file.write_bytes(whole)
    monkeypatch.setattr(safetensors_file, "MOST_HEADER", 10)
    with pytest.raises(DamagedError, match="no safetensors file"):
        read_safetensors(file)


@pytest.mark.parametrize(
    ("tensor", "said"), [(torch.zeros(3, dtype=torch.int64), "dtype I64"), (torch.zeros([1] * 9), "9 dimensions")]
)
def test_what_no_model_has_is_refused(tmp_path, tensor, said):
    save_file({"a": tensor}, tmp_path / "x")
    with pytest.raises(DamagedError, match=said):
        read_safetensors(tmp_path / "x")


def test_a_header_of_a_stranger_is_refused_or_lies_in_the_file(tmp_path):
    save_file({"a": torch.zeros(3, 4), "b": torch.ones(2)}, tmp_path / "sound", {"format": "pt"})
    whole = (tmp_path / "sound").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    for number in range(300):
        text, what = changed(header, random.Random(number))
        (tmp_path / "x").write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + whole[8 + length :])
        with contextlib.suppress(DamagedError):
            for stored in read_safetensors(tmp_path / "x").values():
                assert math.prod(stored.shape) * stored.dtype.itemsize <= len(whole), what
                assert stored.read().shape == stored.shape, what


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused(tmp_path, kind):
    KINDS[kind](tmp_path / "x")
    with pytest.raises((DamagedError, FileNotFoundError)):
        read_safetensors(tmp_path / "x")
    assert os.path.lexists(tmp_path / "x")
