"""What one input file holds: itself, the members of an archive, or the rows of a table, as a stream of `Source`s."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from hnet_cli.data.prepare.inputs import FileReader
from hnet_cli.errors import EnvironmentLimit, InputError, UsageError
from hnet_cli.modality import Modality, Refused, Source, suffix
from hnet_cli.storage.streams import BLOCK, decompressed, is_compressed, open_raw, shown

ROW_LIMIT = 64 << 20
"""Bytes in the longest row of a JSONL file that is read."""
MEMBER_LIMIT = 8 << 20
"""Bytes up to which a member of an archive is kept in memory, so that opening it again is free."""
CONSULTED_LIMIT = 1 << 20
HEAD = 8192
ROWS = (".jsonl", ".ndjson")
DAMAGED = "damaged file inside an archive"
_FIELDS = ("text", "content", "body")
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}


class NoField(UsageError):
    """The rows of a file have no such field."""


@dataclass(frozen=True)
class _Reading:
    """How the contents of one input file are read."""

    reader: FileReader
    field: str | None
    """Of rows, as the user named it."""
    notes: Counter[str]
    modality: Modality


def sources(
    reader: FileReader, field: str | None, notes: Counter[str], modality: Modality | None = None
) -> Iterator[Source | Refused]:
    """What one input file holds: itself, the members of an archive, or the rows of a table."""
    how, file = _Reading(reader, field, notes, modality or Modality()), reader.file
    if file.table:
        yield from _table(file.name, how)
        return
    if reader.stretch and reader.stretch[0] == reader.stretch[1]:
        return  # no line begins in it
    with reader.open() as stream:
        if reader.stretch is None:
            yield from _contents(file.name, file.group, _once(stream, reader.open), stream, how)
        elif suffix(file.name) in ROWS:
            yield from _rows(file.name, stream, how, reader.stretch[0])
        else:
            yield Source(file.name, _once(stream, reader.open), file.group, offset=reader.stretch[0])


def _contents(
    name: str,
    group: str,
    open_it: Callable[[], BinaryIO],
    stream: io.BufferedReader,
    how: _Reading,
    inside: bool = False,
) -> Iterator[Source | Refused]:
    """Sources in a decompressed stream at its start; `open_it` gives that very stream first, fresh ones later."""
    head = stream.peek(512)[:512]
    extension = suffix(name)
    if archive := _ARCHIVES.get(head[:4]):
        yield Refused(f"{archive} archive: unpack it first", name)
    elif head[257:262] == b"ustar" or (extension in (".tar", ".tgz") and head):
        if inside:
            yield Refused("archive inside an archive", name)
        else:
            yield from _members(name, stream, open_it, how)
    elif head[:4] == b"PAR1":
        if inside or how.reader.file.is_stdin:
            yield Refused("parquet inside an archive or from standard input", name)
        else:
            yield from _table(name, how)
    elif extension in ROWS or (how.field is not None and how.reader.file.is_stdin and not inside):
        yield from _rows(name, stream, how)
    else:
        yield Source(name, open_it, group)


def _once(first: BinaryIO, again: Callable[[], BinaryIO]) -> Callable[[], BinaryIO]:
    """An opener that gives the stream that is open already, then new ones: small files are opened once."""
    waiting = [first]
    return lambda: waiting.pop() if waiting else again()


# --- archives ---------------------------------------------------------------------------------------------------------


def _members(name: str, stream: BinaryIO, again: Callable[[], BinaryIO], how: _Reading) -> Iterator[Source | Refused]:
    """Sources in a tar archive, streamed: nothing is written to disk, and member names are for display only."""
    again()  # the stream in hand
    judge = how.modality.select_members(_consulted(name, again, how))
    for index, (member, data) in enumerate(_walk_tar(name, stream)):
        called = f"{name}:{shown(member.name)}"
        if member.isdir():
            continue
        if data is None:
            yield Refused("link or device in an archive", called)
            continue
        if any(part[0] == "." and part.strip(".") for part in Path(member.name).parts):
            yield Refused("hidden file or folder", called, member.size)
            continue
        reopen = _reopener(name, called, index, again)
        if small := member.size <= MEMBER_LIMIT:
            content = _read_member(name, data)
            reopen = _bytes_opener(content, called)
            data = io.BytesIO(content)
        else:
            data = cast(BinaryIO, _Member(name, data))
        head = content[:HEAD] if small else b""
        reason, group = judge(_inner_path(member), member.size, head)
        if not reason and small and is_compressed(head):
            reason = _damage(content, called)
        if reason:
            yield Refused(reason, called, member.size, damaged=reason == DAMAGED)
            continue
        with decompressed(data, called) as plain:
            yield from _contents(called, f"{name}/{group}", _once(plain, reopen), plain, how, inside=True)


def _consulted(name: str, again: Callable[[], BinaryIO], how: _Reading) -> dict[str, bytes]:
    """What the modality must know of an archive before it can judge the members: contents by path."""
    wanted: dict[str, bytes] = {}
    if not how.modality.consults:
        return wanted
    if how.reader.file.is_stdin:
        how.notes[f"archive on standard input: {' '.join(sorted(how.modality.consults))} in it not looked at"] += 1
        return wanted
    for member, data in _walk_tar(name, again()):
        path = _inner_path(member)
        for parent in (PurePosixPath(path), *PurePosixPath(path).parents):
            if parent.name in how.modality.consults:
                wanted.setdefault(parent.as_posix(), b"")
        if path in wanted and data is not None and member.size <= CONSULTED_LIMIT:
            wanted[path] = _read_member(name, data)
    return wanted


def _inner_path(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name.lstrip("/")).as_posix()


def _damage(content: bytes, called: str) -> str:
    """Whether a compressed member of an archive is damaged: better known before documents of it are kept."""
    try:
        with decompressed(io.BytesIO(content), called) as plain:
            while plain.read(BLOCK):
                pass
    except InputError:
        return DAMAGED
    return ""


def _walk_tar(name: str, stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """Members of a tar with their data (None for links and devices). Raises InputError unless it ends as a tar must."""
    watched = _Watched(stream)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, watched), mode="r|", bufsize=BLOCK // 4) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # its list would grow with the archive
                yield member, cast(BinaryIO, archive.extractfile(member)) if member.isreg() else None
            # tarfile ends silently at a damaged or missing header; a whole archive has a block of zeros there.
            final = watched.at(archive.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is damaged or truncated: {error}", "get the archive again") from error
    if final != bytes(512):
        what = "damaged" if len(final) == 512 else "truncated"
        raise InputError(f"{name} is {what}: the archive's end is missing", "get the archive again")
    while stream.read(BLOCK):  # so that the whole file is hashed and checked
        pass


class _Watched:
    """Remembers the last two blocks that tarfile read, to look at the header it stopped at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._end, self._recent = stream, 0, b""
        self._last = b""

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


