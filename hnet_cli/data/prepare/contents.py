"""The contents of an input file as `Source`s: the file itself, the members of an archive, or the rows of a table."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from hnet_cli.data.prepare.inputs import FileReader, expand
from hnet_cli.errors import EnvironmentLimit, InputError, UsageError
from hnet_cli.modality import Modality, Refused, Source, suffix
from hnet_cli.storage.streams import READ_BYTES, RawReader, decompressed, is_compressed, open_raw, shown

ROW_LIMIT = 64 << 20
"""Bytes in the longest row of a JSONL file that is read."""
MEMBER_LIMIT = 8 << 20
"""Bytes up to which a member of an archive is kept in memory, so that opening it again is free."""
CONSULTED_LIMIT = 1 << 20
HEAD_BYTES = 8192
ROWS = (".jsonl", ".ndjson")
DAMAGED = "damaged file inside an archive"
_FIELDS = ("text", "content", "body")
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}
_Opener = Callable[[], BinaryIO]


class NoField(UsageError):
    """The rows of a file lack the field."""


@dataclass(frozen=True)
class _Reading:
    """Options for reading the contents of one input file."""

    reader: FileReader
    field: str | None
    """Field of rows, as the user named it."""
    notes: Counter[str]
    modality: Modality


def sources_of(
    inputs: Sequence[str | Path],
    modality: Modality,
    field: str | None = None,
    on_damaged: Callable[[InputError], None] | None = None,
) -> Iterator[Source | Refused]:
    """Every source in the user's inputs in order, and refusals. Raises InputError for an input that is not there.

    `on_damaged`: called for a file that cannot be read (on), after which the others follow; else that is raised.
    """
    for _, item in expand(inputs, modality):
        if isinstance(item, Refused):
            yield item
            continue
        try:
            yield from sources(FileReader(item), field, Counter(), modality)
        except InputError as error:
            if on_damaged is None:
                raise
            on_damaged(error)


def sources(
    reader: FileReader, field: str | None, notes: Counter[str], modality: Modality | None = None
) -> Iterator[Source | Refused]:
    """The sources in one input file. `field`: of rows; remarks are counted in `notes`."""
    reading, file = _Reading(reader, field, notes, modality or Modality()), reader.file
    if file.table:
        yield from _table(file.name, reading)
    elif not reader.stretch:
        with reader.open() as stream:
            yield from _contents(file.name, file.group, _once(stream, reader.open), stream, reading)
    elif reader.stretch[0] < reader.stretch[1]:  # else no line begins in it
        with reader.open() as stream:
            if suffix(file.name) in ROWS:
                yield from _rows(file.name, stream, reading, reader.stretch[0])
            else:
                yield Source(file.name, _once(stream, reader.open), file.group, offset=reader.stretch[0])


def _contents(
    name: str, group: str, open_it: _Opener, stream: io.BufferedReader, reading: _Reading, inside: bool = False
) -> Iterator[Source | Refused]:
    """Sources in a decompressed stream at its start; `open_it` gives that very stream first, fresh ones later.

    `inside`: the stream is a member of an archive.
    """
    head = stream.peek(512)[:512]
    extension = suffix(name)
    if archive := _ARCHIVES.get(head[:4]):
        yield Refused(f"{archive} archive: unpack it first", name)
    elif head[257:262] == b"ustar" or (extension in (".tar", ".tgz") and head):
        if inside:
            yield Refused("archive inside an archive", name)
        else:
            yield from _members(name, stream, open_it, reading)
    elif head[:4] == b"PAR1":
        if inside or reading.reader.file.is_stdin:
            yield Refused("parquet inside an archive or from standard input", name)
        else:
            yield from _table(name, reading)
    elif extension in ROWS or (reading.field is not None and reading.reader.file.is_stdin and not inside):
        yield from _rows(name, stream, reading)
    else:
        yield Source(name, open_it, group)


def _once(first: BinaryIO, again: _Opener) -> _Opener:
    """An opener that gives the stream that is open already, then new ones: small files are opened once."""
    waiting = [first]
    return lambda: waiting.pop() if waiting else again()


# --- archives ---------------------------------------------------------------------------------------------------------


def _members(name: str, stream: BinaryIO, again: _Opener, reading: _Reading) -> Iterator[Source | Refused]:
    """Sources in a tar archive, streamed: nothing is written to disk, and member names are for display only."""
    again()  # the stream in hand
    judge = reading.modality.select_members(_consulted(name, again, reading))
    for index, (member, data) in enumerate(_walk_tar(name, stream)):
        label = f"{name}:{shown(member.name)}"
        if member.isdir():
            continue
        if data is None:
            yield Refused("link or device in an archive", label)
            continue
        if any(part[0] == "." and part.strip(".") for part in Path(member.name).parts):
            yield Refused("hidden file or folder", label, member.size)
            continue
        content = data.read() if member.size <= MEMBER_LIMIT else b""
        head = content[:HEAD_BYTES]
        reason, group = judge(_inner_path(member), member.size, head)
        if not reason and is_compressed(head) and _is_damaged(content, label):
            reason = DAMAGED
        if reason:
            yield Refused(reason, label, member.size, damaged=reason == DAMAGED)
            continue
        if member.size <= MEMBER_LIMIT:
            reopen = _bytes_opener(content, label)
            plain = cast(io.BufferedReader, reopen())
        else:
            reopen = _member_opener(name, label, index, again)
            plain = decompressed(data, label)
        with plain:
            yield from _contents(label, f"{name}/{group}", _once(plain, reopen), plain, reading, inside=True)


def _consulted(name: str, again: _Opener, reading: _Reading) -> dict[str, bytes]:
    """Contents, by path, that the modality must know before it can judge the members of an archive."""
    wanted: dict[str, bytes] = {}
    consults = reading.modality.consults
    if consults and reading.reader.file.is_stdin:
        reading.notes[f"archive on standard input: {' '.join(sorted(consults))} in it not looked at"] += 1
    elif consults:
        for member, data in _walk_tar(name, again()):
            path = PurePosixPath(_inner_path(member))
            for parent in (path, *path.parents):
                if parent.name in consults:
                    wanted.setdefault(parent.as_posix(), b"")
            if path.as_posix() in wanted and data is not None and member.size <= CONSULTED_LIMIT:
                wanted[path.as_posix()] = data.read()
    return wanted


def _inner_path(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name.lstrip("/")).as_posix()


def _is_damaged(content: bytes, label: str) -> bool:
    """True if a compressed member of an archive is damaged: better known before documents of it are kept."""
    try:
        with decompressed(io.BytesIO(content), label) as plain:
            while plain.read(READ_BYTES):
                pass
    except InputError:
        return True
    return False


def _walk_tar(name: str, stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """Members of a tar with their data (None for links and devices). Raises InputError unless it ends as a tar must."""
    watched = _Watched(stream)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, watched), mode="r|", bufsize=READ_BYTES // 4) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # its list would grow with the archive
                data = archive.extractfile(member) if member.isreg() else None
                yield member, cast(BinaryIO, _Member(name, cast(BinaryIO, data))) if data else None
            # tarfile ends silently at a damaged or missing header; a whole archive has a block of zeros there.
            final = watched.at(archive.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is damaged or truncated: {error}", "get the archive again") from error
    if final != bytes(512):
        fault = "damaged" if len(final) == 512 else "truncated"
        raise InputError(f"{name} is {fault}: the archive's end is missing", "get the archive again")
    while stream.read(READ_BYTES):  # so that the whole file is hashed and checked
        pass


class _Watched:
    """Remembers the last two blocks that tarfile read, to look at the header it stopped at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._end, self._recent, self._last = stream, 0, b"", b""

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        if block:
            self._recent, self._last = self._last, block
            self._end += len(block)
        return block

    def at(self, offset: int) -> bytes:
        """The 512 bytes at `offset`, or fewer at the end of the stream."""
        known = self._recent + self._last
        start = offset - (self._end - len(known))
        return known[start : start + 512] if start >= 0 else b""


