"""`prepare`: the user's inputs become a dataset, whole or not at all; in one go, or in parts that are joined."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli import modality as modalities
from hnet_cli.data.baselines import TRAIN_LIMIT, VAL_LIMIT, baselines, sample
from hnet_cli.data.dataset import FORMAT
from hnet_cli.data.prepare.account import TOLERATED, Account
from hnet_cli.data.prepare.journal import Journal
from hnet_cli.data.prepare.planning import UNIT_BYTES, Plan, Request, digest, make_plan
from hnet_cli.data.prepare.reading import How, read_all
from hnet_cli.data.prepare.split import make_split
from hnet_cli.data.prepare.store import Writer, read_shards, table_rows
from hnet_cli.errors import DamagedError, InputError, StorageError, UsageError
from hnet_cli.modality import Modality
from hnet_cli.storage import free_bytes, read_manifest, resumable_folder, verify_folder, write_json
from hnet_cli.storage.streams import shown

Progress = Callable[[int, int | None], None]
PART = "part.json"


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
    seconds: float = 0.0
    rule: str = ""
    """What was held out: "whole groups", "the end of the corpus", "the inputs given for validation"; "" for a part."""
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    """By name: {"documents": stretches of documents, "bytes": n}."""
    baselines: dict[str, Any] = field(default_factory=dict)


def prepare(
    inputs: Sequence[str | Path],
    modality: Modality,
    out: Path,
    *,
    val: float = 0.01,
    val_inputs: Sequence[str | Path] = (),
    field: str | None = None,
    workers: int = 1,
    part: tuple[int, int] | None = None,
    tolerated: float = TOLERATED,
    overwrite: bool = False,
    progress: Progress | None = None,
    measure: bool = True,
) -> Summary:
    """Read `inputs`, write the dataset `out`; the same inputs and options give the same bytes whatever `workers`.

    Interrupted, even by a kill, it goes on where it was when called again. `part` (i, n): only the i-th of n shares,
    into the folder `part_folder(out, ...)`, for `join`. `val`: fraction of the bytes to hold out, unless `val_inputs`
    says what. `field`: of JSONL and parquet rows. `tolerated`: share of the input that may be damaged.
    `progress(bytes read, total or None)`. `measure=False` leaves the baselines out. Raises InputError for input that
    cannot be used, BusyError and StorageError as `resumable_folder` does.
    """
    began = time.monotonic()
    request = Request.of(modality, inputs, val_inputs, val, field)
    target = part_folder(out, *part) if part else Path(out)
    with _dataset_folder(target, overwrite, "dataset part" if part else "dataset") as (work, writer, files):
        whole = make_plan([*inputs, *val_inputs], len(inputs), modality)
        plan = whole.share(*part) if part else whole
        _refuse_too_large(target, plan, writer.folder)
        total = None if plan.streamed else plan.size
        tell = progress or (lambda done, total: None)
        read = read_all(
            plan.units, plan.keys(request, modality), How(modality, field), work, writer, workers,
            lambda done: tell(done, total),
        )  # fmt: skip
        if not part:
            whole.account.merge(read)
            summary = _finish(target, request, modality, writer, files, whole.account, tolerated, measure)
        else:
            writer.close()
            about = {
                "format": FORMAT,
                "part": part,
                "plan": whole.digest(request),
                "request": vars(request),
                "planned": whole.account.to_json(),
                "account": read.to_json(),
            }
            write_json(writer.folder / PART, about)
            files.update(writer.files)
            summary = _summary(target, modality, writer, read)
    return replace(summary, seconds=time.monotonic() - began)


def part_folder(out: Path, part: int, parts: int) -> Path:
    """Where part `part` of `parts` of the dataset `out` is written."""
    if not 1 <= part <= parts:
        raise UsageError(f"--part {part}/{parts}: there are parts 1 to {max(parts, 1)}")
    return Path(out).with_name(f"{Path(out).name}.part-{part}-of-{parts}")


def whole_folder(part: Path) -> Path:
    """The dataset that a part, by the name of its folder, is of."""
    return part.with_name(re.sub(r"\.part-\d+-of-\d+$", "", part.name))


def join(
    parts: Sequence[str | Path],
    out: Path,
    *,
    tolerated: float = TOLERATED,
    overwrite: bool = False,
    progress: Progress | None = None,
    measure: bool = True,
) -> Summary:
    """Make the dataset `out` of all its parts: the same bytes as if it had been prepared in one go.

    Raises DamagedError naming the part that is missing, there twice, damaged, or of other inputs or options.
    """
    began = time.monotonic()
    found = _ordered([(Path(part), _about_part(Path(part))) for part in parts])
    request = Request.from_json(found[0][1]["request"])
    modality = modalities.get(request.modality)
    account = Account.from_json(found[0][1]["planned"])
    keys = [digest(read_manifest(folder)) for folder, _ in found]
    total = sum(about["account"]["bytes_read"] for _, about in found)
    with _dataset_folder(Path(out), overwrite, "dataset") as (work, writer, files):
        journal = Journal(work / "journal.jsonl")
        done = journal.replay(keys, writer, account)
        writer.remove_others()
        for (folder, about), key in list(zip(found, keys, strict=True))[done:]:
            verify_folder(folder)
            writer.absorb(folder, len(account.sources))
            share = Account.from_json(about["account"])
            journal.add(key, writer, share)
            account.merge(share)
            if progress:
                progress(account.bytes_read, total)
        summary = _finish(Path(out), request, modality, writer, files, account, tolerated, measure)
    return replace(summary, seconds=time.monotonic() - began)


def _about_part(folder: Path) -> dict[str, Any]:
    """`part.json` of a part, whose manifest is read first."""
    if not folder.is_dir():
        raise InputError(f"no folder {shown(folder)}", "name the part folders that `hnet prepare --part` wrote")
    if read_manifest(folder).get("kind") != "dataset part":
        raise DamagedError(f"{shown(folder)} is not a part of a dataset", "name the folders of `hnet prepare --part`")
    try:
        about = json.loads((folder / PART).read_bytes())
        if about["format"] != FORMAT:
            raise DamagedError(f"{shown(folder)} has format {about['format']!r}; this version of hnet reads {FORMAT}")
        part, parts = about["part"]
        return about | {"part": (int(part), int(parts))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{shown(folder / PART)} is missing or damaged", "prepare this part again") from error


def _ordered(found: list[tuple[Path, dict[str, Any]]]) -> list[tuple[Path, dict[str, Any]]]:
    """The parts in order. Raises DamagedError unless they are all of one dataset, each once."""
    first, about = found[0]
    parts = about["part"][1]
    by_number: dict[int, tuple[Path, dict[str, Any]]] = {}
    for folder, other in found:
        number, others = other["part"]
        if (other["plan"], others) != (about["plan"], parts):
            raise DamagedError(
                f"{shown(folder)} and {shown(first)} are not parts of one dataset: inputs or options differ",
                "prepare all parts with the same command but for --part",
            )
        if number in by_number:
            twins = f"{shown(by_number[number][0])}, {shown(folder)}"
            raise DamagedError(f"part {number} of {parts} is there twice: {twins}", "leave one out")
        by_number[number] = folder, other
    if missing := [str(number) for number in range(1, parts + 1) if number not in by_number]:
        raise DamagedError(f"part {', '.join(missing)} of {parts} is missing", "prepare it, then join again")
    return [by_number[number] for number in sorted(by_number)]


# --- finishing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _dataset_folder(target: Path, overwrite: bool, kind: str) -> Iterator[tuple[Path, Writer, dict[str, Any]]]:
    """The work folder, the writer in it, and the dictionary that collects manifest entries; `target` at the end."""
    files: dict[str, Any] = {}
    manifest = {"kind": kind, "files": files}
    writer: Writer | None = None

    def worth_keeping() -> bool:
        return writer is not None and writer.bytes >= UNIT_BYTES

    with resumable_folder(target, overwrite=overwrite, manifest=manifest, worth_keeping=worth_keeping) as work:
        writer = Writer(work / "done")
        yield work, writer, files


def _finish(
    target: Path,
    request: Request,
    modality: Modality,
    writer: Writer,
    files: dict[str, Any],
    account: Account,
    tolerated: float,
    measure: bool,
) -> Summary:
    """Split, baselines and description of a dataset whose documents are written."""
    _refuse_useless(request, account)
    account.refuse_damage(writer.bytes, tolerated)
    folder, training = writer.folder, len(request.inputs)
    writer.close()
    first_val = sum(count for argument, count in account.documents.items() if argument < training)
    rule, splits, tables = make_split(
        folder, writer.bytes, request.val, first_val if request.val_inputs else None, modality.cut
    )
    bits = _measure(folder, splits, modality) if measure else {}
    files.update(tables, **writer.files)
    refused = {
        reason: dict(zip(("count", "bytes", "first"), entry, strict=True)) | {"damaged": reason in account.damage}
        for reason, entry in account.refused.items()
    }
    about = {
        "format": FORMAT,
        "modality": modality.name,
        "input_table": None if modality.input_table is None else list(modality.input_table),
        "loss_weights": None if modality.loss_weights is None else list(modality.loss_weights),
        "options": {"val": request.val, "val_inputs": list(request.val_inputs), "field": request.field},
        "documents": writer.documents,
        "bytes": writer.bytes,
        "split_rule": rule,
        "splits": splits,
        "refused": refused,
        "notes": dict(account.notes),
        "baselines": bits,
        "files": dict(sorted(files.items())),
        "sources": account.sources,
    }
    write_json(folder / "dataset.json", about)
    return replace(_summary(target, modality, writer, account), rule=rule, splits=splits, baselines=bits)


def _summary(target: Path, modality: Modality, writer: Writer, account: Account) -> Summary:
    return Summary(target, modality.name, writer.documents, writer.bytes, account.refused, dict(account.notes))


def _refuse_too_large(out: Path, plan: Plan, folder: Path) -> None:
    """Fail before hours of work where the disk cannot hold the inputs as they are; `folder`: what was done before."""
    there = sum(entry.stat().st_size for entry in os.scandir(folder))
    needed, free = plan.size - there, free_bytes(Path(out))
    if needed > free:
        raise StorageError(
            f"disk full: {shown(out)} needs about {needed:,} bytes, {free:,} are free", "free some, or give --out"
        )


def _refuse_useless(request: Request, account: Account) -> None:
    """Everything the user named must have given something."""
    for argument, name in enumerate([*request.inputs, *request.val_inputs]):
        if not account.documents[argument]:
            why = account.first_refusal.get(argument, "it is empty, or holds nothing of the kind")
            called = "standard input" if name == "-" else name
            raise InputError(f"nothing to use in {called}: {why}", "name other input, or another --modality")


def _measure(folder: Path, splits: dict[str, Any], modality: Modality) -> dict[str, Any]:
    """Baselines of the split just made, on what the model will read."""
    parts = []
    for split, limit in (("train", TRAIN_LIMIT), ("val", VAL_LIMIT)):
        data = sample(partial(read_shards, folder), _stretches(folder, split), splits[split]["bytes"], limit)
        parts.append(data if modality.input_table is None else data.translate(modality.input_table))
    return baselines(*parts)


def _stretches(folder: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where the stretches of a split begin and end in the shards, in parts."""
    parts = table_rows(folder, f"split-{split}.bin", 3)
    waiting, seen = next(parts), 0
    for table in table_rows(folder):
        while waiting[-1, 0] < seen + len(table) and (more := next(parts, None)) is not None:
            waiting = np.concatenate([waiting, more])
        here = int(np.searchsorted(waiting[:, 0], seen + len(table)))
        if here:
            starts = table[waiting[:here, 0] - seen, 0] + waiting[:here, 1]
            yield starts, starts + waiting[:here, 2]
        waiting, seen = waiting[here:], seen + len(table)
        if not len(waiting):
            break
