"""The dataset on disk and its reader.

`data/NAME/` holds the stored bytes of all documents, one after the other, cut into shards of 256 MiB, and tables
about them (little endian): `blocks.bin` a CRC-32 per MiB, `documents.bin` six integers per document, `split-*.bin` the
stretches of documents that belong to a split, `names.txt` a line per document. `dataset.json` holds the rest and
commits to every byte of the others by SHA-256, so that its own digest identifies the dataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hnet_cli.config.bounds import Bounds, typed
from hnet_cli.errors import BusyError, DamagedError, InputError, StorageError
from hnet_cli.storage import (
    LARGE,
    MANIFEST,
    map_file,
    open_file,
    read_bytes,
    read_json,
    read_manifest,
    verify_file,
    write_json,
)
from hnet_cli.storage.reading import json_object
from hnet_cli.storage.streams import shown

DATASET_FORMAT = 1
SHARD_BYTES = 256 << 20
"""Bytes of each shard but the last."""
CHECKSUM_BYTES = 1 << 20
"""Bytes per checksum; divides SHARD_BYTES."""
COLUMNS = ("start", "length", "source", "offset", "name", "group")
"""Columns of `documents.bin`, int64: position in the joined shards, bytes, index into `sources`, coordinate of the
first byte within its source or record, position of its line in `names.txt`, hash of its group."""


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.bin"


SPLIT_ROW = 24
"""Bytes of a row of `split-*.bin`."""
TABLE_ROWS = 1 << 16
"""Rows of a table that are checked at once."""
LONGEST_NAME = 1 << 16
"""Bytes of a document's name that are shown."""
Size = Annotated[int, Bounds(least=0, most=1 << 62)]


@dataclass
class _Entry:
    size: Size
    sha256: str


@dataclass
class _Split:
    documents: Size
    bytes: Size


@dataclass
class _About:
    """What is read of `dataset.json`, typed and bounded."""

    modality: str
    documents: Size
    bytes: Size
    splits: dict[str, _Split]
    files: dict[str, _Entry]
    input_table: list[Annotated[int, Bounds(least=0, most=255)]] | None
    loss_weights: list[Annotated[float, Bounds(least=0, most=1e6)]] | None


_READ = {field.name for field in fields(_About)}


