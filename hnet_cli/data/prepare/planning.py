"""Planning: the inputs in units of work, the same units in the same order however many processes or machines read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hnet_cli
from hnet_cli.config.bounds import typed
from hnet_cli.data.dataset import DATASET_FORMAT
from hnet_cli.data.prepare import rows
from hnet_cli.data.prepare.archives import is_tar
from hnet_cli.data.prepare.inputs import InputFile, expand
from hnet_cli.data.prepare.journal import Account
from hnet_cli.data.prepare.rows import Field
from hnet_cli.data.prepare.store import TABLES
from hnet_cli.errors import InputError, UsageError
from hnet_cli.modality import Modality, Refused, suffix
from hnet_cli.storage.streams import is_compressed, open_raw

UNIT_BYTES = 32 << 20
UNIT_FILES = 1000
"""A process takes so many consecutive files at once, in bytes or in number; a kill costs no more work than that."""
Unit = list[InputFile]
PARTLY = (*rows.NAMES, ".json", ".parquet", ".tar", ".tgz")
"""Extensions of files of which a part is stored: a field, some members."""


@dataclass(frozen=True)
class PrepareRequest:
    """The user's options, as far as they decide about the bytes of the dataset."""

    modality: str
    inputs: tuple[str, ...]
    """Name for people."""
    val_inputs: tuple[str, ...]
    val: float
    field: Field

    def __post_init__(self) -> None:
        """Raises InputError or UsageError for options that make no sense."""
        if not self.inputs:
            raise InputError("nothing to prepare", "name files, folders or -")
        if not 0 < self.val < 1:
            raise UsageError(f"--val is a share between 0 and 1, not {self.val}")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PrepareRequest:
        """Inverse of `vars`, after JSON. Raises DamagedError."""
        return typed(cls, data, "the request of a part")


@dataclass
class ReadingPlan:
    """Units of consecutive files, those to train on first, and the account of what was refused in looking for them."""

    units: list[Unit]
    account: Account

    @property
    def size(self) -> int:
        """Bytes of all files, as they are."""
        return sum(map(_unit_size, self.units))

    @property
    def least_stored(self) -> int:
        """Bytes that are stored at least, or about: of rows and archives there may be any part."""
        return sum(file.part_size for unit in self.units for file in unit if suffix(file.name) not in PARTLY)

    @property
    def streamed(self) -> bool:
        """True if standard input is read, whose size nobody knows."""
        return any(file.is_stdin for unit in self.units for file in unit)

    def share(self, part: int, parts: int) -> ReadingPlan:
        """Part 1 to `parts`: consecutive units, about the same number of bytes in each."""
        if self.streamed:
            raise UsageError("standard input cannot be prepared in parts", "save it to a file that every machine sees")
        total, before, units = max(1, self.size), 0, []
        for unit in self.units:
            if min(before * parts // total, parts - 1) == part - 1:
                units.append(unit)
            before += _unit_size(unit)
        return ReadingPlan(units, self.account)

    def digest(self, request: PrepareRequest) -> str:
        """SHA-256 of all that every part must agree on. Times of modification may differ between copies."""
        files = [[file.name, file.size, file.part, file.group, file.sole] for unit in self.units for file in unit]
        return digest([*_version(request), vars(request), files])

    def keys(self, request: PrepareRequest, modality: Modality) -> list[str]:
        """For each unit, the SHA-256 of all that its documents follow from; "" for standard input, of which nothing is
        known before it is read."""
        version = [*_version(request), f"{type(modality).__module__}.{type(modality).__qualname__}", request.field]
        return [
            ""
            if any(f.is_stdin for f in unit)
            else digest([*version, [[f.name, f.size, f.stamp, f.part, f.group, f.argument, f.sole] for f in unit]])
            for unit in self.units
        ]


def _version(request: PrepareRequest) -> list[Any]:
    return [DATASET_FORMAT, TABLES, hnet_cli.__version__, request.modality]


def digest(data: Any) -> str:
    """SHA-256 of data that JSON can hold."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _unit_size(unit: Unit) -> int:
    return sum(file.part_size for file in unit)


def make_plan(
    names: Sequence[str | Path], training: int, modality: Modality, field: Field = None, work: str = ""
) -> ReadingPlan:
    """The plan for the files that `names` stand for; those from index `training` on are held out. `field`: of rows.

    A file is read once, under the first of its names; a held-out file is not trained on. A plain file of several units
    whose lines or row groups stand for themselves is divided. `work`: name of the hidden folder that is written to
    meanwhile, which is not counted.
    """
    account = Account()
    files: list[InputFile] = []
    for argument, item in expand(names, modality):
        if isinstance(item, Refused):
            if not work or Path(item.where).name != work:
                account.refuse(argument, item)
        else:
            files.append(item)
    held_out = {file.identity for file in files if file.argument >= training} - {""}
    read: dict[str, str] = {}
    units: list[Unit] = []
    size = 0
    for file in files:
        held, again = file.argument < training and file.identity in held_out, read.get(file.identity)
        if held:
            account.notes["files held out by --val-input, so not trained on"] += 1
        elif again is not None:
            where = f"{file.name} is {again}"
            account.refuse(file.argument, Refused("the same file as one read already", where, file.size))
        if held or again is not None:
            if file.argument not in account.elsewhere:
                account.elsewhere.append(file.argument)
            continue
        if file.identity:
            read[file.identity] = file.name
        for piece in _pieces(file, modality, field):
            new_side = units and (units[-1][0].argument < training) != (piece.argument < training)
            if not units or new_side or size + piece.part_size > UNIT_BYTES or len(units[-1]) == UNIT_FILES:
                units.append([])
                size = 0
            units[-1].append(piece)
            size += piece.part_size
    return ReadingPlan(units, account)


def _pieces(file: InputFile, modality: Modality, field: Field) -> Iterator[InputFile]:
    """The file, or stretches of it of about a unit each."""
    starts, table = [0], False
    if file.path is not None and file.size > 2 * UNIT_BYTES:
        try:
            with open_raw(file.path) as raw:
                head = raw.read(rows.FORM_BYTES)
        except InputError:  # gone in this instant: its reader says so
            head = b""
        table = head[:4] == b"PAR1"
        form = rows.form(file.name, head, field, modality.verbatim)
        packed = is_tar(head[:512]) or is_compressed(head) or form == rows.LIST
        if table:
            groups = rows.row_groups(file.path)[1:]
            for start, after in zip(groups, [*groups[1:], file.size], strict=True):
                if after - starts[-1] > UNIT_BYTES and start > starts[-1]:
                    starts.append(start)
        elif not packed and (form or modality.divisible(head)):
            starts = list(range(0, file.size, UNIT_BYTES))
    if len(starts) == 1:
        yield file
    else:
        for start, end in zip(starts, [*starts[1:], file.size], strict=True):
            yield replace(file, part=(start, end), table=table)
