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

    Temporary files of a process that died there are removed. A folder that this created, and in which nothing was
    written, is removed at the end.

    Raises BusyError naming host and process id of the holder, or where the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor = -1
        self._made: list[Path] = []
        """The folder and its parents, as far as they did not exist."""

    def __enter__(self) -> FolderLock:
        try:
            return self._entered()
        except BusyError:
            raise
        except BaseException:
            self._remove_if_empty()
            raise

    def _entered(self) -> FolderLock:
        file = self.path / ".lock"
        with os_errors(file):
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            make_folder(self.path)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            with os_errors(file):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = _is_at(descriptor, file)  # else its last holder took it away
                if ours and os.fstat(descriptor).st_nlink > 1:  # shared with a hard-linked copy of the folder
                    os.unlink(file)
                    ours = False
                if ours:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
            if ours:
                sweep_files(self.path)
        except BaseException as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise _in_use(self.path, holder) from None
        if not ours:
            os.close(descriptor)
            return self._entered()
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._remove_if_empty()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            if self._made and os.listdir(self.path) in ([], [".lock"]):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path / ".lock")
                for folder in self._made:
                    os.rmdir(folder)


def _is_at(descriptor: int, file: Path) -> bool:
    """True if an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def refuse_if_held(path: Path) -> None:
    """Raise the BusyError of FolderLock early where a process holds the folder. Writes and reserves nothing."""
    if (holder := lock_holder(path)) and not holder.startswith("perhaps"):
        raise _in_use(path, holder)


def _in_use(path: Path, holder: str) -> BusyError:
    return BusyError(f"{shown(path)} is in use by {holder}", "wait for it, or stop it first")


def lock_holder(path: Path) -> str | None:
    """The holder of a folder's lock, "process 123 on host h"; None if it is free. Writes nothing."""
    try:
        descriptor = os.open(Path(path) / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    holder = "process unknown on host unknown"
    try:
        holder = _holder(descriptor)
        _, pid, _, _, host = holder.split()
        if host == socket.gethostname() and not _alive(pid):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder
    except OSError:  # a file system without locks: the file says as much as can be known
        return f"perhaps {holder}"
    finally:
        os.close(descriptor)
    return None


def _holder(descriptor: int) -> str:
    """The process that an open lock file names."""
    words = os.pread(descriptor, 200, 0).decode("utf-8", "replace").split()
    host, pid = words if len(words) == 2 else ("unknown", "unknown")
    return f"process {pid} on host {host}"


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
