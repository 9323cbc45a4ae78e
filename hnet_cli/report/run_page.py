"""`report.html`: a run on one page, as far as it has come. And several runs on one page, to compare them.

Everything is read from the run folder; records that a run of another version does not have are left out of the page.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

from hnet_cli import storage
from hnet_cli.inference.render import shower, whole_characters
from hnet_cli.pages import html
from hnet_cli.pages.html import visible
from hnet_cli.pages.plot import AXES, Chart, Line, Mark, chart, heat_map, look, smoothed
from hnet_cli.report import history, origin
from hnet_cli.report.history import Glance, Record, Sample, Sketch, series
from hnet_cli.report.sources import rows_of, source_key, sources_of
from hnet_cli.report.stages import (
    LEAST_WORTH,
    VALIDATION,
    StageFigures,
    budget_rows,
    number,
    number_of_stages,
    stage_key,
    stages_of,
)
from hnet_cli.terminal.console import duration, size

FILE_NAME = "report.html"
MOST_FRAMES = 60
"""Evaluations whose chunks and samples are kept in the page: the first, the last, and as many between them."""
MOST_ROWS, MOST_STEPS = 40, 300
MOST_CURVES = 96
"""Parts of a model whose gradient norm is drawn, and levels whose learning rate is."""
OF_BUDGETS = "; training with chunks of all budgets, validation with those of budget 1"
MOST_NAMED = 4
"""Runs that the heading of a page of several names; the legends name them all."""


def write(run: Path, every: float | None = None) -> Path:
    """Write the report of a run, `report.html` in its folder; return its path. Raises StorageError.

    `every`: seconds until it is written anew, where it is: while the run lives, the page follows it.
    """
    storage.write_text(run / FILE_NAME, page(run, every=every))
    return run / FILE_NAME


@dataclass(frozen=True)
class Curves:
    """The records of a run, ready to draw."""

    records: Sequence[Record]
    seconds: Callable[[float], float]
    """Training time after a number of bytes."""

    @cached_property
    def stages(self) -> int:
        return number_of_stages(self.records)

    @staticmethod
    def of(run: Path) -> Curves:
        """The curves of a run folder."""
        records = history.read_metrics(run)
        return Curves(records, history.clock(records))

    def line(self, key: str, label: str, colour: int = 0, style: str = "solid", smooth: bool = False) -> Line:
        """The values under a key of the records."""
        bytes_seen, values = series(self.records, key)
        xs = {"bytes": bytes_seen, "time": [self.seconds(x) for x in bytes_seen]}
        return Line(label, xs, smoothed(values) if smooth else values, colour, style)

    def noisy(self, key: str, label: str, colour: int = 0) -> list[Line]:
        """A curve of single batches: as it is, faintly, and smoothed."""
        each = replace(self.line(key, f"{label}, one batch", colour, "faint"), of=label)
        return [each, self.line(key, label, colour, smooth=True)]

    def points(self, key: str, label: str, colour: int = 0) -> list[Line]:
        """A curve of validations: points, joined."""
        dots = self.line(key, label, colour, "dots")
        return [dots, replace(dots, label="", style="faint", of=label)]

    @cached_property
    def ends(self) -> dict[str, float]:
        """The end of the run, so far, on every axis."""
        last = max((float(record["bytes"]) for record in self.records), default=0.0)
        return {"bytes": last, "time": self.seconds(last)}

    def steps(self) -> list[tuple[int, float, float]]:
        """Steps with their bytes and seconds, ascending, `MOST_STEPS` or so of them."""
        every = max(1, len(self.records) // MOST_STEPS)
        known: list[tuple[int, float, float]] = []
        for record in [*self.records[::every], *self.records[-1:]]:
            step, seen = history.step_of(record), float(record["bytes"])
            if step > (known[-1][0] if known else 0) and math.isfinite(seconds := self.seconds(seen)):
                known.append((step, seen, round(seconds, 3)))
        return known

    def target(self, key: str) -> dict[str, float]:
        """The last value under a key, as a level of a chart."""
        _, values = series(self.records, key)
        return {"target": values[-1]} if values else {}


def page(run: Path, at: Path | None = None, every: float | None = None) -> str:
    """The report as HTML. `at`: the folder of the page, from which it links to the run's files; else the run's.
    `every`: of `write`."""
    curves, known, config = Curves.of(run), history.glance(run), history.read_config(run) or {}
    last = history.last_validation(curves.records)
    baselines = history.beside(last, history.dataset_of(run, config))
    events = history.read_events(run, curves.records)
    marks = [
        Mark(
            {"bytes": event.bytes, "time": curves.seconds(event.bytes)},
            f"step {event.step}, {event.kind}" + (f": {event.text}" if event.text else ""),
            event.kind,
        )
        for event in events or ()
    ]
    sections = {
        "How well it predicts": _prediction(curves, baselines, known.held_out, history.has_budgets(config)),
        "Where it puts boundaries": _boundaries(curves),
        "How it learns": _learning(curves),
    }
    written = datetime.fromtimestamp(known.when, UTC).strftime("%Y-%m-%d %H:%M UTC") if known.when else ""
    facts = (known.preset and f"preset {known.preset}", known.modality, known.data, written)
    made = origin.of(run, known, config)
    return html.page(
        "report.html",
        run=known,
        facts=[fact for fact in facts if fact],
        links=origin.links(run, at or run),
        every=every if known.state == "running" else None,
        now=time.time(),
        made=made,
        steps=curves.steps(),
        tile_rows=list(_tiles(known, curves, baselines)),
        source_rows=rows_of(known.sources),
        budget_rows=budget_rows(known.budgets, known.stages),
        has_records=bool(curves.records),
        sections={title: _drawn(charts, marks, curves.ends) for title, charts in sections.items()},
        samples=_spread(history.read_samples(run)),
        draw=drawn,
        events=events,
        event_rows=[
            ["step", "seen", "event", ""],
            *([f"{e.step:,}", size(e.bytes), e.kind, e.text] for e in (events or [])[-MOST_ROWS:]),
        ],
        most_rows=MOST_ROWS,
        evaluations=_evaluations(curves),
    )


def _drawn(charts: Iterable[Chart | Markup], marks: Sequence[Mark], ends: Mapping[str, float]) -> list[Markup]:
    """The figures of charts, with `marks` and common `ends`, that are not empty."""
    figures = (
        figure if isinstance(figure, Markup) else chart(replace(figure, marks=marks, ends=ends)) for figure in charts
    )
    return [figure for figure in figures if figure]


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """At most `MOST_FRAMES` of the samples, evenly spread from the first to the last."""
    shown = min(MOST_FRAMES, len(samples))
    return [samples[round(n * (len(samples) - 1) / max(1, shown - 1))] for n in range(shown)]


def _tiles(known: Glance, curves: Curves, baselines: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Name, value and remark of the figures at the top."""
    yield "step", f"{known.step:,}", f"of {known.steps:,}" if known.steps else ""
    if known.bpb_best is not None:
        beside = ", ".join(f"{name} {bits:.3f}" for name, bits in baselines.items()) or "no baselines"
        yield "validation", f"{known.bpb_best:.3f}", f"bits per byte, the best; {beside}; on {known.held_out} held out"
    for s, stage in enumerate(known.stages):
        target = f"target {stage.target_bytes_per_chunk:.1f}" if stage.target_bytes_per_chunk else ""
        yield f"bytes per chunk{_of_stage(s, len(known.stages))}", f"{stage.bytes_per_chunk:.2f}", target
        if stage.worth is not None:
            yield f"worth of the chunks{_of_stage(s, len(known.stages))}", f"{stage.worth:.3f}", _of_worth(stage)
    yield "seen", size(known.bytes), "of training data"
    if seconds := curves.seconds(known.bytes):
        yield "training", duration(seconds), f"{size(known.bytes / seconds)}/s on average"