class _Member(RawReader):
    """A member while its archive is walked; raises InputError where the archive ends too early."""

    def __init__(self, name: str, data: BinaryIO) -> None:
        super().__init__(data)
        self._name = name

    def read(self, size: int = -1) -> bytes:
        try:
            return self.stream.read(size)
        except tarfile.TarError as error:
            raise InputError(f"{self._name} is truncated: {error}", "get the archive again") from error

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _bytes_opener(content: bytes, name: str) -> _Opener:
    return lambda: decompressed(io.BytesIO(content), name)


def _member_opener(name: str, label: str, index: int, again: _Opener) -> _Opener:
    """Opens a large member once more by walking its archive anew: slow, but needs neither memory nor disk."""

    def reopen() -> BinaryIO:
        for number, (_, data) in enumerate(_walk_tar(name, again())):
            if number == index and data is not None:
                return decompressed(data, label)
        raise InputError(f"{name} changed while it was read")

    return reopen


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(
    name: str, stream: io.BufferedReader, reading: _Reading, start: int | None = None
) -> Iterator[Source | Refused]:
    """A source per row of JSON lines, named by its number.

    In a stretch that begins at byte `start` of a file, rows are named by the byte where they begin: nobody has counted
    the lines before.
    """
    field, guessed = reading.field, ""
    if field is None and start:
        raw = cast(io.RawIOBase, open_raw(Path(reading.reader.file.path or "")))
        with io.BufferedReader(raw, READ_BYTES) as file:
            field, guessed = _first_field(name, file)
    number, position = 0, start or 0
    while line := stream.readline(ROW_LIMIT):
        number += 1
        where, size = f"{name}:{number}" if start is None else f"{name}@{position}", len(line)
        if size == ROW_LIMIT and line[-1:] != b"\n":
            while more := stream.readline(READ_BYTES):
                size += len(more)
                if more[-1:] == b"\n":
                    break
            yield Refused(f"row longer than {ROW_LIMIT >> 20} MiB", where, size)
        elif line.strip():
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError):
                yield Refused("row is not JSON", where, size, damaged=True)
            else:
                if isinstance(row, dict):
                    if field is None:
                        field, guessed = _guess_field(name, row)
                    if guessed:
                        reading.notes[guessed] += 1
                    yield _row(where, row.get(field), field, size)
                else:
                    yield Refused("row is not a JSON object", where, size, damaged=True)
        position += size


