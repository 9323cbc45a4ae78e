"""`hnet runs`: the runs there are, at a glance; and several side by side. Without torch, and while they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from hnet_cli import storage
from hnet_cli.errors import InputError, UsageError
from hnet_cli.report import history
from hnet_cli.report.history import Glance, interpolated, series
from hnet_cli.terminal.console import duration, fits, literal, say, size, table

Rows = list[list[str]]
ORDERS: dict[str, Callable[[Glance], Any]] = {
    "when": lambda run: -run.when,
    "name": lambda run: run.name,
    "bpb": lambda run: (run.bpb_best is None, run.bpb_best),
    "bytes": lambda run: -run.bytes,
    "speed": lambda run: -(run.bytes_per_s or 0),
}
SPARE = ("last", "speed", "seen", "preset", "when", "data")
"""Columns that a narrow terminal goes without, the first ones first; a name cut short is of no use to anybody."""
SHARES = (0.25, 0.5, 1.0)
"""Of the bytes that all of the runs have seen: where their validations are compared."""
PLACES = 3


@dataclass(frozen=True)
class Shown:
    """What `hnet runs` has to say, for people and for programs."""

    tables: list[Table]
    data: dict[str, Any]


def show(paths: Sequence[Path], sort: str = "when", out: Path | None = None) -> Shown:
    """The runs in folders, or the runs given; two or more of these are compared. `out` gets the page of them.

    Raises UsageError for an unknown order, InputError where there is no run.
    """
    if sort not in ORDERS:
        raise UsageError(f"runs cannot be sorted by {sort!r}", f"choose from {', '.join(ORDERS)}")
    paths = [_by_name(path) for path in paths]
    named = bool(paths) and all(map(history.is_run, paths))
    found = list(dict.fromkeys(_found(paths or [Path("runs")])))
    listed = [history.glance(path) for path in found]
    if not named:
        listed.sort(key=ORDERS[sort])
    shown = _compared(listed) if named and len(listed) > 1 else _listed(listed)
    if out is not None:
        _write(out, listed)
    return shown


def _by_name(path: Path) -> Path:
    """The run of that name in runs/ where there is nothing of that name here: so the list calls it."""
    listed = Path("runs") / path
    return listed if not path.exists() and history.is_run(listed) else path


def _found(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if history.is_run(path):
            yield path
            continue
        if not path.is_dir() and path != Path("runs"):
            raise InputError(f"there is no run at {path}", "give run folders, or folders that hold some")
        if not (below := history.find(path)):
            raise InputError(f"there are no runs in {path}", "`hnet train` makes one")
        yield from below


def _listed(runs: Sequence[Glance]) -> Shown:
    columns = {
        "run": [run.name for run in runs],
        "preset": [run.preset or "-" for run in runs],
        "data": [_data(run) for run in runs],
        "step": [f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else "") for run in runs],
        "state": [run.state for run in runs],
        "seen": [size(run.bytes) for run in runs],
        "bits per byte": [_bits(run.bpb_best) for run in runs],
        "last": [_bits(run.bpb_last) for run in runs],
        "bytes/chunk": [_chunks(run) for run in runs],
        "speed": [f"{size(run.bytes_per_s)}/s" if run.bytes_per_s else "-" for run in runs],
        "when": [f"{datetime.fromtimestamp(run.when):%Y-%m-%d %H:%M}" if run.when else "-" for run in runs],
    }
    made = _table(columns)
    for column in SPARE:
        if not fits(made):
            del columns[column]
            made = _table(columns)
    for run in runs:
        if run.state == "damaged":
            say(f"[yellow]{literal(run.name)}:[/] {literal(run.about)}")
    return Shown([made], {"runs": [run.to_dict() for run in runs]})


def _table(columns: dict[str, list[str]]) -> Table:
    made = table(*columns)
    made.columns[0].no_wrap = True
    for column in made.columns:
        column.justify = "left" if column.header in ("run", "preset", "data", "state") else "right"
    for row in zip(*columns.values(), strict=True):
        made.add_row(*map(literal, row))
    return made


def _data(run: Glance) -> str:
    name = Path(run.data).name if run.data else "-"
    return f"{name} ({run.modality})" if run.modality and run.modality != name else name


def _bits(value: float | None) -> str:
    return f"{value:.{PLACES}f}" if value is not None else "-"


def _chunks(run: Glance) -> str:
    parts = (f"{reached:.2f}" + (f" of {target:.1f}" if target else "") for reached, target in run.stages)
    return ", ".join(parts) or "-"


# -- side by side ------------------------------------------------------------------------------------------------------


def _names(runs: Sequence[Glance]) -> list[str]:
    """Short names; the whole path where two runs have the same."""
    short = [run.name for run in runs]
    return [str(run.path) if short.count(run.name) > 1 else run.name for run in runs]


def _compared(runs: Sequence[Glance]) -> Shown:
    grids = {
        "Settings that differ": _differences(runs),
        "Figures": _figures(runs),
        "Bits per byte at equal bytes": _at(runs),
    }
    data = {
        "runs": [run.to_dict() for run in runs],
        "differences": {row[0]: row[1:] for row in grids["Settings that differ"][1:]},
        "bpb_at_equal_bytes": [{"bytes": count, "bpb": bits} for count, bits in _at_equal_bytes(runs)],
    }
    tables = []
    for title, rows in grids.items():
        if len(rows) > 1:
            made = table(*map(literal, rows[0]), title=f"[bold]{title}[/]")
            for row in rows[1:]:
                made.add_row(*map(literal, row))
            tables.append(made)
    return Shown(tables, data)


def _flat(config: dict[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: str(value)}
    return flat


def _differences(runs: Sequence[Glance]) -> Rows:
    configs = [_flat(history.read_config(run.path) or {}) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config if key not in ("description", "source"))
    values = {key: [config.get(key, "-") for config in configs] for key in keys}
    return [["", *_names(runs)], *([key, *row] for key, row in values.items() if len(set(row)) > 1)]


def _figures(runs: Sequence[Glance]) -> Rows:
    spent = [history.clock(history.read_metrics(run.path))(run.bytes) for run in runs]
    return [
        ["", *_names(runs)],
        ["state", *(run.state for run in runs)],
        ["step", *(f"{run.step:,}" for run in runs)],
        ["seen", *(size(run.bytes) for run in runs)],
        ["training time", *(duration(seconds) for seconds in spent)],
        ["bits per byte, best", *(_bits(run.bpb_best) for run in runs)],
        ["bits per byte, last", *(_bits(run.bpb_last) for run in runs)],
        ["bytes per chunk", *(_chunks(run) for run in runs)],
    ]


def _at_equal_bytes(runs: Sequence[Glance]) -> list[tuple[float, list[float | None]]]:
    """Validation BPB of each run at shares of the bytes all of them have seen, between two validations interpolated."""
    curves = [series(history.read_metrics(run.path), "val_bpb") for run in runs]
    if not all(xs for xs, _ in curves):
        return []
    common = min(xs[-1] for xs, _ in curves)
    found = [(share * common, [interpolated(xs, ys, share * common) for xs, ys in curves]) for share in SHARES]
    return [(count, bits) for count, bits in found if any(value is not None for value in bits)]


def _at(runs: Sequence[Glance]) -> Rows:
    return [["", *_names(runs)], *([size(count), *map(_bits, bits)] for count, bits in _at_equal_bytes(runs))]


def _write(out: Path, runs: Sequence[Glance]) -> None:
    from hnet_cli.report import run_page as report

    if len(runs) == 1:
        report.write(runs[0].path, out)
    else:
        grids = [("Figures", _figures(runs)), ("Bits per byte at equal bytes", _at(runs)),
                 ("Settings that differ", _differences(runs))]  # fmt: skip
        page = report.comparison([run.path for run in runs], _names(runs), [g for g in grids if len(g[1]) > 1])
        storage.write_text(out, page)
    say(f"Wrote {literal(out)}.")
