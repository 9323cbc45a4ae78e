"""Files behind URLs, through fsspec: streamed, never saved; a broken connection is taken up again where it broke."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit, urlunsplit

from hnet_cli.errors import EnvironmentLimit, HNetError, InputError, StorageError
from hnet_cli.modality import escape

ATTEMPTS = 5
"""Failures in a row, without a byte between them, before a connection is given up."""
PAUSE = 0.5
"""Seconds before the second attempt; doubled for each one after it."""
BLOCK = 4 << 20
"""Bytes asked for at once."""


def is_url(given: str | Path) -> bool:
    """Whether an input names something that is not on this machine's disks."""
    scheme, colons, _ = str(given).partition("://")
    return bool(colons) and scheme.isascii() and scheme.replace("+", "").replace("::", "").isalnum()


def expand(url: str) -> Iterator[tuple[str, str, int, str]]:
    """(URL, name without secrets, size or 0, stamp) of a URL, or of all that its pattern matches. Raises InputError for
    what is not there, EnvironmentLimit for a missing package, StorageError for a connection that fails."""
    system, path = _system(url)
    try:
        paths = sorted(system.glob(path)) if any(mark in path for mark in "*[") else [path]
        for each in paths:
            about = system.info(each)
            if about["type"] == "directory":
                raise InputError(f"{shown_url(url)} is a folder", "name files in it: URL/*.jsonl.zst")
            full = url if each == path else system.unstrip_protocol(each)
            stamp = " ".join(str(about[key]) for key in ("ETag", "LastModified", "mtime", "created") if key in about)
            yield full, shown_url(full), int(about.get("size") or 0), stamp
    except Exception as error:
        raise _told(error, url) from error
    if not paths:
        raise InputError(f"{shown_url(url)} matches nothing", "check the pattern")


def open_url(url: str, name: str, size: int) -> BinaryIO:
    """The bytes of a URL, from its start. `size`: what there must be, 0 if unknown."""
    return cast(BinaryIO, _Stream(url, name, size))


def open_seekable(url: str, name: str) -> Any:
    """A file object that can seek, for formats read from their end. Raises InputError where the server cannot."""
    system, path = _system(url)
    try:
        file = system.open(path, "rb", block_size=BLOCK)
    except Exception as error:
        raise _told(error, url) from error
    if not file.seekable():
        raise InputError(f"{name}: the server gives no parts of files, which this format needs", "download it first")
    return file


def shown_url(url: str) -> str:
    """A URL without user, password and query, which may hold keys, in printable characters."""
    parts = urlsplit(url)
    return escape(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")), keep="")


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise EnvironmentLimit(f"{shown_url(url)}: reading URLs needs fsspec", "pip install 'hnet[remote]'") from error
    logging.getLogger("fsspec").setLevel(logging.CRITICAL)
    try:
        system, path = url_to_fs(url)
    except Exception as error:
        raise _told(error, url) from error
    return system, path


def _told(error: Exception, url: str) -> Exception:
    """What the user is told about a library's exception."""
    name = shown_url(url)
    if isinstance(error, HNetError | MemoryError):
        return error
    if isinstance(error, ImportError):
        return EnvironmentLimit(f"{name}: {error}", "pip install 'hnet[remote]', or the package it names")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{name} does not exist")
    if isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403):
        return InputError(f"{name} is not readable: permission denied", "check the address and your credentials")
    if isinstance(error, ValueError):  # an unknown protocol, a malformed address
        return InputError(f"{name} cannot be read: {_line(error)}")
    return StorageError(f"cannot read {name}: {_line(error)}", "check the connection, then run the command again")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _passing(error: Exception) -> bool:
    """Whether trying again may help: it is about the connection, not about what was asked for."""
    status = getattr(error, "status", 0)
    if isinstance(error, FileNotFoundError | PermissionError | ImportError | MemoryError) or 400 <= status < 500:
        return status in (408, 429)
    return isinstance(error, OSError | EOFError | asyncio.TimeoutError) or "aiohttp" in type(error).__module__


class _Stream(io.RawIOBase):
    """A URL from front to back. When the connection breaks, or ends before `size` bytes came, it goes on from there."""

    def __init__(self, url: str, name: str, size: int) -> None:
        self._url, self._name, self._size = url, name, size
        self._file: Any = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                if self._file is None:
                    self._file = self._open()
                data = self._file.read(min(len(buffer), BLOCK))
                if not data and self._position < self._size:
                    raise EOFError(f"it ends after {self._position:,} of {self._size:,} bytes")
            except Exception as error:
                self._drop()
                failure = error
                if not _passing(error):
                    break
            else:
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
        raise _told(failure, self._url) from failure

    def _open(self) -> Any:
        system, path = _system(self._url)
        file = system.open(path, "rb", block_size=BLOCK, cache_type="readahead")
        if self._position:
            if file.seekable():
                file.seek(self._position)
            else:  # a server that only gives whole files
                left = self._position
                while left and (skipped := file.read(min(left, BLOCK))):
                    left -= len(skipped)
        return file

    def _drop(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(Exception):  # it is broken already
                file.close()

    def close(self) -> None:
        self._drop()
        super().close()
