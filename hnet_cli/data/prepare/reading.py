"""Units of files into documents: here, or by several processes that read ahead into folders of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hnet_cli.data.prepare.account import Account
from hnet_cli.data.prepare.contents import NoField, sources
from hnet_cli.data.prepare.inputs import Changed, FileReader, InputFile
from hnet_cli.data.prepare.journal import Journal
from hnet_cli.data.prepare.store import Writer
from hnet_cli.errors import DamagedError, EnvironmentLimit, InputError
from hnet_cli.modality import Modality, Refused
from hnet_cli.storage import discard, make_folder, rename_folder, verify_file, write_json
from hnet_cli.storage.streams import open_raw

PIECE = "piece.json"
Unit = list[InputFile]


@dataclass(frozen=True)
class How:
    """How units are read."""

    modality: Modality
    field: str | None
    """Of rows."""


def read_all(
    units: list[Unit], keys: list[str], how: How, work: Path, writer: Writer, workers: int, tell: Callable[[int], None]
) -> Account:
    """All units into `writer`, in order, whatever `workers`; those that an interrupted run finished are not read again.

    `tell(bytes read so far)`.
    """
    account = Account()
    journal = Journal(work / "journal.jsonl")
    done = journal.replay(keys, writer, account)
    writer.remove_others()
    _remove_pieces(work, keys[done:])
    tell(account.bytes_read)

    def finished(key: str, part: Account) -> None:
        journal.add(key, writer, part)
        account.merge(part)
        tell(account.bytes_read)

    def here(unit: Unit) -> Account:
        read = account.bytes_read

        def advance(size: int) -> None:
            nonlocal read
            read += size
            tell(read)

        return read_unit(unit, how, writer, advance, len(account.sources))

    units, keys = units[done:], keys[done:]
    if workers <= 1 or len(units) <= 1:
        for unit, key in zip(units, keys, strict=True):
            finished(key, here(unit))
        return account
    for unit, key, piece in _ahead(units, keys, how, work, workers):
        if piece is None:
            finished(key, here(unit))
        else:
            folder = piece.result()
            writer.absorb(folder, len(account.sources))
            finished(key, Account.from_json(json.loads((folder / PIECE).read_bytes())["account"]))
            discard(folder)
    return account


def read_unit(unit: Unit, how: How, writer: Writer, advance: Callable[[int], None], sources_before: int) -> Account:
    """Documents of a unit into `writer`; its sources are numbered from `sources_before`."""
    account = Account()
    for file in unit:
        mark = None if file.named else writer.mark()
        try:
            part = _read_file(file, how, writer, advance, sources_before + len(account.sources))
        except (InputError, NoField) as error:
            # Of a file in a folder that is damaged, nothing is kept: what stands before the damage is not known to be
            # sound, since checksums come last. What changes under stretches of it cannot be left out by halves.
            if mark is None or (file.part and isinstance(error, Changed)):
                raise
            writer.rollback(mark)
            part = Account(bytes_read=file.size)
            reason = "damaged file" if isinstance(error, InputError) else "file without the field"
            part.refuse(file.argument, Refused(reason, str(error), file.size, damaged=True))
        account.merge(part)
    return account


def _read_file(file: InputFile, how: How, writer: Writer, advance: Callable[[int], None], index: int) -> Account:
    account = Account()

    def count(size: int) -> None:
        account.bytes_read += size
        advance(size)

    if not file.named and (gone := _unreadable(file)):
        account.refuse(file.argument, gone)
        return account
    reader, documents = FileReader(file, count), 0
    for source in sources(reader, how.field, account.notes, how.modality):
        if isinstance(source, Refused):
            account.refuse(file.argument, source)
            continue
        for found in how.modality.documents(source):
            if isinstance(found, Refused):
                account.refuse(file.argument, found)
            elif not found.data:
                account.refuse(file.argument, Refused("empty", found.name))
            else:
                name = found.source if found.name == found.source else f"{found.source}\t{found.name}"
                writer.add(found.data, index, found.offset, name, found.group or source.group)
                documents += 1
                if found.notes:
                    account.notes.update(found.notes)
    if documents:
        account.documents[file.argument] = documents
    if not documents and not account.refused and not file.part:
        account.refuse(file.argument, Refused("empty", file.name))
    account.sources.append(reader.finish())
    return account


def _unreadable(file: InputFile) -> Refused | None:
    """Why a file found in a folder a moment ago cannot be opened now."""
    if file.path is None:
        return None
    try:
        open_raw(file.path).close()
    except InputError as error:
        return Refused("vanished or unreadable", f"{file.name}: {error}", file.size, damaged=True)
    return None


# --- several processes ------------------------------------------------------------------------------------------------


def _ahead(
    units: list[Unit], keys: list[str], how: How, work: Path, workers: int
) -> Iterator[tuple[Unit, str, Future[Path] | None]]:
    """Each unit in order, with the folder a worker reads it into; None for standard input, which is this process's."""
    # Spawned, not forked: the caller may have threads (progress bars, torch).
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    ahead: deque[tuple[Unit, str, Future[Path] | None]] = deque()
    try:
        for unit, key in zip(units, keys, strict=True):
            here = any(file.is_stdin for file in unit)
            ahead.append((unit, key, None if here else pool.submit(_work, unit, how, work, key)))
            if len(ahead) > 2 * workers:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    except BrokenExecutor as error:
        raise EnvironmentLimit("a worker process died, perhaps for lack of memory", "use --workers 1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Ctrl-C is the main process's affair; a worker whose main process is killed must not write on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(unit: Unit, how: How, work: Path, key: str) -> Path:
    """In a worker: documents of a unit into a folder of their own, which is complete once it has its name."""
    piece = _piece(work, key)
    if piece.exists() and _is_whole(piece):
        return piece
    temporary = piece.with_suffix(f".{os.getpid()}")
    for folder in (piece, temporary):
        discard(folder)
    make_folder(temporary)
    writer = Writer(temporary)
    account = read_unit(unit, how, writer, lambda size: None, 0)
    writer.close()
    write_json(temporary / PIECE, {"files": writer.files, "account": account.to_json()})
    rename_folder(temporary, piece)
    return piece


def _piece(work: Path, key: str) -> Path:
    return work / f"piece-{key[:32]}"


def _is_whole(piece: Path) -> bool:
    """Whether a piece of an interrupted run is as it was written."""
    try:
        for name, entry in json.loads((piece / PIECE).read_bytes())["files"].items():
            verify_file(piece, name, entry)
    except (OSError, ValueError, KeyError, TypeError, DamagedError):
        return False
    return True


def _remove_pieces(work: Path, keys: list[str]) -> None:
    """Delete the pieces of an interrupted run but those of units still to be read."""
    wanted = {_piece(work, key).name for key in keys}
    for folder in work.glob("piece-*"):
        if folder.name not in wanted:
            discard(folder)
