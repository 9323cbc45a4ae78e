"""Safetensors files, written tensor by tensor: memory holds one at a time.

Our own because `safetensors.torch.save_file` opens and writes by itself, past `hnet_cli.storage`, which makes a file
appear whole or not at all.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch

from hnet_cli.storage import NewFile

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


class Described(Protocol):
    """Shape and dtype of a tensor that need not be in memory; a `torch.Tensor` is one too."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...


Source = TypeVar("Source", bound=Described)


def in_order(tensors: Mapping[str, Source]) -> list[str]:
    """Names in the order of the file, which keeps every tensor aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def write_safetensors(
    file: NewFile,
    tensors: Mapping[str, Source],
    read: Callable[[Source], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the format of `safetensors.torch.save_file`; `read` returns the values of a tensor when its turn comes."""
    names = in_order(tensors)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        stored, start = tensors[name], end
        end += math.prod(stored.shape) * stored.dtype.itemsize
        dtype = SAFETENSORS_DTYPES[stored.dtype]
        header[name] = {"dtype": dtype, "shape": list(stored.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(read(tensors[name]).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
