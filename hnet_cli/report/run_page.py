"""`report.html`: a run on one page, as far as it has come. And several runs on one, to compare them.

Everything is read from the run folder; what an older or younger run does not have is left out of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.inference.render import shower, whole_characters
from hnet_cli.pages.plot import Chart, Line, Mark, chart, heat_map, smoothed
from hnet_cli.pages.shell import CLOSING, opening, safe
from hnet_cli.report import history
from hnet_cli.report.history import Event, Record, Sample, Sketch, series, stages_of
from hnet_cli.terminal.console import duration, size

NAME = "report.html"
FRAMES = 60
"""Evaluations whose chunks and samples are kept in the page: the first, the last, and as many between them."""
ROWS = 40
NAMED = 4
"""Runs that the heading of a page of several names; the legends name them all."""
CHOICE = """<div class="choices"><span class="choice" role="radiogroup" aria-label="Horizontal axis">
<label><input type="radio" name="axis" value="bytes" checked>bytes seen</label>
<label><input type="radio" name="axis" value="time">training time</label></span>
<span class="soft">Point at a curve for its values. Time is that of training steps alone.</span></div>
"""


def write(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run, by default `report.html` in its folder, and return where. Raises StorageError."""
    path = out or run / NAME
    storage.write_text(path, page(run))
    return path


@dataclass(frozen=True)
class _Curves:
    """The records of a run, ready to draw."""

    records: Sequence[Record]
    seconds: Callable[[float], float]
    prefix: str = ""
    """Before the labels, where several runs share a chart."""
    colour: int = 0

    @staticmethod
    def of(run: Path, prefix: str = "", colour: int = 0) -> _Curves:
        records = history.read_metrics(run)
        return _Curves(records, history.clock(records), prefix, colour)

    def line(self, key: str, label: str, colour: int = 0, style: str = "solid", smooth: bool = False) -> Line:
        """The values under a key of the records."""
        bytes_seen, values = series(self.records, key)
        xs = {"bytes": bytes_seen, "time": [self.seconds(x) for x in bytes_seen]}
        return Line(self.prefix + label, xs, smoothed(values) if smooth else values, self.colour + colour, style)

    def noisy(self, key: str, label: str, colour: int = 0) -> list[Line]:
        """A curve of single batches: as it is, faintly, and smoothed."""
        return [self.line(key, f"{label}, one batch", colour, "faint"), self.line(key, label, colour, smooth=True)]

    def points(self, key: str, label: str, colour: int = 0) -> list[Line]:
        """A curve of validations: points, joined."""
        dots = self.line(key, label, colour, "dots")
        return [dots, replace(dots, label="", style="faint")]


def page(run: Path) -> str:
    """The report as HTML."""
    own, known = _Curves.of(run), history.glance(run)
    happened = history.events(run, own.records)
    config = history.read_config(run) or {}
    baselines = history.baselines_of(history.dataset_of(run, config))
    marks = [
        Mark(
            {"bytes": e.bytes, "time": own.seconds(e.bytes)},
            ": ".join(filter(None, (f"step {e.step}, {e.kind}", e.text))),
            e.kind,
        )
        for e in happened
    ]
    parts = [opening(f"{known.name}: hnet run", "report.js"), "<body>", _head(known, own, baselines)]
    parts.append(CHOICE if own.records else "<p>There are no records yet: the first comes after a few steps.</p>")
    for title, drawn in (
        ("How well it predicts", _prediction(own, baselines, marks)),
        ("Where it puts boundaries", _boundaries(own, marks)),
        ("How it learns", _learning(own, marks)),
    ):
        if figures := "".join(drawn):
            parts.append(f'<h2>{title}</h2><div class="grid">{figures}</div>')
    parts += [_film(history.read_samples(run)), _happened(happened), _evaluations(own), "</body>", CLOSING]
    return "\n".join(part for part in parts if part)


