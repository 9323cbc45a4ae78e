"""From what the user names (files, folders, URLs, standard input) to files to read, hashed while they are read."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from hnet_cli.data.prepare import remote
from hnet_cli.errors import InputError
from hnet_cli.modality import Modality, Refused
from hnet_cli.storage.streams import BLOCK, decompressed, open_raw, read_error, shown


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read, or a stretch of it. `argument` tells which of the user's inputs it belongs to, and `named`
    whether it is that input, not a file found in a folder."""

    name: str
    path: Path | None
    """None for a URL and for standard input."""
    group: str
    argument: int
    size: int = 0
    named: bool = True
    url: str = ""
    stamp: str = ""
    """Changes when the file does: time of modification in ns, or what the server says."""
    part: tuple[int, int] | None = None
    """A stretch: the lines, or row groups of a parquet file, that begin in these bytes. None: all of it."""
    table: bool = False
    """Whether the stretch is one of row groups."""

    @property
    def is_stdin(self) -> bool:
        return self.path is None and not self.url


class Changed(InputError):
    """A file is not what it was when this run began to read it."""


def expand(inputs: Sequence[str | Path], modality: Modality) -> Iterator[tuple[int, InputFile | Refused]]:
    """The files that the user's inputs stand for, in a fixed order, and what is refused, each with the input's index.

    Raises InputError for an input that does not exist, cannot be read, or is neither a file nor a folder.
    """
    for argument, given in enumerate(inputs):
        if str(given) == "-":
            yield argument, InputFile("-", None, "-", argument)
            continue
        if remote.is_url(given):
            for url, name, size, stamp in remote.expand(str(given)):
                yield argument, InputFile(name, None, name, argument, size, url=url, stamp=stamp)
            continue
        if not str(given):
            raise InputError("an input has an empty name", "name files, folders or -; . is the current folder")
        path, name = Path(given), shown(given)
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            raise read_error(error, name) from error
        if not stat.S_ISDIR(status.st_mode):
            open_raw(path).close()
            yield argument, InputFile(name, path, name, argument, status.st_size, stamp=str(status.st_mtime_ns))
            continue
        refused: list[Refused] = []
        for found in modality.select(path, _files_below(path, refused)):
            if isinstance(found, Refused):
                yield argument, found
            else:
                file, group = found
                size, stamp = _size_and_stamp(file)
                yield (
                    argument,
                    InputFile(shown(file), file, f"{name}/{group}", argument, size, named=False, stamp=stamp),
                )
        for refusal in refused:
            yield argument, refusal


def _size_and_stamp(file: Path) -> tuple[int, str]:
    try:
        status = file.stat()
    except OSError:
        return 0, "gone"
    return status.st_size, str(status.st_mtime_ns)


def _files_below(root: Path, refused: list[Refused]) -> Iterator[Path]:
    """Regular, readable files below a folder, sorted by the bytes of their names; the rest is appended to `refused`."""
    seen: set[tuple[int, int]] = set()

    def walk(folder: Path) -> Iterator[Path]:
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            refused.append(Refused(f"unreadable folder: {os.strerror(error.errno or 0)}", shown(folder), damaged=True))
            return
        if (status.st_dev, status.st_ino) in seen:
            refused.append(Refused("link to a folder read already", shown(folder)))
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = folder / entry.name
            reason = None if entry.name[0] != "." else "hidden file or folder"
            try:
                mode = 0 if reason else entry.stat().st_mode
            except OSError as error:
                dangling = entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP)
                reason = "link to nothing" if dangling else f"unreadable: {os.strerror(error.errno or 0)}"
            if reason is None and stat.S_ISDIR(mode):
                yield from walk(path)
            elif reason is None and not stat.S_ISREG(mode):
                reason = "device, pipe or socket"
            elif reason is None and not os.access(path, os.R_OK):
                reason = "unreadable: permission denied"
            elif reason is None:
                yield path
            if reason:
                refused.append(Refused(reason, shown(path), damaged=reason.startswith("unreadable")))

    return walk(root)


# --- one file ---------------------------------------------------------------------------------------------------------


