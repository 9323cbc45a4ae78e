"""Members of tar archives, streamed: nothing is written to disk, and member names are for display only."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from hnet_cli.data.prepare.inputs import COMPANY, MARK_BYTES, is_mark, made_by_hnet
from hnet_cli.data.prepare.journal import MADE_BY_HNET, UNREADABLE
from hnet_cli.errors import InputError
from hnet_cli.modality import Modality, Refused
from hnet_cli.storage.outputs import ATTRIBUTE
from hnet_cli.storage.streams import READ_BYTES, RawReader, Unreadable, decompressed, is_compressed, shown

MEMBER_LIMIT = 8 << 20
"""Bytes up to which a member of an archive is kept in memory, so that opening it again is free."""
CONSULTED_LIMIT = 1 << 20
HEAD_BYTES = 8192
_WRITTEN = re.compile(
    r"(^|/)(\.(made|baselines|verified)\.json|\.lock|(documents|hashes|blocks)\.bin|(shard|split)-\w+\.bin|names\.txt|"
    r"(dataset|part|plan|compare|config|manifest|state|tokenizer|teacher-tokenizer)\.json|(report|compare)\.html|"
    r"(metrics|samples|events)\.jsonl|config\.yaml|log\.txt|latest|best|\w+\.safetensors|"
    r"(checkpoints|members|measured|tensorboard)/.*)$"
)
"""Paths of what hnet writes into folders of its own; many others write such too."""
DAMAGED = "damaged file inside an archive"
Opener = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, decompressed."""

    name: str
    group: str
    stream: io.BufferedReader
    """Its content; to be closed before the next member is asked for."""
    reopen: Opener


def is_tar(head: bytes) -> bool:
    """True if a file that begins with `head` (512 bytes) is a tar: by its magic, or the checksum of the first header,
    which is all that tars of the old style have."""
    if head[257:262] == b"ustar":
        return True
    stored = head[148:156].strip(b" \0")
    checksum = sum(head) - sum(head[148:156]) + 8 * ord(" ")
    return len(head) == 512 and stored.isdigit() and not set(stored) & set(b"89") and int(stored, 8) == checksum


def members(
    name: str, stream: BinaryIO, again: Opener | None, modality: Modality, notes: Counter[str]
) -> Iterator[Member | Refused]:
    """The members that the modality takes, and refusals. `again` opens the archive anew; None: it cannot be."""
    consulted: dict[str, bytes] = {}
    ours: dict[str, str] | None = None  # kinds of hnet's folders, once something looks like a part of one
    told = set[str]()
    if modality.consults and again is None:
        notes[f"archive on standard input: {' '.join(sorted(modality.consults))} in it not looked at"] += 1
    elif modality.consults and again:
        consulted = _consulted(name, again, modality)
    judge = modality.select_members(consulted)
    for index, (member, data) in enumerate(_walk(name, stream)):
        label = f"{name}:{shown(member.name)}"
        path = PurePosixPath(_inner_path(member))
        if ours is None and _WRITTEN.search(str(path)):
            ours = {} if again is None else _folders_of_hnet(name, again)
            if again is None:
                notes["archive on standard input: what hnet made in it not looked for"] += 1
        if ours and (folder := next((str(place) for place in reversed(path.parents) if str(place) in ours), None)):
            if folder not in told:
                told.add(folder)
                yield Refused(f"{ours[folder]} {MADE_BY_HNET}", name if folder == "." else f"{name}:{shown(folder)}")
            continue
        if member.isdir():
            continue
        if data is None:
            yield Refused("link or device in an archive", label)
            continue
        if f"SCHILY.xattr.{ATTRIBUTE}" in member.pax_headers:  # `tar --xattrs`
            yield Refused(f"output {MADE_BY_HNET}", label, member.size)
            continue
        if any(part[0] == "." and part.strip(".") for part in Path(member.name).parts):
            yield Refused("hidden file or folder", label, member.size)
            continue
        content = data.read() if member.size <= MEMBER_LIMIT else b""
        head = content[:HEAD_BYTES]
        reason, group = judge(path.as_posix(), member.size, head)
        fault = _fault(content, label) if not reason and is_compressed(head) else ""
        if reason or fault:
            yield Refused(reason or fault, label, member.size, damaged=bool(fault))
        elif member.size <= MEMBER_LIMIT:
            reopen = _bytes_opener(content, label)
            yield Member(label, f"{name}/{group}", cast(io.BufferedReader, reopen()), reopen)
        else:
            plain = decompressed(data, label)
            yield Member(label, f"{name}/{group}", plain, _member_opener(name, label, index, again))


