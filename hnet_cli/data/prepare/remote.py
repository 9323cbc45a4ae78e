"""Files behind URLs, through fsspec: streamed, never saved; after a broken connection, reading resumes in place."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from hnet_cli.errors import EnvironmentLimit, HNetError, InputError, StorageError
from hnet_cli.modality import escape

ATTEMPTS = 5
"""Failures in a row, without a byte between them, before a connection is given up."""
PAUSE = 0.25
"""Seconds before the second attempt; doubled for each one after it."""
PATIENCE = 20.0
"""Seconds that a request may take. A server that does not answer in time is asked once more, then given up."""
REQUEST_BYTES, SLOW_REQUEST_BYTES = 4 << 20, 1 << 18
"""Bytes asked for at once; of a server that did not give them in time."""
T = TypeVar("T")


def is_url(given: str | Path) -> bool:
    """True if an input names something that is not on this machine's disks."""
    scheme, colons, _ = str(given).partition("://")
    return bool(colons) and scheme.isascii() and scheme.replace("+", "").replace("::", "").isalnum()


def expand(url: str) -> Iterator[tuple[str, str, int, str]]:
    """(URL, name without secrets, size or 0, stamp) of a URL, or of all that its pattern matches.

    Raises InputError for a URL that leads nowhere, EnvironmentLimit for a missing package, StorageError for a
    connection that fails.
    """
    system, path = _system(url)
    pattern = any(mark in path for mark in "*[")
    paths = _retry(lambda: sorted(system.glob(path)), url) if pattern else [path]
    if not paths:
        raise InputError(f"{shown_url(url)} matches nothing", "check the pattern")
    for path in paths:
        full = system.unstrip_protocol(path) if pattern else url
        about = _retry(partial(system.info, path), full)
        if about["type"] == "directory":
            raise InputError(f"{shown_url(url)} is a folder", "name files in it: URL/*.jsonl.zst")
        stamp = " ".join(str(about[key]) for key in ("ETag", "LastModified", "mtime", "created") if key in about)
        yield full, shown_url(full), int(about.get("size") or 0), stamp


def open_url(url: str, name: str, size: int) -> BinaryIO:
    """The bytes of a URL, from its start. `size`: their number, 0 if unknown."""
    return cast(BinaryIO, _RemoteStream(url, name, size))


def open_seekable(url: str, name: str) -> Any:
    """A file object that can seek, for formats read from their end. Raises InputError where the server cannot."""
    system, path = _system(url)
    open_file = partial(system.open, path, "rb")
    file = _retry(lambda: open_file(block_size=REQUEST_BYTES), url)
    try:
        file.seek(1)
        file.seek(0)
    except ValueError as error:
        reason = f"{name}: the server gives no parts of files, which this format needs"
        raise InputError(reason, "download it first") from error
    return io.BufferedReader(_RemoteFile(file, open_file, url), REQUEST_BYTES)


def shown_url(url: str) -> str:
    """A URL without user, password and query, which may hold keys, in printable characters."""
    parts = urlsplit(url)
    return escape(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", keep="")


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise EnvironmentLimit(
            f"{shown_url(url)}: reading URLs needs fsspec", "pip install 'hnet-cli[remote]'"
        ) from error
    logging.getLogger("fsspec").setLevel(logging.CRITICAL)
    try:
        system, path = _in_time(lambda: url_to_fs(url))
    except Exception as error:
        raise _translated(error, url) from error
    return system, path


def _translated(error: Exception, url: str) -> Exception:
    """The error for the user in place of a library's exception."""
    name, error = shown_url(url), _cause(error)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, HNetError | MemoryError):
        return error
    if isinstance(error, ImportError):
        return EnvironmentLimit(f"{name}: {error}", "pip install 'hnet-cli[remote]', or the package it names")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{name} does not exist")
    if isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403):
        return InputError(f"{name} is not readable: permission denied", "check the address and your credentials")
    if isinstance(error, ValueError):  # an unknown protocol, a malformed address
        return InputError(f"{name} cannot be read: {reason}")
    return StorageError(f"cannot read {name}: {reason}", "check the connection, then run the command again")


def _cause(error: Exception) -> Exception:
    """The true reason: fsspec reports every failure over HTTP as a missing file, with the reason as its cause."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and getattr(cause, "status", 0) != 404:
        return cause
    return error


def _retry(work: Callable[[], T], url: str, on_late: Callable[[], None] = lambda: None) -> T:
    """The result of `work`, which is tried again where that may help; `on_late` is called after a TimeoutError."""
    late = False
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return _in_time(work)
        except Exception as error:
            failure = error
            if not _is_transient(_cause(error)) or (late and isinstance(error, TimeoutError)):
                break
            if late := isinstance(error, TimeoutError):
                on_late()
    raise _translated(failure, url) from failure


def _in_time(work: Callable[[], T]) -> T:
    """The result of `work`. Raises TimeoutError where it takes longer than `PATIENCE`: its thread is left to itself,
    for the libraries' own limits begin anew with every byte that comes, or there are none."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"the server does not answer within {PATIENCE:g} seconds, or too slowly")
    return results[0]


