"""Files kept open while they are in use: neither a new file of the name nor its deletion changes what is read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import stat
import weakref
from pathlib import Path
from typing import Any

from hnet_cli.errors import DamagedError, StorageError
from hnet_cli.storage.streams import kernel_devices, shown

BLOCK = 1 << 20
"""Bytes read at once."""


class HeldFile:
    """A regular file, read at any place without a memory map: one of a file that somebody cuts short ends the process.

    `folder`: the descriptor of an open folder in which `path.name` is looked up. Raises DamagedError where there is no
    such file, or less of it than is read; StorageError where the system cannot read it.
    """

    def __init__(self, path: Path, folder: int | None = None) -> None:
        self.path = path
        try:
            self._descriptor = _opened(path if folder is None else Path(path.name), folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedError(f"{shown(path)} is missing") from error
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ELOOP, errno.ENAMETOOLONG):
                raise DamagedError(f"{shown(path)} is not a file") from error
            raise StorageError(f"cannot read {shown(path)}: {error.strerror}") from error
        self.close = weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_dev in kernel_devices():
            raise DamagedError(f"{shown(path)} is not a file")
        self.size = status.st_size
        self.seen = status.st_mtime_ns, status.st_size
        """`stamp` of the content that was last checked."""

    def read(self, start: int, count: int) -> bytes:
        """The `count` bytes from `start` on."""
        data = bytearray(count)
        self.read_into(memoryview(data), start)
        return bytes(data)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer of bytes with those from `start` on."""
        try:
            while (count := os.preadv(self._descriptor, [buffer], start)) < len(buffer):
                if not count:
                    raise DamagedError(
                        f"{shown(self.path)} ends at byte {start:,}, {self.size:,} were there when it was opened",
                        "restore this file",
                    )
                buffer, start = buffer[count:], start + count
        except OSError as error:
            raise StorageError(f"cannot read {shown(self.path)}: {error.strerror}") from error

    def stamp(self) -> tuple[int, int]:
        """Time of the last write in ns, and size in bytes."""
        status = os.fstat(self._descriptor)
        return status.st_mtime_ns, status.st_size

    def has_changed(self) -> bool:
        """True if the file was written to since it was opened, or since `seen` was set."""
        return self.stamp() != self.seen

    def verify(self, entry: dict[str, Any], *, digest: bool = True) -> None:
        """Check the size against a manifest's entry and, if `digest`, the SHA-256. Raises DamagedError."""
        name = shown(self.path)
        if self.size != entry["size"]:
            raise DamagedError(f"{name} is damaged: {self.size:,} bytes, {entry['size']:,} were written")
        if digest and self.sha256() != entry["sha256"]:
            raise DamagedError(f"{name} is damaged: its SHA-256 is not the one that was written")

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the content."""
        total, block = hashlib.sha256(), memoryview(bytearray(min(BLOCK, self.size)))
        for start in range(0, self.size, BLOCK):
            part = block[: self.size - start]
            self.read_into(part, start)
            total.update(part)
        return total.hexdigest()

    @property
    def identity(self) -> list[int]:
        """Inode number and times of change: others for another file or content."""
        status = os.fstat(self._descriptor)
        return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _opened(path: Path, folder: int | None) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    with contextlib.suppress(ValueError, OSError):  # a dataset of a terabyte has more shards than the usual limit
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return os.open(path, flags, dir_fd=folder)
