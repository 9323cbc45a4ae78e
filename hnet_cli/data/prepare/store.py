"""Writing a dataset's files: documents appended to shards and tables, hashed on the way.

A writer can be rolled back to a mark (a file turns out to be damaged half-way). After a kill another writer continues
with its files, as far as their checksums are those noted.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from hnet_cli.config.bounds import Bounds
from hnet_cli.data.dataset import CHECKSUM_BYTES, COLUMNS, LONGEST_NAME, SHARD_BYTES, shard_name
from hnet_cli.errors import DamagedError
from hnet_cli.modality import escape
from hnet_cli.storage import GrowingFile, open_file, remove_file, shown

ROW = 8 * len(COLUMNS)
"""Bytes of a row of `documents.bin`."""
TABLES = ("documents.bin", "names.txt", "hashes.bin")
"""Files that grow with each document."""


Position = Annotated[int, Bounds(least=0, most=1 << 52)]


@dataclass
class WriterState:
    """A writer's position, and checksums (CRC-32) of the bytes written since the state before."""

    bytes: Position
    documents: Position
    names: Position
    """Bytes of `names.txt`."""
    blocks: list[Position]
    """Checksums of the blocks filled since the state before."""
    rest: Position
    """Checksum of the bytes in the block that is not full."""
    table: Position
    lines: Position
    contents: Position
    """Checksums of the rows of `documents.bin`, the lines of `names.txt` and `hashes.bin` since the state before."""


class _Mark(NamedTuple):
    bytes: int
    documents: int
    names_end: int
    blocks: int
    block_crc: int
    crcs: tuple[int, ...]
    tables: list[tuple[int, Any]]
    shard: tuple[int, Any] | None


