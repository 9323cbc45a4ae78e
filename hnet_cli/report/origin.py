"""The origin of a run: its preset and what differs from it, data, versions, machine, seed, commands; and its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hnet_cli import provenance
from hnet_cli.config import presets, run
from hnet_cli.errors import HNetError
from hnet_cli.report import history
from hnet_cli.report.history import Glance
from hnet_cli.report.stages import number
from hnet_cli.terminal.console import size

FILES = ("config.yaml", "metrics.jsonl", "samples.jsonl", "events.jsonl", "log.txt")
MOST_CHANGES = 200
MODEL = ("hnet", "commit", "python", "packages", "system", "cpus", "threads", "device", "name", "kernels")
"""Keys of `provenance.facts` in the table, in order."""


@dataclass(frozen=True)
class Origin:
    """Rows for the page. Nothing in it is checked for more than its form."""

    facts: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    """Time and command of every session, the first one first."""
    changes: list[list[str]]
    """Settings that differ from the preset's, the first row of heads; of heads alone where none does or it is not
    known."""


def of(folder: Path, known: Glance, config: Mapping[str, Any]) -> Origin:
    """The origin of a run, as far as its folder says."""
    made = known.made or {}
    before = made.get("before")
    sessions = [made, *(before if isinstance(before, list) else [])]
    commands = [(str(about.get("time") or ""), str(about["command"])) for about in sessions if _has_command(about)]
    changes = _changes(config)
    facts = [*_choices(folder, known, config, changes), *_made(made)]
    heads = ["setting", f"preset {known.preset}", "this run"]
    return Origin(facts, commands[::-1], [heads, *changes[:MOST_CHANGES]] if changes else [heads])


def _has_command(about: Any) -> bool:
    return isinstance(about, Mapping) and isinstance(about.get("command"), str) and bool(about["command"])


def _choices(
    folder: Path, known: Glance, config: Mapping[str, Any], changes: list[list[str]] | None
) -> Iterator[tuple[str, str]]:
    if known.preset:
        n = len(changes or ())
        told = "" if changes is None else f", {n} setting{'s' * (n != 1)} changed" if n else ", as it stands"
        yield "preset", known.preset + told
    if known.data:
        yield "data", ", ".join([known.data, *_dataset(history.dataset_of(folder, dict(config)))])
    train = config.get("train")
    seed = train.get("seed") if isinstance(train, Mapping) else None
    if isinstance(seed, int):
        yield "seed", str(seed)[: history.LONGEST_WORD]


def _dataset(dataset: Mapping[str, Any]) -> Iterator[str]:
    splits, fingerprint = dataset.get("splits"), dataset.get("fingerprint")
    for name in ("train", "val"):
        split = splits.get(name) if isinstance(splits, Mapping) else None
        if isinstance(split, Mapping) and (count := number(split.get("bytes"))) is not None and count >= 0:
            yield f"{name} {size(count)}"
    if isinstance(fingerprint, str):
        yield f"fingerprint {fingerprint[:16]}"


def _made(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    facts = provenance.facts(made)
    for key in MODEL:
        if key in facts:
            yield ("machine" if key == "name" else key), facts[key]


def _changes(config: Mapping[str, Any]) -> list[list[str]] | None:
    """Name, value of the preset and value of the run of every setting that differs; None where the preset of that name
    is not one of ours, or the configuration is none."""
    name = config.get("name")
    if not isinstance(name, str) or name not in presets.shipped():
        return None
    try:
        shipped, own = run.resolve(name), run.resolve_data(config, "config.yaml")
    except (HNetError, RecursionError):
        return None
    return [[key, _word(one), _word(other)] for key, (one, other) in run.differences(shipped, own).items()]


def _word(value: Any) -> str:
    return "-" if value is None else str(value)[: history.LONGEST_WORD]


def links(folder: Path, at: Path, names: Sequence[str] = FILES) -> list[tuple[str, str]]:
    """Name and relative address, from a page in the folder `at`, of the files of a run that are there; its newest
    checkpoint too."""
    try:
        way = os.path.relpath(folder.resolve(), at.resolve())
    except (OSError, ValueError):  # another drive
        return []
    newest = history.newest(folder)
    there = [name for name in names if (folder / name).is_file()]
    there += [f"checkpoints/{newest}"] * (
        newest != "" and names is FILES and (folder / "checkpoints" / newest).is_dir()
    )
    return [(name, "./" + quote(os.fsencode(Path(way, name).as_posix()))) for name in there]