def _read_member(name: str, data: BinaryIO, size: int = -1) -> bytes:
    try:
        return data.read(size)
    except tarfile.TarError as error:
        raise InputError(f"{name} is truncated: {error}", "get the archive again") from error


class _Member(io.RawIOBase):
    """A large member while its archive is walked; where that ends too early, InputError says so."""

    def __init__(self, name: str, data: BinaryIO) -> None:
        self._name, self._data = name, data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = _read_member(self._name, self._data, len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _bytes_opener(content: bytes, name: str) -> Callable[[], BinaryIO]:
    return lambda: decompressed(io.BytesIO(content), name)


def _reopener(name: str, called: str, index: int, again: Callable[[], BinaryIO]) -> Callable[[], BinaryIO]:
    """Opens a large member once more by walking its archive anew: slow, but needs neither memory nor disk."""

    def reopen() -> BinaryIO:
        for number, (_, data) in enumerate(_walk_tar(name, again())):
            if number == index and data is not None:
                return decompressed(cast(BinaryIO, _Member(name, data)), called)
        raise InputError(f"{name} changed while it was read")

    return reopen


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(name: str, stream: io.BufferedReader, how: _Reading, start: int | None = None) -> Iterator[Source | Refused]:
    """A source per row of JSON lines, called by its number; in a stretch that begins at byte `start` of a file by the
    byte where the row begins, for nobody has counted the lines before."""
    field, guessed = how.field, ""
    if field is None and start:
        raw = cast(io.RawIOBase, open_raw(Path(how.reader.file.path or "")))
        with io.BufferedReader(raw, BLOCK) as file:
            field, guessed = _first_field(name, file)
    number, position = 0, start or 0
    while line := stream.readline(ROW_LIMIT):
        number += 1
        where, size = f"{name}:{number}" if start is None else f"{name}@{position}", len(line)
        position += size
        if size == ROW_LIMIT and line[-1:] != b"\n":
            while more := stream.readline(BLOCK):
                size += len(more)
                position += len(more)
                if more[-1:] == b"\n":
                    break
            yield Refused(f"row longer than {ROW_LIMIT >> 20} MiB", where, size)
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError):
            yield Refused("row is not JSON", where, size, damaged=True)
            continue
        if not isinstance(row, dict):
            yield Refused("row is not a JSON object", where, size, damaged=True)
            continue
        if field is None:
            field, guessed = _guess_field(name, row)
        if guessed:
            how.notes[guessed] += 1
        yield _row(where, row.get(field), field, size)


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
    """As `_guess_field`, from the first row of a file that is an object."""
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
    raise NoField(
        f"{name}: rows have none of the fields {', '.join(_FIELDS)}", f"name it with --field; there is {present[:8]}"
    )


