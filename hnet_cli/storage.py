"""Durable files: all that `prepare`, `train` and `convert` create, write, rename or delete goes through here.

A folder is written under a temporary name, every file fsynced, then renamed once; its `manifest.json` (size and SHA-256
of each file) tells damage later. So rename survives kills and full disks, fsync power cuts, the manifest bit rot.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from hnet_cli.errors import BusyError, DamagedError, HNetError, StorageError
from hnet_cli.streams import decompressed, open_input, shown

__all__ = [
    "FolderLock",
    "decompressed",
    "file_sha256",
    "free_bytes",
    "fsync_folder",
    "open_input",
    "os_errors",
    "read_manifest",
    "remove_folder",
    "shown",
    "staged_folder",
    "verify_file",
    "verify_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

MANIFEST = "manifest.json"
FORMAT = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_CREATABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


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
        if code is None and (told := re.search(r"os error (\d+)", str(error))):
            code = int(told[1])
        if code is None:
            raise
        raise _translated(code, Path(path), needed) from error


def _translated(code: int, path: Path, needed: int | None) -> BusyError | StorageError:
    why, name = os.strerror(code), shown(path)
    wants = f" needs {needed:,} bytes," if needed is not None else ""
    if code == errno.EFBIG:
        return StorageError(
            f"file size limit reached: {name}{wants} `ulimit -f` allows less", "raise it, then run the command again"
        )
    if code in _FULL:
        return StorageError(
            f"disk full: {name}{wants} {free_bytes(path):,} bytes free", "free some space, then run the command again"
        )
    if code in _NOT_CREATABLE:
        return BusyError(f"cannot create {name}: {why}", "choose another place, or make this one writable")
    return StorageError(f"cannot write {name}: {why}")


def free_bytes(path: Path) -> int:
    """Bytes that may still be written on the disk that holds `path` or its nearest existing parent; 0 if unknown."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