def _of_worth(stage: StageFigures) -> str:
    known = stage.worth_low is not None and stage.worth_high is not None
    around = f" (95%: {stage.worth_low:.3f} to {stage.worth_high:.3f})" if known else ""
    nothing = f"; less than {LEAST_WORTH}: they are not used" if (stage.worth or 0) < LEAST_WORTH else ""
    return f"bits per byte lost without what they carry{around}{nothing}"


def _of_stage(s: int, stages: int) -> str:
    return f", stage {s}" if stages > 1 else ""


def _prediction(curves: Curves, baselines: Mapping[str, float], held_out: str, budgets: bool) -> Iterator[Chart]:
    lines = [*curves.noisy("bpb", "training"), *curves.points("val_bpb", "validation", 1)]
    note = f"lower is better; validation{' and levels' * bool(baselines)} on {held_out} held out" if held_out else ""
    note = f"{note or 'lower is better'}{OF_BUDGETS * budgets}"
    yield Chart("Bits per byte", lines, note, baselines)
    if sources := sources_of(history.last_validation(curves.records)):
        keys = [(VALIDATION + source_key("bpb", source.name), source.name) for source in sources]
        each = [curves.line(key, name, *look(n)) for n, (key, name) in enumerate(keys)]
        lines = [*curves.points("val_bpb", "all, in their shares", 1), *each]
        yield Chart("Bits per byte of each source", lines, "validation; lower is better")
    yield Chart("Throughput", [curves.line("bytes_per_s", "bytes per second")], unit="bytes")


