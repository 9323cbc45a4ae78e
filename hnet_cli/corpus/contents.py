"""What one input file holds: itself, the members of an archive, or the rows of a table, as a stream of `Source`s."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from hnet_cli.corpus.inputs import FileReader
from hnet_cli.errors import EnvironmentLimit, InputError, UsageError
from hnet_cli.modality import Refused, Source, suffix
from hnet_cli.streams import BLOCK, decompressed, shown

ROW_LIMIT = 64 << 20
"""Bytes in the longest row of a JSONL file that is read."""
MEMBER_LIMIT = 8 << 20
"""Bytes up to which a member of an archive is kept in memory, so that opening it again is free."""
_FIELDS = ("text", "content", "body")
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}


def sources(reader: FileReader, field: str | None, notes: Counter[str]) -> Iterator[Source | Refused]:
    """What one input file holds: itself, the members of an archive, or the rows of a table."""
    file = reader.file
    with reader.open() as stream:
        yield from _contents(file.name, file.group, _once(stream, reader.open), stream, file.path, field, notes)


def _contents(
    name: str,
    group: str,
    open_it: Callable[[], BinaryIO],
    stream: io.BufferedReader,
    path: Path | None,
    field: str | None,
    notes: Counter[str],
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
            yield from _members(name, group, stream, open_it, field, notes)
    elif head[:4] == b"PAR1":
        if path is None or inside:
            yield Refused("parquet inside an archive or from standard input", name)
        else:
            yield from _table(name, path, field, notes)
    elif extension in (".jsonl", ".ndjson") or (field is not None and path is None and not inside):
        yield from _rows(name, stream, field, notes)
    else:
        yield Source(name, open_it, group)


def _once(first: BinaryIO, again: Callable[[], BinaryIO]) -> Callable[[], BinaryIO]:
    """An opener that gives the stream that is open already, then new ones: small files are opened once."""
    waiting = [first]
    return lambda: waiting.pop() if waiting else again()


# --- archives ---------------------------------------------------------------------------------------------------------


def _members(
    name: str,
    group: str,
    stream: BinaryIO,
    again: Callable[[], BinaryIO],
    field: str | None,
    notes: Counter[str],
) -> Iterator[Source | Refused]:
    """Sources in a tar archive, streamed: nothing is written to disk, and member names are for display only."""
    again()  # the stream in hand
    for index, (member, data) in enumerate(_walk_tar(name, stream)):
        called = f"{name}:{shown(member.name)}"
        if member.isdir():
            continue
        if data is None:
            yield Refused("link or device in an archive", called)
        elif any(part[0] == "." and part.strip(".") for part in Path(member.name).parts):
            yield Refused("hidden file or folder", called, member.size)
        else:
            reopen = _reopener(name, called, index, again)
            if member.size <= MEMBER_LIMIT:
                content = _read_member(name, data)
                reopen = _bytes_opener(content, called)
                data = io.BytesIO(content)
            with decompressed(data, called) as plain:
                yield from _contents(called, called, _once(plain, reopen), plain, None, field, notes, inside=True)


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


def _read_member(name: str, data: BinaryIO) -> bytes:
    try:
        return data.read()
    except tarfile.TarError as error:
        raise InputError(f"{name} is truncated: {error}", "get the archive again") from error


def _bytes_opener(content: bytes, name: str) -> Callable[[], BinaryIO]:
    return lambda: decompressed(io.BytesIO(content), name)


def _reopener(name: str, called: str, index: int, again: Callable[[], BinaryIO]) -> Callable[[], BinaryIO]:
    """Opens a large member once more by walking its archive anew: slow, but needs neither memory nor disk."""

    def reopen() -> BinaryIO:
        for number, (_, data) in enumerate(_walk_tar(name, again())):
            if number == index and data is not None:
                return decompressed(data, called)
        raise InputError(f"{name} changed while it was read")

    return reopen


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(name: str, stream: io.BufferedReader, field: str | None, notes: Counter[str]) -> Iterator[Source | Refused]:
    """A source per row of JSON lines."""
    number, guessed = 0, ""
    while line := stream.readline(ROW_LIMIT):
        number += 1
        where, size = f"{name}:{number}", len(line)
        if size == ROW_LIMIT and line[-1:] != b"\n":
            while more := stream.readline(BLOCK):
                size += len(more)
                if more[-1:] == b"\n":
                    break
            yield Refused(f"row longer than {ROW_LIMIT >> 20} MiB", where, size)
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield Refused("row is not JSON", where, size)
            continue
        if not isinstance(row, dict):
            yield Refused("row is not a JSON object", where, size)
            continue
        if field is None:
            field = _guess_field(name, row)
            guessed = f"row read from its field {field!r}"
        if guessed:
            notes[guessed] += 1
        yield _row(where, row.get(field), field, size)


def _row(where: str, value: object, field: str, size: int) -> Source | Refused:
    if not isinstance(value, str):
        return Refused(f"row has no text in field {field!r}", where, size)
    try:
        return Source.of_bytes(value.encode(), where, where)
    except UnicodeEncodeError:
        return Refused("row with half a surrogate pair", where, size)


def _guess_field(name: str, row: Iterable[str]) -> str:
    """The first usual field of the first row that is an object. Raises UsageError."""
    present = list(row)
    for field in _FIELDS:
        if field in present:
            return field
    raise UsageError(
        f"{name}: rows have none of the fields {', '.join(_FIELDS)}", f"name it with --field; there is {present[:8]}"
    )


def _table(name: str, path: Path, field: str | None, notes: Counter[str]) -> Iterator[Source | Refused]:
    """A source per row of a parquet file, a few rows in memory at a time."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise EnvironmentLimit(f"{name}: reading parquet needs pyarrow", "pip install 'hnet[parquet]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            if field is None:
                field = _guess_field(name, table.schema_arrow.names)
                notes[f"row read from its field {field!r}"] += table.metadata.num_rows
            if field not in table.schema_arrow.names:
                raise UsageError(f"{name} has no column {field!r}", f"there is {table.schema_arrow.names[:8]}")
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _row(f"{name}:{number}", value, field, 0)
    except (ArrowException, OSError) as error:
        raise InputError(f"{name} is damaged or truncated: {error}", "get the file again") from error
