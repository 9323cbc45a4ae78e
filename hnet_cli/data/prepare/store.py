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
from hnet_cli.data.dataset import CHECKSUM_BYTES, COLUMNS, SHARD_BYTES, shard_name
from hnet_cli.modality import escape
from hnet_cli.storage import GrowingFile, open_file, remove_file

ROW = 8 * len(COLUMNS)
"""Bytes of a row of `documents.bin`."""


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
    """Checksums of the rows of `documents.bin` and the lines of `names.txt` since the state before."""


class _Mark(NamedTuple):
    bytes: int
    documents: int
    names_end: int
    blocks: int
    block_crc: int
    crcs: tuple[int, int]
    table: tuple[int, Any]
    names: tuple[int, Any]
    shard: tuple[int, Any] | None


class Writer:
    """Appends documents to the shards and tables in `folder`. A worker's folder can be appended to another's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        self._table = GrowingFile(folder / "documents.bin")
        self._names_end = 0
        self._names = GrowingFile(folder / "names.txt")
        self._crcs = 0, 0  # of rows and lines since the last state

    def add(self, data: bytes, source: int, offset: int, name: str, group: str) -> None:
        """Add a document: `source` is an index, `offset` its first byte's coordinate, `name` as shown to the user."""
        self._waiting.append((data, source, offset, name, group))
        self.bytes += len(data)
        self.documents += 1
        if len(self._waiting) >= 8192 or self.bytes - self._appended >= CHECKSUM_BYTES:
            self._flush()

    def absorb(self, folder: Path, sources: int) -> None:
        """Append all documents of the closed writer of `folder`, whose source indices begin at `sources` here."""
        self._flush()
        shift = np.array([self.bytes, 0, sources, 0, self._names_end, 0])
        for rows in table_rows(folder):
            self._write_tables((rows + shift).astype("<i8").tobytes(), b"")
            self.documents += len(rows)
        with open_file(folder / "names.txt") as names:
            while lines := names.read(CHECKSUM_BYTES):
                self._write_tables(b"", lines)
                self._names_end += len(lines)
        for index in range(len(list(folder.glob("shard-*")))):
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
        for name, file in (("documents.bin", self._table), ("names.txt", self._names), ("blocks.bin", checksums)):
            self.files[name] = file.close()

    # --- going back, and going on -------------------------------------------------------------------------------------

    def mark(self) -> _Mark:
        """A point to `rollback` to; any later state makes it void."""
        self._flush()
        shard = self._shard.mark() if self._shard else None
        counts = self.bytes, self.documents, self._names_end, len(self._checksums)
        return _Mark(*counts, self._block_crc, self._crcs, self._table.mark(), self._names.mark(), shard)

    def rollback(self, mark: _Mark) -> None:
        """Forget all documents added since `mark`."""
        changed = self._appended > mark.bytes
        self._waiting, self._appended = [], mark.bytes
        self.bytes, self.documents, self._names_end, self._crcs = mark.bytes, mark.documents, mark.names_end, mark.crcs
        self._table.rollback(mark.table)
        self._names.rollback(mark.names)
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
        crcs, self._crcs = self._crcs, (0, 0)
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
        for data in _stretches(self._table, self.documents * ROW, state.documents * ROW):
            self._write_tables(data, b"", adopt=True)
        for data in _stretches(self._names, self._names_end, state.names):
            self._write_tables(b"", data, adopt=True)
        if self._crcs != (state.table, state.lines):
            return False
        while self._appended < state.bytes:
            at = self._appended % SHARD_BYTES
            count = min(CHECKSUM_BYTES, SHARD_BYTES - at, state.bytes - self._appended)
            if not (data := self._open_shard().read(at, count)):
                return False
            self._append(data, adopt=True)
        self.bytes, self.documents, self._names_end = state.bytes, state.documents, state.names
        blocks, self._reported, self._crcs = self._checksums[self._reported :].tolist(), len(self._checksums), (0, 0)
        return (self._appended, blocks, self._block_crc) == (state.bytes, state.blocks, state.rest)

    def remove_others(self) -> None:
        """Delete all files in the folder that are not part of what was written so far."""
        shards = {shard_name(index) for index in range(self._appended // SHARD_BYTES)}
        current = {self._shard.path.name} if self._shard is not None else set()
        self.files = {name: entry for name, entry in self.files.items() if name in shards}
        for entry in list(os.scandir(self.folder)):
            if entry.name not in shards | current | {"documents.bin", "names.txt"}:
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
        rows = np.empty((len(data), len(COLUMNS)), "<i8")
        rows[:, 1] = [len(document) for document in data]
        rows[:, 0] = self._appended + np.cumsum(rows[:, 1]) - rows[:, 1]
        rows[:, 2], rows[:, 3] = sources, offsets
        line_ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == 0x0A) + 1
        rows[:, 4] = self._names_end + np.r_[0, line_ends[:-1]]
        rows[:, 5] = [hashes[group] for group in groups]
        self._write_tables(rows.tobytes(), lines)
        self._names_end += len(lines)
        self._append(b"".join(data))
        self._waiting = []

    def _write_tables(self, rows: bytes, lines: bytes, adopt: bool = False) -> None:
        for file, data in ((self._table, rows), (self._names, lines)):
            (file.adopt if adopt else file.write)(data)
        self._crcs = zlib.crc32(rows, self._crcs[0]), zlib.crc32(lines, self._crcs[1])


def _lines(names: Sequence[str]) -> bytes:
    """A line of safe text for each name."""
    joined = "\n".join(names) + "\n"
    if joined.count("\n") > len(names):
        joined = "".join(name.replace("\n", "\\x0a") + "\n" for name in names)
    return escape(joined).encode("utf-8", "backslashreplace")


def _stretches(file: GrowingFile, start: int, end: int) -> Iterator[bytes]:
    while start < end and (data := file.read(start, min(CHECKSUM_BYTES, end - start))):
        yield data
        start += len(data)


def table_rows(folder: Path, name: str = "documents.bin", columns: int = len(COLUMNS)) -> Iterator[np.ndarray]:
    """A table of int64 in parts of (n, columns), some MB each: a memory map would count as memory in use."""
    with open_file(folder / name) as file:
        while data := file.read(8 * columns << 16):
            yield np.frombuffer(data, "<i8").reshape(-1, columns)


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
