"""Single files: create, replace, append; and the translation of system errors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnet_cli.errors import BusyError, HNetError, StorageError
from hnet_cli.storage.reading import open_file
from hnet_cli.storage.streams import READ_BYTES, shown

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_CREATABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
_NOT_CREATABLE |= {errno.ENAMETOOLONG}


@contextlib.contextmanager
def os_errors(path: str | os.PathLike[str], needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of creating or writing `path` into a BusyError (not creatable) or StorageError (full, I/O).

    `needed`: bytes about to be written, for the message about a full disk. Errors of libraries in other languages that
    say "(os error 28)" (safetensors) are recognised too.
    """
    try:
        yield
    except HNetError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code is None and (number := re.search(r"os error (\d+)", str(error))):
            code = int(number[1])
        if code is None or code == errno.ENOMEM:  # of a process that could not be started
            raise
        raise _translated(code, Path(path), needed) from error


def _translated(code: int, path: Path, needed: int | None) -> BusyError | StorageError:
    reason, name = os.strerror(code), shown(path)
    need = f"{name} needs {needed:,} bytes," if needed is not None else name
    if code == errno.EFBIG:
        hint = "raise it, then run the command again"
        return StorageError(f"file size limit reached: {need} `ulimit -f` allows less", hint)
    if code in _FULL:
        hint = "free some space, then run the command again"
        return StorageError(f"disk full: {need} {free_bytes(path):,} bytes free", hint)
    if code in _NOT_CREATABLE:
        return BusyError(f"cannot create {name}: {reason}", "choose another place, or make this one writable")
    return StorageError(f"cannot write {name}: {reason}")


def sibling(path: Path, ending: str) -> Path:
    """`.NAME.ENDING` beside `path`. BusyError for `.` and `/`, which have no name and are there already."""
    if not path.name:
        raise BusyError(f"cannot create {shown(path)}: it is a folder already", "choose another name")
    return path.with_name(f".{path.name}.{ending}")


def free_bytes(path: Path) -> int:
    """Bytes that may still be written on the disk that holds `path` or its nearest existing parent; 0 if unknown."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


class NewFile(io.BufferedIOBase):
    """A file being created, unbuffered and hashed on the way. Raises FileExistsError where there is one.

    `through`: write into what is there, a device or pipe, instead.
    """

    def __init__(self, path: Path, through: bool = False) -> None:
        super().__init__()
        self.name, self._digest, self.size = str(path), hashlib.sha256(), 0
        flags = os.O_APPEND if through else os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(path, os.O_WRONLY | flags | os.O_CLOEXEC, 0o666)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Write all bytes of a buffer; returns their number."""
        view = memoryview(data)
        if view.nbytes:
            _write(self._descriptor, view.cast("B"))
            self._digest.update(view)
            self.size += view.nbytes
        return view.nbytes

    def sync(self) -> None:
        """Make what was written survive a power cut; its name needs `fsync_folder`."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)

    @property
    def entry(self) -> dict[str, Any]:
        """The manifest's entry for the file."""
        return {"size": self.size, "sha256": self._digest.hexdigest()}


class GrowingFile:
    """A file that is hashed while it grows, and may be cut back. `close` removes all beyond `size`."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._digest = path, 0, hashlib.sha256()
        self._descriptor = _open_own(path, os.O_RDWR | os.O_CREAT)

    def write(self, data: Any) -> None:
        """Append a buffer."""
        view, at = memoryview(data), self.size
        if not view.nbytes:  # an empty array of several dimensions cannot be cast
            return
        view = view.cast("B")
        while view:
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written
        self.adopt(data)

    def adopt(self, data: Any) -> None:
        """Append bytes that are on disk already."""
        self._digest.update(data)
        self.size += memoryview(data).nbytes

    def read(self, start: int, count: int) -> bytes:
        """Bytes on disk, fewer at the end of the file."""
        return os.pread(self._descriptor, count, start)

    def mark(self) -> tuple[int, Any]:
        """A point to `rollback` to."""
        return self.size, self._digest.copy()

    def rollback(self, mark: tuple[int, Any]) -> None:
        self.size, self._digest = mark[0], mark[1].copy()

    def close(self) -> dict[str, Any]:
        """Close, and return the manifest's entry for the file."""
        os.ftruncate(self._descriptor, self.size)
        os.close(self._descriptor)
        return {"size": self.size, "sha256": self._digest.hexdigest()}


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _open_own(path: Path, flags: int) -> int:
    """Open a file to change it in place. Links are not followed: a folder may come from anybody.

    A file with further names (`cp -al`) is first replaced by a copy, so that what has the other names stays as it is.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    status = os.fstat(descriptor)
    if status.st_nlink < 2 or not stat.S_ISREG(status.st_mode):
        return descriptor
    os.close(descriptor)
    with open(path, "rb") as shared, staged_file(path) as copy:
        shutil.copyfileobj(shared, copy, 1 << 20)
    return _open_own(path, flags)


@contextlib.contextmanager
def staged_file(target: Path, needed: int | None = None) -> Iterator[NewFile]:
    """A new file, open for writing, that replaces `target` when the block ends without an exception.

    After a crash `target` holds the old content or the new, never a part. `needed`: bytes, see `os_errors`.
    """
    target = Path(target)
    temporary = sibling(target, f"hnet-tmp-{secrets.token_hex(4)}")
    with os_errors(target, needed):
        try:
            with NewFile(temporary) as file:
                yield file
                file.sync()
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        fsync_folder(target.parent)


def sweep_files(folder: Path) -> None:
    """Remove what `staged_file` left in `folder` when its process died. The caller must hold the folder's lock."""
    for path in folder.glob(".*.hnet-tmp-*"):
        if re.fullmatch(r"\..+\.hnet-tmp-[0-9a-f]{8}", path.name) and path.is_file():
            with contextlib.suppress(OSError):
                os.unlink(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash it holds the old content or the new, never a part."""
    with staged_file(path, len(data)) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; halves of surrogate pairs, as file names have them, become escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, obj: Any) -> None:
    """`write_bytes` of indented JSON ending in a newline. ValueError for NaN and infinity, which JSON lacks."""
    write_bytes(path, json_bytes(obj))


def json_bytes(obj: Any) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def append_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Append UTF-8 text, all or none: on a full disk the part that was written is cut off again.

    `sync`: make it survive a power cut.
    """
    data = text.encode("utf-8", "backslashreplace")
    with os_errors(path, len(data)):
        descriptor = _open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            end = os.fstat(descriptor).st_size
            try:
                _write(descriptor, memoryview(data))
            except BaseException:
                os.ftruncate(descriptor, end)
                raise
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cut_file(path: Path, size: int) -> None:
    """Cut a file, if there is one, back to `size` bytes."""
    with os_errors(path), contextlib.suppress(FileNotFoundError):
        descriptor = _open_own(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


def remove_file(path: Path) -> None:
    """Delete a file."""
    with os_errors(path):
        os.unlink(path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents so that they survive a power cut; one that is there already is fine."""
    path = Path(path)
    with os_errors(path):
        try:
            os.mkdir(path)
        except FileExistsError:
            if not path.is_dir():
                raise
            return
        except FileNotFoundError:
            make_folder(path.parent)
            os.mkdir(path)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def fsync(path: Path, flags: int = os.O_RDONLY) -> None:
    """Make the content of a file or folder survive a power cut."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a regular file. Raises as `open_file`."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
