"""From the user's inputs (files, folders, URLs, standard input) to files to read, hashed on the way for `prepare`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from hnet_cli.data.prepare import remote
from hnet_cli.data.prepare.journal import MADE_BY_HNET
from hnet_cli.errors import HNetError, InputError
from hnet_cli.modality import Modality, Refused
from hnet_cli.storage.outputs import is_output
from hnet_cli.storage.streams import READ_BYTES, RawReader, decompressed, open_raw, read_error, shown

MARK_BYTES = 1 << 16
"""First bytes of a file, among which are those that tell what hnet made."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read, or a stretch of it."""

    name: str
    path: Path | None
    """None for a URL and for standard input."""
    group: str
    argument: int
    """Index of the user's input that it belongs to."""
    size: int = 0
    named: bool = True
    """True if it is that input, not a file found in a folder."""
    url: str = ""
    stamp: str = ""
    """Changes when the file does: time of modification in ns, or the server's word."""
    part: tuple[int, int] | None = None
    """A stretch: the lines, or row groups of a parquet file, that begin in these bytes. None: all of it."""
    table: bool = False
    """True if the stretch is one of row groups."""
    shared: bool = False
    """True if the modality put it into a group of another name than its own."""
    sole: bool = True
    """True if there is no other input."""
    identity: str = ""
    """The same for all names of a file; "" where nobody knows."""

    @property
    def is_stdin(self) -> bool:
        return self.path is None and not self.url

    @property
    def part_size(self) -> int:
        """Bytes of the stretch, or of the file."""
        return self.part[1] - self.part[0] if self.part else self.size


class Changed(InputError):
    """A file changed after this run began to read it."""


def expand(inputs: Sequence[str | Path], modality: Modality) -> Iterator[tuple[int, InputFile | Refused]]:
    """The files that the user's inputs stand for, in a fixed order, and refusals, each with the input's index.

    Raises InputError for an input that does not exist, cannot be read, or is neither a file nor a folder.
    """
    sole = len(inputs) == 1
    for argument, given in enumerate(inputs):
        if str(given) == "-":
            yield argument, InputFile("-", None, "-", argument, sole=sole, identity=_stdin_identity())
        elif remote.is_url(given):
            for url, name, size, stamp in remote.expand(str(given)):
                yield (
                    argument,
                    InputFile(name, None, name, argument, size, url=url, stamp=stamp, sole=sole, identity=url),
                )
        elif not str(given):
            raise InputError("an input has an empty name", "name files, folders or -; . is the current folder")
        else:
            for item in _expand_path(Path(given), shown(given), argument, modality, sole):
                yield argument, item


def _expand_path(path: Path, name: str, argument: int, modality: Modality, sole: bool) -> Iterator[InputFile | Refused]:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise read_error(error, name) from error
    if not stat.S_ISDIR(status.st_mode):
        open_raw(path).close()
        stamp, identity = str(status.st_mtime_ns), _identity(status)
        yield InputFile(name, path, name, argument, status.st_size, stamp=stamp, sole=sole, identity=identity)
        return
    refused: list[Refused] = []
    for item in modality.select(path, _files_below(path, refused, set())):
        if isinstance(item, Refused):
            yield item
        else:
            file, group = item
            own = file.relative_to(path).as_posix()
            group = group or (own if sole else ".")
            try:
                status = file.stat()
                size, stamp, identity = status.st_size, str(status.st_mtime_ns), _identity(status)
            except OSError:
                size, stamp, identity = 0, "gone", ""
            yield InputFile(
                shown(file),
                file,
                f"{name}/{group}",
                argument,
                size,
                named=False,
                stamp=stamp,
                shared=group != own,
                sole=sole,
                identity=identity,
            )
    yield from refused


def _identity(status: os.stat_result) -> str:
    """Device and inode. Size and time guard against file systems that give numbers twice, or none at all."""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}" if status.st_ino else ""


