"""Safetensors files, read and written tensor by tensor: memory holds one at a time.

Our own because those of the library open files by themselves: `save_file` past `hnet_cli.storage`, which makes a file
appear whole or not at all; `load_file` as a memory map, which changes with the file and ends the process (SIGBUS) when
somebody cuts that short.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeVar

import torch

from hnet_cli.checkpoints.torch_file import Stored
from hnet_cli.errors import DamagedError
from hnet_cli.storage import HeldFile, NewFile, shown

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}
_OTHERS = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
"""Dtypes that are read, but not written."""
_READ = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()} | _OTHERS
HEADER_LIMIT = 16 << 20
"""Bytes of the largest list of tensors that is read."""


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


def open_safetensors(file: HeldFile) -> dict[str, Stored]:
    """The tensors of a file, not yet read. Raises DamagedError unless they fill the file, in some order, without a gap.

    Reading one raises DamagedError where the file has become shorter, or has been written to.
    """
    try:
        return _tensors(file)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        reason = ascii(str(error)[:200])[1:-1]
        raise DamagedError(f"{shown(file.path)} is damaged: {reason}", "fetch or copy it again") from error


def _tensors(file: HeldFile) -> dict[str, Stored]:
    length = int.from_bytes(file.read(0, 8), "little") if file.size > 8 else 0
    if not 0 < length <= min(HEADER_LIMIT, file.size - 8):
        raise ValueError(f"a list of tensors of {length:,} bytes in a file of {file.size:,}")
    header = json.loads(file.read(8, length))
    header.pop("__metadata__", None)
    tensors, end = dict[str, Stored](), 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = _READ[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and 0 <= number < 1 << 48 for number in (*shape, start, stop)):
            raise ValueError(f"{name} has no sizes")
        if len(shape) > 16 or start != end or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} is not {stop - start} bytes from {start}")
        tensors[name] = Stored(tuple(shape), dtype, partial(_read, file, 8 + length + start, tuple(shape), dtype))
        end = stop
    if 8 + length + end != file.size:
        raise ValueError(f"{file.size:,} bytes, not {8 + length + end:,}")
    return {name: tensors[name] for name in header}


def _read(file: HeldFile, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    file.read_into(tensor.reshape(-1).view(torch.uint8).numpy().data, start)
    if file.has_changed():
        raise DamagedError(f"{shown(file.path)} was written to while it was read", "run the command again")
    return tensor


def elements(tensors: Mapping[str, Described]) -> int:
    """The number of values in all tensors."""
    return sum(math.prod(stored.shape) for stored in tensors.values())
