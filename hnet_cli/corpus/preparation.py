"""`prepare`: the user's inputs become a dataset, whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.corpus.baseline import TRAIN_LIMIT, VAL_LIMIT, baselines, sample
from hnet_cli.corpus.contents import sources
from hnet_cli.corpus.dataset import COLUMNS, FORMAT, Shards
from hnet_cli.corpus.inputs import FileReader, InputFile, expand
from hnet_cli.corpus.split import make_split
from hnet_cli.corpus.store import Writer
from hnet_cli.errors import EnvironmentLimit, InputError, StorageError
from hnet_cli.modality import Modality, Refused
from hnet_cli.storage import free_bytes, staged_folder, write_json
from hnet_cli.streams import open_raw, shown

UNIT_BYTES = 32 << 20
UNIT_FILES = 1000
"""A worker takes so many consecutive files at once, in bytes or in number."""
Progress = Callable[[int, int | None], None]


@dataclass
class Account:
    """What became of the inputs."""

    refused: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """By reason: how many, how many bytes, where the first was."""
    notes: Counter[str] = field(default_factory=Counter)
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Name, size and SHA-256 of each file read."""
    documents: Counter[int] = field(default_factory=Counter)
    """By index of the user's input."""
    first_refusal: dict[int, str] = field(default_factory=dict)
    bytes_read: int = 0

    def refuse(self, argument: int, refused: Refused) -> None:
        count, size, where = self.refused.get(refused.reason, (0, 0, refused.where))
        self.refused[refused.reason] = count + 1, size + refused.bytes, where
        self.first_refusal.setdefault(argument, f"{refused.reason} ({refused.where})")

    def merge(self, later: Account) -> None:
        for reason, (count, size, where) in later.refused.items():
            before, size_before, first = self.refused.get(reason, (0, 0, where))
            self.refused[reason] = before + count, size_before + size, first
        self.notes.update(later.notes)
        self.sources += later.sources
        self.documents.update(later.documents)
        self.first_refusal = later.first_refusal | self.first_refusal
        self.bytes_read += later.bytes_read


@dataclass(frozen=True)
class Summary:
    """What `prepare` did."""

    path: Path
    modality: str
    documents: int
    bytes: int
    refused: dict[str, tuple[int, int, str]]
    """By reason: (count, bytes, first example)."""
    notes: dict[str, int]
    """How many documents (or rows, files) a remark is about."""
    rule: str
    """What was held out: "whole groups", "the end of the corpus", "the inputs given for validation"."""
    splits: dict[str, dict[str, int]]
    """By name: {"documents": stretches of documents, "bytes": n}."""
    baselines: dict[str, Any]
    seconds: float


