"""Tensors of a `.pt` file, read without executing its pickle.

A `.pt` file is a zip: `data.pkl` says which tensors there are, `data/N` holds their bytes. A pickle is a program;
Python's unpickler runs it, and a program can do anything. `torch.load(weights_only=True)` runs a subset of it, but
refuses the official H-Net files for the omegaconf class inside. So this module reads the pickle as *data*: `_Reader`
walks its instructions, a global is only a name, a call only a record of a name and its arguments. No module is imported
and nothing that the file names is ever looked up or called: the few ways to write a tensor are recognised by name,
classes of other packages become `_Inert`, what has no place among weights (`posix.system`, `builtins.eval`) is refused.
(`weights_only` was also escaped twice: CVE-2025-32434 below torch 2.6, CVE-2026-24747 below 2.10.)

Sizes are checked before bytes are read, and tensors are read one at a time when asked for: memory does not grow with
the file.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hnet_cli.errors import DamagedError, InputError
from hnet_cli.storage import open_file, shown

MAX_PICKLE = 2 << 20
"""Bytes of `data.pkl`; that of the largest release has 50 kB. It bounds time and memory for a hostile file."""
MOST_DIRECTORY = 16 << 20
"""Bytes of the directory of the zip; that of a hundred thousand tensors has 10 MB."""

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()}
_TENSOR = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETER = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"

_TORCH = (
    _STORAGES.keys()
    | _TENSOR
    | _PARAMETER
    | {_WITH_ATTRIBUTES}
    | {
        "torch.Size",
        "torch.device",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        *(str(dtype) for dtype in _DTYPES.values()),
    }
)
_BUILTINS = {
    *("dict", "list", "set", "frozenset", "tuple", "int", "float", "complex", "bool", "str", "bytes", "object"),
    *("long", "unicode"),  # what protocol 2 calls int and str
}
_STDLIB = {"collections", "typing", "enum", "datetime", "pathlib", "decimal", "uuid"}
"""Modules of the standard library whose classes occur in configurations. Any other one is refused."""
_FUNCTIONS = {"_codecs.encode", "_operator.getitem"}
"""Further ones: how numpy writes bytes and typing writes List[int]."""
_NUMPY = {"scalar", "_reconstruct", "dtype", "ndarray"}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Read it, contiguous. Raises DamagedError if its bytes are not those that were written."""


@dataclass(frozen=True, eq=False)
class _Global:
    """`module.name` in a pickle: a name, never looked up."""

    path: str

    @property
    def callable(self) -> bool:
        """True if a call of it is harmless to record: constructors that occur beside weights."""
        root, _, rest = self.path.partition(".")
        known = root in ("builtins", "__builtin__", "torch", "omegaconf") or root in _STDLIB
        return known or self.path in _FUNCTIONS or (root == "numpy" and rest.rpartition(".")[2] in _NUMPY)


class _Inert:
    """Placeholder for an object of any other class, without behaviour or state."""


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    dtype: torch.dtype


class _Mark:
    pass


