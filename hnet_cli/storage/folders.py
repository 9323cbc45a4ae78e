"""Folders that appear whole under their name or not at all, with a manifest that reveals damage."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from hnet_cli.errors import BusyError, DamagedError, StorageError
from hnet_cli.storage.files import (
    file_sha256,
    fsync,
    fsync_folder,
    json_bytes,
    make_folder,
    os_errors,
    sibling,
    write_json,
)
from hnet_cli.storage.lock import FolderLock
from hnet_cli.storage.reading import json_object, read_bytes
from hnet_cli.storage.streams import shown

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
_KEYS = {"format", "kind", "version", "files"}
"""Keys of a manifest; `version` stands in those of early checkpoints."""
_KINDS = {None, "checkpoint", "dataset", "dataset part", "model", "teacher"}
MANIFEST_LIMIT = 16 << 20
"""Bytes of the largest manifest that is read; a dataset of 100 TB has one of this size."""


@contextlib.contextmanager
def staged_folder(target: Path, *, overwrite: bool = False, manifest: dict[str, Any] | None = None) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target`, whole, when the block ends without an exception.

    `manifest`: further keys for `manifest.json`, read when the block ends. Entries it has under `"files"`, digests
    computed while writing, are not computed again. Raises BusyError where `target` exists and is not to be
    overwritten, or cannot be created; StorageError where the disk is full or fails.
    """
    target = Path(target)
    _refuse_existing(target, overwrite)
    with os_errors(target):
        make_folder(target.parent)
        _sweep(target)
        temporary, lock = _locked_folder(target)
    try:
        with os_errors(target):
            yield temporary
            _seal(temporary, manifest or {})
            temporary = _publish(temporary, target, overwrite)
    finally:
        # This is the unfinished folder after an exception, the old one after an overwrite; else it is gone already.
        try:
            discard(temporary)
        finally:
            os.close(lock)


@contextlib.contextmanager
def resumable_folder(
    target: Path,
    *,
    overwrite: bool = False,
    manifest: dict[str, Any] | None = None,
    worth_keeping: Callable[[], bool] = lambda: True,
) -> Iterator[Path]:
    """A work folder `.NAME.partial` beside `target`, whose subfolder `done` becomes `target` when the block ends.

    It outlives a kill, and an exception if `worth_keeping()` says so; the next call finds it as it was left. One
    process at a time holds it. Otherwise like `staged_folder`.
    """
    target = Path(target)
    work = sibling(target, "partial")
    done = work / "done"
    with os_errors(target):
        make_folder(target.parent)
        _sweep(target)
    with FolderLock(work):
        keep = done.exists()  # without it, it was left after the rename
        try:
            _refuse_existing(target, overwrite)
            with os_errors(target):
                make_folder(done)
                keep = False
                yield work
                _seal(done, manifest or {})
                _publish(done, target, overwrite)
        except BaseException:
            if not (keep or worth_keeping()):
                discard(work)
            raise
        discard(work)