def _boundaries(curves: Curves) -> Iterator[Chart | Markup]:
    figures = [(float(record["bytes"]), stages_of(record)) for record in curves.records]
    for s in range(curves.stages):
        of, key = _of_stage(s, curves.stages), partial(stage_key, s)
        lines = [
            *curves.noisy(key("bytes_per_chunk"), "training"),
            *curves.points(key("bytes_per_chunk", VALIDATION), "validation", 1),
        ]
        yield Chart(f"Bytes per chunk{of}", lines, levels=curves.target(key("target_bytes_per_chunk")))
        lines = [
            *curves.noisy(key("boundary_fraction"), "share of boundaries"),
            *curves.noisy(key("mean_boundary_prob"), "mean p", 2),
        ]
        yield Chart(f"Boundaries{of}", lines, "share of the positions", curves.target(key("target_fraction")))
        lines = curves.points(key("worth", VALIDATION), "validation", 1)
        note = "bits per byte lost without what they carry"
        yield Chart(f"Worth of the chunks{of}", lines, note, {"hardly any": LEAST_WORTH} if lines[0].ys else {})
        histograms = {x: found[s].prob_histogram or [] for x, found in figures if len(found) > s}
        places = sorted(histograms)
        xs = {"bytes": places, "time": [curves.seconds(x) for x in places]}
        columns = [histograms[x] for x in places]
        yield heat_map(f"Boundary probability p{of}", xs, columns, "a boundary where p > 0.5", curves.ends)
        lines = [
            *curves.noisy(key("undecided"), "p between 0.45 and 0.55"),
            *curves.points(key("flips"), "decided otherwise than an evaluation before", 1),
        ]
        yield Chart(f"How settled{of}", lines, "share of the positions")


def _learning(curves: Curves) -> Iterator[Chart]:
    keys = {key for record in curves.records for key in record}
    parts = sorted(key for key in keys if key.startswith("grad_norm_"))[:MOST_CURVES]
    lines = curves.noisy("grad_norm", "all")
    for n, key in enumerate(parts, start=1):
        lines.append(curves.line(key, key.removeprefix("grad_norm_"), *look(n), smooth=True))
    yield Chart("Gradient norm", lines, "before clipping", log=True)
    levels = sorted(key for key in keys if key.startswith("lr_stage"))[:MOST_CURVES]
    rates = [curves.line(key, f"level {n}", *look(n)) for n, key in enumerate(levels)]
    yield Chart("Learning rate", rates or [curves.line("lr", "main network")])
    lines = [*curves.noisy("ratio_loss", "ratio loss"), *curves.noisy("alignment_loss", "alignment loss", 1)]
    yield Chart("Losses of the boundaries", lines, "before their weights")


def _evaluations(curves: Curves) -> list[list[str]]:
    """Rows of the table of validations, the first of heads."""
    records, stages = curves.records, range(curves.stages)
    rows = [
        [
            "step",
            "seen",
            "bits per byte",
            *(f"{name}, stage {s}" for name in ("bytes per chunk", "worth") for s in stages),
        ]
    ]
    for record in [record for record in records if number(record.get("val_bpb")) is not None][-MOST_ROWS:]:
        cells = [f"{history.step_of(record):,}", size(record["bytes"]), f"{record['val_bpb']:.4f}"]
        for name, form in (("bytes_per_chunk", ".2f"), ("worth", ".4f")):
            values = [number(record.get(stage_key(s, name, VALIDATION))) for s in stages]
            cells += ["" if value is None else f"{value:{form}}" for value in values]
        rows.append(cells)
    known = [n for n in range(len(rows[0])) if any(row[n] for row in rows[1:])]
    return [[row[n] for n in known] for row in rows]