def prepare(
    inputs: Sequence[str | Path],
    modality: Modality,
    out: Path,
    *,
    val: float = 0.01,
    val_inputs: Sequence[str | Path] = (),
    field: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
    measure: bool = True,
) -> Summary:
    """Read `inputs`, write the dataset `out`; the same inputs and options give the same bytes whatever `workers`.

    `val`: fraction of the bytes to hold out, unless `val_inputs` says what. `field`: of JSONL and parquet rows.
    `progress(bytes read, total or None)`. `measure=False` leaves the baselines out. Raises InputError for input that
    cannot be used, BusyError and StorageError as `staged_folder` does.
    """
    began = time.monotonic()
    if not inputs or not 0 < val < 1:
        raise InputError("nothing to prepare" if not inputs else f"--val must be between 0 and 1, not {val}")
    account = Account()
    about: dict[str, Any] = {}
    manifest: dict[str, Any] = {"kind": "dataset"}
    with staged_folder(out, overwrite=overwrite, manifest=manifest) as folder:
        names = [*inputs, *val_inputs]
        units = _plan(names, len(inputs), modality, account)
        _refuse_too_large(out, units)
        writer = Writer(folder)
        first_val = None
        total = None if any(file.path is None for unit in units for file in unit) else sum(map(_size, units))
        tell = progress or (lambda done, total: None)
        for unit, done in _run(units, modality, field, folder, writer, workers, lambda n: tell(n, total)):
            if first_val is None and unit and unit[0].argument >= len(inputs):
                first_val = writer.documents
            done(account)
        _refuse_useless(names, account)
        shards = writer.close()
        rule, splits, files = make_split(folder, shards, val, first_val, modality.cut)
        if measure:
            about["baselines"] = _measure(folder, shards, modality)
        files |= writer.files
        about = {
            "format": FORMAT,
            "modality": modality.name,
            "input_table": None if modality.input_table is None else list(modality.input_table),
            "loss_weights": None if modality.loss_weights is None else list(modality.loss_weights),
            "options": {"val": val, "val_inputs": [shown(name) for name in val_inputs], "field": field},
            "documents": writer.documents,
            "bytes": writer.bytes,
            "split_rule": rule,
            "splits": splits,
            "refused": {k: dict(zip(("count", "bytes", "first"), v, strict=True)) for k, v in account.refused.items()},
            "notes": dict(account.notes),
            "baselines": about.get("baselines", {}),
            "files": dict(sorted(files.items())),
            "sources": account.sources,
        }
        write_json(folder / "dataset.json", about)
        manifest["files"] = files
    return Summary(
        path=Path(out),
        modality=modality.name,
        documents=writer.documents,
        bytes=writer.bytes,
        refused=account.refused,
        notes=dict(account.notes),
        rule=rule,
        splits=splits,
        baselines=about["baselines"],
        seconds=time.monotonic() - began,
    )


# --- planning ---------------------------------------------------------------------------------------------------------


def _plan(names: Sequence[str | Path], training: int, modality: Modality, account: Account) -> list[list[InputFile]]:
    """The files to read in units of consecutive ones, those to train on first. What is held out is not trained on."""
    files: list[InputFile] = []
    for argument, found in expand(names, modality):
        if isinstance(found, Refused):
            account.refuse(argument, found)
        else:
            files.append(found)
    held_out = {_identity(file) for file in files if file.argument >= training}
    units: list[list[InputFile]] = []
    size = 0
    for file in files:
        if file.argument < training and held_out and file.path is not None and _identity(file) in held_out:
            account.notes["files held out by --val-input, so not trained on"] += 1
            continue
        new_side = units and (units[-1][0].argument < training) != (file.argument < training)
        if not units or new_side or size + file.size > UNIT_BYTES or len(units[-1]) == UNIT_FILES:
            units.append([])
            size = 0
        units[-1].append(file)
        size += file.size
    return units


def _identity(file: InputFile) -> tuple[int, int] | None:
    try:
        status = os.stat(file.path) if file.path is not None else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status else None


def _size(unit: list[InputFile]) -> int:
    return sum(file.size for file in unit)


def _refuse_too_large(out: Path, units: list[list[InputFile]]) -> None:
    """Fail before hours of work where the disk cannot hold the inputs as they are."""
    needed, free = sum(map(_size, units)), free_bytes(Path(out))
    if needed > free:
        raise StorageError(
            f"disk full: {shown(out)} needs about {needed:,} bytes, {free:,} are free", "free some, or give --out"
        )


def _refuse_useless(names: Sequence[str | Path], account: Account) -> None:
    """Everything the user named must have given something."""
    for argument, given in enumerate(names):
        if not account.documents[argument]:
            name = "standard input" if str(given) == "-" else shown(given)
            why = account.first_refusal.get(argument, "it is empty, or holds nothing of the kind")
            raise InputError(f"nothing to use in {name}: {why}", "name other input, or another --modality")


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(
    files: list[InputFile],
    modality: Modality,
    rows_field: str | None,
    writer: Writer,
    advance: Callable[[int], None],
    sources_before: int,
) -> Account:
    """Documents of some files into `writer`."""
    account = Account()

    def count(size: int) -> None:
        account.bytes_read += size
        advance(size)

    for file in files:
        if not file.named and (gone := _unreadable(file)):
            account.refuse(file.argument, gone)
            continue
        reader = FileReader(file, count)
        index = sources_before + len(account.sources)
        for source in sources(reader, rows_field, account.notes):
            if isinstance(source, Refused):
                account.refuse(file.argument, source)
                continue
            for found in modality.documents(source):
                if isinstance(found, Refused):
                    account.refuse(file.argument, found)
                elif not found.data:
                    account.refuse(file.argument, Refused("empty", found.name))
                else:
                    name = found.source if found.name == found.source else f"{found.source}\t{found.name}"
                    writer.add(found.data, index, found.offset, name, found.group or source.group)
                    account.documents[file.argument] += 1
                    if found.notes:
                        account.notes.update(found.notes)
        account.sources.append(reader.finish())
    return account


