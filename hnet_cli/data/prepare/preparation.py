"""`prepare`: the user's inputs become a dataset, whole or not at all; in one go, or in parts that are joined."""

from __future__ import annotations

import contextlib
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
from hnet_cli.data.dataset import DATASET_FORMAT, counting, prompt_lengths
from hnet_cli.data.prepare import similar
from hnet_cli.data.prepare.journal import TOLERATED, Account, UnitJournal
from hnet_cli.data.prepare.planning import UNIT_BYTES, PrepareRequest, ReadingPlan, digest, make_plan
from hnet_cli.data.prepare.reading import UnitReader, read_all
from hnet_cli.data.prepare.rows import NO_ROWS, Field
from hnet_cli.data.prepare.split import make_split
from hnet_cli.data.prepare.store import TABLES, Writer, read_shards, stretches, table_rows
from hnet_cli.errors import DamagedError, InputError, StorageError, UsageError
from hnet_cli.modality import Modality
from hnet_cli.storage import LARGE, free_bytes, read_json, read_manifest, resumable_folder, verify_folder, write_json
from hnet_cli.storage.streams import shown

Progress = Callable[[int, int | None], None]
"""Called with the bytes read and their total, None if unknown."""
PART = "part.json"
MOST_PARTS = 1 << 16


@dataclass(frozen=True)
class Summary:
    """The outcome of `prepare`."""

    path: Path
    modality: str
    documents: int
    bytes: int
    refused: dict[str, tuple[int, int, str]]
    """By reason: (count, bytes, first example)."""
    notes: dict[str, int]
    """Number of documents (or rows, files) by remark."""
    seconds: float = 0.0
    rule: str = ""
    """Rule of the split: "whole groups", "the end of the corpus", "the inputs given for validation"; "" for a part."""
    groups: int = 0
    """Number of groups of documents; 0 where the user has named what is held out."""
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    """By name: {"documents": stretches of documents, "bytes": n}."""
    held_out: list[str] = field(default_factory=list)
    """Names of the first few held-out documents."""
    near_duplicates: dict[str, Any] = field(default_factory=dict)
    """Fields of `similar.Similar`."""
    baselines: dict[str, Any] = field(default_factory=dict)
    prompted: bool = False
    """True for rows of prompt and completion."""


@dataclass
class _Build:
    """A dataset, or part of one, while it is written."""

    target: Path
    work: Path
    writer: Writer
    files: dict[str, Any]
    """Entries of the manifest, collected."""

    def summary(self, modality: Modality, account: Account, **more: Any) -> Summary:
        counts = self.writer.documents, self.writer.bytes
        return Summary(self.target, modality.name, *counts, account.refused, dict(account.notes), **more)


@contextlib.contextmanager
def _build(target: Path, overwrite: bool, kind: str, modality: Modality) -> Iterator[_Build]:
    """A build in its work folder, which becomes `target` at the end. An interrupted one continues."""
    files: dict[str, Any] = {}
    builds: list[_Build] = []

    def worth_keeping() -> bool:
        return any(build.writer.bytes >= UNIT_BYTES for build in builds)

    manifest = {"kind": kind, "files": files}
    with resumable_folder(target, overwrite=overwrite, manifest=manifest, worth_keeping=worth_keeping) as work:
        builds.append(_Build(target, work, Writer(work / "done", modality.input_table), files))
        yield builds[0]


def prepare(
    inputs: Sequence[str | Path],
    modality: Modality,
    out: Path,
    *,
    val: float = 0.01,
    val_inputs: Sequence[str | Path] = (),
    field: Field = None,
    workers: int = 1,
    part: tuple[int, int] | None = None,
    tolerated: float = TOLERATED,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
    measure: bool = True,
) -> Summary:
    """Read `inputs`, write the dataset `out`; the same inputs and options give the same bytes whatever `workers`.

    Interrupted, even by a kill, it continues where it was when called again. `part` (i, n): only the i-th of n shares,
    into the folder `part_folder(out, ...)`, for `join`. `val`: fraction of the bytes to hold out, unless `val_inputs`
    are held out. `field`: of JSONL and parquet rows. `tolerated`: share of the input that may be damaged.
    `measure=False` leaves the baselines out. Raises InputError for input that cannot be used, BusyError and
    StorageError as `resumable_folder` does.
    """
    began = time.monotonic()
    shown_inputs, shown_val = (tuple(map(shown, names)) for names in (inputs, val_inputs))
    request = PrepareRequest(modality.name, shown_inputs, shown_val, val, field)
    target = part_folder(out, *part) if part else Path(out)
    with _build(target, overwrite, "dataset part" if part else "dataset", modality) as build:
        whole = make_plan([*inputs, *val_inputs], len(inputs), modality, field, work=shown(build.work.name))
        plan = whole.share(*part) if part else whole
        _refuse_too_large(target, plan, build.writer.folder)
        total = None if plan.streamed else plan.size
        keys, reader = plan.keys(request, modality), UnitReader(modality, field)
        account = read_all(
            plan.units, keys, reader, build.work, build.writer, workers, lambda done: progress(done, total)
        )
        if not part:
            whole.account.merge(account)
            summary = _finish(build, request, modality, whole.account, tolerated, measure)
        else:
            build.writer.close()
            about = {
                "format": DATASET_FORMAT,
                "part": part,
                "plan": whole.digest(request),
                "request": vars(request),
                "planned": whole.account.to_json(),
                "account": account.to_json(),
            }
            write_json(build.writer.folder / PART, about)
            build.files.update(build.writer.files)
            summary = build.summary(modality, account)
    return replace(summary, seconds=time.monotonic() - began)