def _stdin_identity() -> str:
    """Identity of the file that standard input comes from; "-" if it is none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        status = os.fstat(sys.stdin.fileno())
        return _identity(status) if stat.S_ISREG(status.st_mode) else "-"
    return "-"


_MARKS = {
    "dataset.json": ("dataset", (b'"split_rule"',), {"documents.bin"}),
    "part.json": ("part of a dataset", (b'"planned"',), {"documents.bin"}),
    "plan.json": ("comparison", (b'"flops_per_byte"', b'"line_up"'), {"members", "runs"}),
    "config.yaml": ("run", (b"arch_layout",), {"metrics.jsonl", "events.jsonl", "log.txt", "checkpoints"}),
    "config.json": ("model folder", (b'"arch_layout"',), {"model.safetensors", "manifest.json"}),
}
"""By file: what a folder with it is, what its beginning holds, and what else is there: at least one."""
COMPANY = {name for _, _, company in _MARKS.values() for name in company}


def is_mark(name: str, head: Callable[[], bytes]) -> bool:
    """True for a file that hnet, or the H-Net release, wrote into a folder of its own; `head`: its `MARK_BYTES`."""
    if name not in _MARKS:
        return False
    beginning = head()
    return all(mark in beginning for mark in _MARKS[name][1])


def made_by_hnet(names: Collection[str], is_mark: Callable[[str], bool]) -> str:
    """The kind of thing that hnet, or the H-Net release, wrote into a folder with entries `names`; "" for any other."""
    for name, (kind, _, company) in _MARKS.items():
        if name in names and company & set(names) and is_mark(name):
            return kind
    return ""


def _has_mark(folder: Path, name: str) -> bool:
    with contextlib.suppress(HNetError, OSError), open_raw(folder / name) as file:
        return is_mark(name, lambda: file.read(MARK_BYTES))
    return False


def _files_below(top: Path, refused: list[Refused], seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Regular, readable files below a folder, sorted by the bytes of their names; the rest is appended to `refused`.

    `seen`: device and inode number of the folders read already. However deep the folders are, the stack stays short.
    """
    reading = [_entries(top, refused, seen)]
    while reading:
        if (entry := next(reading[-1], None)) is None:
            reading.pop()
            continue
        path, reason, mode = Path(entry.path), "", 0
        if entry.name[0] == ".":
            reason = "hidden file or folder"
        else:
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                dangling = entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP)
                reason = "link to nothing" if dangling else f"unreadable: {os.strerror(error.errno or 0)}"
        if stat.S_ISDIR(mode):
            reading.append(_entries(path, refused, seen))
            continue
        if not reason and not stat.S_ISREG(mode):
            reason = "device, pipe or socket"
        if not reason and not os.access(path, os.R_OK):
            reason = "unreadable: permission denied"
        if not reason and is_output(path):
            reason = f"output {MADE_BY_HNET}"
        if reason:
            refused.append(Refused(reason, shown(path), damaged=reason.startswith("unreadable")))
        else:
            yield path


