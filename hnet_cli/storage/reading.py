"""Reading back what may come from anybody: regular files only, no more bytes than the file's kind can have.

Everything that is read from a folder goes through here or through `streams`. A pipe, a device or a file of the kernel
in the place of a file never hangs or floods the reader, whatever the folder's owner put there.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, cast

from hnet_cli.errors import DamagedError, HNetError, InputError, StorageError
from hnet_cli.storage.streams import open_raw, shown

SMALL = 16 << 20
"""Bytes of the largest description (JSON, YAML, manifest) that is read."""
RECORDS = 4 << 30
"""Bytes of the largest file of records, which is read line by line: those of three million."""
LARGE = 256 << 20
"""Bytes of a description that grows with the data: the sources of a dataset of a million files."""
MOST_PARTS = 1 << 22
"""Lists and mappings in a JSON file."""
TOKENIZER = 64 << 20
"""Bytes of the largest tokenizer.json; the largest that is published has 33 MB."""


def open_file(path: str | os.PathLike[str], limit: int | None = None) -> io.BufferedReader:
    """The bytes of a regular file. Raises FileNotFoundError where there is nothing, StorageError where the
    disk fails or permission is denied, DamagedError for what is no regular file or has more than `limit` bytes."""
    path = Path(path)
    try:
        file = open_raw(path)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise FileNotFoundError(cause.errno, cause.strerror, str(path)) from error
        kind = StorageError if isinstance(cause, PermissionError) else DamagedError
        raise kind(str(error), error.hint) from error
    if limit is not None and (size := os.fstat(file.fileno()).st_size) > limit:
        file.close()
        raise _too_large(path, size, limit)
    return io.BufferedReader(cast(io.RawIOBase, file))


def read_bytes(path: str | os.PathLike[str], limit: int = SMALL) -> bytes:
    """The content of a file of at most `limit` bytes. Raises as `open_file`."""
    parts, left = [], limit + 1  # a file may grow, or say that it has no bytes, as those of the kernel do
    with open_file(path, limit) as file:
        try:
            while left and (part := file.read(min(left, 1 << 24))):
                parts.append(part)
                left -= len(part)
        except InputError as error:
            raise DamagedError(str(error), error.hint) from error
    if not left:
        raise _too_large(Path(path), limit + 1, limit)
    return b"".join(parts)


def read_text(path: str | os.PathLike[str], limit: int = SMALL, errors: str = "strict") -> str:
    """The same as UTF-8 text. Raises DamagedError too for what is not UTF-8, unless `errors` says otherwise."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise DamagedError(f"{shown(path)} is damaged: byte {error.start} is not UTF-8") from error


def read_json(path: str | os.PathLike[str], limit: int = SMALL) -> dict[str, Any]:
    """The JSON object in a file. Raises as `read_bytes` and `json_object`."""
    return json_object(read_bytes(path, limit), path)


def json_object(text: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object. Raises DamagedError, naming `path`, for anything else, such as numbers of thousands of digits, and
    for more parts than memory should hold: an empty list takes two bytes in a file and 64 in memory."""
    if text.count(b"[") + text.count(b"{") > MOST_PARTS or text.count(b":") > 2 * MOST_PARTS:
        raise DamagedError(f"{shown(path)} is damaged: it has more than {MOST_PARTS:,} lists and mappings")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{shown(path)} is damaged: {reason(error)}") from error
    if not isinstance(data, dict):
        raise DamagedError(f"{shown(path)} is damaged: it does not hold a JSON object")
    return data


def is_file(path: str | os.PathLike[str]) -> bool:
    """True if a regular file of any content can be opened there."""
    try:
        open_file(path).close()
    except (HNetError, OSError):
        return False
    return True


def reason(error: BaseException) -> str:
    """The words of an exception, cut to a line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."


def _too_large(path: Path, size: int, limit: int) -> DamagedError:
    return DamagedError(f"{shown(path)} is larger than such a file can be: {size:,} bytes, at most {limit:,} are read")
