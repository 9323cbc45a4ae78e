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
from hnet_cli.storage.streams import READ_BYTES, Unreadable, decompressed, is_compressed, shown

MEMBER_LIMIT = 8 << 20
"""Bytes up to which a member of an archive is kept in memory, so that opening it again is free."""
CONSULTED_LIMIT = 1 << 20
HEAD_BYTES = 8192
BLOCK = tarfile.BLOCKSIZE
MOST_ABOUT = 1 << 20
"""Bytes of the largest header about a member that is read; with its ACLs one has a few thousand."""
MOST_HEADERS = 16
"""Headers about one member."""
MOST_COMMON = 1 << 14
"""Bytes of headers about all members."""
LONGEST_NAME = 4096
"""Letters of the longest name of a member, as of paths on Linux: output has it in every line."""
_ABOUT = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Types of headers that say something about the next member, or all."""
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
    name: str,
    stream: io.BufferedReader,
    again: Opener | None,
    modality: Modality,
    notes: Counter[str],
    sole: bool,
) -> Iterator[Member | Refused]:
    """The members that the modality takes, and refusals. `again` opens the archive anew; None: it cannot be. `sole`:
    nothing else is read."""
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
        if isinstance(data, str):
            yield Refused(data, label)
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
        group = group or (path.as_posix() if sole else ".")
        fault = _fault(content, label) if not reason and is_compressed(head) else ""
        if reason or fault:
            yield Refused(reason or fault, label, member.size, damaged=bool(fault))
        elif member.size <= MEMBER_LIMIT:
            reopen = _bytes_opener(content, label)
            yield Member(label, f"{name}/{group}", cast(io.BufferedReader, reopen()), reopen)
        else:
            plain = decompressed(cast(BinaryIO, data), label)
            yield Member(label, f"{name}/{group}", plain, _member_opener(name, label, index, again))


def _folders_of_hnet(name: str, again: Opener) -> dict[str, str]:
    """Kinds of the folders in an archive that hnet wrote, by path."""
    there = defaultdict[str, set[str]](set)
    for member, data in _walk(name, cast(io.BufferedReader, again())):
        path = PurePosixPath(_inner_path(member))
        for place in (path, *path.parents):
            if place.name in COMPANY:
                there[str(place.parent)].add(place.name)
        if not isinstance(data, str) and is_mark(path.name, partial(data.read, MARK_BYTES)):
            there[str(path.parent)].add(path.name)
    kinds = {folder: made_by_hnet(names, lambda _: True) for folder, names in there.items()}
    return {folder: kind for folder, kind in kinds.items() if kind}


def _consulted(name: str, again: Opener, modality: Modality) -> dict[str, bytes]:
    """Contents, by path, that the modality must know before it can judge the members of an archive."""
    wanted: dict[str, bytes] = {}
    for member, data in _walk(name, cast(io.BufferedReader, again())):
        path = PurePosixPath(_inner_path(member))
        for parent in (path, *path.parents):
            if parent.name in modality.consults:
                wanted.setdefault(parent.as_posix(), b"")
        if path.as_posix() in wanted and not isinstance(data, str) and member.size <= CONSULTED_LIMIT:
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


def _walk(name: str, stream: io.BufferedReader) -> Iterator[tuple[tarfile.TarInfo, _Data | str]]:
    """Members of a tar, each with its data, or the reason why that is not read; `pax_headers` has the keys of what is
    said about it. Raises InputError unless the archive ends as a tar must.

    Not by `tarfile.open`, which follows headers about headers by recursion, holds those of any size, and looks at some
    with patterns that take the square of their length (CVE-2024-6232).
    """
    common: dict[bytes, bytes] = {}
    about, number = dict[bytes, bytes](), 0
    while (block := stream.read(BLOCK)) != bytes(BLOCK):
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            reason = str(error) if len(block) == BLOCK else "the archive's end is missing"
            raise _damaged(name, reason, block) from error
        if member.type in _ABOUT:
            if not 0 <= member.size <= MOST_ABOUT or (number := number + 1) > MOST_HEADERS:
                raise _damaged(
                    name, f"more than {MOST_HEADERS} headers, or one of {MOST_ABOUT:,} bytes, about a member", block
                )
            content = _Data(name, stream, member.size)
            text = content.read()
            content.skip()
            if member.type == tarfile.XGLTYPE:
                common |= _records(name, text)
                if sum(map(len, (*common, *common.values()))) > MOST_COMMON:
                    raise _damaged(name, f"headers of more than {MOST_COMMON:,} bytes about all members", block)
            elif member.type == tarfile.GNUTYPE_LONGNAME:
                about.setdefault(b"path", text.partition(b"\0")[0])
            elif member.type != tarfile.GNUTYPE_LONGLINK:
                about |= _records(name, text)
            continue
        about, number, told = {}, 0, common | about
        sparse = member.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in told)
        more = member.type == tarfile.GNUTYPE_SPARSE and block[482]
        while more:  # blocks of a map of its holes
            if len(block := stream.read(BLOCK)) < BLOCK:
                raise _damaged(name, "the archive's end is missing", block)
            more = block[504]
        if path := told.get(b"GNU.sparse.name", told.get(b"path")):
            member.name = path.decode("utf-8", "surrogateescape").rstrip("/")
        if size := told.get(b"size"):
            member.size = int(size) if size.isdigit() and len(size) < 20 else -1
        if member.size < 0:
            raise _damaged(name, "a member of no size", block)
        has_data = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
        data, reason = _Data(name, stream, member.size if has_data else 0), ""
        if len(member.name) > LONGEST_NAME:
            member.name, reason = f"{member.name[:80]}...", f"name longer than {LONGEST_NAME:,} letters in an archive"
        elif sparse or not member.isreg():
            there = "folder" if member.isdir() else "link or device"
            reason = f"{'sparse file' if sparse else there} in an archive"
        member.pax_headers = {key.decode("latin-1"): "" for key in told}
        yield member, reason or data
        data.skip()
    while block:  # all of it, so that the whole file is hashed and checked
        if block.count(0) < len(block):
            raise InputError(f"{name}: more data follows the archive's end", "is it two? join them with tar -A")
        block = stream.read(READ_BYTES)


def _damaged(name: str, reason: str, block: bytes) -> InputError:
    fault = "damaged or truncated" if len(block) == BLOCK else "truncated"
    return InputError(f"{name} is {fault}: {reason}", "get the archive again")


def _records(name: str, text: bytes) -> dict[bytes, bytes]:
    """The records of a header of PAX, "LENGTH KEY=VALUE\n" (POSIX.1-2008, pax, extended header)."""
    found, at = dict[bytes, bytes](), 0
    while at < len(text) and text[at]:
        length = text[at : at + 9].partition(b" ")[0]
        end = at + int(length) if length.isdigit() else 0
        key, equals, value = text[at + len(length) + 1 : end - 1].partition(b"=")
        if not at + len(length) < end <= len(text) or not equals:
            raise _damaged(name, "a header of PAX that is none", bytes(BLOCK))
        found[key], at = value, end
    return found


class _Data(io.RawIOBase):
    """A member's data while its archive is walked; raises InputError where the archive ends too early."""

    def __init__(self, name: str, stream: io.BufferedReader, size: int) -> None:
        self._name, self._stream, self._left, self._padding = name, stream, size, -size % BLOCK

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        if len(view) and not (count := self._stream.readinto(view)):
            raise InputError(f"{self._name} is truncated: unexpected end of data", "get the archive again")
        self._left -= count if len(view) else 0
        return count if len(view) else 0

    def skip(self) -> None:
        """Go on to the next header."""
        rest = memoryview(bytearray(min(READ_BYTES, self._left)))
        while self.readinto(rest):
            pass
        if len(self._stream.read(self._padding)) < self._padding:
            raise InputError(f"{self._name} is truncated: unexpected end of data", "get the archive again")


def _bytes_opener(content: bytes, name: str) -> Opener:
    return lambda: decompressed(io.BytesIO(content), name)


def _member_opener(name: str, label: str, index: int, again: Opener | None) -> Opener:
    """Opens a large member once more by walking its archive anew: slow, but needs neither memory nor disk."""

    def reopen() -> BinaryIO:
        if again is None:
            raise InputError(f"{name} can be read only once", "save it to a file and name that")
        for number, (_, data) in enumerate(_walk(name, cast(io.BufferedReader, again()))):
            if number == index and not isinstance(data, str):
                return decompressed(cast(BinaryIO, data), label)
        raise InputError(f"{name} changed while it was read")

    return reopen
