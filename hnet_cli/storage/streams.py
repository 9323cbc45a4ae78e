"""Inputs as plain byte streams: compression is detected by content; truncation and damage are one clear InputError."""

from __future__ import annotations

import bz2
import contextlib
import errno
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from hnet_cli.errors import EnvironmentLimit, InputError, StorageError

READ_BYTES = 1 << 20
"""Bytes read, and at most decompressed, at once."""
_HEAD_BYTES = 64
"""First bytes of a member, which tell its compression and the memory it needs."""


class Unreadable(InputError):
    """A file that is sound, as far as is known, but more than can be read here."""


def shown(path: str | os.PathLike[str]) -> str:
    """A path as safe, printable text: bytes that are not UTF-8 and control characters appear as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def open_input(path: Path) -> io.BufferedReader:
    """The decompressed bytes of a plain, .gz, .bgz, .bz2, .xz or .zst file.

    Raises InputError: missing, unreadable, not a regular file, and on reading: truncated or damaged. StorageError: EIO.
    """
    return decompressed(open_raw(path), shown(path))


def open_raw(path: Path) -> BinaryIO:
    """The bytes of a regular file as they are on disk, unbuffered; errors as in `open_input`."""
    name = shown(path)
    try:
        # Without O_NONBLOCK, opening a pipe nobody writes to would hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise read_error(error, name) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_dev not in kernel_devices():
        return cast(BinaryIO, _RawFile(open(descriptor, "rb", buffering=0), name))
    os.close(descriptor)
    kind = "a device, pipe or socket"
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "something of the system's kernel"
    raise InputError(f"{name} is {kind}, not a file")


@cache
def kernel_devices() -> set[int]:
    """Devices of the file systems whose files are no files: reading one may hang, never end or change something."""
    places = ("/proc", "/sys")
    return {os.stat(place).st_dev for place in places if os.path.ismount(place)}


def read_error(error: Exception, name: str) -> InputError | StorageError:
    """The error for the user where the system cannot open or read `name`."""
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EIO:
        return StorageError(f"cannot read {name}: input/output error", "the disk or the connection to it is failing")
    if code in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{name} does not exist")
    if code in (errno.EACCES, errno.EPERM):
        return InputError(f"{name} is not readable: permission denied")
    if code == errno.ENXIO:
        return InputError(f"{name} is a device, pipe or socket, not a file")
    return InputError(f"cannot read {name}: {os.strerror(code) if code else error}")


def decompressed(stream: BinaryIO, name: str) -> io.BufferedReader:
    """`stream`, at its start, decompressed where its first bytes are those of a known compression.

    `name` is for messages. Closing the result closes `stream`; `peek(n)` shows n bytes (up to 1 MiB) if there are.
    """
    head = b""
    while len(head) < _HEAD_BYTES and (more := stream.read(_HEAD_BYTES - len(head))):
        head += more
    codec = _codec(head)
    return io.BufferedReader(_Plain(head, stream) if codec is None else _Decoded(head, stream, codec, name), READ_BYTES)


def is_compressed(head: bytes) -> bool:
    """True if a file that begins with `head` (10 bytes or more) is compressed in a way `decompressed` undoes."""
    return _codec(head) is not None


def was_compressed(stream: io.BufferedReader) -> bool:
    """True if a stream of `decompressed` is of a compressed file."""
    return isinstance(stream.raw, _Decoded)


def window_bytes(stream: io.BufferedReader) -> int:
    """Bytes of memory that a stream of `decompressed` needs for what its compression looks back to; 0 if unknown."""
    return stream.raw.window if isinstance(stream.raw, _Decoded) else 0


class RawReader(io.RawIOBase):
    """Base of raw streams that read from another stream and close it with themselves."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.stream.readinto(buffer) or 0  # type: ignore[attr-defined]

    def close(self) -> None:
        self.stream.close()
        super().close()


class _RawFile(RawReader):
    """An unbuffered file whose read errors name it."""

    def __init__(self, file: io.FileIO, name: str) -> None:
        super().__init__(cast(BinaryIO, file))
        self._name = name

    def fileno(self) -> int:
        return self.stream.fileno()

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        return self.stream.seek(position, whence)

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise read_error(error, self._name) from error


class _Plain(RawReader):
    """The bytes already taken from a stream, then the rest of it."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        super().__init__(stream)
        self._head = head

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        filled = min(len(view), len(self._head))
        view[:filled], self._head = self._head[:filled], self._head[filled:]
        while filled < len(view) and (more := super().readinto(view[filled:])):
            filled += more
        return filled


# --- decompression ----------------------------------------------------------------------------------------------------


class _Gzip:
    """zlib behind the interface that bz2 and lzma decompressors share; isal's, three times as fast, if installed."""

    def __init__(self) -> None:
        try:
            from isal import isal_zlib
        except ImportError:
            self._inner: Any = zlib.decompressobj(wbits=31)
        else:
            self._inner = isal_zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, limit: int) -> bytes:
        decoded: bytes = self._inner.decompress(self._inner.unconsumed_tail + data, limit)
        return decoded

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._inner.eof

    def __getattr__(self, name: str) -> Any:  # eof, unused_data
        return getattr(self._inner, name)


class _Zstd:
    """The same over zstandard. Its streaming reader does not notice truncation and its decompression object cannot
    bound its output; so input is fed in slices that make at most 32 MiB (a 4-byte block can stand for 128 KiB)."""

    _SLICE = 1024

    def __init__(self) -> None:
        import zstandard

        # As much as the library can: 2 GiB (`zstd --long=31`). The window fills up with what was read, no faster.
        self._inner = zstandard.ZstdDecompressor(max_window_size=1 << zstandard.WINDOWLOG_MAX).decompressobj()
        self._input, self._at = b"", 0

    def decompress(self, data: bytes, limit: int) -> bytes:
        if data:
            self._input, self._at = self._input[self._at :] + data, 0
        parts, size = [], 0
        while size < limit and self._at < len(self._input) and not self.eof:
            parts.append(self._inner.decompress(self._input[self._at : self._at + self._SLICE]))
            self._at += self._SLICE
            size += len(parts[-1])
        return b"".join(parts)

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._input) and not self.eof

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._input[self._at :]