def part_folder(out: Path, part: int, parts: int) -> Path:
    """The folder of part `part` of `parts` of the dataset `out`. Raises UsageError."""
    if not 1 <= part <= parts <= MOST_PARTS:
        raise UsageError(f"--part {part}/{parts}: there are parts 1 to {min(max(parts, 1), MOST_PARTS)}")
    return Path(out).with_name(f"{Path(out).name}.part-{part}-of-{parts}")


def whole_folder(part: Path) -> Path:
    """The dataset that a part belongs to, by the name of its folder."""
    return part.with_name(re.sub(r"\.part-\d+-of-\d+$", "", part.name))


def join(
    parts: Sequence[str | Path],
    out: Path,
    *,
    tolerated: float = TOLERATED,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
    measure: bool = True,
) -> Summary:
    """Join all parts into the dataset `out`: the same bytes as if it had been prepared in one go.

    Raises DamagedError naming the part that is missing, there twice, damaged, or of other inputs or options.
    """
    began = time.monotonic()
    ordered = _ordered([(Path(part), _about_part(Path(part))) for part in parts])
    request: PrepareRequest = ordered[0][1]["request"]
    modality = modalities.get(request.modality)
    account: Account = ordered[0][1]["planned"]
    keys = [digest(read_manifest(folder)) for folder, _ in ordered]
    total = sum(about["account"].bytes_read for _, about in ordered)
    with _build(Path(out), overwrite, "dataset", modality) as build:
        journal = UnitJournal(build.work)
        done = journal.replay(keys, build.writer, account)
        for (folder, about), key in list(zip(ordered, keys, strict=True))[done:]:
            verify_folder(folder)
            build.writer.absorb(folder, len(account.sources))
            share: Account = about["account"]
            journal.add(key, build.writer, share)
            account.merge(share)
            progress(account.bytes_read, total)
        summary = _finish(build, request, modality, account, tolerated, measure)
    return replace(summary, seconds=time.monotonic() - began)