def _entries(folder: Path, refused: list[Refused], seen: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        refused.append(Refused(f"unreadable folder: {os.strerror(error.errno or 0)}", shown(folder), damaged=True))
        return
    if (status.st_dev, status.st_ino) in seen:
        reason = "link to a folder read already" if folder.is_symlink() else "folder read already through a link"
        refused.append(Refused(reason, shown(folder)))
        return
    seen.add((status.st_dev, status.st_ino))
    if kind := made_by_hnet({entry.name for entry in entries}, partial(_has_mark, folder)):
        refused.append(Refused(f"{kind} {MADE_BY_HNET}", shown(folder)))
        return
    yield from entries


# --- one file ---------------------------------------------------------------------------------------------------------


class FileReader:
    """Opens one input file, or a stretch of it, as often as needed.

    `advance(n)`: n more bytes were read for the first time. `hashed`: for `finish`, which needs every byte's digest.
    """

    def __init__(
        self, file: InputFile, advance: Callable[[int], None] = lambda count: None, *, hashed: bool = False
    ) -> None:
        """Raises Changed where a stretch is no longer of the file that was divided."""
        self.file = file
        self.hashed, self._advance, self._counted = hashed, advance, 0
        self._latest: _Counted | None = None
        self._whole: _Counted | None = None
        """A stream that was read to its end."""
        self._before = self._status()
        if file.part and (self._before[2], str(self._before[3])) != (file.size, file.stamp):
            raise self._changed()
        self.stretch = self._stretch()

    def open(self) -> io.BufferedReader:
        """The decompressed bytes from the start."""
        if self.file.is_stdin:
            if self._counted:
                raise InputError("standard input can be read only once", "save it to a file and name that")
            raw = cast(BinaryIO, sys.stdin.buffer)
        elif self.file.path is None:
            raw = remote.open_url(self.file.url, self.file.name, self.file.size)
        else:
            raw = open_raw(self.file.path)
        self._latest = _Counted(raw, self)
        if self.stretch:
            raw.seek(self.stretch[0])
            self._latest.left = self.stretch[1] - self.stretch[0]
            return io.BufferedReader(self._latest, READ_BYTES)
        return decompressed(cast(BinaryIO, self._latest), self.file.name)

    def open_seekable(self) -> Any:
        """For pyarrow: the path, or a file object that can seek. None for standard input."""
        return remote.open_seekable(self.file.url, self.file.name) if self.file.url else self.file.path

    def finish(self) -> dict[str, Any]:
        """Name, size and SHA-256 of the file or stretch as read. Raises Changed if it changed since the start."""
        if self._whole is None:  # refused early, or a reader that stopped before the end
            opened = None if self.file.is_stdin else self.open()  # kept: a stream that nobody holds is closed
            rest = bytearray(READ_BYTES)
            while self._latest is not None and self._latest.readinto(rest):
                pass
            if opened is not None:
                opened.close()
        if self._status() != self._before:
            raise self._changed()
        size, digest = (self._whole.size, self._whole.digest) if self._whole else (0, hashlib.sha256())
        entry = {"name": self.file.name, "size": size, "sha256": digest.hexdigest()}
        return entry | ({"start": self.stretch[0]} if self.stretch else {})

    def count(self, stream: _Counted, ended: bool) -> None:
        """Note how far a stream was read."""
        if ended:
            self._whole = stream
        elif stream.size > self._counted:
            self._advance(stream.size - self._counted)
            self._counted = stream.size

    def _stretch(self) -> tuple[int, int] | None:
        """The bytes of the lines or row groups that begin in `InputFile.part`."""
        if not self.file.part or self.file.path is None:
            return None
        start, end = self.file.part
        if self.file.table:
            return start, end
        with open_raw(self.file.path) as raw:
            first = _line_start(raw, start, end)
            return (end, end) if first >= end else (first, _line_start(raw, end, self.file.size))

    def _changed(self) -> Changed:
        return Changed(f"{self.file.name} changed while it was read", "run again when nothing writes to it")

    def _status(self) -> tuple[int, ...]:
        if self.file.path is None:
            return ()
        try:
            status = self.file.path.stat()
        except OSError as error:
            raise read_error(error, self.file.name) from error
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _line_start(raw: BinaryIO, position: int, limit: int) -> int:
    """Start of the first line that begins at `position` or later; `limit` if none begins before it."""
    if position == 0:
        return 0
    at = position - 1
    raw.seek(at)
    while at < limit and (block := raw.read(1 << 16)):
        line_feed = block.find(b"\n")
        if line_feed >= 0:
            return min(at + line_feed + 1, limit)
        at += len(block)
    return limit


class _Counted(RawReader):
    """A raw stream that reports its progress to a FileReader, and hashes the bytes that pass if that asks for it."""

    def __init__(self, stream: BinaryIO, reader: FileReader) -> None:
        super().__init__(stream)
        self._reader = reader
        self.size = 0
        self.left = sys.maxsize
        """Bytes before the end of the stretch."""
        self.digest = hashlib.sha256()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self.left]
        count = super().readinto(view) if view else 0
        if self._reader.hashed:
            self.digest.update(view[:count])
        self.size += count
        self.left -= count
        self._reader.count(self, ended=not count)
        return count

    def close(self) -> None:
        if self.stream is sys.stdin.buffer:
            io.RawIOBase.close(self)
        else:
            super().close()