_BZ2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")


def _codec(head: bytes) -> Callable[[], Any] | None:
    """The maker of a decompressor for a stream that begins with `head`; None for plain bytes."""
    if head[:3] == b"\x1f\x8b\x08":
        return _Gzip
    if head[:3] == b"BZh" and head[4:10] in _BZ2_BLOCKS:
        return bz2.BZ2Decompressor
    if head[:6] == b"\xfd7zXZ\x00":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return _Zstd
    return None


def _window(head: bytes) -> int:
    """Bytes that a member which begins with `head` looks back: of zstd and xz, where they can be many; else 0."""
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        with contextlib.suppress(zstandard.ZstdError):  # too large for the library, which says so on reading
            return int(zstandard.get_frame_parameters(head).window_size)
    elif head[:6] == b"\xfd7zXZ\x00" and len(head) > 32:
        # The block header: its size, flags, optional sizes, then the filters; LZMA2 is 0x21 with one byte.
        at = head.find(b"\x21\x01", 14, 12 + 4 * (head[12] + 1))
        bits = head[at + 2] if at > 0 else 0
        return (2 | bits & 1) << (bits // 2 + 11) if 0 < bits < 40 else 0
    return 0


def _is_bgzf(head: bytes) -> bool:
    """True if a member is a block of BGZF: gzip with an extra field "BC" (SAM specification, section 4.1)."""
    has_extra = head[:3] == b"\x1f\x8b\x08" and len(head) > 12 and head[3] & 4
    extra = head[12 : 12 + int.from_bytes(head[10:12], "little")] if has_extra else b""
    while len(extra) >= 4:
        if extra[:4] == b"BC\x02\x00":
            return True
        extra = extra[4 + int.from_bytes(extra[2:4], "little") :]
    return False


class _Decoded(RawReader):
    """Streaming decompression of one or many members (bgzip, `cat a.gz b.gz`), memory bounded whatever the input."""

    def __init__(self, head: bytes, stream: BinaryIO, codec: Callable[[], Any], name: str) -> None:
        super().__init__(stream)
        self._name = name
        self._output = memoryview(b"")
        self._begin(codec, head)

    def _begin(self, codec: Callable[[], Any], head: bytes) -> None:
        self._decoder, self._input = codec(), head
        self.window = _window(head)
        # What the format says must follow: after a block of BGZF an empty one, after pzstd's note of a size its frame.
        self._unfinished = head[:8] == b"\x50\x2a\x4d\x18\x04\0\0\0"
        self._is_block = _is_bgzf(head)

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and (self._output or self._advance()):
            taken = min(len(buffer) - filled, len(self._output))
            buffer[filled : filled + taken] = self._output[:taken]
            self._output = self._output[taken:]
            filled += taken
        return filled

    def _advance(self) -> bool:
        """Call the decoder once; False at the proper end of the stream."""
        if self._decoder.eof and not self._next_member():
            return False
        if self._decoder.needs_input and not self._input:
            self._input = self.stream.read(READ_BYTES // 4)
            if not self._input:
                raise self._truncated("its compressed data ends too early")
        data, self._input = self._input, b""
        try:
            self._output = memoryview(self._decoder.decompress(data, READ_BYTES))
        except Exception as error:  # each codec has its own: zlib.error, LZMAError, OSError, ZstdError, EOFError
            raise self._failure(error) from error
        self._unfinished = self._unfinished or (self._is_block and len(self._output) > 0)
        return True

    def _truncated(self, why: str) -> InputError:
        return InputError(f"{self._name} is truncated: {why}", "get the file again")

    def _failure(self, error: Exception) -> InputError | EnvironmentLimit:
        """The error for the user: damage, unless it is the decoder that cannot."""
        why = str(error)
        if isinstance(error, MemoryError) or "llocation error" in why:
            need = f": its compression looks {self.window:,} bytes back" if self.window else ""
            hint = "free some, or unpack it elsewhere"
            return EnvironmentLimit(f"not enough memory to unpack {self._name}{need}", hint)
        if "too much memory" in why:
            why, hint = "its zstd window is larger than the 2 GiB that zstd reads", "pack it anew with a smaller window"
            return Unreadable(f"cannot unpack {self._name}: {why}", hint)
        if "nsupported" in why:
            return Unreadable(f"cannot unpack {self._name}: {why}", "unpack it with the program that packed it")
        if "Dictionary mismatch" in why:
            return Unreadable(f"{self._name} was packed with a dictionary", "unpack it first: zstd -d -D DICTIONARY")
        return InputError(f"{self._name} is damaged: {why}", "get the file again")

    def _next_member(self) -> bool:
        """Begin the next member, over zeros that pad to a block as tapes and xz have them; False where none follows."""
        rest = (self._decoder.unused_data + self._input).lstrip(b"\0")
        while len(rest) < _HEAD_BYTES and (more := self.stream.read(READ_BYTES // 4)):
            rest = (rest + more).lstrip(b"\0")
        if not rest:
            if self._unfinished:
                raise self._truncated("the block that marks its end is missing")
            return False
        codec = _codec(rest)
        if codec is None:
            raise InputError(
                f"{self._name} is damaged: other data follows the end of the compressed data", "get the file again"
            )
        self._begin(codec, rest)
        return True