class FileReader:
    """Opens one input file as often as needed, hashes it while it is read, and notices when it changes meanwhile.

    Of a stretch it gives these bytes.
    """

    def __init__(self, file: InputFile, advance: Callable[[int], None] = lambda count: None) -> None:
        self.file = file
        self._advance = advance
        self._counted = 0
        self._latest: _Hashed | None = None
        self._whole: _Hashed | None = None
        self._before = self._status()
        if file.part and (self._before[2], str(self._before[3])) != (file.size, file.stamp):
            raise self._changed()
        self.stretch = self._stretch()

    def open(self) -> io.BufferedReader:
        """The decompressed bytes from the start."""
        raw: BinaryIO
        if self.file.is_stdin:
            if self._counted:
                raise InputError("standard input can be read only once", "save it to a file and name that")
            raw = cast(BinaryIO, sys.stdin.buffer)
        elif self.file.path is None:
            raw = remote.open_url(self.file.url, self.file.name, self.file.size)
        else:
            raw = open_raw(self.file.path)
        if self.stretch:
            raw = cast(BinaryIO, _Stretch(raw, *self.stretch))
        self._latest = _Hashed(raw, self._progressed)
        hashed = cast(BinaryIO, self._latest)
        return io.BufferedReader(self._latest, BLOCK) if self.stretch else decompressed(hashed, self.file.name)

    def open_seekable(self) -> Any:
        """For pyarrow: the path, or a file object that can seek. None for standard input."""
        if self.file.url:
            return remote.open_seekable(self.file.url, self.file.name)
        return self.file.path

    def finish(self) -> dict[str, Any]:
        """Name, size and SHA-256 of the file as read, or its stretch. Raises Changed if it is not what it was when this
        reader began."""
        if self._whole is None:  # refused early, or a reader that stopped before the end
            opened = None if self.file.is_stdin else self.open()  # kept: a stream that nobody holds is closed
            if self._latest is not None:
                self._latest.drain()
            if opened is not None:
                opened.close()
        if self._status() != self._before:
            raise self._changed()
        whole = self._whole or _Hashed(io.BytesIO(), self._progressed)
        entry = {"name": self.file.name, "size": whole.size, "sha256": whole.digest.hexdigest()}
        return entry | ({"start": self.stretch[0]} if self.stretch else {})

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

    def _progressed(self, stream: _Hashed, ended: bool) -> None:
        if ended:
            self._whole = stream
        elif stream.size > self._counted:
            self._advance(stream.size - self._counted)
            self._counted = stream.size

    def _status(self) -> tuple[int, ...]:
        if self.file.path is None:
            return ()
        try:
            status = self.file.path.stat()
        except OSError as error:
            raise read_error(error, self.file.name) from error
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _line_start(raw: BinaryIO, position: int, limit: int) -> int:
    """Where the first line begins that begins at `position` or later; `limit` if none begins before it."""
    if position == 0:
        return 0
    raw.seek(position - 1)
    at = position - 1
    while at < limit and (block := raw.read(1 << 16)):
        found = block.find(b"\n")
        if found >= 0:
            return min(at + found + 1, limit)
        at += len(block)
    return limit


class _Stretch(io.RawIOBase):
    """The bytes [start, end) of a raw file."""

    def __init__(self, raw: BinaryIO, start: int, end: int) -> None:
        self._raw, self._left = raw, end - start
        raw.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        count = self._raw.readinto(view) if view else 0  # type: ignore[attr-defined]
        self._left -= count
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Hashed(io.RawIOBase):
    """A raw stream that counts and hashes what passes, and reports to `told(self, ended)`."""

    def __init__(self, stream: BinaryIO, told: Callable[[_Hashed, bool], None]) -> None:
        self._stream, self._told = stream, told
        self.size = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer) or 0  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:count])
        self.size += count
        self._told(self, not count)
        return count

    def drain(self) -> None:
        """Read what is left."""
        buffer = bytearray(BLOCK)
        while self.readinto(buffer):
            pass

    def close(self) -> None:
        if self._stream is not sys.stdin.buffer:
            self._stream.close()
        super().close()
