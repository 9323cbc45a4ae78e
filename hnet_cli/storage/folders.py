"""Folders that appear whole under their name or not at all, with a manifest that reveals damage."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import socket
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
from hnet_cli.storage.held import HeldFile
from hnet_cli.storage.lock import FolderLock
from hnet_cli.storage.reading import json_object
from hnet_cli.storage.streams import shown

MANIFEST = "manifest.json"
MARK = ".hnet"
"""An empty file in an unfinished folder, which says that hnet made it and may delete it; in a whole one the manifest
does."""
MANIFEST_FORMAT = 1
_KEYS = {"format", "kind", "version", "files"}
"""Keys of a manifest; `version` stands in those of early checkpoints."""
_KINDS = {None, "checkpoint", "dataset", "dataset part", "model", "teacher"}
LONG_PATH = 2000
"""Length from which on a path comes near what the system takes, 4,096 bytes."""
BYPRODUCTS = {".baselines.json", ".made.json", ".verified.json", ".DS_Store"}
"""Files beside those of a manifest that nobody misses."""
MANIFEST_LIMIT = 16 << 20
"""Bytes of the largest manifest that is read; a dataset of 100 TB has one of this size."""


@contextlib.contextmanager
def staged_folder(target: Path, *, overwrite: bool = False, manifest: dict[str, Any] | None = None) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target`, whole, when the block ends without an exception.

    `manifest`: further keys for `manifest.json`, read when the block ends. Entries it has under `"files"`, digests
    computed while writing, are not computed again. `overwrite`: replace a folder of the same `"kind"` in which there is
    nothing else; where `target` is a link, the folder it leads to. Raises BusyError where `target` exists and is not to
    be overwritten, or cannot be created; StorageError where the disk is full or fails.
    """
    target, kind = _followed(target), (manifest or {}).get("kind")
    _refuse_existing(target, overwrite, kind)
    with os_errors(target):
        make_folder(target.parent)
        _sweep(target)
    temporary, lock = _temporary(target), None
    try:
        with os_errors(target):
            while (lock := _made_and_locked(temporary)) is None:  # a sweeper was faster than the lock
                temporary = _temporary(target)
            _mark(temporary)
            yield temporary
            _seal(temporary, manifest or {})
            temporary = _publish(temporary, target, overwrite, kind)
    finally:
        # This is the unfinished folder after an exception, the old one after an overwrite; else it is gone already.
        try:
            discard(temporary)
        finally:
            if lock is not None:
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
    target, kind = _followed(target), (manifest or {}).get("kind")
    work = sibling(target, "partial")
    done = work / "done"
    with os_errors(target):
        make_folder(target.parent)
        _sweep(target)
        if work.exists() and not (work / MARK).exists() and os.listdir(work) not in ([], [".lock"]):
            raise BusyError(f"{shown(work)} is in the way: it was not made by hnet", "move it, or choose another name")
    keep = False
    with FolderLock(work):
        try:
            keep = done.exists()  # without it, it was left after the rename
            _refuse_existing(target, overwrite, kind)
            with os_errors(target):
                _mark(work)
                make_folder(done)
                keep = False
                yield work
                _seal(done, manifest or {})
                _publish(done, target, overwrite, kind)
        except BaseException:
            if not (keep or worth_keeping()):
                discard(work)
            raise
        discard(work)


def _followed(path: Path) -> Path:
    """The place that a link which the user made leads to; any other path as it is."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def _mark(folder: Path) -> None:
    os.close(os.open(folder / MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))


def _is_ours(folder: Path) -> bool:
    """True if what is in a folder says that hnet wrote it; an empty one may go whoever made it."""
    with contextlib.suppress(DamagedError):
        return (folder / MARK).is_file() or bool(read_manifest(folder))
    return not any(folder.iterdir())


def _publish(folder: Path, target: Path, overwrite: bool, kind: str | None) -> Path:
    """Rename a sealed folder to `target`. Returns the path to delete: the replaced folder, or nothing."""
    if _refuse_existing(target, overwrite, kind):
        _exchange(folder, target)
        # The replaced folder now has the temporary name; it is deleted under a name that says so.
        old = folder.with_name(sibling(target, f"hnet-del-{secrets.token_hex(4)}").name)
        os.rename(folder, old)
        folder = old
    else:
        os.rename(folder, target)
    fsync_folder(target.parent)
    return folder


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is never seen in part: renamed to `.NAME.hnet-del-*` first."""
    path = Path(path)
    doomed = sibling(path, f"hnet-del-{secrets.token_hex(4)}")
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


def read_manifest(path: Path, folder: int | None = None) -> dict[str, Any]:
    """`manifest.json` of a folder, checked to be what was written, byte for byte. Raises DamagedError.

    `folder`: descriptor of the folder, if it is open.
    """
    file = Path(path) / MANIFEST
    try:
        held = HeldFile(file, folder)
    except DamagedError as error:
        raise DamagedError(f"{error}: the folder is incomplete or not one of ours") from error
    try:
        if held.size > MANIFEST_LIMIT:
            raise ValueError
        text = held.read(0, held.size)
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{shown(file)} is damaged: not a manifest") from error
    finally:
        held.close()
    if not (sound and written):
        raise DamagedError(f"{shown(file)} is damaged: {'not as it was written' if sound else 'an entry is malformed'}")
    return manifest