class _Reader:
    """Interpreter of the instructions that `torch.save` writes (pickle protocol 2 to 5) as plain data; others are
    refused."""

    def __init__(self, archive: _Archive) -> None:
        self.archive = archive
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, pickle: bytes) -> Any:
        """The object that the pickle describes: dicts, lists, tuples, numbers, strings, `Stored`; the rest is inert.

        Raises DamagedError, or InputError for what has no place among weights.
        """
        try:
            for opcode, argument, _ in pickletools.genops(pickle):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"{self.archive.name}: its list of tensors is damaged: {ascii(str(error)[:80])[1:-1]}"
            ) from error
        raise DamagedError(f"{self.archive.name}: its list of tensors breaks off")

    def _marked(self) -> list[Any]:
        """Pop what was pushed since the last MARK."""
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case _ if name in _LITERALS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":  # a list for a set: hashing its members could take forever
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                stack.append(_Mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "FROZENSET":
                stack.append(tuple(self._marked()))
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._marked())
            case "SETITEM":
                self._set([stack.pop(-2), stack.pop()])
            case "SETITEMS":
                self._set(self._marked())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._marked()
            case "GLOBAL":
                stack.append(self._global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._global(stack.pop(-2), stack.pop()))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                stack.append(self._call(stack.pop(-2), stack.pop()))
            case "NEWOBJ":
                del stack[-2:]
                stack.append(_Inert())
            case "NEWOBJ_EX":
                del stack[-3:]
                stack.append(_Inert())
            case "BUILD":  # the state of an inert object, or the attributes of a state dict (its _metadata)
                stack.pop()
            case _:
                raise InputError(
                    f"{self.archive.name} uses the pickle instruction {name}, which torch.save never writes"
                )

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set(self, flat: list[Any]) -> None:
        # Other keys are no names of tensors; hashing a nested tuple or a huge number could take forever, as could the
        # comparisons of numbers chosen to have one hash, which only those beyond 2^61 - 1 can have.
        if isinstance(target := self.stack[-1], dict):
            pairs = zip(flat[::2], flat[1::2], strict=True)
            target.update((key, value) for key, value in pairs if type(key) is str or _is_small(key))

    def _global(self, module: str, name: str) -> _Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("malformed name")
        root, path = module.partition(".")[0], f"{module}.{name}"
        if root == "torch":
            fine = path in _TORCH
        elif module in ("builtins", "__builtin__"):
            fine = name in _BUILTINS
        elif root in sys.stdlib_module_names:
            fine = (module in _STDLIB and "." not in name) or path in _FUNCTIONS
        else:
            fine = True
        return _Global(path) if fine else self._refuse(path)

    def _refuse(self, path: str) -> Any:
        raise InputError(
            f"{self.archive.name} asks for {path[:100]!a}, which has no place among weights; nothing was run",
            "do not trust this file; if it is yours, save model.state_dict() alone",
        )

    def _storage(self, reference: Any) -> _Storage:
        kind, storage, key, _location, _numel = reference
        if kind != "storage" or not isinstance(storage, _Global) or not isinstance(key, str):
            raise ValueError("malformed reference to bytes")
        if storage.path not in _STORAGES:
            raise InputError(f"{self.archive.name} stores {storage.path[:100]!a}, which is not supported")
        return _Storage(key, _STORAGES[storage.path])

    def _call(self, function: Any, arguments: Any) -> Any:
        """The result of a recorded call: only ways to write a tensor and plain containers have a meaning here."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("malformed call")
        if not function.callable:
            self._refuse(function.path)
        path = function.path
        if path == _WITH_ATTRIBUTES and isinstance(arguments[0], _Global):
            path, arguments = arguments[0].path, arguments[2]
        if path in _TENSOR:
            storage, offset, shape, stride = arguments[:4]
            return self.archive.tensor(storage, offset, shape, stride)
        if path in _PARAMETER:
            return arguments[0]
        if path == "collections.OrderedDict" and not arguments:
            return {}
        if path == "torch.Size" and arguments:
            return arguments[0]
        return _Inert()


def _is_small(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 8 and all(map(_is_small, values))


class _Bounded(io.BufferedReader):
    """The file for `zipfile`, which reads a directory of any size at once and keeps 600 bytes for each entry."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_DIRECTORY:
            raise ValueError(f"a directory of {size:,} bytes, more than {MOST_DIRECTORY:,}")
        return super().read(size)