def _table(name: str, how: _Reading) -> Iterator[Source | Refused]:
    """A source per row of a parquet file, a few rows in memory at a time."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise EnvironmentLimit(f"{name}: reading parquet needs pyarrow", "pip install 'hnet[parquet]'") from error
    field = how.field
    try:
        # Without a buffer size whole columns of a row group would be read at once, a gigabyte in some files.
        with parquet.ParquetFile(how.reader.open_seekable(), buffer_size=BLOCK, pre_buffer=False) as table:
            about, columns = table.metadata, table.schema_arrow.names
            groups = [about.row_group(index) for index in range(about.num_row_groups)]
            start, end = how.reader.file.part or (0, sys.maxsize)
            mine = [index for index, group in enumerate(groups) if start <= _first_byte(group) < end]
            if field is None:
                field, guessed = _guess_field(name, columns)
                how.notes[guessed] += sum(groups[index].num_rows for index in mine)
            if field not in columns:
                raise NoField(f"{name} has no column {field!r}", f"there is {columns[:8]}")
            number = sum(group.num_rows for group in groups[: mine[0]]) if mine else 0
            for batch in table.iter_batches(64, mine, columns=[field], use_threads=False):
                for value in _undecoded(batch.column(0)).to_pylist():
                    number += 1
                    yield _row(f"{name}:{number}", value, field, 0)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())  # of several lines
        raise InputError(f"{name} is damaged or truncated: {why}", "get the file again") from error


def _undecoded(column: Any) -> Any:
    """Strings of a table as bytes, which the modality judges: arrow does not check that they are UTF-8."""
    import pyarrow

    as_bytes = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    return column.cast(as_bytes.get(column.type, column.type))


def row_groups(path: Path) -> list[int]:
    """Where the row groups of a parquet file begin; [] for a file whose faults its reader is to report."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return []
    try:
        with parquet.ParquetFile(path) as table:
            groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
    except (ArrowException, OSError):
        return []
    starts = [_first_byte(group) for group in groups]
    return starts if starts == sorted(starts) else []


def _first_byte(group: Any) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    return min(min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns)
