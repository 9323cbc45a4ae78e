"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType

from hnet_cli.errors import BusyError
from hnet_cli.storage.files import make_folder, os_errors, sweep_files
from hnet_cli.storage.streams import shown


class FolderLock:
    """`with FolderLock(folder):` holds the folder for one process; the system frees it however that process ends.

    What a process that died left of files it was replacing is removed. A folder made by this, in which nothing was
    written, is gone again at the end.

    Raises BusyError naming host and process id of the holder, or where the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor = -1
        self._made: list[Path] = []
        """The folder and those above it that were not there."""

    def __enter__(self) -> FolderLock:
        file = self.path / ".lock"
        with os_errors(file):
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            make_folder(self.path)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            with os_errors(file):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
            if held := _is_at(descriptor, file):  # else its last holder took it away
                sweep_files(self.path)
        except BaseException as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").split()
            os.close(descriptor)
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            host, pid = holder if len(holder) == 2 else ("unknown", "unknown")
            raise _in_use(self.path, f"process {pid} on host {host}") from None
        if not held:
            os.close(descriptor)
            return self.__enter__()
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with contextlib.suppress(OSError):
                if self._made and os.listdir(self.path) == [".lock"]:
                    os.unlink(self.path / ".lock")
                    for folder in self._made:
                        os.rmdir(folder)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def refuse_if_held(path: Path) -> None:
    """Raises the BusyError of FolderLock where a process holds the folder: an early word, for what takes long to load.

    Nothing is written, and nothing is reserved.
    """
    if (holder := lock_holder(path)) and not holder.startswith("perhaps"):
        raise _in_use(path, holder)


def _in_use(path: Path, holder: str) -> BusyError:
    return BusyError(f"{shown(path)} is in use by {holder}", "wait for it, or stop it first")


def lock_holder(path: Path) -> str | None:
    """Who holds a folder's lock, "process 123 on host h"; None where nobody does. Nothing is written."""
    try:
        descriptor = os.open(Path(path) / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    host = pid = "unknown"
    try:
        holder = os.read(descriptor, 200).decode("utf-8", "replace").split()
        host, pid = holder if len(holder) == 2 else (host, pid)
        if host == socket.gethostname() and not _alive(pid):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"process {pid} on host {host}"
    except OSError:  # a file system without locks: the file tells as much as can be known
        return f"perhaps process {pid} on host {host}"
    finally:
        os.close(descriptor)
    return None


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True