def _folders_of_hnet(name: str, again: Opener) -> dict[str, str]:
    """Kinds of the folders in an archive that hnet wrote, by path."""
    there = defaultdict[str, set[str]](set)
    for member, data in _walk(name, again()):
        path = PurePosixPath(_inner_path(member))
        for place in (path, *path.parents):
            if place.name in COMPANY:
                there[str(place.parent)].add(place.name)
        if data is not None and is_mark(path.name, partial(data.read, MARK_BYTES)):
            there[str(path.parent)].add(path.name)
    kinds = {folder: made_by_hnet(names, lambda _: True) for folder, names in there.items()}
    return {folder: kind for folder, kind in kinds.items() if kind}


def _consulted(name: str, again: Opener, modality: Modality) -> dict[str, bytes]:
    """Contents, by path, that the modality must know before it can judge the members of an archive."""
    wanted: dict[str, bytes] = {}
    for member, data in _walk(name, again()):
        path = PurePosixPath(_inner_path(member))
        for parent in (path, *path.parents):
            if parent.name in modality.consults:
                wanted.setdefault(parent.as_posix(), b"")
        if path.as_posix() in wanted and data is not None and member.size <= CONSULTED_LIMIT:
            wanted[path.as_posix()] = data.read()
    return wanted


def _inner_path(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name.lstrip("/")).as_posix()


def _fault(content: bytes, label: str) -> str:
    """The reason why a compressed member of an archive is not read, or "": better known before documents are kept."""
    try:
        with decompressed(io.BytesIO(content), label) as plain:
            while plain.read(READ_BYTES):
                pass
    except Unreadable:
        return f"{UNREADABLE}, inside an archive"
    except InputError:
        return DAMAGED
    return ""


def _walk(name: str, stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """Members of a tar with their data (None for links and devices). Raises InputError unless it ends as a tar must."""
    watched = _Watched(stream)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, watched), mode="r|", bufsize=READ_BYTES // 4) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # its list would grow with the archive
                data = archive.extractfile(member) if member.isreg() else None
                yield member, cast(BinaryIO, _Data(name, cast(BinaryIO, data))) if data else None
            # tarfile ends silently at a damaged or missing header; a whole archive has a block of zeros there.
            rest = watched.since(archive.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is damaged or truncated: {error}", "get the archive again") from error
    if rest[:512] != bytes(512):
        fault = "damaged" if len(rest) >= 512 else "truncated"
        raise InputError(f"{name} is {fault}: the archive's end is missing", "get the archive again")
    while rest:  # all of it, so that the whole file is hashed and checked
        if rest.count(0) < len(rest):
            raise InputError(f"{name}: more data follows the archive's end", "is it two? join them with tar -A")
        rest = stream.read(READ_BYTES)


class _Watched:
    """Remembers the last two blocks that tarfile read, to look at the header it stopped at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._end, self._recent, self._last = stream, 0, b"", b""

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        if block:
            self._recent, self._last = self._last, block
            self._end += len(block)
        return block

    def since(self, offset: int) -> bytes:
        """The bytes read from `offset` on."""
        known = self._recent + self._last
        start = offset - (self._end - len(known))
        return known[start:] if start >= 0 else b""


class _Data(RawReader):
    """A member's data while its archive is walked; raises InputError where the archive ends too early."""

    def __init__(self, name: str, data: BinaryIO) -> None:
        super().__init__(data)
        self._name = name

    def read(self, size: int = -1) -> bytes:
        try:
            return self.stream.read(size)
        except tarfile.TarError as error:
            raise InputError(f"{self._name} is truncated: {error}", "get the archive again") from error

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _bytes_opener(content: bytes, name: str) -> Opener:
    return lambda: decompressed(io.BytesIO(content), name)


def _member_opener(name: str, label: str, index: int, again: Opener | None) -> Opener:
    """Opens a large member once more by walking its archive anew: slow, but needs neither memory nor disk."""

    def reopen() -> BinaryIO:
        if again is None:
            raise InputError(f"{name} can be read only once", "save it to a file and name that")
        for number, (_, data) in enumerate(_walk(name, again())):
            if number == index and data is not None:
                return decompressed(data, label)
        raise InputError(f"{name} changed while it was read")

    return reopen