def _about_part(folder: Path) -> dict[str, Any]:
    """Content of `part.json` of a part, whose manifest is read first."""
    if not folder.is_dir():
        raise InputError(f"no folder {shown(folder)}", "name the part folders that `hnet prepare --part` wrote")
    if (manifest := read_manifest(folder)).get("kind") != "dataset part":
        raise DamagedError(f"{shown(folder)} is not a part of a dataset", "name the folders of `hnet prepare --part`")
    if missing := [name for name in TABLES if name not in manifest["files"]]:
        raise DamagedError(f"{shown(folder)} lacks {missing[0]}: an older hnet made it", "prepare this part again")
    try:
        about = read_json(folder / PART, LARGE)
        if (version := about["format"]) != DATASET_FORMAT:
            raise DamagedError(
                f"{shown(folder)} has format {version!r:.40}; this version of hnet reads {DATASET_FORMAT}"
            )
        part, parts = about["part"]
        if not (type(part) is type(parts) is int and 1 <= part <= parts <= MOST_PARTS):
            raise ValueError
        about |= {name: Account.from_json(about[name]) for name in ("planned", "account")}
        about["request"] = PrepareRequest.from_json(about["request"])
        return about | {"part": (part, parts), "plan": str(about["plan"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{shown(folder / PART)} is missing or damaged", "prepare this part again") from error


def _ordered(given: list[tuple[Path, dict[str, Any]]]) -> list[tuple[Path, dict[str, Any]]]:
    """The parts in order. Raises DamagedError unless they are all of one dataset, each once."""
    first, about = given[0]
    parts = about["part"][1]
    by_number: dict[int, tuple[Path, dict[str, Any]]] = {}
    for folder, other in given:
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


def _finish(
    build: _Build, request: PrepareRequest, modality: Modality, account: Account, tolerated: float, measure: bool
) -> Summary:
    """Write the split, the baselines and the description of a dataset whose documents are written."""
    _refuse_useless(request, account)
    writer, training = build.writer, len(request.inputs)
    account.refuse_damage(writer.bytes, tolerated)
    writer.close()
    first_val = sum(count for argument, count in account.documents.items() if argument < training)
    prompted = any(prompt_lengths(rows).any() for rows in table_rows(writer.folder))
    cut = None if prompted else modality.cut
    split = make_split(writer.folder, writer.bytes, request.val, first_val if request.val_inputs else None, cut)
    bits = _measure(writer.folder, split.counts, modality, prompted) if measure else {}
    alike = similar.find(writer.folder, split.counts, modality.input_table)
    held_out = similar.first_names(writer.folder, "val")
    account.notes.update(split.notes)
    build.files.update(split.files, **writer.files)
    refused = {
        reason: {"count": count, "bytes": size, "first": first, "damaged": reason in account.damage}
        for reason, (count, size, first) in account.refused.items()
    }
    about = {
        "format": DATASET_FORMAT,
        "modality": modality.name,
        "input_table": None if modality.input_table is None else list(modality.input_table),
        "loss_weights": None if modality.loss_weights is None else list(modality.loss_weights),
        "options": {"val": request.val, "val_inputs": list(request.val_inputs), "field": request.field},
        "documents": writer.documents,
        "bytes": writer.bytes,
        "split_rule": split.rule,
        "groups": split.groups,
        "splits": split.counts,
        "held_out": held_out,
        "near_duplicates": vars(alike),
        "refused": refused,
        "notes": dict(account.notes),
        "baselines": bits,
        "files": dict(sorted(build.files.items())),
        "sources": account.sources,
    }
    write_json(writer.folder / "dataset.json", about)
    more: dict[str, Any] = {"rule": split.rule, "groups": split.groups, "splits": split.counts, "held_out": held_out}
    more |= {"near_duplicates": vars(alike), "baselines": bits, "prompted": prompted}
    return build.summary(modality, account, **more)


def _refuse_too_large(out: Path, plan: ReadingPlan, folder: Path) -> None:
    """Fail before hours of work where the disk cannot hold the files that are stored as they are; `folder` holds work
    done before."""
    there = sum(entry.stat().st_size for entry in os.scandir(folder))
    needed, free = plan.least_stored - there, free_bytes(Path(out))
    if needed > free:
        raise StorageError(
            f"disk full: {shown(out)} needs about {needed:,} bytes, {free:,} are free", "free some, or give --out"
        )


def _refuse_useless(request: PrepareRequest, account: Account) -> None:
    """Raise InputError, or UsageError about `--field`, for an input of the user's that gave no document."""
    training = len(request.inputs)
    sides = [
        sum(count for argument, count in account.documents.items() if (argument < training) == train)
        for train in (False, True)
    ]
    for argument, name in enumerate([*request.inputs, *request.val_inputs]):
        excused = argument in account.elsewhere and sides[argument < training]
        if not account.documents[argument] and not excused:
            why = account.first_refusal.get(argument, "it is empty, or holds nothing of the kind")
            called = "standard input" if name == "-" else name
            kind = UsageError if why.startswith(NO_ROWS) else InputError
            raise kind(f"nothing to use in {called}: {why}", "name other input, or another --modality")


def _measure(folder: Path, splits: dict[str, Any], modality: Modality, prompted: bool) -> dict[str, Any]:
    """Baselines of the split just made, on what the model will read, and of that on what counts."""
    limits = {"train": TRAIN_LIMIT, "val": VAL_LIMIT}

    def read(split: str, reader: Callable[[int, int], bytes]) -> bytes:
        ranges = ((part[:, 2], part[:, 3]) for part in stretches(folder, split))
        return sample(reader, ranges, splits[split]["bytes"], limits[split])

    def counts(start: int, end: int) -> bytes:
        inside = [rows[(rows[:, 0] < end) & (rows[:, 0] + rows[:, 1] > start)] for rows in table_rows(folder)]
        return counting(np.concatenate(inside), start, end)

    train, val = (read(split, partial(read_shards, folder)).translate(modality.input_table) for split in limits)
    counted = tuple(read(split, counts) for split in limits) if prompted else None
    return baselines(train, val, modality.letters(), counted)