class Writer:
    """Appends documents to the shards and tables in `folder`. A worker's folder can be appended to another's.

    `input_table`: of the modality; documents that the model reads alike have one hash.
    """

    def __init__(self, folder: Path, input_table: bytes | None = None) -> None:
        self.folder, self.input_table = folder, input_table
        self.bytes = 0
        self.documents = 0
        self.files: dict[str, dict[str, Any]] = {}
        """Entries of the manifest for finished files."""
        self._shard: GrowingFile | None = None
        self._checksums = array("I")
        self._block_crc = 0  # of the block that is not full
        self._reported = 0  # checksums that were in the last state
        self._waiting: list[tuple[bytes, int, int, str, str]] = []
        """Arguments of `add`, written together: short documents would take longer to write than to read."""
        self._appended = 0  # bytes, without those that wait
        self._tables = [GrowingFile(folder / name) for name in TABLES]
        self._names_end = 0
        self._crcs: tuple[int, ...] = (0,) * len(TABLES)  # of what each table has got since the last state

    def add(self, data: bytes, source: int, offset: int, name: str, group: str) -> None:
        """Add a document: `source` is an index, `offset` its first byte's coordinate, `name` as shown to the user.

        Without a `group` it is a group of its own, with all documents of its content.
        """
        self._waiting.append((data, source, offset, name, group))
        self.bytes += len(data)
        self.documents += 1
        if len(self._waiting) >= 8192 or self.bytes - self._appended >= CHECKSUM_BYTES:
            self._flush()

    def absorb(self, folder: Path, sources: int) -> None:
        """Append all documents of the closed writer of `folder`, whose source indices begin at `sources` here.

        Raises DamagedError where its tables do not fit each other, or its shards: a part may come from anywhere.
        """
        self._flush()
        shift = np.array([self.bytes, 0, sources, 0, self._names_end, 0])
        size, documents, names, hashes = _sizes(folder)
        _refuse_if(documents % ROW or hashes * len(COLUMNS) != documents, folder)
        end = 0
        for rows in table_rows(folder):
            starts, lengths, places = rows[:, 0], rows[:, 1], rows[:, 4]
            _refuse_if(((lengths < 0) | (lengths > size) | (places < 0) | (places >= names)).any(), folder)
            ends = end + np.cumsum(lengths)
            _refuse_if((starts != ends - lengths).any() or ends[-1] > size, folder)
            end = int(ends[-1])
            self._write_tables((rows + shift).astype("<i8").tobytes(), b"", b"")
            self.documents += len(rows)
        _refuse_if(end != size, folder)
        with open_file(folder / "names.txt") as lines, open_file(folder / "hashes.bin") as contents:
            while data := lines.read(CHECKSUM_BYTES):
                self._write_tables(b"", data, b"")
                self._names_end += len(data)
            while data := contents.read(CHECKSUM_BYTES):
                self._write_tables(b"", b"", data)
        for index in range(-(-size // SHARD_BYTES)):
            with open_file(folder / shard_name(index)) as shard:
                while data := shard.read(CHECKSUM_BYTES):
                    self._append(data)
        self.bytes = self._appended

    def close(self) -> None:
        """Finish the files, listed in `files` with size and SHA-256."""
        self._flush()
        if self._appended % CHECKSUM_BYTES:
            self._checksums.append(self._block_crc)
        self._end_shard()
        checksums = GrowingFile(self.folder / "blocks.bin")
        checksums.write(np.array(self._checksums, "<u4"))
        for file in (*self._tables, checksums):
            self.files[file.path.name] = file.close()

    # --- going back, and going on -------------------------------------------------------------------------------------

    def mark(self) -> _Mark:
        """A point to `rollback` to; any later state makes it void."""
        self._flush()
        shard = self._shard.mark() if self._shard else None
        counts = self.bytes, self.documents, self._names_end, len(self._checksums)
        return _Mark(*counts, self._block_crc, self._crcs, [table.mark() for table in self._tables], shard)

    def rollback(self, mark: _Mark) -> None:
        """Forget all documents added since `mark`."""
        changed = self._appended > mark.bytes
        self._waiting, self._appended = [], mark.bytes
        self.bytes, self.documents, self._names_end, self._crcs = mark.bytes, mark.documents, mark.names_end, mark.crcs
        for table, place in zip(self._tables, mark.tables, strict=True):
            table.rollback(place)
        del self._checksums[mark.blocks :]
        self._block_crc = mark.block_crc
        if changed or mark.shard is None:
            if self._shard is not None:
                self._shard.close()
                self._shard = None
            if mark.shard is not None:
                self._open_shard().rollback(mark.shard)
            self.remove_others()

    def state(self) -> WriterState:
        """The state that `restore` can return to; all of it is on disk then."""
        self._flush()
        blocks, self._reported = self._checksums[self._reported :].tolist(), len(self._checksums)
        crcs, self._crcs = self._crcs, (0,) * len(TABLES)
        return WriterState(self.bytes, self.documents, self._names_end, blocks, self._block_crc, *crcs)

    def restore(self, state: WriterState) -> bool:
        """Advance to `state`, if the files in the folder have its checksums; else change nothing."""
        mark, reported = self.mark(), self._reported
        try:
            sound = self._restore(state)
        except (ValueError, TypeError, OSError):
            sound = False
        if not sound:
            self.rollback(mark)
            self._reported = reported
        return sound

    def _restore(self, state: WriterState) -> bool:
        for index, end in enumerate((state.documents * ROW, state.names, state.documents * 8)):
            for data in _stretches(self._tables[index], end):
                self._write_tables(*(data if index == n else b"" for n in range(len(TABLES))), adopt=True)
        if self._crcs != (state.table, state.lines, state.contents):
            return False
        while self._appended < state.bytes:
            at = self._appended % SHARD_BYTES
            count = min(CHECKSUM_BYTES, SHARD_BYTES - at, state.bytes - self._appended)
            if not (data := self._open_shard().read(at, count)):
                return False
            self._append(data, adopt=True)
        self.bytes, self.documents, self._names_end = state.bytes, state.documents, state.names
        blocks, self._reported = self._checksums[self._reported :].tolist(), len(self._checksums)
        self._crcs = (0,) * len(TABLES)
        return (self._appended, blocks, self._block_crc) == (state.bytes, state.blocks, state.rest)

    def remove_others(self) -> None:
        """Delete all files in the folder that are not part of what was written so far."""
        shards = {shard_name(index) for index in range(self._appended // SHARD_BYTES)}
        current = {self._shard.path.name} if self._shard is not None else set()
        self.files = {name: entry for name, entry in self.files.items() if name in shards}
        for entry in list(os.scandir(self.folder)):
            if entry.name not in shards | current | set(TABLES):
                remove_file(Path(entry.path))

    # --- shards and tables --------------------------------------------------------------------------------------------

    def _append(self, data: bytes, adopt: bool = False) -> None:
        view = memoryview(data)
        while len(view):
            part = view[: CHECKSUM_BYTES - self._appended % CHECKSUM_BYTES]
            view = view[len(part) :]
            shard = self._open_shard()
            (shard.adopt if adopt else shard.write)(part)
            self._block_crc = zlib.crc32(part, self._block_crc)
            self._appended += len(part)
            if self._appended % CHECKSUM_BYTES == 0:
                self._checksums.append(self._block_crc)
                self._block_crc = 0
            if shard.size == SHARD_BYTES:
                self._end_shard()

    def _open_shard(self) -> GrowingFile:
        if self._shard is None:
            self._shard = GrowingFile(self.folder / shard_name(self._appended // SHARD_BYTES))
        return self._shard

    def _end_shard(self) -> None:
        if self._shard is not None:
            self.files[self._shard.path.name] = self._shard.close()
            self._shard = None

    def _flush(self) -> None:
        if not self._waiting:
            return
        data, sources, offsets, names, groups = zip(*self._waiting, strict=True)
        lines = _lines(names)
        hashes = {group: group_hash(group) for group in set(groups)}
        contents = [
            content_hash(document[: -offset or None] if offset < 0 else document, self.input_table)
            for document, offset in zip(data, offsets, strict=True)
        ]
        rows = np.empty((len(data), len(COLUMNS)), "<i8")
        rows[:, 1] = [len(document) for document in data]
        rows[:, 0] = self._appended + np.cumsum(rows[:, 1]) - rows[:, 1]
        rows[:, 2], rows[:, 3] = sources, offsets
        line_ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == 0x0A) + 1
        rows[:, 4] = self._names_end + np.r_[0, line_ends[:-1]]
        rows[:, 5] = [hashes[group] if group else own for group, own in zip(groups, contents, strict=True)]
        self._write_tables(rows.tobytes(), lines, np.array(contents, "<i8").tobytes())
        self._names_end += len(lines)
        self._append(b"".join(data))
        self._waiting = []

    def _write_tables(self, *parts: bytes, adopt: bool = False) -> None:
        """Append to each of TABLES its part."""
        for file, data in zip(self._tables, parts, strict=True):
            (file.adopt if adopt else file.write)(data)
        self._crcs = tuple(zlib.crc32(data, crc) for data, crc in zip(parts, self._crcs, strict=True))


def _sizes(folder: Path) -> tuple[int, ...]:
    """Bytes of the shards of a folder together, and of each of TABLES."""
    shards = [entry.stat().st_size for entry in sorted(folder.glob("shard-*"))]
    whole = all(size == SHARD_BYTES for size in shards[:-1])
    named = all((folder / shard_name(index)).exists() for index in range(len(shards)))
    _refuse_if(not whole or not named, folder)
    return sum(shards), *((folder / name).stat().st_size for name in TABLES)


def _refuse_if(wrong: object, folder: Path) -> None:
    if wrong:
        raise DamagedError(f"{shown(folder)} is damaged: its tables do not fit its shards", "prepare this part again")


def _lines(names: Sequence[str]) -> bytes:
    """A line of safe text for each name."""
    joined = "\n".join(names) + "\n"
    if joined.count("\n") > len(names):
        joined = "".join(name.replace("\n", "\\x0a") + "\n" for name in names)
    return escape(joined).encode("utf-8", "backslashreplace")


def _stretches(file: GrowingFile, end: int) -> Iterator[bytes]:
    """The bytes on disk from the file's size, which grows meanwhile, to `end`."""
    while file.size < end and (data := file.read(file.size, min(CHECKSUM_BYTES, end - file.size))):
        yield data


def table_rows(
    folder: Path, name: str = "documents.bin", columns: int = len(COLUMNS), at_once: int = 1 << 16
) -> Iterator[np.ndarray]:
    """A table of int64 in parts of (`at_once`, columns), some MB: a memory map would count as memory in use."""
    with open_file(folder / name) as file:
        while data := file.read(8 * columns * at_once):
            yield np.frombuffer(data, "<i8").reshape(-1, columns)


def stretches(folder: Path, split: str) -> Iterator[np.ndarray]:
    """The stretches of a split in parts of (n, 4): document, where its line begins in `names.txt`, start and end in the
    shards."""
    parts = table_rows(folder, f"split-{split}.bin", 3)
    waiting, seen = next(parts), 0
    for table in table_rows(folder):
        while waiting[-1, 0] < seen + len(table) and (more := next(parts, None)) is not None:
            waiting = np.concatenate([waiting, more])
        here = int(np.searchsorted(waiting[:, 0], seen + len(table)))
        if here:
            rows = table[waiting[:here, 0] - seen]
            starts = rows[:, 0] + waiting[:here, 1]
            yield np.stack([waiting[:here, 0], rows[:, 4], starts, starts + waiting[:here, 2]], axis=1)
        waiting, seen = waiting[here:], seen + len(table)
        if not len(waiting):
            break


def name_at(folder: Path, place: int) -> str:
    """The name of the document whose line in `names.txt` begins at byte `place`."""
    with open_file(folder / "names.txt") as file:
        file.seek(place)
        return file.readline(LONGEST_NAME).decode("utf-8", "replace").rstrip("\n")


def read_shards(folder: Path, start: int, end: int) -> bytes:
    """Bytes [start, end) of the shards just written, read plainly: every block of a memory map that is touched would
    count as memory in use, and all of it against a limit of address space."""
    data = b""
    while start < end:
        index, at = divmod(start, SHARD_BYTES)
        with open_file(folder / shard_name(index)) as shard:
            shard.seek(at)
            data += shard.read(min(end - start, SHARD_BYTES - at))
        start = min(end, (index + 1) * SHARD_BYTES)
    return data


def group_hash(group: str) -> int:
    """64 bits that stand for a group in the table; the split goes by their order."""
    return int.from_bytes(
        hashlib.sha256(f"hnet {group}".encode("utf-8", "replace")).digest()[:8], "little", signed=True
    )


def content_hash(data: bytes, input_table: bytes | None = None) -> int:
    """64 bits that stand for the content of a document (of a row, its prompt), as the model reads it."""
    return int.from_bytes(hashlib.sha256(data.translate(input_table)).digest()[:8], "little", signed=True)