# --- single files -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def staged_file(target: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A new file, open for writing, that replaces `target` when the block ends without an exception.

    After a crash `target` holds the old content or the new, never a part. `needed`: bytes, see `os_errors`.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    with os_errors(target, needed):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        fsync_folder(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash it holds the old content or the new, never a part."""
    with staged_file(path, len(data)) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: Any) -> None:
    """`write_bytes` of indented JSON ending in a newline. ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int = os.O_RDONLY) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- folders ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def staged_folder(target: Path, *, overwrite: bool = False, manifest: dict[str, Any] | None = None) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target`, whole, when the block ends without an exception.

    `manifest` holds further keys for `manifest.json`, read when the block ends. Entries it already has under `"files"`
    are taken as they are: digests computed while writing. Raises BusyError where `target` exists and is not to be
    overwritten, or cannot be created; StorageError where the disk is full or fails.
    """
    target = Path(target)
    _refuse_existing(target, overwrite)
    with os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary, lock = _locked_folder(target)
    try:
        with os_errors(target):
            yield temporary
            _seal(temporary, manifest or {})
            if _refuse_existing(target, overwrite):
                _exchange(temporary, target)
                # What was replaced now bears the temporary name; it is deleted under a name that says so.
                old = temporary.with_name(temporary.name.replace(".tmp-", ".del-"))
                os.rename(temporary, old)
                temporary = old
            else:
                os.rename(temporary, target)
            fsync_folder(target.parent)
    finally:
        # After an exception this is the unfinished folder, after an overwrite the old one; else it is gone already.
        _delete(temporary)
        os.close(lock)


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is never seen in part: renamed to `.NAME.del-*` first."""
    path = Path(path)
    doomed = path.with_name(f".{path.name}.del-{secrets.token_hex(4)}")
    with os_errors(path):
        os.rename(path, doomed)
        fsync_folder(path.parent)
        _delete(doomed)


def verify_folder(path: Path) -> dict[str, Any]:
    """The manifest of a folder after checking size and SHA-256 of every file it lists; further files are fine.

    Raises DamagedError that names the file and says what is wrong with it.
    """
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        verify_file(Path(path), name, entry)
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json` of a folder, its own form checked. Raises DamagedError."""
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
        entries = manifest["files"].items()
        if manifest["format"] != FORMAT:
            raise DamagedError(f"{shown(file)} has format {manifest['format']!r}; this version of hnet reads {FORMAT}")
        sound = all(isinstance(e["size"], int) and isinstance(e["sha256"], str) and _inside(n) for n, e in entries)
    except FileNotFoundError as error:
        raise DamagedError(f"{shown(file)} is missing: the folder is incomplete or not one of ours") from error
    except OSError as error:
        raise StorageError(f"cannot read {shown(file)}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{shown(file)} is damaged: not a manifest") from error
    if not sound:
        raise DamagedError(f"{shown(file)} is damaged: an entry is malformed")
    return manifest


def verify_file(folder: Path, name: str, entry: dict[str, Any], *, digest: bool = True) -> None:
    """Check one file against its manifest entry: the size, and unless `digest` is False the SHA-256."""
    file = Path(folder) / name
    try:
        size = file.stat().st_size
        if size != entry["size"]:
            raise DamagedError(f"{shown(file)} is damaged: {size:,} bytes, {entry['size']:,} were written")
        if digest and file_sha256(file) != entry["sha256"]:
            raise DamagedError(f"{shown(file)} is damaged: its SHA-256 is not the one that was written")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedError(f"{shown(file)} is missing") from error
    except OSError as error:
        raise StorageError(f"cannot read {shown(file)}: {error.strerror}") from error


def _refuse_existing(target: Path, overwrite: bool) -> bool:
    """Whether there is a folder to replace. BusyError unless that was asked for and the folder is one of ours."""
    if not os.path.lexists(target):
        return False
    if not overwrite:
        raise BusyError(f"{shown(target)} exists already", "choose another name, or give --overwrite to replace it")
    if not target.is_dir() or (not (target / MANIFEST).exists() and any(target.iterdir())):
        raise BusyError(f"{shown(target)} exists and was not written by hnet: it is not overwritten", "choose another")
    return True


def _inside(name: str) -> bool:
    """Whether a file name of a manifest stays in its folder."""
    return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts


def _seal(folder: Path, extra: dict[str, Any]) -> None:
    """Write the manifest of a folder and fsync all that is in it, deepest first."""
    known = extra.get("files", {})
    files = {}
    for parent, folders, names in os.walk(folder, topdown=False):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            _fsync(file)
            relative = file.relative_to(folder).as_posix()
            files[relative] = known.get(relative) or {"size": file.stat().st_size, "sha256": file_sha256(file)}
        if Path(parent) != folder:
            fsync_folder(Path(parent))
    files.pop(MANIFEST, None)
    write_json(folder / MANIFEST, {"format": FORMAT, **extra, "files": dict(sorted(files.items()))})
    fsync_folder(folder)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A fresh temporary folder beside `target` and a lock on it, which tells others that its writer lives."""
    while True:
        folder = target.with_name(f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        os.mkdir(folder)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        # Some network file systems cannot lock folders; there nobody sweeps either.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():  # a sweeper may have been faster than the lock
            return folder, lock
        os.close(lock)


def _sweep(target: Path) -> None:
    """Delete what dead writers beside `target` left (kill, power cut). BusyError if a live one writes `target`."""
    for entry in list(os.scandir(target.parent)):
        left = re.fullmatch(r"\.(.+)\.(tmp|del|old)-(\d+-)?[0-9a-f]{8}", entry.name)
        if not (left and entry.is_dir(follow_symlinks=False)):
            continue
        with contextlib.suppress(OSError):
            lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left[2] == "old" and not os.path.lexists(target.parent / left[1]):
                    os.rename(entry.path, target.parent / left[1])  # died between the renames of an exchange
                else:
                    _delete(Path(entry.path))
            except BlockingIOError:
                if left[1] == target.name and left[2] == "tmp" and left[3]:
                    raise BusyError(
                        f"{shown(target)} is being written by process {left[3][:-1]} on {socket.gethostname()}",
                        "wait for it, or stop it first",
                    ) from None
            finally:
                os.close(lock)


def _exchange(new: Path, target: Path) -> None:
    """Swap two folders: atomically where the system can, else by renames with an instant between them."""
    with contextlib.suppress(OSError, AttributeError):
        at_fdcwd, rename_exchange = -100, 2  # Linux, renameat2(2)
        if ctypes.CDLL(None).renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(target), rename_exchange) == 0:
            return
    aside = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
    os.rename(target, aside)
    os.rename(new, target)
    os.rename(aside, new)


def _delete(folder: Path) -> None:
    """Delete best-effort: what remains is swept by the next writer."""
    shutil.rmtree(folder, ignore_errors=True)


# --- locks ------------------------------------------------------------------------------------------------------------


class FolderLock:
    """`with FolderLock(folder):` holds the folder for one process; the system frees it however that process ends.

    Raises BusyError naming host and process id of the holder, or where the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor = -1

    def __enter__(self) -> FolderLock:
        file = self.path / ".lock"
        with os_errors(file):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with os_errors(file):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
        except BaseException as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").split()
            os.close(descriptor)
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            host, pid = holder if len(holder) == 2 else ("unknown", "unknown")
            raise BusyError(
                f"{shown(self.path)} is in use by process {pid} on host {host}", "wait for it, or stop it first"
            ) from None
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
