"""The dataset on disk and its reader.

`data/NAME/` holds the stored bytes of all documents, one after the other, cut into shards of 256 MiB, and tables
about them (little endian): `blocks.bin` a CRC-32 per MiB, `documents.bin` six integers per document, `hashes.bin` 64
bits of the SHA-256 of each as the model reads it (older datasets have none), `split-*.bin` the stretches of documents
that belong to a split, `names.txt` a line per document. `dataset.json` holds the rest and commits to every byte of the
others by SHA-256, so that its own digest identifies the dataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hnet_cli.config.bounds import Bounds, typed
from hnet_cli.errors import BusyError, DamagedError, InputError, StorageError
from hnet_cli.storage import LARGE, MANIFEST, HeldFile, read_json, read_manifest, write_json
from hnet_cli.storage.reading import json_object
from hnet_cli.storage.streams import shown

DATASET_FORMAT = 1
SHARD_BYTES = 256 << 20
"""Bytes of each shard but the last."""
CHECKSUM_BYTES = 1 << 20
"""Bytes per checksum; divides SHARD_BYTES."""
TABLE_BYTES = 64 << 20
"""Bytes of the largest table that is kept in memory: that of 1.4 million documents."""
PART_ROWS = 1 << 14
"""Rows of a table that are read at once."""
NAME_BYTES = 512
"""Bytes read at once of the name of a document."""
LONGEST_NAME = 1 << 16
"""Bytes of a name that are read; the rest of a longer one is left out."""
COLUMNS = ("start", "length", "source", "offset", "name", "group")
"""Columns of `documents.bin`, int64: position in the joined shards, bytes, index into `sources`, coordinate of the
first byte within its source or record, position of its line in `names.txt`, hash of its group. A row of prompt and
completion has its coordinate 0 where the completion begins: the prompt lies below, and counts for nothing."""


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.bin"


SPLIT_ROW = 24
"""Bytes of a row of `split-*.bin`."""
TABLE_ROWS = 1 << 16
"""Rows of a table that are checked at once."""
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
    """Fields of `dataset.json` that are read, typed and bounded."""

    modality: str
    documents: Size
    bytes: Size
    splits: dict[str, _Split]
    files: dict[str, _Entry]
    input_table: list[Annotated[int, Bounds(least=0, most=255)]] | None
    loss_weights: list[Annotated[float, Bounds(above=0, most=sys.float_info.max)]] | None


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
    """Random access to the joined shards; a block is verified when first touched, and again once its shard changes."""

    def __init__(self, files: Sequence[HeldFile], size: int, checksums: np.ndarray) -> None:
        """`files`: the shards in order. `checksums`: (blocks,) uint32."""
        self.files, self.size = files, size
        self._checksums = checksums
        self._checked = np.zeros(len(checksums), bool)

    def check(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """Verify the blocks that the non-empty ranges [start, end) touch. Raises DamagedError naming file and place."""
        first, last = starts // CHECKSUM_BYTES, (ends - 1) // CHECKSUM_BYTES
        counts = last - first + 1
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        blocks = np.unique(np.repeat(first, counts) + within)
        shard_blocks = SHARD_BYTES // CHECKSUM_BYTES
        for shard in np.unique(blocks // shard_blocks).tolist():
            file = self.files[shard]
            if (stamp := file.stamp()) != file.seen:
                warnings.warn(f"{shown(file.path)} was written to; it is checked anew", stacklevel=2)
                file.seen = stamp
                self._checked[shard * shard_blocks : (shard + 1) * shard_blocks] = False
        for block in blocks[~self._checked[blocks]].tolist():
            shard, start = divmod(block * CHECKSUM_BYTES, SHARD_BYTES)
            file = self.files[shard]
            data = file.read(start, min(CHECKSUM_BYTES, self.size - block * CHECKSUM_BYTES))
            if zlib.crc32(data) != self._checksums[block]:
                raise DamagedError(
                    f"{shown(file.path)} is damaged between bytes {start:,} and {start + len(data):,}: checksum "
                    "mismatch",
                    "prepare the dataset again, or restore this file",
                )
            self._checked[block] = True

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The bytes of many non-empty ranges, joined; verified."""
        joined = np.empty(int(lengths.sum()), np.uint8)
        if len(starts):
            self.check(starts, starts + lengths)
            # Ranges that follow one another in the shards, as those of a document's neighbours do, are read together.
            ends = np.append(np.flatnonzero(starts[1:] != starts[:-1] + lengths[:-1]), len(starts) - 1)
            places = np.cumsum(lengths)[ends]
            target, place = joined.data, 0
            for start, until in zip(starts[np.append(0, ends[:-1] + 1)].tolist(), places.tolist(), strict=True):
                self._read_into(target[place:until], start)
                place = until
        return joined

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end) of the joined shards, verified."""
        if start >= end:
            return b""
        return self.gather(np.array([start]), np.array([end - start])).tobytes()

    def _read_into(self, buffer: memoryview, start: int) -> None:
        while buffer:
            shard, at = divmod(start, SHARD_BYTES)
            part = buffer[: SHARD_BYTES - at]
            self.files[shard].read_into(part, at)
            buffer, start = buffer[len(part) :], start + len(part)


def prompt_lengths(rows: np.ndarray) -> np.ndarray:
    """Bytes of the prompt of each document, int64, from rows of `documents.bin`."""
    return np.maximum(0, -rows[..., COLUMNS.index("offset")])


def counting(rows: np.ndarray, start: int, end: int) -> bytes:
    """A 1 for each byte of [start, end) in the shards that counts, a 0 for each of a prompt. `rows`: of
    `documents.bin`, ascending, with all documents that have a byte there."""
    edges = np.zeros(end - start + 1, np.int64)
    for places, step in ((rows[:, 0], 1), (rows[:, 0] + prompt_lengths(rows), -1)):
        np.add.at(edges, np.clip(places, start, end) - start, step)
    return (np.cumsum(edges[:-1]) == 0).astype(np.uint8).tobytes()


class Table:
    """A table of int64 behind `table[rows]` and `table[rows, column]`, as of an array; in memory up to `TABLE_BYTES`,
    else read when it is asked for."""

    def __init__(self, file: HeldFile, columns: int, entry: dict[str, Any]) -> None:
        self._file, self._entry, self._width = file, entry, 8 * columns
        self.shape = file.size // self._width, columns
        if file.size % self._width:
            raise DamagedError(f"{shown(file.path)} is damaged: not a table of {columns} columns")
        self._rows: np.ndarray | None = self._read(0, len(self)) if file.size <= TABLE_BYTES else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if self._rows is not None:
            return self._rows[key]
        rows, column = key if isinstance(key, tuple) else (key, slice(None))
        if (stamp := self._file.stamp()) != self._file.seen:
            self._file.verify(self._entry)
            self._file.seen = stamp
        if isinstance(rows, slice):
            first, last, stride = rows.indices(len(self))
            parts = (self._read(n, min(n + PART_ROWS, last))[:, column] for n in range(first, last, PART_ROWS))
            return np.concatenate([self._read(0, 0)[:, column], *parts])[::stride]
        wanted = np.asarray(rows)
        return self._gather(wanted.reshape(-1)).reshape(*wanted.shape, self.shape[1])[..., column]

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self[:]

    def tolist(self) -> list[list[int]]:
        return self[:].tolist()

    def _gather(self, wanted: np.ndarray) -> np.ndarray:
        """Rows in any order: with those between them where these are few, else one by one."""
        low, high = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
        if low < 0 or high > len(self):
            raise DamagedError(f"{shown(self._file.path)} has {len(self):,} rows, there is none {high - 1:,}")
        if high - low <= max(PART_ROWS, 8 * len(wanted)):
            return self._read(low, high)[wanted - low]
        return np.concatenate([self._read(row, row + 1) for row in wanted.tolist()])

    def _read(self, first: int, last: int) -> np.ndarray:
        data = self._file.read(first * self._width, max(0, last - first) * self._width)
        return np.frombuffer(data, "<i8").reshape(-1, self.shape[1])


class Dataset:
    """A prepared dataset. Opening checks all but the shards, whose blocks are checked as they are read.

    All files are opened then and kept open: a dataset made anew, or deleted, goes on being what it was.
    """

    def __init__(self, path: Path, about: dict[str, Any], fingerprint: str, files: dict[str, HeldFile]) -> None:
        self.path, self.about, self.fingerprint = path, about, fingerprint
        self.modality: str = about["modality"]
        self.splits: tuple[str, ...] = tuple(about["splits"])
        self.input_table = None if about["input_table"] is None else np.array(about["input_table"], np.uint8)
        weights = about["loss_weights"]
        self.loss_weights = None if weights is None else np.array(weights, np.float32)
        self._files = files
        self.table = self._table("documents.bin", len(COLUMNS))
        self.prompted = False
        """True if there are rows of prompt and completion, all of whose documents end with EOS."""
        shards = [files[shard_name(index)] for index in range(-(-about["bytes"] // SHARD_BYTES))]
        checksums = np.frombuffer(files["blocks.bin"].read(0, files["blocks.bin"].size), "<u4")
        self.shards = Shards(shards, about["bytes"], checksums)

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open and check. Raises InputError where there is no dataset, DamagedError naming the file and its fault."""
        path = Path(path)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if not path.exists():
                raise InputError(f"no dataset {shown(path)}", "make it with `hnet prepare`") from error
            raise DamagedError(f"{shown(path)} is no dataset: {error.strerror}") from error
        try:
            return cls._opened(path, folder)
        finally:
            os.close(folder)

    @classmethod
    def _opened(cls, path: Path, folder: int) -> Dataset:
        """Open what is in an open folder, which the name may no longer mean."""
        file = path / "dataset.json"
        try:
            about_file = HeldFile(file, folder)
            if about_file.size > LARGE:
                raise DamagedError(f"{shown(file)} has {about_file.size:,} bytes, at most {LARGE:,} are read")
            text = about_file.read(0, about_file.size)
        except (DamagedError, StorageError) as error:
            raise DamagedError(f"{error}: {shown(path)} is no dataset") from error
        fingerprint = hashlib.sha256(text).hexdigest()
        about = json_object(text, file)
        if (version := about.get("format")) != DATASET_FORMAT:
            raise DamagedError(
                f"{shown(path)} has dataset format {version!r:.40}; this version of hnet reads {DATASET_FORMAT}"
            )
        _check_about(typed(_About, {key: about[key] for key in _READ & about.keys()}, shown(file)), shown(file))
        entries = dict(about["files"])
        try:
            promised = read_manifest(path, folder)["files"]
            about_file.verify(promised["dataset.json"])
            if promised != entries | {"dataset.json": promised["dataset.json"]}:
                raise DamagedError(f"{shown(path / MANIFEST)} is damaged: it is not that of dataset.json")
            files = {name: HeldFile(path / name, folder) for name in entries}
            for name, entry in entries.items():
                files[name].verify(entry, digest=not name.startswith("shard-"))
            opened = cls(path, about, fingerprint, files)
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
            start, length, _, offset, name, _ = self.table[at : at + TABLE_ROWS].T
            self.prompted |= bool((offset < 0).any())
            refuse_if((-offset >= length + (length == 0)).any(), "documents.bin", "a prompt leaves nothing to predict")
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
        now = {name: [entry["sha256"], *self._files[name].identity] for name, entry in shards.items()}
        try:
            known = read_json(file, LARGE)
        except (FileNotFoundError, DamagedError):
            known = {}
        unchecked = [name for name in now if known.get(name) != now[name]]
        for name in unchecked:
            self._files[name].verify(shards[name])
        if unchecked:
            with contextlib.suppress(BusyError, StorageError):
                write_json(file, now)

    def nbytes(self, split: str) -> int:
        """Bytes of a split."""
        return int(self._split(split)["bytes"])

    def ranges(self, split: str) -> Table:
        """(n, 3) int64: document, first byte in it, bytes of each stretch of a split, in the order of the corpus."""
        self._split(split)
        return self._table(f"split-{split}.bin", 3)

    def documents(self, split: str) -> Iterator[bytes]:
        """The stored bytes of each stretch of a split, in the order of the corpus."""
        for document, start, length in self.ranges(split).tolist():
            at = int(self.table[document, 0]) + start
            yield self.shards.read(at, at + length)

    def name(self, document: int) -> str:
        """Name of a document: its source, then a tab and its record where it has one."""
        names, at, line = self._files["names.txt"], int(self.table[document, 4]), b""
        while b"\n" not in line and at < names.size and len(line) < LONGEST_NAME:
            line += names.read(at, min(NAME_BYTES, names.size - at))
            at += NAME_BYTES
        return line.partition(b"\n")[0].decode("utf-8", "replace")

    def translate(self, stored: np.ndarray) -> np.ndarray:
        """The bytes that the model reads for stored bytes (uint8, any shape)."""
        return stored if self.input_table is None else self.input_table[stored]

    def weights(
        self, stored: np.ndarray, document: np.ndarray, start: np.ndarray, length: np.ndarray
    ) -> np.ndarray | None:
        """(T,) float32: the weight of each byte in the loss, of stretches [start, start + length) of documents, (B,)
        int64, joined in `stored` (T,) uint8. That of the modality, and 0 in a prompt. None: all 1."""
        weights = None if self.loss_weights is None else self.loss_weights[stored]
        if self.prompted:
            counts = self.counts(document, start, length).astype(np.float32)
            weights = counts if weights is None else weights * counts
        return weights

    def counts(self, document: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """(T,) bool: False for each byte of the same stretches that is of a prompt."""
        prompt = prompt_lengths(self.table[document]) - start
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        return within >= np.repeat(prompt, length)

    def counting(self, start: int, end: int) -> bytes:
        """`counting` of the bytes [start, end) of the joined shards."""
        starts = self.table[:, 0]
        first, last = np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts, end)
        return counting(self.table[max(0, int(first)) : int(last)], start, end)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.splits:
            raise InputError(f"{shown(self.path)} has no split {split!r}", f"it has {', '.join(self.splits)}")
        return self.about["splits"][split]

    def _table(self, name: str, columns: int) -> Table:
        return Table(self._files[name], columns, self.about["files"][name])