def drawn(sketch: Sketch | None) -> Markup:
    """The chunks of a text as coloured spans, those of further stages around them; characters are never broken."""
    if sketch is None:
        return Markup()
    starts = sorted({0, *(n for n, depth in enumerate(sketch.depth) if depth > 0)})
    pieces = whole_characters([sketch.data[a:b] for a, b in pairwise([*starts, len(sketch.data)])])
    outermost = max([1, *sketch.depth])
    show, colours, is_open = shower(None), [-1] * outermost, False
    parts = [Markup("<u>{}</u>").format(visible(show(sketch.prompt)))] if sketch.prompt else []
    for start, piece in zip(starts, pieces, strict=True):
        if not piece:
            continue
        depth = max(1, sketch.depth[start]) if is_open else outermost
        parts.append(Markup("</span>") * depth * is_open)
        is_open = True
        for stage in reversed(range(depth)):
            colours[stage] += 1
            row = sketch.probability[stage] if stage < len(sketch.probability) else []
            p = row[start] if start < len(row) else None
            title = f"stage {stage}, byte {start}" + ("" if p is None else f", p {p:.2f}")
            css = f"outer c{(colours[stage] + 2 * stage) % 4}" if stage else f"c{colours[0] % 4}"
            style = f"--n:{stage}" if p is None else f"--p:{p:.2f};--n:{stage}"
            parts.append(Markup('<span class="{}" style="{}" title="{}">').format(css, style, title))
        parts.append(visible(show(piece)))
    return Markup("").join([*parts, Markup("</span>") * outermost * is_open])


# -- several runs ------------------------------------------------------------------------------------------------------


def comparison(runs: Mapping[str, Path], tables: Mapping[str, Sequence[Sequence[str]]], at: Path | None = None) -> str:
    """Runs by name on one page: their curves over each other, and `tables` by title, whose first rows are heads. `at`:
    the folder of the page, from which it links to the runs' reports."""
    curves = {name: Curves.of(run) for name, run in runs.items()}
    ends = {axis: max((run.ends[axis] for run in curves.values()), default=0.0) for axis in AXES}
    figures, several = [], any(history.has_budgets(history.read_config(run)) for run in runs.values())
    samples = {name: history.sample_of(history.last_validation(run.records)) for name, run in curves.items()}
    for sample in dict.fromkeys(samples.values()):  # a chart is of the same bytes
        same = {name: run for name, run in curves.items() if samples[name] == sample}
        on = history.bytes_of(history.last_validation(next(iter(same.values())).records))
        lines = [run.line("val_bpb", name, *look(n)) for n, (name, run) in enumerate(curves.items()) if name in same]
        figures.append(
            chart(Chart("Validation, bits per byte", lines, f"lower is better; on the same {on}", ends=ends))
        )
    for title, key, note in (
        ("Training, bits per byte", "bpb", "smoothed" + "; of runs with train.budgets over all of them" * several),
        ("Bytes per chunk, stage 0", stage_key(0, "bytes_per_chunk"), "smoothed"),
        ("Bytes per chunk, stage 1", stage_key(1, "bytes_per_chunk"), "smoothed"),
        ("Throughput", "bytes_per_s", "bytes per second"),
    ):
        lines = [run.line(key, name, *look(n), smooth=True) for n, (name, run) in enumerate(curves.items())]
        figures.append(chart(Chart(title, lines, note, unit="bytes" if key == "bytes_per_s" else "", ends=ends)))
    upright = {title: (_upright(rows), _upright(rows) is not rows) for title, rows in tables.items()}
    heading = " · ".join(runs) if len(runs) <= MOST_NAMED else f"{len(runs)} runs"
    reports = [(name, origin.links(run, at, (FILE_NAME,))) for name, run in runs.items()] if at else []
    links = [(name, address) for name, found in reports for _, address in found]
    return html.page("runs.html", heading=heading, links=links, figures=figures, tables=upright)


def _upright(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """A table with more columns than rows, turned."""
    return list(zip(*rows, strict=True)) if len(rows[0]) > max(len(rows), MOST_NAMED) else rows