def _check_about(about: _About, where: str) -> None:
    """Raise DamagedError where the fields do not fit together."""
    blocks = -(-about.bytes // CHECKSUM_BYTES) * 4
    sizes = {"documents.bin": 8 * len(COLUMNS) * about.documents, "blocks.bin": blocks, "names.txt": None}
    sizes |= {f"split-{name}.bin": None for name in about.splits}
    shards = {shard_name(n): about.bytes - n * SHARD_BYTES for n in range(min(1 << 24, -(-about.bytes // SHARD_BYTES)))}
    sizes |= {name: min(SHARD_BYTES, size) for name, size in shards.items()}
    problem = ""
    for name, table in (("input_table", about.input_table), ("loss_weights", about.loss_weights)):
        if table is not None and len(table) != 256:
            problem = f"{name} has {len(table)} entries, not 256"
    if unlisted := sizes.keys() - about.files.keys():
        problem = f"it lists no {shown(min(unlisted))}"
    elif odd := [name for name in sizes if name.startswith("split-") and about.files[name].size % SPLIT_ROW]:
        problem = f"{shown(odd[0])} has {about.files[odd[0]].size:,} bytes, no multiple of {SPLIT_ROW}"
    elif wrong := [name for name, size in sizes.items() if size not in (None, about.files[name].size)]:
        problem = f"{shown(wrong[0])} has {about.files[wrong[0]].size:,} bytes, not {sizes[wrong[0]]:,}"
    if problem:
        raise DamagedError(f"{where} is damaged: {problem}")


class Shards:
    """Random access to the joined shards; the checksum of a block is verified when the block is first touched."""

    def __init__(self, folder: Path, size: int, checksums: np.ndarray) -> None:
        self.folder, self.size = folder, size
        self._checksums = checksums
        self._checked = np.zeros(len(checksums), bool)
        self._maps = [self._map(folder / shard_name(index)) for index in range(-(-size // SHARD_BYTES))]
        self._arrays = [np.frombuffer(view, np.uint8) for view in self._maps]

    @staticmethod
    def _map(file: Path) -> memoryview:
        try:
            return map_file(file)
        except FileNotFoundError as error:
            raise DamagedError(f"{shown(file)} is missing") from error

    def check(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """Verify the blocks that the non-empty ranges [start, end) touch. Raises DamagedError naming file and place."""
        first, last = starts // CHECKSUM_BYTES, (ends - 1) // CHECKSUM_BYTES
        counts = last - first + 1
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        blocks = np.repeat(first, counts) + within
        for block in np.unique(blocks[~self._checked[blocks]]).tolist():
            shard, start = divmod(block * CHECKSUM_BYTES, SHARD_BYTES)
            data = self._maps[shard][start : start + CHECKSUM_BYTES]
            if zlib.crc32(data) != self._checksums[block]:
                raise DamagedError(
                    f"{shown(self.folder / shard_name(shard))} is damaged between bytes {start:,} and "
                    f"{start + len(data):,}: checksum mismatch",
                    "prepare the dataset again, or restore this file",
                )
            self._checked[block] = True

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The bytes of many non-empty ranges, joined; verified."""
        self.check(starts, starts + lengths)
        shards, places = starts // SHARD_BYTES, np.cumsum(lengths) - lengths
        joined = np.empty(int(lengths.sum()), np.uint8)
        crossing = (starts + lengths - 1) // SHARD_BYTES != shards
        for start, place, length in zip(starts[crossing], places[crossing], lengths[crossing], strict=True):
            joined[place : place + length] = np.frombuffer(self._read(int(start), int(start + length)), np.uint8)
        for shard in np.unique(shards[~crossing]).tolist():
            inside = np.flatnonzero((shards == shard) & ~crossing)
            counts = lengths[inside]
            positions = np.arange(counts.sum())
            before = np.cumsum(counts) - counts
            data = self._arrays[shard][positions + np.repeat(starts[inside] - shard * SHARD_BYTES - before, counts)]
            if len(inside) == len(starts):
                return data
            joined[positions + np.repeat(places[inside] - before, counts)] = data
        return joined

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end) of the joined shards, verified."""
        if start >= end:
            return b""
        self.check(np.array([start]), np.array([end]))
        return self._read(start, end)

    def _read(self, start: int, end: int) -> bytes:
        shard, at = divmod(start, SHARD_BYTES)
        data = bytes(self._maps[shard][at : at + end - start])
        return data if len(data) == end - start else data + self._read(start + len(data), end)


class Dataset:
    """A prepared dataset. Opening checks all but the shards, whose blocks are checked as they are read."""

    def __init__(self, path: Path, about: dict[str, Any], fingerprint: str) -> None:
        self.path, self.about, self.fingerprint = path, about, fingerprint
        self.modality: str = about["modality"]
        self.splits: tuple[str, ...] = tuple(about["splits"])
        self.input_table = None if about["input_table"] is None else np.array(about["input_table"], np.uint8)
        weights = about["loss_weights"]
        self.loss_weights = None if weights is None else np.array(weights, np.float32)
        self.table = self._array("documents.bin", np.int64, len(COLUMNS))
        self.shards = Shards(path, about["bytes"], self._array("blocks.bin", np.uint32))

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open and check. Raises InputError where there is no dataset, DamagedError naming the file and its fault."""
        path = Path(path)
        file = path / "dataset.json"
        try:
            text = read_bytes(file, LARGE)
        except FileNotFoundError as error:
            if not path.exists():
                raise InputError(f"no dataset {shown(path)}", "make it with `hnet prepare`") from error
            raise DamagedError(f"{shown(file)} is missing: {shown(path)} is no dataset") from error
        fingerprint = hashlib.sha256(text).hexdigest()
        about = json_object(text, file)
        if (version := about.get("format")) != DATASET_FORMAT:
            raise DamagedError(
                f"{shown(path)} has dataset format {version!r:.40}; this version of hnet reads {DATASET_FORMAT}"
            )
        _check_about(typed(_About, {key: about[key] for key in _READ & about.keys()}, shown(file)), shown(file))
        entries = dict(about["files"])
        try:
            promised = read_manifest(path)["files"]
            verify_file(path, "dataset.json", promised["dataset.json"])
            if promised != entries | {"dataset.json": promised["dataset.json"]}:
                raise DamagedError(f"{shown(path / MANIFEST)} is damaged: it is not that of dataset.json")
            for name, entry in entries.items():
                verify_file(path, name, entry, digest=not name.startswith("shard-"))
            opened = cls(path, about, fingerprint)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{shown(file)} is damaged: {error}") from error
        opened._check_tables()
        return opened

    def _check_tables(self) -> None:
        """Raise DamagedError where a table points out of what it is a table of."""

        def refuse_if(wrong: bool | np.bool_, name: str, what: str) -> None:
            if wrong:
                raise DamagedError(f"{shown(self.path / name)} is damaged: {what}")

        size, names = self.about["bytes"], self.about["files"]["names.txt"]["size"]
        refuse_if(len(self.table) != self.about["documents"], "documents.bin", "its rows are not the documents")
        for at in range(0, len(self.table), TABLE_ROWS):
            start, length, _, _, name, _ = self.table[at : at + TABLE_ROWS].T
            inside = (start >= 0) & (start <= size) & (length >= 0) & (length <= size - start)
            refuse_if(not inside.all(), "documents.bin", "a document lies outside of the shards")
            refuse_if(((name < 0) | (name > names)).any(), "documents.bin", "a name lies outside of names.txt")
        for split, about in self.about["splits"].items():
            file, ranges, total = f"split-{split}.bin", self.ranges(split), 0
            for at in range(0, len(ranges), TABLE_ROWS):
                document, begin, length = ranges[at : at + TABLE_ROWS].T
                refuse_if(((document < 0) | (document >= len(self.table))).any(), file, "it names no document")
                whole = self.table[document, 1]
                inside = (begin >= 0) & (begin <= whole) & (length > 0) & (length <= whole - begin)
                refuse_if(not inside.all(), file, "a stretch lies outside of its document")
                total += int(length.sum())
            refuse_if(total != about["bytes"], file, f"{total:,} bytes, not {about['bytes']:,}")

    def verify(self) -> None:
        """Check the SHA-256 of shards that changed since they were last checked. Raises DamagedError naming one.

        Digests and times of change of checked shards are kept in the folder, if that can be written to.
        """
        file = self.path / ".verified.json"
        shards = {name: entry for name, entry in self.about["files"].items() if name.startswith("shard-")}
        now = {name: [entry["sha256"], (self.path / name).stat().st_mtime_ns] for name, entry in shards.items()}
        try:
            known = read_json(file, LARGE)
        except (FileNotFoundError, DamagedError):
            known = {}
        unchecked = [name for name in now if known.get(name) != now[name]]
        for name in unchecked:
            verify_file(self.path, name, shards[name])
        if unchecked:
            with contextlib.suppress(BusyError, StorageError):
                write_json(file, now)

    def nbytes(self, split: str) -> int:
        """Bytes of a split."""
        return int(self._split(split)["bytes"])

    def ranges(self, split: str) -> np.ndarray:
        """(n, 3) int64: document, first byte in it, bytes of each stretch of a split, in the order of the corpus."""
        self._split(split)
        return self._array(f"split-{split}.bin", np.int64, 3)

    def documents(self, split: str) -> Iterator[bytes]:
        """The stored bytes of each stretch of a split, in the order of the corpus."""
        for document, start, length in self.ranges(split):
            at = int(self.table[document, 0] + start)
            yield self.shards.read(at, at + int(length))

    def name(self, document: int) -> str:
        """Name of a document: its source, then a tab and its record where it has one."""
        with open_file(self.path / "names.txt") as file:
            file.seek(int(self.table[document, 4]))
            return file.readline(LONGEST_NAME).decode("utf-8", "replace").rstrip("\n")

    def translate(self, stored: np.ndarray) -> np.ndarray:
        """The bytes that the model reads for stored bytes (uint8, any shape)."""
        return stored if self.input_table is None else self.input_table[stored]

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.splits:
            raise InputError(f"{shown(self.path)} has no split {split!r}", f"it has {', '.join(self.splits)}")
        return self.about["splits"][split]

    def _array(self, name: str, kind: type, columns: int = 0) -> np.ndarray:
        shape: Sequence[int] = (-1, columns) if columns else (-1,)
        return np.frombuffer(map_file(self.path / name), np.dtype(kind).newbyteorder("<")).reshape(shape)
