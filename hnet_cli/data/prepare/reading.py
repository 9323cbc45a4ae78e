"""Units of files into documents: here, or by several processes that read ahead into folders of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from hnet_cli.data.prepare.contents import documents_of, sources
from hnet_cli.data.prepare.inputs import Changed, FileReader, InputFile
from hnet_cli.data.prepare.journal import UNREADABLE, Account, UnitJournal
from hnet_cli.data.prepare.planning import Unit
from hnet_cli.data.prepare.rows import NO_ROWS, Field, NoField, NoRows
from hnet_cli.data.prepare.store import Writer
from hnet_cli.distributed.workers import Workers
from hnet_cli.errors import DamagedError, InputError
from hnet_cli.modality import Modality, Refused, Source
from hnet_cli.storage import LARGE, discard, make_folder, read_json, rename_folder, verify_file, write_json
from hnet_cli.storage.streams import Unreadable, open_raw

PIECE = "piece.json"
Advance = Callable[[int], None]


@dataclass(frozen=True)
class UnitReader:
    """Reads units of files; sent to workers."""

    modality: Modality
    field: Field

    def read_unit(self, unit: Unit, writer: Writer, advance: Advance, sources_before: int) -> Account:
        """Write the documents of a unit; its sources are numbered from `sources_before`."""
        account = Account()
        for file in unit:
            weighed = file.part_size > 0  # else nobody would know how much is left out
            mark = None if file.named and (file.sole or not weighed) else writer.mark()
            try:
                part = self._read_file(file, writer, advance, sources_before + len(account.sources))
            except (InputError, NoField) as error:
                # Of a file among others that is damaged, or its stretch, nothing is kept: what stands before the damage
                # is not known to be sound, since checksums come last. A file that changes under its stretches cannot
                # be half left out, and a field is meant for the files that are named.
                meant = file.named and isinstance(error, NoField)
                if mark is None or meant or (file.part and isinstance(error, Changed)):
                    raise
                writer.rollback(mark)
                part = Account(bytes_read=file.part_size)
                if isinstance(error, NoRows):
                    part.refuse(file.argument, Refused(NO_ROWS, file.name, file.part_size))
                else:
                    reason = "damaged file" if isinstance(error, InputError) else "file without the field"
                    reason = UNREADABLE if isinstance(error, Unreadable) else reason
                    part.refuse(file.argument, Refused(reason, str(error), file.part_size, damaged=True))
                    part.elsewhere.append(file.argument)
            account.merge(part)
        return account

    def _read_file(self, file: InputFile, writer: Writer, advance: Advance, index: int) -> Account:
        account = Account()

        def count(size: int) -> None:
            account.bytes_read += size
            advance(size)

        if not file.named and file.path is not None:
            try:
                open_raw(file.path).close()
            except InputError as error:  # it could be opened a moment ago
                gone = Refused("vanished or unreadable", f"{file.name}: {error}", file.part_size, damaged=True)
                account.refuse(file.argument, gone)
                return account
        reader, documents = FileReader(file, count, hashed=True), 0
        for source in sources(reader, self.field, account.notes, self.modality):
            read = [source] if isinstance(source, Refused) else documents_of(source, self.modality.documents)
            for item in read:
                if isinstance(item, Refused):
                    account.refuse(file.argument, item)
                elif not item.data:
                    account.refuse(file.argument, Refused("empty", item.name))
                else:
                    name = item.source if item.name == item.source else f"{item.source}\t{item.name}"
                    group = item.group or _common_group(file, cast(Source, source))
                    writer.add(item.data, index, item.offset, name, group)
                    documents += 1
                    if item.notes:
                        account.notes.update(item.notes)
        if documents:
            account.documents[file.argument] = documents
        elif not account.refused and not file.part:
            account.refuse(file.argument, Refused("empty", file.name))
        account.sources.append(reader.finish())
        return account

    def read_piece(self, unit: Unit, work: Path, key: str) -> Path:
        """In a worker: documents of a unit into a folder of their own, which is complete once it has its name."""
        piece = _piece(work, key)
        if piece.exists() and _is_whole(piece):
            return piece
        temporary = piece.with_suffix(f".{os.getpid()}")
        for folder in (piece, temporary):
            discard(folder)
        make_folder(temporary)
        writer = Writer(temporary, self.modality.input_table)
        account = self.read_unit(unit, writer, lambda size: None, 0)
        writer.close()
        write_json(temporary / PIECE, {"files": writer.files, "account": account.to_json()})
        rename_folder(temporary, piece)
        return piece


def _common_group(file: InputFile, source: Source) -> str:
    """The group that the modality put a source into with others; "" where a source is its own."""
    if source.whole:
        return ""
    if source.group == file.group:
        return source.group if file.shared else ""
    inside = source.group.removeprefix(f"{file.name}/")  # of an archive
    return "" if source.name == f"{file.name}:{inside}" else source.group


def read_all(
    units: list[Unit], keys: list[str], reader: UnitReader, work: Path, writer: Writer, workers: int, report: Advance
) -> Account:
    """Read all units into `writer`, in order, whatever `workers`; those that an interrupted run finished are kept.

    `keys` identify the units; `report(bytes read so far)`.
    """
    account = Account()
    journal = UnitJournal(work)
    done = journal.replay(keys, writer, account)
    units, keys = units[done:], keys[done:]
    _remove_pieces(work, keys)
    report(account.bytes_read)
    ahead = workers > 1 and len(units) > 1
    pieces = _ahead(units, keys, reader, work, workers) if ahead else iter([None] * len(units))
    for unit, key, piece in zip(units, keys, pieces, strict=True):
        if piece is None:
            read = account.bytes_read

            def advance(size: int) -> None:
                nonlocal read
                read += size
                report(read)

            part = reader.read_unit(unit, writer, advance, len(account.sources))
        else:
            writer.absorb(piece, len(account.sources))
            part = Account.from_json(read_json(piece / PIECE, LARGE)["account"])
        journal.add(key, writer, part)
        account.merge(part)
        report(account.bytes_read)
        if piece is not None:
            discard(piece)
    return account


# --- several processes ------------------------------------------------------------------------------------------------


def _ahead(units: list[Unit], keys: list[str], reader: UnitReader, work: Path, workers: int) -> Iterator[Path | None]:
    """For each unit in order the folder a worker read it into; None for standard input, which is this process's."""
    calls = (
        None if any(file.is_stdin for file in unit) else partial(reader.read_piece, unit, work, key)
        for unit, key in zip(units, keys, strict=True)
    )
    with Workers(workers) as processes:
        yield from processes.in_order(calls)


def _piece(work: Path, key: str) -> Path:
    return work / f"piece-{key[:32]}"


def _is_whole(piece: Path) -> bool:
    """True if a piece of an interrupted run is as it was written."""
    try:
        for name, entry in read_json(piece / PIECE, LARGE)["files"].items():
            verify_file(piece, name, entry)
    except (OSError, ValueError, KeyError, TypeError, DamagedError):
        return False
    return True


def _remove_pieces(work: Path, keys: list[str]) -> None:
    """Delete the pieces of an interrupted run but those of units still to be read."""
    wanted = {_piece(work, key) for key in keys}
    for folder in work.glob("piece-*"):
        if folder not in wanted:
            discard(folder)
