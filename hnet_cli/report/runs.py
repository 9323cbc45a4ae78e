"""`hnet runs`: the runs there are, at a glance; and several side by side. Without torch, and while they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from hnet_cli import provenance, storage
from hnet_cli.errors import InputError, UsageError
from hnet_cli.provenance import line
from hnet_cli.report import history
from hnet_cli.report.history import Glance, interpolated, series
from hnet_cli.report.sources import rows_of
from hnet_cli.report.stages import budget_rows
from hnet_cli.terminal.console import duration, fits, literal, say, size, table

ORDERS: dict[str, Callable[[Glance], Any]] = {
    "when": lambda run: -run.when,
    "name": lambda run: run.name,
    "bpb": lambda run: (run.bpb_best is None, run.bpb_best),
    "bytes": lambda run: -run.bytes,
    "speed": lambda run: -(run.bytes_per_s or 0),
}
SPARE = ("held out", "last", "worth", "speed", "seen", "preset", "when", "data")
"""Columns that a narrow terminal goes without, the first ones first; a name cut short is of no use to anybody."""
UNLIKE = (
    "[yellow]note:[/] these runs are validated on different bytes, so their bits per byte do not compare; "
    "hnet eval RUN RUN --data DATA measures two on the same"
)
MADE = ("hnet", "commit", "python", "torch", "device", "name", "threads", "kernels")
"""Keys of `made` that change the numbers of a run."""
SHARES = (0.25, 0.5, 1.0)
"""Shares of the bytes that all of the runs have seen at which their validations are compared."""


@dataclass(frozen=True)
class RunsShown:
    """The output of `hnet runs`, for people and for programs."""

    tables: list[Table]
    data: dict[str, Any]


def show(paths: Sequence[Path], sort: str = "when", out: Path | None = None, overwrite: bool = False) -> RunsShown:
    """The runs in folders, or the runs given; two or more of these are compared. `out` gets the page of them.

    Datasets and model folders among them are shown with what they were made with.

    Raises UsageError for an unknown order, InputError where there is no run, and what `storage.refuse_output` does.
    """
    if sort not in ORDERS:
        raise UsageError(f"runs cannot be sorted by {sort!r}", f"choose from {', '.join(ORDERS)}")
    paths = [_by_name(path) for path in paths]
    made = {path: about for path in paths if not history.is_run(path) and (about := provenance.of(path)) is not None}
    if made and len(made) == len(paths):
        if out is not None:
            raise UsageError("--out is a page of runs, and none are given", "leave it out, or name runs")
        return RunsShown([_facts(path, about) for path, about in made.items()], {"runs": [], "made": _for_json(made)})
    if made:
        shown = show([path for path in paths if path not in made], sort, out, overwrite)
        tables = [*shown.tables, *(_facts(path, about) for path, about in made.items())]
        return RunsShown(tables, shown.data | {"made": _for_json(made)})
    named = bool(paths) and all(map(history.is_run, paths))
    runs = [history.glance(path) for path in dict.fromkeys(_found(paths or [Path("runs")]))]
    if not named:
        runs.sort(key=ORDERS[sort])
        if sort == "bpb" and not _alike(runs):
            say(UNLIKE)
    usable = [run for run in runs if run.is_readable] or runs
    comparison = _Comparison(usable) if len(usable) > 1 and (named or out) else None
    if out is not None:
        _write(out, usable, comparison, overwrite)
    if named and comparison:
        _say_what_is_wrong([run for run in runs if run not in usable])
        return comparison.shown()
    if named and (with_what := line(runs[0].made)):
        say(f"[dim]made with {literal(with_what)}[/]")
    tables = [_list(runs)]
    if named:  # a single run
        of_run = rows_of(runs[0].sources), budget_rows(runs[0].budgets, runs[0].stages)
        tables += [_drawn(rows) for rows in of_run if len(rows) > 1]
    return RunsShown(tables, {"runs": [run.to_dict() for run in runs]})


def _facts(path: Path, about: Mapping[str, Any]) -> Table:
    facts = table("", "", title=f"[bold]{literal(storage.shown(path))}[/] was made with")
    facts.show_header = False
    facts.columns[1].justify = "left"
    for name, value in provenance.facts(about).items():
        facts.add_row(literal(name), literal(value))
    return facts


def _for_json(made: Mapping[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"path": storage.shown(path), "made": about} for path, about in made.items()]


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


def _list(runs: Sequence[Glance]) -> Table:
    """The table of runs, as many columns as fit; why runs are damaged or failed is said."""
    rows = [
        {
            "run": run.name,
            "preset": run.preset or "-",
            "data": _data(run),
            "step": f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else ""),
            "state": run.state,
            "seen": size(run.bytes),
            "held out": run.held_out or "-",
            "bits per byte": _bits(run.bpb_best),
            "last": _bits(run.bpb_last),
            "bytes/chunk": _chunks(run),
            "worth": _worth(run),
            "speed": f"{size(run.bytes_per_s)}/s" if run.bytes_per_s else "-",
            "when": f"{datetime.fromtimestamp(run.when):%Y-%m-%d %H:%M}" if run.when else "-",
        }
        for run in runs
    ]
    _say_what_is_wrong(runs)
    columns, spare = list(rows[0]), iter(SPARE)
    while True:
        made = table(*columns)
        made.columns[0].no_wrap = True
        for column in made.columns:
            column.justify = "left" if str(column.header) in ("run", "preset", "data", "state") else "right"
        for row in rows:
            made.add_row(*(literal(row[name]) for name in columns))
        if fits(made) or not (name := next(spare, "")):
            return made
        columns.remove(name)


def _drawn(table_rows: Sequence[Sequence[str]]) -> Table:
    """A table of a run, of which the first row is heads."""
    heads, *rows = table_rows
    made = table(*map(literal, heads))
    for row in rows:
        made.add_row(*map(literal, row))
    return made


def _alike(runs: Sequence[Glance]) -> bool:
    """All are validated on the same bytes."""
    return len({run.sample for run in runs if run.sample}) < 2


def _made(run: Glance, name: str) -> str:
    made = run.made or {}
    packages = made.get("packages")
    value = packages.get(name) if name == "torch" and isinstance(packages, dict) else made.get(name)
    return "-" if value in (None, "", {}) else str(value)[:200]


def _say_what_is_wrong(runs: Iterable[Glance]) -> None:
    for run in runs:
        if run.about and run.state != "running":
            say(f"[yellow]{literal(run.name)}:[/] {literal(run.about)}")


def _data(run: Glance) -> str:
    name = " + ".join(s.name for s in run.sources) or (Path(run.data).name if run.data else "-")
    return f"{name} ({run.modality})" if run.modality and run.modality != name else name


def _bits(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "-"


def _chunks(run: Glance) -> str:
    pairs = ((stage.bytes_per_chunk, stage.target_bytes_per_chunk) for stage in run.stages)
    return ", ".join(f"{reached:.2f}" + (f" of {target:.1f}" if target else "") for reached, target in pairs) or "-"


def _worth(run: Glance) -> str:
    return ", ".join(f"{stage.worth:.3f}" for stage in run.stages if stage.worth is not None) or "-"


class _Comparison:
    """Runs side by side."""

    def __init__(self, runs: Sequence[Glance]) -> None:
        names = [run.name for run in runs]
        self.runs = {str(run.path) if names.count(run.name) > 1 else run.name: run for run in runs}
        self.records = [history.read_metrics(run.path) for run in runs]
        self.differences = self._differences()
        self.alike = _alike(runs)
        self.at_equal_bytes = self._at_equal_bytes() if self.alike else []

    def shown(self) -> RunsShown:
        """The tables in order, those of one row left out."""
        tables = []
        if not self.alike:
            say(UNLIKE)
        for title, rows in self.tables().items():
            tables.append(table(*map(literal, rows[0]), title=f"[bold]{title}[/]"))
            for row in rows[1:]:
                tables[-1].add_row(*map(literal, row))
        data = {
            "runs": [run.to_dict() for run in self.runs.values()],
            "differences": self.differences,
            "bpb_at_equal_bytes": [{"bytes": count, "bpb": bits} for count, bits in self.at_equal_bytes],
        }
        return RunsShown(tables, data)

    def tables(self) -> dict[str, list[list[str]]]:
        """Rows of cells by title, the first of heads; a table of heads alone is left out."""
        runs, heads = list(self.runs.values()), ["", *self.runs]
        spent = [history.clock(records)(run.bytes) for records, run in zip(self.records, runs, strict=True)]
        figures = {
            "state": [run.state for run in runs],
            "step": [f"{run.step:,}" for run in runs],
            "seen": [size(run.bytes) for run in runs],
            "training time": [duration(seconds) for seconds in spent],
            "held out": [run.held_out or "-" for run in runs],
            "bits per byte, best": [_bits(run.bpb_best) for run in runs],
            "bits per byte, last": [_bits(run.bpb_last) for run in runs],
            "bytes per chunk": [_chunks(run) for run in runs],
            "worth of the chunks, bits per byte": [_worth(run) for run in runs],
        }
        if self.alike:
            of = [{source.name: source.bpb for source in run.sources} for run in runs]
            for name in dict.fromkeys(name for bits in of for name in bits):
                figures[f"bits per byte, last, {name}"] = [_bits(bits.get(name)) for bits in of]
            for budget in sorted({budget for run in runs for budget in run.budgets} - {1}):
                figures[f"bits per byte, last, at budget {budget:g}"] = [_bits(run.budgets.get(budget)) for run in runs]
        made = {name: [_made(run, name) for run in runs] for name in MADE}
        made = {name: row for name, row in made.items() if len(set(row)) > 1}
        at_equal_bytes = {size(count): [_bits(value) for value in bits] for count, bits in self.at_equal_bytes}
        tables = {
            "Settings that differ": self.differences,
            "Made with, where that differs": made,
            "Figures": figures,
            "Bits per byte at equal bytes": at_equal_bytes,
        }
        return {title: [heads, *([key, *row] for key, row in rows.items())] for title, rows in tables.items() if rows}

    def _differences(self) -> dict[str, list[str]]:
        configs = [
            _flat((history.read_config(run.path) or {}) | {"data": run.data or "-"}) for run in self.runs.values()
        ]
        keys = dict.fromkeys(key for config in configs for key in config if key not in ("description", "source"))
        values = {key: [config.get(key, "-") for config in configs] for key in keys}
        return {key: row for key, row in values.items() if len(set(row)) > 1}

    def _at_equal_bytes(self) -> list[tuple[float, list[float | None]]]:
        """Validation BPB of each run at `SHARES` of the bytes all of them have seen, interpolated."""
        curves = [series(records, "val_bpb") for records in self.records]
        if not all(xs for xs, _ in curves):
            return []
        places = [share * min(xs[-1] for xs, _ in curves) for share in SHARES]
        rows = [(place, [interpolated(xs, ys, place) for xs, ys in curves]) for place in places]
        return [(place, bits) for place, bits in rows if any(value is not None for value in bits)]


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: str(value)}
    return flat


def _write(out: Path, runs: Sequence[Glance], comparison: _Comparison | None, overwrite: bool) -> None:
    from hnet_cli.report import run_page

    if comparison is None:
        page = run_page.page(runs[0].path, out.parent)
    else:
        paths = {name: run.path for name, run in comparison.runs.items()}
        page = run_page.comparison(paths, comparison.tables(), out.parent)
    storage.write_output(out, page, overwrite)
    say(f"Wrote {literal(out)}.")