class _RemoteFile(io.RawIOBase):
    """A file object of fsspec, read in time."""

    def __init__(self, file: Any, open_file: Callable[..., Any], url: str) -> None:
        """`open_file(block_size=...)` opens the same again, to be asked for less."""
        self._turn, self._file = 0, (0, file)
        self._open, self._url, self._size = open_file, url, int(file.size)
        self._request, self._at = REQUEST_BYTES, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        before = (0, self._at, self._size)[whence]
        self._at = before + position
        return self._at

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            turn, (opened, file) = self._turn, self._file
            if opened != turn:  # the file of a thread that came too late is that thread's
                file = self._open(block_size=self._request)
                self._file = turn, file
            file.seek(self._at)
            data: bytes = file.read(min(len(buffer), self._request))
            return data

        data = _retry(read, self._url, self._on_late)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _on_late(self) -> None:
        self._turn, self._request = self._turn + 1, SLOW_REQUEST_BYTES


def _is_transient(error: Exception) -> bool:
    """True if trying again may help: the connection failed, not the request."""
    status = getattr(error, "status", 0)
    if isinstance(error, FileNotFoundError | PermissionError | ImportError | MemoryError) or 400 <= status < 500:
        return status in (408, 429)
    return isinstance(error, OSError | EOFError | asyncio.TimeoutError) or "aiohttp" in type(error).__module__


class _RemoteStream(io.RawIOBase):
    """A URL from front to back. When the connection breaks, or ends before `size` bytes came, it resumes there."""

    def __init__(self, url: str, name: str, size: int) -> None:
        self._url, self._name, self._size = url, name, size
        self._file: Any = None
        self._position = 0
        self._request = REQUEST_BYTES
        self._turn, self._lock, self._skip = 0, threading.Lock(), 0
        self._waited, self._given = 0.0, 0
        """Seconds waited, and bytes that came, since the speed was measured last."""
        self._ranges = True
        """True if the server is believed to give parts of files."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            began = time.monotonic()
            data = _retry(lambda: self._read(min(len(buffer), self._request), self._turn), self._url, self._on_late)
            self._refuse_dripping(time.monotonic() - began, len(data))
            if not data:
                break
            passed_over = min(self._skip, len(data))
            self._skip, data = self._skip - passed_over, data[passed_over:]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _on_late(self) -> None:
        """Ask anew, for less: the thread that waits for the file at hand has been left to itself."""
        with self._lock:
            self._turn, self._file, self._request = self._turn + 1, None, SLOW_REQUEST_BYTES

    def _refuse_dripping(self, seconds: float, size: int) -> None:
        """Raise StorageError where less came than one small request in the time that two may take."""
        self._waited += seconds
        self._given += size
        if self._given >= SLOW_REQUEST_BYTES or not size:
            self._waited, self._given = 0.0, 0
        elif self._waited > 2 * PATIENCE:
            reason = f"{self._given:,} bytes in {self._waited:.0f} seconds"
            raise StorageError(f"cannot read {self._name}: {reason}", "download it first, from a faster place")

    def _read(self, size: int, turn: int) -> bytes:
        """The next bytes. `turn`: of the thread that asks; one that came too late changes nothing any more."""
        try:
            file, skip = (self._file, self._skip) if self._file is not None else self._open()
            with self._lock:
                if turn != self._turn:
                    raise TimeoutError
                self._file, self._skip = file, skip
            data: bytes = file.read(size)
            if not data and self._position < self._size:
                raise EOFError(f"it ends after {self._position:,} of {self._size:,} bytes")
            return data
        except Exception as error:
            if turn == self._turn:
                self._drop()
                if isinstance(error, ValueError) and self._ranges:
                    self._ranges = False  # a server that gives whole files only, and did not say so
                    raise EOFError(str(error)) from error
            raise

    def _open(self) -> tuple[Any, int]:
        """A new file object, and how many bytes of it have been read already."""
        system, path = _system(self._url)
        file = system.open(path, "rb", block_size=self._request if self._ranges else 0)
        if self._ranges and self._position:
            file.seek(self._position)
        return file, 0 if self._ranges else self._position

    def _drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(Exception):  # it is broken already
                self._file.close()
            self._file = None

    def close(self) -> None:
        self._drop()
        super().close()
