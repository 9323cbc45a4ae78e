"""The contents of an input file as `Source`s: the file itself, the members of an archive, or rows; told by content."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hnet_cli.data.prepare import rows
from hnet_cli.data.prepare.archives import Opener, is_tar, members
from hnet_cli.data.prepare.inputs import FileReader, InputFile, expand
from hnet_cli.data.prepare.journal import MADE_BY_HNET
from hnet_cli.data.prepare.rows import Field, NoRows, RowReader
from hnet_cli.distributed.device import cpu_memory
from hnet_cli.errors import EnvironmentLimit, InputError
from hnet_cli.modality import Document, Modality, Refused, Source, suffix, wide_reason
from hnet_cli.model.config import EOS
from hnet_cli.storage.outputs import PAGE_HEAD, is_output, is_page
from hnet_cli.storage.streams import decompressed, is_compressed, open_raw, was_compressed, window_bytes

LARGE_WINDOW = 1 << 27
"""Bytes of memory for unpacking a file above which it is said."""
_UNREAD = {
    b"PK\x03\x04": "zip archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "7z archive: unpack it first",
    b"Rar!\x1a\x07": "rar archive: unpack it first",
    b"\x04\x22\x4d\x18": "lz4: unpack it first",
    b"LZIP\x01": "lzip: unpack it first",
    b"\x89LZO\0": "lzop: unpack it first",
    b"\x1f\x9d": "compress (.Z): unpack it first",
    b"\x5d\0\0": "lzma of the old style: unpack it first",
    b"\xff\x06\0\0sNaPpY": "snappy: unpack it first",
    b"ARROW1\0\0": "Arrow file: save it as parquet",
    b"Obj\x01": "Avro: save it as parquet",
}
"""Containers by their first bytes, and why they are refused."""


@dataclass(frozen=True)
class _Reading:
    """Options for reading the contents of one input file."""

    reader: FileReader
    field: Field
    """The field of rows, as the user named it."""
    notes: Counter[str]
    modality: Modality

    def rows(self, name: str) -> RowReader:
        return RowReader(name, self.field, self.notes)

    def form(self, name: str, head: bytes) -> str:
        """`rows.form` of a file that begins with `head`."""
        return rows.form(name, head, self.field, self.modality.verbatim)

    def mind_rows(self, name: str, head: bytes) -> None:
        """Say that a file without `form` holds rows all the same, which are read with all of their JSON."""
        if suffix(name) not in self.modality.verbatim and rows.are_objects(head):
            self.notes["file of JSON read as it is: name a field of its rows with --field"] += 1


def files_of(
    inputs: Sequence[str | Path],
    modality: Modality,
    field: Field = None,
    on_read: Callable[[int], None] = lambda count: None,
) -> Iterator[Iterator[Source | Refused]]:
    """For every file in the user's inputs, in order, its sources and refusals; these raise InputError if damaged.

    Raises InputError itself for an input that is not there. What is refused outright is a file of its own. `on_read`:
    called with each number of bytes that is read of a file for the first time.
    """
    for _, item in expand(inputs, modality):
        yield iter([item]) if isinstance(item, Refused) else _of_file(item, modality, field, on_read)


def _of_file(
    file: InputFile, modality: Modality, field: Field, on_read: Callable[[int], None]
) -> Iterator[Source | Refused]:
    try:
        yield from sources(FileReader(file, on_read), field, Counter(), modality)
    except NoRows:
        if file.named:
            raise
        yield Refused(rows.NO_ROWS, file.name, file.size)


def sources_of(
    inputs: Sequence[str | Path],
    modality: Modality,
    field: Field = None,
    on_damaged: Callable[[InputError], None] | None = None,
    on_read: Callable[[int], None] = lambda count: None,
) -> Iterator[Source | Refused]:
    """Every source in the user's inputs in order, and refusals. Raises InputError for an input that is not there.

    `on_damaged`: called for a file that cannot be read (on), after which the others follow; else that is raised.
    `on_read`: called with each number of bytes that is read of a file for the first time.
    """
    for file in files_of(inputs, modality, field, on_read):
        try:
            yield from file
        except InputError as error:
            if on_damaged is None:
                raise
            on_damaged(error)


def sources(
    reader: FileReader, field: Field, notes: Counter[str], modality: Modality | None = None
) -> Iterator[Source | Refused]:
    """The sources in one input file. `field`: of rows; remarks are counted in `notes`. Raises NoRows if it has none."""
    reading, file = _Reading(reader, field, notes, modality or Modality()), reader.file
    if file.named and file.path is not None and is_output(file.path):
        notes["file named that hnet wrote"] += 1
    if file.table:
        yield from reading.rows(file.name).table(reader)
    elif not reader.stretch:
        with reader.open() as stream:
            _mind_memory(file.name, window_bytes(stream), notes)
            yield from contents(stream, reading)
    elif reader.stretch[0] < reader.stretch[1]:  # else no line begins in it
        with open_raw(file.path or Path()) as raw:
            form = reading.form(file.name, head := raw.read(rows.FORM_BYTES))
        with reader.open() as stream:
            if form:
                yield from reading.rows(file.name).lines(stream, reader.stretch[0], file.path)
            else:
                if not reader.stretch[0]:
                    reading.mind_rows(file.name, head)
                yield Source(file.name, _once(stream, reader.open), file.group, offset=reader.stretch[0])


def documents_of(
    source: Source, documents: Callable[[Source], Iterator[Document | Refused]]
) -> Iterator[Document | Refused]:
    """The `documents` of a source as they are stored: that of a row of prompt and completion ends with EOS, by which a
    model learns to stop, and its offset is minus the length of the prompt."""
    if source.completion is None:
        yield from documents(source)
        return
    items = list(documents(source))
    with source.open() as stream:
        size = len(stream.read())
    (first, *others) = items or [Refused("empty", source.name)]
    if isinstance(first, Refused) and (first.damaged or not others):
        yield first
    elif others or isinstance(first, Refused) or len(first.data) != size:
        yield Refused("row of prompt and completion with what this modality leaves out or changes", source.name, size)
    else:
        yield first._replace(data=first.data + bytes([EOS]), offset=-source.completion)


def first_sources(reader: FileReader, head: bytes, field: Field) -> Iterator[Source | Refused]:
    """The sources in standard input as far as it is known: it begins with the decompressed bytes `head`."""
    stream = decompressed(io.BytesIO(head), reader.file.name)
    yield from contents(stream, _Reading(reader, field, Counter(), Modality()))


def contents(stream: io.BufferedReader, reading: _Reading) -> Iterator[Source | Refused]:
    """Sources in the decompressed stream of a file, at its start."""
    file, reader = reading.reader.file, reading.reader
    reopen = None if file.is_stdin else reader.open
    head = stream.peek(rows.FORM_BYTES)[: rows.FORM_BYTES]
    if is_tar(head[:512]) or (suffix(file.name) in (".tar", ".tgz") and head):
        sole = file.sole and file.named
        for member in members(file.name, stream, reopen, reading.modality, reading.notes, sole):
            if isinstance(member, Refused):
                yield member
                continue
            with member.stream:
                yield from _content(member.name, member.group, member.stream, member.reopen, reading, inside=True)
    elif head[:4] == b"PAR1" and not file.is_stdin and not was_compressed(stream):
        yield from reading.rows(file.name).table(reader)
    else:
        yield from _content(file.name, file.group, stream, reader.open, reading)


def _content(
    name: str, group: str, stream: io.BufferedReader, reopen: Opener, reading: _Reading, inside: bool = False
) -> Iterator[Source | Refused]:
    """Sources in a stream, at its start, that is no archive of ours. `inside`: it is a member of one."""
    head = stream.peek(rows.FORM_BYTES)[: rows.FORM_BYTES]
    form, for_rows = reading.form(name, head), reading.field is not None or suffix(name) in rows.NAMES
    reason = next((why for magic, why in _UNREAD.items() if head.startswith(magic)), "")
    if is_page(head[:PAGE_HEAD]):
        reason = f"page {MADE_BY_HNET}"
    if inside and (is_tar(head[:512]) or (suffix(name) in (".tar", ".tgz") and head)):
        reason = "archive inside an archive"
    elif head[:4] == b"PAR1":
        reason = "parquet that is packed or from standard input: it is read in a file of its own"
    elif is_compressed(head):
        reason = "compressed twice: unpack it once"
    elif not reason and for_rows:
        reason = wide_reason(head)
    if reason:
        yield Refused(reason, name)
    elif form == rows.LINES:
        yield from reading.rows(name).lines(stream)
    elif form == rows.LIST:
        yield from reading.rows(name).elements(stream)
    elif reading.field is None or not head.strip():
        reading.mind_rows(name, head)
        yield Source(name, _once(stream, reopen), group)
    elif inside:
        yield Refused(rows.NO_ROWS, name)
    else:
        which = rows.option_of(reading.field)
        reason = f"{name} has no rows (JSON lines, a JSON list, parquet), to which {which} could apply"
        raise NoRows(reason, "leave the option out, or the file")


def _once(first: BinaryIO, again: Opener) -> Opener:
    """An opener that gives the stream that is open already, then new ones: small files are opened once."""
    waiting = [first]
    return lambda: waiting.pop() if waiting else again()


def _mind_memory(name: str, window: int, notes: Counter[str]) -> None:
    """Say that a file takes much memory to unpack. Raises EnvironmentLimit where there is less."""
    if window <= LARGE_WINDOW:
        return
    if window > (free := cpu_memory()):
        reason = f"unpacking {name} takes {window >> 20:,} MiB of memory, {free >> 20:,} are free"
        raise EnvironmentLimit(reason, "unpack it elsewhere (zstd -d --long=31, xz -d), or give this machine more")
    notes[f"file that takes {window >> 20:,} MiB of memory to unpack"] += 1