def _head(known: history.Glance, own: _Curves, baselines: dict[str, float]) -> str:
    facts = [f"preset {known.preset}" if known.preset else "", known.modality or "", known.data or ""]
    written = datetime.fromtimestamp(known.when, UTC).strftime("%Y-%m-%d %H:%M UTC") if known.when else ""
    about = f" ({known.about})" if known.about else ""
    tiles = [("step", f"{known.step:,}", f"of {known.steps:,}" if known.steps else "")]
    if known.bpb_best is not None:
        beaten = ", ".join(f"{name} {bits:.3f}" for name, bits in baselines.items())
        tiles.append(("validation", f"{known.bpb_best:.3f}", f"bits per byte, the best; {beaten or 'no baselines'}"))
    for s, (reached, target) in enumerate(known.stages):
        name = "bytes per chunk" if len(known.stages) == 1 else f"bytes per chunk, stage {s}"
        tiles.append((name, f"{reached:.2f}", f"target {target:.1f}" if target else ""))
    tiles.append(("seen", size(known.bytes), "of training data"))
    if seconds := own.seconds(known.bytes):
        tiles.append(("training", duration(seconds), f"{size(known.bytes / seconds)}/s on average"))
    shown = "".join(f"<li><span>{safe(a)}</span><b>{safe(b)}</b><span>{safe(c)}</span></li>" for a, b, c in tiles)
    return (
        f'<h1>{safe(known.name)} <span class="badge {known.state}">{known.state}{safe(about)}</span></h1>'
        f'<p class="soft">{safe(" · ".join(fact for fact in (*facts, written) if fact))}</p>'
        f'<ul class="tiles">{shown}</ul><br>'
    )


def _prediction(own: _Curves, baselines: dict[str, float], marks: Sequence[Mark]) -> Iterator[str]:
    lines = [*own.noisy("bpb", "training", 0), *own.points("val_bpb", "validation", 1)]
    yield chart(Chart("Bits per byte", lines, "lower is better", baselines, marks=marks))
    yield chart(Chart("Throughput", [own.line("bytes_per_s", "bytes per second")], unit="bytes", marks=marks))


def _boundaries(own: _Curves, marks: Sequence[Mark]) -> Iterator[str]:
    stages = stages_of(own.records)
    for s in range(stages):
        of = f", stage {s}" if stages > 1 else ""
        target = _target(own, f"stage{s}_target_bytes_per_chunk")
        reached = f"stage{s}_bytes_per_chunk"
        lines = [*own.noisy(reached, "training"), *own.points(f"val_{reached}", "validation", 1)]
        yield chart(Chart(f"Bytes per chunk{of}", lines, levels=target, marks=marks))
        target = _target(own, f"stage{s}_target_fraction")
        lines = [
            *own.noisy(f"stage{s}_boundary_fraction", "share of boundaries"),
            *own.noisy(f"stage{s}_mean_boundary_prob", "mean p", 2),
        ]
        yield chart(Chart(f"Boundaries{of}", lines, "share of the positions", target, marks=marks))
        found = [
            (float(r["bytes"]), r[key]) for r in own.records if _is_histogram(r.get(key := f"stage{s}_prob_histogram"))
        ]
        note = "a boundary where p > 0.5"
        yield heat_map(f"Boundary probability p{of}", [x for x, _ in found], [y for _, y in found], note)
        lines = [
            *own.noisy(f"stage{s}_undecided", "p between 0.45 and 0.55"),
            *own.points(f"stage{s}_flips", "decided otherwise than an evaluation before", 1),
        ]
        yield chart(Chart(f"How settled{of}", lines, "share of the positions", marks=marks))


def _target(own: _Curves, key: str) -> dict[str, float]:
    _, values = series(own.records, key)
    return {"target": values[-1]} if values else {}


def _is_histogram(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, int | float) and n >= 0 for n in value)


