"""What is to be read, in units of work: the same units in the same order however many processes or machines read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hnet_cli
from hnet_cli.data.dataset import FORMAT
from hnet_cli.data.prepare.account import Account
from hnet_cli.data.prepare.contents import ROWS, row_groups
from hnet_cli.data.prepare.inputs import InputFile, expand
from hnet_cli.errors import InputError, UsageError
from hnet_cli.modality import Modality, Refused, suffix
from hnet_cli.storage.streams import is_compressed, open_raw, shown

UNIT_BYTES = 32 << 20
UNIT_FILES = 1000
"""A process takes so many consecutive files at once, in bytes or in number; a kill costs no more work than that."""
_HEAD = 1 << 16


@dataclass(frozen=True)
class Request:
    """What the user asked for, as far as it decides about the bytes of the dataset."""

    modality: str
    inputs: tuple[str, ...]
    """As shown."""
    val_inputs: tuple[str, ...]
    val: float
    field: str | None

    @classmethod
    def of(
        cls, modality: Modality, inputs: Sequence[str | Path], val_inputs: Sequence[str | Path], val: float,
        field: str | None,
    ) -> Request:  # fmt: skip
        """Raises UsageError for options that make no sense."""
        if not inputs:
            raise InputError("nothing to prepare", "name files, folders or -")
        if not 0 < val < 1:
            raise UsageError(f"--val is a share between 0 and 1, not {val}")
        return cls(modality.name, tuple(map(shown, inputs)), tuple(map(shown, val_inputs)), val, field)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Request:
        """The inverse of `vars`, after JSON."""
        lists = {name: tuple(data[name]) for name in ("inputs", "val_inputs")}
        return cls(data["modality"], val=data["val"], field=data["field"], **lists)


@dataclass
class Plan:
    """Units of consecutive files, those to train on first, and what was refused while they were looked for."""

    units: list[list[InputFile]]
    account: Account

    @property
    def size(self) -> int:
        """Bytes of all files, as they are."""
        return sum(map(unit_size, self.units))

    @property
    def streamed(self) -> bool:
        """Whether standard input is read, whose size nobody knows."""
        return any(file.is_stdin for unit in self.units for file in unit)

    def share(self, part: int, parts: int) -> Plan:
        """Part 1 to `parts`: consecutive units, about the same number of bytes in each."""
        if self.streamed:
            raise UsageError("standard input cannot be prepared in parts", "save it to a file that every machine sees")
        total, before, mine = max(1, self.size), 0, []
        for unit in self.units:
            if min(before * parts // total, parts - 1) == part - 1:
                mine.append(unit)
            before += unit_size(unit)
        return Plan(mine, self.account)

    def digest(self, request: Request) -> str:
        """Stands for all that every part must agree on. Times of modification may differ between copies."""
        files = [[file.name, file.size, file.part, file.group] for unit in self.units for file in unit]
        return digest([*_version(request), vars(request), files])

    def keys(self, request: Request, modality: Modality) -> list[str]:
        """For each unit what its documents follow from."""
        version = [*_version(request), f"{type(modality).__module__}.{type(modality).__qualname__}", request.field]
        return [
            digest([*version, [[f.name, f.size, f.stamp, f.part, f.group, f.argument] for f in unit]])
            for unit in self.units
        ]


def _version(request: Request) -> list[Any]:
    return [FORMAT, hnet_cli.__version__, request.modality]


def digest(data: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def unit_size(unit: list[InputFile]) -> int:
    """Bytes of the files of a unit."""
    return sum(_size(file) for file in unit)


def _size(file: InputFile) -> int:
    return file.part[1] - file.part[0] if file.part else file.size


def make_plan(names: Sequence[str | Path], training: int, modality: Modality) -> Plan:
    """The files that `names` stand for; those from index `training` on are held out, and so not trained on.

    A plain file of several units whose lines or row groups stand for themselves is divided.
    """
    account = Account()
    files: list[InputFile] = []
    for argument, found in expand(names, modality):
        if isinstance(found, Refused):
            account.refuse(argument, found)
        else:
            files.append(found)
    held_out = {_identity(file) for file in files if file.argument >= training} - {None}
    units: list[list[InputFile]] = []
    size = 0
    for file in files:
        if file.argument < training and held_out and _identity(file) in held_out:
            account.notes["files held out by --val-input, so not trained on"] += 1
            continue
        for piece in _pieces(file, modality):
            new_side = units and (units[-1][0].argument < training) != (piece.argument < training)
            if not units or new_side or size + _size(piece) > UNIT_BYTES or len(units[-1]) == UNIT_FILES:
                units.append([])
                size = 0
            units[-1].append(piece)
            size += _size(piece)
    return Plan(units, account)


def _pieces(file: InputFile, modality: Modality) -> Iterator[InputFile]:
    """The file, or stretches of it of about a unit each."""
    if file.path is None or file.size <= 2 * UNIT_BYTES:
        yield file
        return
    try:
        with open_raw(file.path) as raw:
            head = raw.read(_HEAD)
    except InputError:  # gone in this instant: its reader says so
        head = b""
    borders = list(range(0, file.size, UNIT_BYTES))
    table = head[:4] == b"PAR1"
    if table:
        starts = row_groups(file.path)[1:]
        borders = [0]
        for start, after in zip(starts, [*starts[1:], file.size], strict=True):
            if after - borders[-1] > UNIT_BYTES and start > borders[-1]:
                borders.append(start)
    elif not _by_lines(file, head, modality):
        borders = [0]
    if len(borders) == 1:
        yield file
    else:
        for start, end in zip(borders, [*borders[1:], file.size], strict=True):
            yield replace(file, part=(start, end), table=table)


def _by_lines(file: InputFile, head: bytes, modality: Modality) -> bool:
    if head[257:262] == b"ustar" or is_compressed(head):
        return False
    return suffix(file.name) in ROWS or modality.divisible(head)


def _identity(file: InputFile) -> tuple[int, int] | str | None:
    try:
        status = os.stat(file.path) if file.path is not None else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status else file.url or None