def _unreadable(file: InputFile) -> Refused | None:
    """Why a file found in a folder a moment ago cannot be opened now."""
    if file.path is None:
        return None
    try:
        open_raw(file.path).close()
    except InputError as error:
        return Refused("vanished or unreadable", f"{file.name}: {error}", file.size)
    return None


def _run(
    units: list[list[InputFile]],
    modality: Modality,
    rows_field: str | None,
    folder: Path,
    writer: Writer,
    workers: int,
    tell: Callable[[int], None],
) -> Iterator[tuple[list[InputFile], Callable[[Account], None]]]:
    """Each unit in order, with a function that reads it into `writer` and adds what happened to an account.

    With several workers each reads units ahead into folders of its own, joined here in order: the same bytes result.
    """
    done = 0

    def here(unit: list[InputFile]) -> Callable[[Account], None]:
        def advance(size: int) -> None:
            nonlocal done
            done += size
            tell(done)

        return lambda account: account.merge(_read(unit, modality, rows_field, writer, advance, len(account.sources)))

    def from_worker(piece: Path, future: Future[Account]) -> Callable[[Account], None]:
        def join(account: Account) -> None:
            nonlocal done
            part = future.result()
            writer.absorb(piece, len(account.sources))
            shutil.rmtree(piece)
            account.merge(part)
            done += part.bytes_read
            tell(done)

        return join

    if workers <= 1 or len(units) <= 1:
        for unit in units:
            yield unit, here(unit)
        return
    # Spawned, not forked: the caller may have threads (progress bars, torch).
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)
    try:
        ahead: deque[tuple[list[InputFile], Callable[[Account], None]]] = deque()
        for number, unit in enumerate(units):
            if any(file.path is None for file in unit):
                ahead.append((unit, here(unit)))
            else:
                piece = folder / f"piece-{number}"
                ahead.append((unit, from_worker(piece, pool.submit(_work, unit, modality, rows_field, piece))))
            if len(ahead) > 2 * workers:
                yield ahead.popleft()
        yield from ahead
    except BrokenExecutor as error:
        raise EnvironmentLimit("a worker process died, perhaps for lack of memory", "use --workers 1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _work(unit: list[InputFile], modality: Modality, rows_field: str | None, piece: Path) -> Account:
    """In a worker: documents of some files into a folder of their own."""
    piece.mkdir()
    writer = Writer(piece)
    account = _read(unit, modality, rows_field, writer, lambda size: None, 0)
    writer.close()
    return account


def _ignore_interrupts() -> None:
    """Ctrl-C is the main process's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measure(folder: Path, shards: Shards, modality: Modality) -> dict[str, Any]:
    """Baselines of the split just made, on what the model will read."""
    table = np.memmap(folder / "documents.bin", "<i8", "r").reshape(-1, len(COLUMNS))
    parts = []
    for split, limit in (("train", TRAIN_LIMIT), ("val", VAL_LIMIT)):
        ranges = np.memmap(folder / f"split-{split}.bin", "<i8", "r").reshape(-1, 3)
        starts = table[ranges[:, 0], 0] + ranges[:, 1]
        data = sample(shards, starts, starts + ranges[:, 2], limit)
        parts.append(data if modality.input_table is None else data.translate(modality.input_table))
    return baselines(*parts)
