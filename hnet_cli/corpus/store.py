"""Writing a dataset's files: documents appended to shards and tables, hashed on the way."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.corpus.dataset import BLOCK, COLUMNS, SHARD, Shards, shard_name
from hnet_cli.modality import escape
from hnet_cli.storage import NewFile


class Writer:
    """Appends documents to the shards and tables in `folder`. A worker's folder can be appended to another's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        self.documents = 0
        self.files: dict[str, dict[str, Any]] = {}
        self._shard: NewFile | None = None
        self._block = bytearray()
        self._checksums = array("I")
        self._rows = array("q")
        self._table = NewFile(folder / "documents.bin")
        self._lines: list[bytes] = []
        self._lines_end = 0
        self._names = NewFile(folder / "names.txt")

    def add(self, data: bytes, source: int, offset: int, name: str, group: str) -> None:
        """One document: `source` is an index, `offset` its first byte's coordinate, `name` as shown to the user."""
        self._rows.extend((self.bytes, len(data), source, offset, self._lines_end, group_hash(group)))
        line = (escape(name, keep="\t") + "\n").encode("utf-8", "backslashreplace")
        self._lines.append(line)
        self._lines_end += len(line)
        self.documents += 1
        if len(self._lines) >= 8192:
            self._flush_tables()
        self._append(data)

    def absorb(self, folder: Path, sources: int) -> None:
        """Append all documents of the closed writer of `folder`, whose source indices begin at `sources` here."""
        self._flush_tables()
        table = np.fromfile(folder / "documents.bin", "<i8").reshape(-1, len(COLUMNS))
        table += np.array([self.bytes, 0, sources, 0, self._lines_end, 0])
        self._table.write(table)
        self.documents += len(table)
        with open(folder / "names.txt", "rb") as names:
            while lines := names.read(BLOCK):
                self._names.write(lines)
                self._lines_end += len(lines)
        for index in range(len(list(folder.glob("shard-*")))):
            with open(folder / shard_name(index), "rb") as shard:
                while data := shard.read(BLOCK):
                    self._append(data)

    def close(self) -> Shards:
        """Finish the files, listed in `files` with size and SHA-256; gives access to what was written."""
        self._flush_tables()
        if self._block:
            self._write_block()
        self._end_shard()
        checksums = NewFile(self.folder / "blocks.bin")
        checksums.write(np.array(self._checksums, "<u4"))
        for name, file in (("documents.bin", self._table), ("names.txt", self._names), ("blocks.bin", checksums)):
            file.close()
            self.files[name] = file.entry
        return Shards(self.folder, self.bytes, np.array(self._checksums, np.uint32))

    def _append(self, data: bytes) -> None:
        self.bytes += len(data)
        view = memoryview(data)
        while len(view):
            part = view[: BLOCK - len(self._block)]
            self._block += part
            view = view[len(part) :]
            if len(self._block) == BLOCK:
                self._write_block()

    def _write_block(self) -> None:
        if self._shard is None:
            self._shard = NewFile(self.folder / shard_name(len(self._checksums) * BLOCK // SHARD))
        self._shard.write(self._block)
        self._checksums.append(zlib.crc32(self._block))
        self._block = bytearray()
        if self._shard.size == SHARD:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self.files[shard_name((len(self._checksums) - 1) * BLOCK // SHARD)] = self._shard.entry
            self._shard = None

    def _flush_tables(self) -> None:
        self._table.write(np.array(self._rows, "<i8"))
        self._names.write(b"".join(self._lines))
        self._rows, self._lines = array("q"), []


@lru_cache(maxsize=256)
def group_hash(group: str) -> int:
    """64 bits that stand for a group in the table; the split goes by their order."""
    return int.from_bytes(
        hashlib.sha256(f"hnet {group}".encode("utf-8", "replace")).digest()[:8], "little", signed=True
    )