def _learning(own: _Curves, marks: Sequence[Mark]) -> Iterator[str]:
    keys = {key for record in own.records for key in record}
    parts = sorted(key for key in keys if key.startswith("grad_norm_"))
    lines = own.noisy("grad_norm", "all", 5 if parts else 0)
    for n, key in enumerate(parts):
        lines.append(
            own.line(key, key.removeprefix("grad_norm_"), n, ("solid", "dashed", "dotted")[n // 5 % 3], smooth=True)
        )
    yield chart(Chart("Gradient norm", lines, "before clipping", log=True, marks=marks))
    levels = sorted(key for key in keys if key.startswith("lr_stage"))
    rates = [own.line(key, f"level {n}", n) for n, key in enumerate(levels)] or [own.line("lr", "main network")]
    yield chart(Chart("Learning rate", rates, marks=marks))
    extra = [*own.noisy("ratio_loss", "ratio loss"), *own.noisy("alignment_loss", "alignment loss", 1)]
    yield chart(Chart("Losses of the boundaries", extra, "before their weights", marks=marks))


# -- chunks and samples over training ----------------------------------------------------------------------------------


def _film(samples: Sequence[Sample]) -> str:
    """The probe's chunks and a sample at each evaluation, one visible at a time."""
    if not samples:
        return ""
    kept = sorted(
        {
            round(n * (len(samples) - 1) / max(1, min(FRAMES, len(samples)) - 1))
            for n in range(min(FRAMES, len(samples)))
        }
    )
    frames = "".join(_frame(samples[n], hidden=n != kept[-1]) for n in kept)
    slider = (
        f'<div class="choices"><button type="button">Play</button><input type="range" min="0" max="{len(kept) - 1}" '
        f'value="{len(kept) - 1}" aria-label="Evaluation" style="flex:1 1 12rem"></div>'
        if len(kept) > 1
        else ""
    )
    return f'<h2>What it sees and says</h2><div class="card film">{slider}{frames}</div>'


def _frame(shot: Sample, hidden: bool) -> str:
    texts = [("A held-out text in chunks", shot.probe), ("A sample, after its prompt", shot.sample)]
    shown = "".join(f'<div><h3>{title}</h3><p class="chunks">{drawn(text)}</p></div>' for title, text in texts if text)
    return (
        f'<div class="frame"{" hidden" * hidden}><b>Step {shot.step:,}</b> <span class="soft">after {size(shot.bytes)}'
        f'</span><div class="grid">{shown}</div></div>'
    )


def drawn(sketch: Sketch) -> str:
    """The chunks of a text as coloured spans, those of further stages around them; characters are never broken."""
    starts = sorted({0, *(n for n, depth in enumerate(sketch.depth) if depth > 0)})
    edges = [*starts, len(sketch.data)]
    pieces = whole_characters([sketch.data[a:b] for a, b in pairwise(edges)])
    furthest = max([1, *sketch.depth])
    show = shower(None)
    colours = [-1] * furthest
    parts, is_open = [], False
    prompt = show(sketch.prompt)
    if prompt:
        parts.append(f"<u>{_visible(prompt)}</u>")
    for start, piece in zip(starts, pieces, strict=True):
        if not piece:
            continue
        depth = max(1, sketch.depth[start]) if is_open else furthest
        parts.append("</span>" * depth * is_open)
        is_open = True
        for stage in range(depth - 1, -1, -1):
            colours[stage] += 1
            p = sketch.probability[stage][start] if start < len(_row(sketch, stage)) else None
            told = f"stage {stage}, byte {start}{f', p {p:.2f}' if p is not None else ''}"
            outer = f"outer c{(colours[stage] + 2 * stage) % 4}" if stage else f"c{colours[0] % 4}"
            style = f"--p:{p:.2f};--n:{stage}" if p is not None else f"--n:{stage}"
            parts.append(f'<span class="{outer}" style="{style}" title="{told}">')
        parts.append(_visible(show(piece)))
    parts.append("</span>" * furthest * is_open)
    return "".join(parts)


def _row(sketch: Sketch, stage: int) -> list[float | None]:
    return sketch.probability[stage] if stage < len(sketch.probability) else []


def _visible(text: str) -> str:
    return safe(text).replace("\n", "<u>↵</u>\n").replace("\t", "<u>→</u>\t")


# -- tables ------------------------------------------------------------------------------------------------------------


def _happened(events: Sequence[Event]) -> str:
    if not events:
        return ""
    rows = "".join(
        f'<tr><td>{event.step:,}</td><td>{size(event.bytes)}</td><td class="text">{safe(event.kind)}</td>'
        f'<td class="text">{safe(event.text)}</td></tr>'
        for event in events[-ROWS:]
    )
    left = f"<p class='soft'>The last {ROWS} of {len(events):,}.</p>" if len(events) > ROWS else ""
    return f'<h2>What happened</h2><div class="card wide">{left}{_table(("step", "seen", "", ""), rows)}</div>'


def _evaluations(own: _Curves) -> str:
    scored = [record for record in own.records if isinstance(record.get("val_bpb"), int | float)]
    if not scored:
        return ""
    stages = range(stages_of(own.records))
    rows = []
    for record in scored[-ROWS:]:
        chunks = (record.get(f"val_stage{s}_bytes_per_chunk") for s in stages)
        cells = [f"{record.get('step')}", size(record["bytes"]), f"{record['val_bpb']:.4f}"]
        cells += [f"{value:.2f}" if isinstance(value, int | float) else "" for value in chunks]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("step", "seen", "bits per byte", *(f"bytes per chunk, stage {s}" for s in stages))
    return f'<h2>Evaluations</h2><div class="card wide">{_table(heads, "".join(rows))}</div>'


def _table(heads: Sequence[str], rows: str) -> str:
    return f"<table><tr>{''.join(f'<th>{safe(head)}</th>' for head in heads)}</tr>{rows}</table>"


# -- several runs ------------------------------------------------------------------------------------------------------


def comparison(
    runs: Sequence[Path], names: Sequence[str], tables: Sequence[tuple[str, Sequence[Sequence[str]]]]
) -> str:
    """Runs on one page: their curves over each other, and `tables`: titles with rows of cells, the first of heads."""
    each = [_Curves.of(run, f"{name} ", n) for n, (run, name) in enumerate(zip(runs, names, strict=True))]
    figures = []
    for title, key, note in (
        ("Validation, bits per byte", "val_bpb", "lower is better"),
        ("Training, bits per byte", "bpb", "smoothed"),
        ("Bytes per chunk, stage 0", "stage0_bytes_per_chunk", "smoothed"),
        ("Bytes per chunk, stage 1", "stage1_bytes_per_chunk", "smoothed"),
        ("Throughput", "bytes_per_s", "bytes per second"),
    ):
        lines = []
        for n, own in enumerate(each):
            lines.append(own.line(key, "", style=("solid", "dashed", "dotted")[n // 6 % 3], smooth=key != "val_bpb"))
        figures.append(chart(Chart(title, lines, note, unit="bytes" if key == "bytes_per_s" else "")))
    told = "".join(
        f'<h2>{safe(title)}</h2><div class="card wide">'
        + _table(rows[0], "".join("<tr>" + "".join(f"<td>{safe(c)}</td>" for c in row) + "</tr>" for row in rows[1:]))
        + "</div>"
        for title, rows in tables
    )
    heading = " · ".join(names) if len(names) <= NAMED else f"{len(names)} runs"
    return (
        f"{opening('hnet runs', 'report.js')}<body><h1>{safe(heading)}</h1>{CHOICE}<br>"
        f'<div class="grid">{"".join(figures)}</div>{told}</body>\n{CLOSING}'
    )