class _Archive:
    """The zip around the pickle; its entries are stored without compression."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, shown(path)
        try:
            with _Bounded(open_file(path).detach()) as file, zipfile.ZipFile(file) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error) as error:
            raise DamagedError(f"{self.name} is damaged or cut off: {error}", "fetch or copy it again") from error
        lists = [name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(lists) != 1:
            raise InputError(f"{self.name} is a zip file, but not one that torch.save wrote")
        self.folder = lists[0].removesuffix("data.pkl")

    def root(self) -> Any:
        """The object given to `torch.save`, as `_Reader.read` returns it."""
        if f"{self.folder}byteorder" in self.entries and self.bytes("byteorder").tobytes() != b"little":
            raise InputError(f"{self.name} was written on a big-endian machine, which is not supported")
        if self.entries[f"{self.folder}data.pkl"].file_size > MAX_PICKLE:
            raise InputError(f"{self.name} lists more than weights: its pickle exceeds {MAX_PICKLE:,} bytes")
        return _Reader(self).read(self.bytes("data.pkl").tobytes())

    def bytes(self, name: str, start: int = 0, size: int | None = None) -> np.ndarray:
        """Bytes [start, start + size) of an entry, uint8; the checksum is verified if they are all of it."""
        entry = self.entries[self.folder + name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise InputError(f"{self.name}: {name!a} is compressed or encrypted, which torch.save never does")
        size = entry.file_size if size is None else size
        with open_file(self.path) as file:
            end = os.fstat(file.fileno()).st_size
            file.seek(min(max(0, entry.header_offset), end))  # it may be any number
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise DamagedError(f"{self.name} is damaged: {name!a} is not where its directory says")
            file.seek(sum(struct.unpack("<26xHH", header)) + start, 1)
            if file.tell() + size > end:
                raise DamagedError(f"{self.name} is cut off: {name!a} ends beyond its end", "fetch or copy it again")
            data = np.empty(size, np.uint8)
            data = data[: file.readinto(data.data)]
        # torch can be told to leave checksums out (0).
        whole = start == 0 and size == entry.file_size
        if len(data) != size or (whole and entry.CRC and zlib.crc32(data.data) != entry.CRC):
            raise DamagedError(f"{self.name} is damaged: the checksum of {name!a} is wrong", "fetch or copy it again")
        return data

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Stored:
        """A tensor over a storage, checked to lie inside it and to hold no element twice."""
        if not isinstance(storage, _Storage) or not (
            _is_counts((offset,)) and _is_counts(shape) and _is_counts(stride)
        ):
            raise ValueError("malformed tensor")
        if len(shape) != len(stride):
            raise ValueError("a tensor has as many strides as dimensions")
        entry = self.entries.get(f"{self.folder}data/{storage.key}")
        if entry is None:
            raise ValueError(f"the bytes of a tensor, data/{storage.key[:20]}, are missing")
        item = storage.dtype.itemsize
        count = math.prod(shape)
        extent = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else 0
        if (offset + extent) * item > entry.file_size or count > extent:
            raise ValueError(f"a tensor of shape {list(shape)} does not fit into its {entry.file_size:,} bytes")

        def read() -> Tensor:
            if not count:
                return torch.empty(shape, dtype=storage.dtype)
            flat = torch.from_numpy(self.bytes(f"data/{storage.key}", offset * item, extent * item)).view(storage.dtype)
            return flat.as_strided(shape, stride).contiguous()

        return Stored(shape, storage.dtype, read)


def read_torch_file(path: Path) -> dict[str, Stored]:
    """The state dict in a `.pt` file: its top level, or the value of "state_dict", "model_state_dict" or "model".

    Raises InputError (not written by torch.save, or holding something else than weights), DamagedError, OSError.
    """
    root = _Archive(path).root()
    places = (
        [root, *(root.get(key) for key in ("state_dict", "model_state_dict", "model"))] if type(root) is dict else []
    )
    for place in places:
        if isinstance(place, dict):
            tensors = {name: value for name, value in place.items() if isinstance(value, Stored) and type(name) is str}
            if tensors:
                return tensors
    raise InputError(
        f"{shown(path)} holds no state dict", "save model.state_dict(), or a dict with it under 'state_dict'"
    )
