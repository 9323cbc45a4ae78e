"""From what the user names (files, folders, standard input) to files to read, hashed while they are read."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from hnet_cli.errors import InputError
from hnet_cli.modality import Modality, Refused
from hnet_cli.streams import BLOCK, decompressed, open_raw, read_error, shown


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read. `path` None is standard input; `argument` tells which of the user's inputs it belongs to, and
    `named` whether it is that input, not a file found in a folder."""

    name: str
    path: Path | None
    group: str
    argument: int
    size: int = 0
    named: bool = True


def expand(inputs: Sequence[str | Path], modality: Modality) -> Iterator[tuple[int, InputFile | Refused]]:
    """The files that the user's inputs stand for, in a fixed order, and what is refused, each with the input's index.

    Raises InputError for an input that does not exist, cannot be read, or is neither a file nor a folder.
    """
    for argument, given in enumerate(inputs):
        if str(given) == "-":
            yield argument, InputFile("-", None, "-", argument)
            continue
        path, name = Path(given), shown(given)
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            raise read_error(error, name) from error
        if not stat.S_ISDIR(status.st_mode):
            open_raw(path).close()
            yield argument, InputFile(name, path, name, argument, status.st_size)
            continue
        refused: list[Refused] = []
        for found in modality.select(path, _files_below(path, refused)):
            if isinstance(found, Refused):
                yield argument, found
            else:
                file, group = found
                size = file.stat().st_size if file.exists() else 0
                yield argument, InputFile(shown(file), file, f"{name}/{group}", argument, size, named=False)
        for refusal in refused:
            yield argument, refusal


def _files_below(root: Path, refused: list[Refused]) -> Iterator[Path]:
    """Regular, readable files below a folder, sorted by the bytes of their names; the rest is appended to `refused`."""
    seen: set[tuple[int, int]] = set()

    def walk(folder: Path) -> Iterator[Path]:
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            refused.append(Refused(f"unreadable folder: {os.strerror(error.errno or 0)}", shown(folder)))
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
                reason = f"unreadable: {os.strerror(error.errno or 0)}"
            if reason is None and stat.S_ISDIR(mode):
                yield from walk(path)
            elif reason is None and not stat.S_ISREG(mode):
                reason = "device, pipe or socket"
            elif reason is None and not os.access(path, os.R_OK):
                reason = "unreadable: permission denied"
            elif reason is None:
                yield path
            if reason:
                refused.append(Refused(reason, shown(path)))

    return walk(root)


# --- one file ---------------------------------------------------------------------------------------------------------


class FileReader:
    """Opens one input file as often as needed, hashes it while it is read, and notices when it changes meanwhile."""

    def __init__(self, file: InputFile, advance: Callable[[int], None] = lambda count: None) -> None:
        self.file = file
        self._advance = advance
        self._counted = 0
        self._latest: _Hashed | None = None
        self._whole: _Hashed | None = None
        self._before = self._status()

    def open(self) -> io.BufferedReader:
        """The decompressed bytes from the start."""
        if self.file.path is None:
            if self._counted:
                raise InputError("standard input can be read only once", "save it to a file and name that")
            raw = cast(BinaryIO, sys.stdin.buffer)
        else:
            raw = open_raw(self.file.path)
        self._latest = _Hashed(raw, self._progressed)
        return decompressed(cast(BinaryIO, self._latest), self.file.name)

    def finish(self) -> dict[str, Any]:
        """Name, size and SHA-256 of the file as read. Raises InputError if it changed since this reader began."""
        if self._whole is None:  # refused early, or a reader that stopped before the end
            if self.file.path is not None:
                self.open()
            if self._latest is not None:
                self._latest.drain()
        if self._status() != self._before:
            raise InputError(f"{self.file.name} changed while it was read", "run again when nothing writes to it")
        whole = self._whole or _Hashed(io.BytesIO(), self._progressed)
        return {"name": self.file.name, "size": whole.size, "sha256": whole.digest.hexdigest()}

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
