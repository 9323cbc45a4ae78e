"""Safetensors files, written tensor by tensor, and read so that nothing is believed before it is checked.

Writing is our own because `safetensors.torch.save_file` opens and writes by itself, past `hnet_cli.storage`, which
makes a file appear whole or not at all. A file that is read may come from anybody: its header is bounded before it is
parsed, and a tensor is read when names, shapes and dtypes of all have been seen.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from hnet_cli import storage
from hnet_cli.errors import DamagedError
from hnet_cli.storage import NewFile, shown
from hnet_cli.storage.reading import reason

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


TORCH_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
MOST_HEADER = 16 << 20
"""Bytes of the largest header that is read; that of 1,000 layers has 1 MB."""
MOST_DIMENSIONS = 8


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


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    """Read it, contiguous. Raises DamagedError if its bytes are not those that were written."""


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file, not yet read. Raises FileNotFoundError, StorageError, DamagedError (not such a file, cut
    off, a header that is too large, a dtype that we never write)."""
    with storage.open_file(path) as file:
        head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= MOST_HEADER:
        raise DamagedError(f"{shown(path)} is damaged: it is no safetensors file", "fetch or copy it again")
    try:
        opened = safe_open(path, "pt")
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
        kinds = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise DamagedError(f"{shown(path)} is damaged: {reason(error)}", "fetch or copy it again") from error
    for name, (kind, shape) in kinds.items():
        if kind not in TORCH_DTYPES or len(shape) > MOST_DIMENSIONS:
            what = f"dtype {kind}" if kind not in TORCH_DTYPES else f"{len(shape)} dimensions"
            raise DamagedError(f"{shown(path)}: {name[:80]!a} has {what}, which no model has")
    return {
        name: Stored(shape, TORCH_DTYPES[kind], partial(_read, path, opened, name))
        for name, (kind, shape) in kinds.items()
    }


def _read(path: Path, opened: Any, name: str) -> torch.Tensor:
    try:
        tensor: torch.Tensor = opened.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(f"{shown(path)} is damaged: {reason(error)}", "fetch or copy it again") from error
    return tensor


def elements(tensors: Mapping[str, Described]) -> int:
    """The number of values in all tensors."""
    return sum(math.prod(stored.shape) for stored in tensors.values())