def _publish(folder: Path, target: Path, overwrite: bool) -> Path:
    """Rename a sealed folder to `target`. Returns the path to delete: the replaced folder, or nothing."""
    if _refuse_existing(target, overwrite):
        _exchange(folder, target)
        # The replaced folder now has the temporary name; it is deleted under a name that says so.
        old = folder.with_name(sibling(target, f"del-{secrets.token_hex(4)}").name)
        os.rename(folder, old)
        folder = old
    else:
        os.rename(folder, target)
    fsync_folder(target.parent)
    return folder


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is never seen in part: renamed to `.NAME.del-*` first."""
    path = Path(path)
    doomed = sibling(path, f"del-{secrets.token_hex(4)}")
    with os_errors(path):
        os.rename(path, doomed)
        fsync_folder(path.parent)
        discard(doomed)


def verify_folder(path: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest of a folder after checking size and SHA-256 of the files it lists, or `only` some of them.

    Raises DamagedError that names the file and says what is wrong with it.
    """
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        if only is None or name in only:
            verify_file(Path(path), name, entry)
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json` of a folder, checked to be what was written, byte for byte. Raises DamagedError."""
    file = Path(path) / MANIFEST
    try:
        text = read_bytes(file, MANIFEST_LIMIT)
        manifest = json_object(text, file)
        entries = manifest["files"].items()
        if (version := manifest["format"]) != MANIFEST_FORMAT:
            raise DamagedError(
                f"{shown(file)} has format {version!r:.40}; this version of hnet reads {MANIFEST_FORMAT}", "update hnet"
            )
        sound = all(_is_size(e["size"]) and isinstance(e["sha256"], str) and _inside(n) for n, e in entries)
        # There is no digest of the manifest, but nothing in it, spaces included, may be other than it must.
        known = not manifest.keys() - _KEYS and manifest.get("kind") in _KINDS and manifest.get("version", 1) == 1
        written = known and text == json_bytes(manifest)
    except FileNotFoundError as error:
        raise DamagedError(f"{shown(file)} is missing: the folder is incomplete or not one of ours") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{shown(file)} is damaged: not a manifest") from error
    if not (sound and written):
        raise DamagedError(f"{shown(file)} is damaged: {'not as it was written' if sound else 'an entry is malformed'}")
    return manifest


def verify_file(folder: Path, name: str, entry: dict[str, Any], *, digest: bool = True) -> None:
    """Check the size of one file against its manifest entry and, if `digest`, its SHA-256. Raises DamagedError."""
    file = Path(folder) / name
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(f"{shown(file)} is not a file")
        if status.st_size != entry["size"]:
            raise DamagedError(f"{shown(file)} is damaged: {status.st_size:,} bytes, {entry['size']:,} were written")
        if digest and file_sha256(file) != entry["sha256"]:
            raise DamagedError(f"{shown(file)} is damaged: its SHA-256 is not the one that was written")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedError(f"{shown(file)} is missing") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise DamagedError(f"{shown(file)} is not a file: {error.strerror}") from error
        raise StorageError(f"cannot read {shown(file)}: {error.strerror}") from error


def _refuse_existing(target: Path, overwrite: bool) -> bool:
    """True if there is a folder to replace. Raises BusyError unless that is wanted and the folder is one of ours."""
    if not os.path.lexists(target):
        return False
    if not overwrite:
        raise BusyError(f"{shown(target)} exists already", "choose another name, or give --overwrite to replace it")
    if not target.is_dir() or (not (target / MANIFEST).exists() and any(target.iterdir())):
        raise BusyError(f"{shown(target)} exists and was not written by hnet: it is not overwritten", "choose another")
    return True


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _inside(name: str) -> bool:
    """True if a file name of a manifest stays in its folder."""
    return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts and "\0" not in name


def _seal(folder: Path, extra: dict[str, Any]) -> None:
    """Write the manifest of a folder and fsync all that is in it, deepest first."""
    known = extra.get("files", {})
    files = {}
    for parent, folders, names in os.walk(folder, topdown=False):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            fsync(file)
            relative = file.relative_to(folder).as_posix()
            files[relative] = known.get(relative) or {"size": file.stat().st_size, "sha256": file_sha256(file)}
        if Path(parent) != folder:
            fsync_folder(Path(parent))
    files.pop(MANIFEST, None)
    write_json(folder / MANIFEST, {"format": MANIFEST_FORMAT, **extra, "files": dict(sorted(files.items()))})
    fsync_folder(folder)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A fresh temporary folder beside `target` and the descriptor that holds its lock: its writer is alive."""
    while True:
        folder = sibling(target, f"tmp-{os.getpid()}-{secrets.token_hex(4)}")
        os.mkdir(folder)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # some network file systems cannot lock folders; there nobody sweeps either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():  # a sweeper may have been faster than the lock
            return folder, lock
        os.close(lock)


def _sweep(target: Path) -> None:
    """Delete what dead writers beside `target` left (kill, power cut). Raises BusyError if a live one writes it."""
    for entry in list(os.scandir(target.parent)):
        match = re.fullmatch(r"\.(.+)\.(tmp|del|old)-(\d+-)?[0-9a-f]{8}", entry.name)
        if not (match and entry.is_dir(follow_symlinks=False)):
            continue
        name, kind, process = match.groups()
        with contextlib.suppress(OSError):
            lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if kind == "old" and not os.path.lexists(target.parent / name):
                    os.rename(entry.path, target.parent / name)  # died between the renames of an exchange
                else:
                    discard(Path(entry.path))
            except BlockingIOError:
                if name == target.name and kind == "tmp" and process:
                    writer = f"process {process[:-1]} on {socket.gethostname()}"
                    hint = "wait for it, or stop it first"
                    raise BusyError(f"{shown(target)} is being written by {writer}", hint) from None
            finally:
                os.close(lock)


def _exchange(new: Path, target: Path) -> None:
    """Swap two folders: atomically where the system can, else by renames with an instant between them."""
    with contextlib.suppress(OSError, AttributeError):
        at_fdcwd, rename_exchange = -100, 2  # Linux, renameat2(2)
        if ctypes.CDLL(None).renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(target), rename_exchange) == 0:
            return
    aside = sibling(target, f"old-{secrets.token_hex(4)}")
    os.rename(target, aside)
    os.rename(new, target)
    os.rename(aside, new)


def rename_folder(old: Path, new: Path) -> None:
    """Give a folder its name, once it is complete."""
    with os_errors(new):
        os.rename(old, new)


def discard(folder: Path) -> None:
    """Delete a folder, if it is there, as far as possible: the next writer sweeps the rest."""
    shutil.rmtree(folder, ignore_errors=True)