def verify_file(folder: Path, name: str, entry: dict[str, Any], *, digest: bool = True) -> None:
    """Check the size of one file against its manifest entry and, if `digest`, its SHA-256. Raises DamagedError."""
    file = HeldFile(Path(folder) / name)
    file.verify(entry, digest=digest)
    file.close()


def _refuse_existing(target: Path, overwrite: bool, kind: str | None) -> bool:
    """True if there is a folder to replace. Raises BusyError unless that is wanted, and hnet wrote it all as `kind`."""
    if not os.path.lexists(target):
        return False
    if not overwrite:
        raise BusyError(f"{shown(target)} exists already", "choose another name, or give --overwrite to replace it")
    if target.is_dir() and not any(target.iterdir()):
        return True
    try:
        manifest = read_manifest(target)
    except DamagedError:
        manifest = {"kind": "unknown"}
    if manifest.get("kind") != kind:
        what = f" as a {kind}" if kind else ""
        raise BusyError(
            f"{shown(target)} exists and was not written by hnet{what}: it is not overwritten",
            "choose another name, or remove it yourself",
        )
    known = {Path(name).parts[0] for name in manifest["files"]} | {MANIFEST, *BYPRODUCTS}
    if others := sorted(set(os.listdir(target)) - known):
        raise BusyError(
            f"{shown(target)} holds {shown(others[0])}, which hnet did not write: it is not overwritten",
            "move that to another place, or choose another name",
        )
    return True


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _inside(name: str) -> bool:
    """True if a file name of a manifest stays in its folder."""
    return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts and "\0" not in name


def _seal(folder: Path, extra: dict[str, Any]) -> None:
    """Write the manifest of a folder and fsync all that is in it, deepest first."""
    known = extra.get("files", {})
    files: dict[str, Any] = {}
    for parent, folders, names in os.walk(folder, topdown=False):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            fsync(file)
            relative = file.relative_to(folder).as_posix()
            files[relative] = known.get(relative) or {"size": file.stat().st_size, "sha256": file_sha256(file)}
        if Path(parent) != folder:
            fsync_folder(Path(parent))
    for name in (MANIFEST, MARK):
        files.pop(name, None)
    write_json(folder / MANIFEST, {"format": MANIFEST_FORMAT, **extra, "files": dict(sorted(files.items()))})
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / MARK)
    fsync_folder(folder)


def _temporary(target: Path) -> Path:
    return sibling(target, f"hnet-tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _made_and_locked(folder: Path) -> int | None:
    """Make a folder and return the descriptor that holds its lock: its writer is alive. None where it is gone again."""
    os.mkdir(folder)
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # some network file systems cannot lock folders; there nobody sweeps either
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if folder.exists():
        return lock
    os.close(lock)
    return None


def _sweep(target: Path) -> None:
    """Delete what dead writers beside `target` left (kill, power cut), as far as its content says that it is hnet's.

    Raises BusyError if a live one writes `target`.
    """
    for entry in list(os.scandir(target.parent)):
        match = re.fullmatch(r"\.(.+)\.hnet-(tmp|del|old)-(\d+-)?[0-9a-f]{8}", entry.name)
        if not (match and entry.is_dir(follow_symlinks=False)):
            continue
        name, kind, process = match.groups()
        with contextlib.suppress(OSError, StorageError):
            lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_ours(Path(entry.path)):
                    continue
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
    aside = sibling(target, f"hnet-old-{secrets.token_hex(4)}")
    os.rename(target, aside)
    os.rename(new, target)
    os.rename(aside, new)


def rename_folder(old: Path, new: Path) -> None:
    """Give a folder its name, once it is complete."""
    with os_errors(new):
        os.rename(old, new)


def discard(folder: Path) -> None:
    """Delete a folder, if it is there, as far as possible: the next writer sweeps the rest, so its mark goes last.

    A link is removed, not followed. However deep the folder is, paths and the stack stay short.
    """
    top, marks, pending, emptied = os.fspath(folder), list[str](), [os.fspath(folder)], list[str]()
    if os.path.islink(folder):
        with contextlib.suppress(OSError):
            os.unlink(folder)
        return
    while pending:
        emptied.append(current := pending.pop())
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(current)):
                path = entry.path
                if entry.is_dir(follow_symlinks=False):
                    if len(path) > LONG_PATH:
                        path = os.path.join(top, secrets.token_hex(8))
                        os.rename(entry.path, path)
                    pending.append(path)
                elif current == top and entry.name in (MARK, MANIFEST):
                    marks.append(path)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
    for path in reversed(emptied[1:]):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    with contextlib.suppress(OSError):
        if len(os.listdir(top)) == len(marks):
            for path in marks:
                os.unlink(path)
            os.rmdir(top)
