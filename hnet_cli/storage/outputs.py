"""Files that a user names for output: what hnet did not write is not overwritten, and a device stays one."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from hnet_cli.errors import BusyError
from hnet_cli.storage.files import GrowingFile, NewFile, os_errors, sibling, staged_file
from hnet_cli.storage.streams import shown

PAGE_MARK = b'<meta name="generator" content="hnet">'
"""In the head of every page that hnet writes, which it may replace by a newer one."""
PAGE_HEAD = 4096
"""First bytes of a page, with the mark."""
ATTRIBUTE = "user.hnet.output"
"""Extended attribute of an output, whose content has no place for a mark."""


def mark_output(file: int | str) -> None:
    """Say beside the content of a regular file that hnet wrote it, where system and disk can.

    It stays when the file is renamed, and is lost in most copies.
    """
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):
            os.setxattr(file, ATTRIBUTE, b"1")


def mark_stdout() -> None:
    """The same for the file that standard output goes to (`hnet sample > file`), unless somebody wrote to it before."""
    with contextlib.suppress(OSError):
        status = os.fstat(1)
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            mark_output(1)


def is_page(head: bytes) -> bool:
    """True for a file that begins with `head` (`PAGE_HEAD` bytes) if it is a page that hnet wrote."""
    return PAGE_MARK in head and head.lstrip()[:9].lower() == b"<!doctype"


def is_output(path: str | os.PathLike[str]) -> bool:
    """True for a file that `mark_output` has marked."""
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return bool(os.getxattr(path, ATTRIBUTE))
    return False


def refuse_output(path: Path, overwrite: bool = False, inputs: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """The file to write for `path`, links followed. Raises BusyError where that would destroy something.

    It may be missing, empty, a page of hnet's, a pipe or a character device; with `overwrite` any file. `inputs`: files
    and folders that are read; in them not even a page is replaced.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    except OSError as error:
        with os_errors(path):
            raise error
    if _is_written_through(status):
        return path
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "device"
        raise BusyError(f"cannot create {shown(path)}: it is a {kind} already", "name a file")
    real = Path(os.path.realpath(path))
    if overwrite or not status.st_size:
        return real
    if read := next((name for name in inputs if _is_in(real, name)), None):
        where = "an input" if _is_in(Path(os.path.realpath(read)), real) else f"in the input {shown(read)}"
        raise BusyError(f"{shown(path)} is {where}", "choose another name, or give --overwrite to replace it")
    if not _holds_page(real):
        raise BusyError(f"{shown(path)} exists already", "choose another name, or give --overwrite to replace it")
    return real


def _is_written_through(status: os.stat_result) -> bool:
    """True for a pipe, a character device, and where standard output goes (`--out /dev/stdout > file`)."""
    with contextlib.suppress(OSError):
        if os.path.samestat(status, os.fstat(1)):
            return True
    return stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode)


def _is_in(path: Path, place: str | os.PathLike[str]) -> bool:
    """True if a path, of which links are followed, is `place` or below it."""
    real = Path(os.path.realpath(place))
    return real == path or real in path.parents or (os.path.exists(real) and os.path.samefile(real, path))


def _holds_page(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return is_page(file.read(PAGE_HEAD))
    return False


@contextlib.contextmanager
def output_file(
    path: Path, overwrite: bool = False, inputs: Iterable[str | os.PathLike[str]] = (), needed: int | None = None
) -> Iterator[NewFile]:
    """A file, open for writing, that stands under `path` when the block ends without an exception; else what was there.

    A pipe or device is written through. `needed`: bytes, see `os_errors`. Raises BusyError as `refuse_output`.
    """
    target = refuse_output(path, overwrite, inputs)
    if target.exists() and _is_written_through(target.stat()):
        with os_errors(path, needed), NewFile(target, through=True) as file:
            yield file
    else:
        with staged_file(target, needed) as file:
            mark_output(file.name)
            if target.exists():
                with os_errors(path):
                    os.chmod(file.name, stat.S_IMODE(target.stat().st_mode))
            yield file


@contextlib.contextmanager
def spool(beside: Path) -> Iterator[GrowingFile]:
    """A file that grows beside an output until the block ends, and is removed then: for what has to follow in the
    output and is too large for memory."""
    path = sibling(Path(os.path.realpath(beside)), f"hnet-tmp-{secrets.token_hex(4)}")
    with os_errors(beside):
        file = GrowingFile(path)
        try:
            os.unlink(path)
            yield file
        finally:
            file.close()


@contextlib.contextmanager
def member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """A member, of any size and without a date, of an archive that is being written."""
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
        yield file


def write_output(path: Path, text: str, overwrite: bool = False) -> None:
    """Write UTF-8 text as `output_file`."""
    data = text.encode("utf-8", "backslashreplace")
    with output_file(path, overwrite, needed=len(data)) as file:
        file.write(data)