def _row(where: str, value: object, field: str, size: int) -> Source | Refused:
    if isinstance(value, bytes):
        return Source.of_bytes(value, where, where)
    if not isinstance(value, str):
        return Refused(f"row has no text in field {field!r}", where, size, damaged=True)
    try:
        return Source.of_bytes(value.encode(), where, where)
    except UnicodeEncodeError:
        return Refused("row with half a surrogate pair", where, size, damaged=True)


def _first_field(name: str, file: BinaryIO) -> tuple[str | None, str]:
    """`_guess_field` of the first row of a file that is an object."""
    for _ in range(1000):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(file.readline(ROW_LIMIT))
            if isinstance(row, dict):
                return _guess_field(name, row)
    return None, ""


def _guess_field(name: str, row: Iterable[str]) -> tuple[str, str]:
    """The first usual field of a row, and what to note about it. Raises NoField."""
    present = list(row)
    for field in _FIELDS:
        if field in present:
            return field, f"row read from its field {field!r}"
    hint = f"name it with --field; there is {present[:8]}"
    raise NoField(f"{name}: rows have none of the fields {', '.join(_FIELDS)}", hint)


def _table(name: str, reading: _Reading) -> Iterator[Source | Refused]:
    """A source per row of a parquet file, a few rows in memory at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EnvironmentLimit(f"{name}: reading parquet needs pyarrow", "pip install 'hnet-cli[parquet]'") from error
    # Strings are read as bytes, which the modality judges: arrow does not check that they are UTF-8.
    as_bytes = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    field = reading.field
    try:
        # Without a buffer size whole columns of a row group would be read at once, a gigabyte in some files.
        with parquet.ParquetFile(reading.reader.open_seekable(), buffer_size=READ_BYTES, pre_buffer=False) as table:
            columns = table.schema_arrow.names
            groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
            start, end = reading.reader.file.part or (0, sys.maxsize)
            mine = [index for index, group in enumerate(groups) if start <= _first_byte(group) < end]
            if field is None:
                field, guessed = _guess_field(name, columns)
                reading.notes[guessed] += sum(groups[index].num_rows for index in mine)
            if field not in columns:
                raise NoField(f"{name} has no column {field!r}", f"there is {columns[:8]}")
            number = sum(group.num_rows for group in groups[: mine[0]]) if mine else 0
            for batch in table.iter_batches(64, mine, columns=[field], use_threads=False):
                column = batch.column(0)
                for value in column.cast(as_bytes.get(column.type, column.type)).to_pylist():
                    number += 1
                    yield _row(f"{name}:{number}", value, field, 0)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())  # it has several lines
        raise InputError(f"{name} is damaged or truncated: {reason}", "get the file again") from error


def row_groups(path: Path) -> list[int]:
    """Positions, in bytes, of a parquet file's row groups; [] for a file whose faults its reader is to report."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return []
    try:
        with parquet.ParquetFile(path) as table:
            starts = [_first_byte(table.metadata.row_group(index)) for index in range(table.num_row_groups)]
    except (ArrowException, OSError):
        return []
    return starts if starts == sorted(starts) else []


def _first_byte(group: Any) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    return min(min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns)
