"""A disk that fails on demand: the calls of `os` that change files below a folder are counted, refused, logged.

The log can be replayed as the disks a power cut may leave: all that was fsynced, and of the rest any part, each write
and each new name by itself, in any order.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Fault = Callable[["Disk", str, Callable[[], object]], None]
"""Called before an operation with its name and what does the first half of it; may raise or end the process."""


def raising(at: int, code: int, *, for_good: bool = False) -> Fault:
    """Operation number `at` (from 0) fails; with `for_good` so does all that needs space from then on."""

    def fault(disk: Disk, name: str, half: Callable[[], object]) -> None:
        needs_space = name in ("create", "write", "mkdir")
        if disk.count == at or (for_good and disk.count > at and needs_space):
            half()
            raise OSError(code, os.strerror(code))

    return fault


class Killed(BaseException):
    """Stands for the death of the process: it changes nothing any more."""


def killing(at: int) -> Fault:
    """The process ends in operation number `at`: that is half done, and no other, however it tries to clean up."""

    def fault(disk: Disk, name: str, half: Callable[[], object]) -> None:
        if disk.count == at:
            half()
        if disk.count >= at:
            raise Killed

    return fault


@dataclass
class Disk:
    """The operations below `root` while `watched`."""

    root: Path
    fault: Fault = lambda disk, name, half: None
    exchanges: bool = True
    """True if the system can swap two names (renameat2)."""
    count: int = 0
    log: list[tuple[Any, ...]] = field(default_factory=list)
    _opened: dict[int, tuple[str, int]] = field(default_factory=dict)
    """File descriptors below root: path, inode number."""
    _again: dict[int, int] = field(default_factory=dict)
    _real_rename: Callable[[str, str], None] = os.rename

    def acknowledge(self, what: Any) -> None:
        """Log that the caller was informed."""
        self.log.append(("acknowledge", what))

    def _path(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path below root, from root; None for others."""
        if isinstance(path, int):
            return self._opened[path][0] if path in self._opened else None
        path = os.fsdecode(path)
        if dir_fd is not None:
            if dir_fd not in self._opened:
                return None
            path = os.path.join(self.root, self._opened[dir_fd][0], path)
        path, root = os.path.abspath(path), os.path.abspath(self.root)
        return os.path.relpath(path, root) if path == root or path.startswith(root + "/") else None

    def _before(self, name: str, half: Callable[[], object] = lambda: None) -> None:
        try:
            self.fault(self, name, half)
        finally:
            self.count += 1

    def _id(self, path: Any, dir_fd: int | None = None, *, new: bool = False) -> int:
        """Inode number of what is there; the system gives out numbers again, this does not."""
        inode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino
        if new:
            self._again[inode] = (1 << 64) + len(self._again) + self.count
        return self._again.get(inode, inode)

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """Intercept the operations of this process."""
        files = ("open", "close", "write", "pwrite", "ftruncate", "fsync")
        real = {name: getattr(os, name) for name in (*files, "rename", "replace", "mkdir", "rmdir", "unlink", "remove")}
        self._real_rename = real["rename"]
        library = ctypes.CDLL
        for name in real:
            setattr(os, name, getattr(self, f"_{name}")(real[name]))
        ctypes.CDLL = lambda *_: _Library(self)  # type: ignore[assignment,misc]
        try:
            yield self
        finally:
            ctypes.CDLL = library  # type: ignore[misc]
            for name, function in real.items():
                setattr(os, name, function)

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            below = self._path(path, dir_fd)
            new = below is not None and flags & os.O_CREAT and not os.path.lexists(self.root / below)
            if new:
                self._before("create")
            descriptor = real(path, flags, mode, dir_fd=dir_fd)
            if below is not None:
                inode = self._id(path, dir_fd, new=bool(new))
                self._opened[descriptor] = below, inode
                if new:
                    self.log += [("file", inode), ("name", *self._split(below), inode)]
            return descriptor

        return call

    def _close(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(descriptor: int) -> None:
            self._opened.pop(descriptor, None)
            real(descriptor)

        return call

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(descriptor: int, data: Any, *start: int) -> int:
            if descriptor not in self._opened:
                return real(descriptor, data, *start)
            self._before("write", lambda: real(descriptor, memoryview(data)[: len(data) // 2], *start))
            inode, at = self._opened[descriptor][1], start[0] if start else os.fstat(descriptor).st_size
            done = real(descriptor, data, *start)
            self.log.append(("write", inode, at, bytes(data[:done])))
            return done

        return call

    _pwrite = _write

    def _ftruncate(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(descriptor: int, size: int) -> None:
            if descriptor in self._opened:
                self._before("truncate")
                self.log.append(("truncate", self._opened[descriptor][1], size))
            real(descriptor, size)

        return call

    def _fsync(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(descriptor: int) -> None:
            if descriptor not in self._opened:
                return real(descriptor)
            self._before("fsync")
            self.log.append(("fsync", self._opened[descriptor][1]))  # there is no real power cut: nothing else is done
            return None

        return call

    def _split(self, below: str) -> tuple[int, str]:
        """Inode number of the parent, and the name in it."""
        return self._id((self.root / below).parent), os.path.basename(below)

    def _rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(old: Any, new: Any) -> None:
            below = self._path(old)
            if below is not None:
                self._before("rename")
                inode, (parent, a), (other, b) = self._id(old), self._split(below), self._split(self._path(new) or "")
                renamed = ("rename", parent, a, b, inode)
                moved = [("name", other, b, inode), ("forget", parent, a, inode)]
                self.log += [renamed] if parent == other else moved
            real(old, new)

        return call

    _replace = _rename

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            below = self._path(path)
            if below is None or os.path.lexists(path):
                return real(path, mode, dir_fd=dir_fd)
            self._before("mkdir")
            real(path, mode, dir_fd=dir_fd)
            inode = self._id(path, new=True)
            self.log += [("folder", inode), ("name", *self._split(below), inode)]
            return None

        return call

    def _unlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *, dir_fd: int | None = None) -> None:
            below = self._path(path, dir_fd)
            if below is None:
                return real(path, dir_fd=dir_fd)
            self._before("remove")
            inode, split = self._id(path, dir_fd), self._split(below)
            real(path, dir_fd=dir_fd)
            self.log.append(("forget", *split, inode))
            return None

        return call

    _rmdir = _remove = _unlink

    def exchange(self, old: str, new: str) -> int:
        """Stand in for renameat2 with RENAME_EXCHANGE; -1 where it cannot."""
        one, two = self._path(old), self._path(new)
        if not self.exchanges or one is None or two is None:
            return -1
        self._before("exchange")
        (parent, a), (other, b) = self._split(one), self._split(two)
        if parent == other:
            self.log.append(("exchange", parent, a, b, self._id(old), self._id(new)))
        else:
            self.log += [("name", other, b, self._id(old)), ("name", parent, a, self._id(new))]
        aside = old + ".aside"
        for source, target in ((old, aside), (new, old), (aside, new)):
            self._real_rename(source, target)
        return 0


class _Library:
    """The part of libc that is used."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def renameat2(self, _: int, old: bytes, __: int, new: bytes, flags: int) -> int:
        assert flags == 2
        return self.disk.exchange(os.fsdecode(old), os.fsdecode(new))


# -- power cuts --------------------------------------------------------------------------------------------------------

Folder = dict[str, Any]
"""Names to bytes or to folders."""


def tree(root: Path) -> tuple[int, dict[int, Any]]:
    """The inode of `root` and what each inode below it holds: bytes, or {name: inode}. All of it is on the disk."""
    contents: dict[int, Any] = {}
    for parent, folders, files in os.walk(root):
        contents[os.stat(parent).st_ino] = {n: os.lstat(Path(parent, n)).st_ino for n in (*folders, *files)}
        for name in files:
            contents[os.lstat(Path(parent, name)).st_ino] = Path(parent, name).read_bytes()
    return os.stat(root).st_ino, contents


def after_power_cut(root: int, before: dict[int, Any], log: list[tuple[Any, ...]], luck: random.Random) -> Folder:
    """A disk that a power cut after `log` may leave."""
    synced = {entry[1]: index for index, entry in enumerate(log) if entry[0] == "fsync"}
    keeps = luck.choice((0.0, 0.5, 0.9, 1.0))
    contents = {inode: dict(held) if isinstance(held, dict) else bytearray(held) for inode, held in before.items()}
    for index, (kind, inode, *rest) in enumerate(log):
        if kind == "file":
            contents[inode] = bytearray()
        elif kind == "folder":
            contents[inode] = {}
        elif kind in ("fsync", "acknowledge") or (index > synced.get(inode, -1) and luck.random() >= keeps):
            continue
        elif kind == "write":
            start, data = rest
            held = contents[inode]
            if index > synced.get(inode, -1) and luck.random() < 0.3:
                data = data[: luck.randrange(len(data) + 1)]
            held.extend(bytes(max(0, start - len(held))))
            held[start : start + len(data)] = data
        elif kind == "truncate":
            del contents[inode][rest[0] :]
        else:
            _rename(contents[inode], kind, rest)
    return _held(contents, root)


def _rename(names: dict[str, int], kind: str, rest: list[Any]) -> None:
    """Change a folder as one of its operations does, whatever became of those before."""
    if kind == "name":
        names[rest[0]] = rest[1]
    elif kind == "rename":
        old, new, inode = rest
        if names.get(old) == inode:
            del names[old]
        names[new] = inode
    elif kind == "exchange":
        a, b, first, second = rest
        names[a], names[b] = second, first
    elif names.get(rest[0]) == rest[1]:
        del names[rest[0]]


def _held(contents: dict[int, Any], inode: int) -> Any:
    held = contents[inode]
    return {name: _held(contents, inner) for name, inner in held.items()} if isinstance(held, dict) else bytes(held)


def fingerprint(disk: Any) -> str:
    """The same for equal disks."""
    if isinstance(disk, bytes):
        return hashlib.sha256(disk).hexdigest()
    return hashlib.sha256(repr([(n, fingerprint(d)) for n, d in sorted(disk.items())]).encode()).hexdigest()


def lay_out(disk: Folder, folder: Path, pool: Path | None = None) -> None:
    """Make real files of it; with `pool`, to be read only: links to files of equal content in there."""
    folder.mkdir()
    for name, held in disk.items():
        if isinstance(held, dict):
            lay_out(held, folder / name, pool)
        elif pool is None:
            (folder / name).write_bytes(held)
        else:
            content = pool / fingerprint(held)
            if not content.exists():
                content.write_bytes(held)
            os.link(content, folder / name)


FULL, FAILING = errno.ENOSPC, errno.EIO
