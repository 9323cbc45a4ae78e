"""The curves of a run as one self-contained SVG, drawn from its `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from hnet_cli import storage

WIDTH, HEIGHT, MARGIN = 640, 220, 56
COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c")


@dataclass
class Line:
    """One curve of a panel: x and y of equal length."""

    label: str
    xs: list[float] = field(default_factory=list)
    ys: list[float] = field(default_factory=list)
    dashed: bool = False


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The records of a run; lines torn by a kill are passed over."""
    records = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def run_curves(run: Path, baselines: dict[str, float] | None = None) -> Path:
    """Write `curves.svg` into the run folder and return it: bits per byte, and bytes per chunk against target."""
    records = read_metrics(run)
    bits = [_line("training", records, "bpb"), _line("validation", records, "val_bpb")]
    reach = [x for line in bits for x in line.xs]
    for label, value in (baselines or {}).items():
        bits.append(
            Line(f"{label} {value:.2f}", [min(reach, default=0), max(reach, default=1)], [value] * 2, dashed=True)
        )
    chunks = []
    stages = sum(1 for key in (records[0] if records else {}) if key.endswith("_target_fraction"))
    for s in range(stages):
        chunks.append(_line(f"stage {s}", records, f"stage{s}_bytes_per_chunk"))
        target = _line(f"stage {s} target", records, f"stage{s}_target_bytes_per_chunk")
        target.dashed = True
        chunks.append(target)
    panels = [("bits per byte", bits)] + ([("bytes per chunk", chunks)] if chunks else [])
    path = run / "curves.svg"
    storage.write_text(path, svg(panels, "bytes of training"))
    return path


def _line(label: str, records: list[dict[str, float]], key: str) -> Line:
    points = [(r["bytes"], r[key]) for r in records if key in r and "bytes" in r]
    return Line(label, [x for x, _ in points], [y for _, y in points])


def svg(panels: Sequence[tuple[str, Sequence[Line]]], x_label: str) -> str:
    """Panels under each other as an SVG document."""
    height = len(panels) * (HEIGHT + 40) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 170} {height}" font-size="12" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="white"/>'
    ]
    for index, (title, lines) in enumerate(panels):
        parts.append(f'<g transform="translate(0 {index * (HEIGHT + 40) + 20})">{_panel(title, lines, x_label)}</g>')
    return "".join(parts) + "</svg>\n"


def _panel(title: str, lines: Sequence[Line], x_label: str) -> str:
    xs = [x for line in lines for x in line.xs] or [0.0, 1.0]
    ys = sorted(y for line in lines for y in line.ys) or [0.0, 1.0]
    left, right = min(xs), max(xs)
    # The first steps start at 8 bits; the upper hundredth would flatten everything after them.
    low, high = ys[0], ys[min(len(ys) - 1, int(0.99 * len(ys)))]
    pad = 0.08 * (high - low) or 0.5
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> str:
        across = MARGIN + (x - left) / ((right - left) or 1) * (WIDTH - MARGIN)
        return f"{across:.1f},{HEIGHT - (min(max(y, low), high) - low) / (high - low) * HEIGHT:.1f}"

    parts = [f'<text x="{MARGIN}" y="-6" font-weight="600">{escape(title)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, value = HEIGHT - share * HEIGHT, low + share * (high - low)
        parts.append(f'<path d="M{MARGIN} {y}H{WIDTH}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end" fill="#555">{value:.2f}</text>')
    parts.append(
        f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end" fill="#555">{right / 1e6:.1f}M {x_label}</text>'
    )
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        dash = ' stroke-dasharray="4 3"' if line.dashed else ""
        points = " ".join(place(x, y) for x, y in zip(line.xs, line.ys, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        parts.append(f'<text x="{WIDTH + 12}" y="{14 + 17 * index}" fill="{colour}">{escape(line.label)}</text>')
    return "".join(parts)


def spark(values: Sequence[float], width: int = 40) -> str:
    """A curve as one line of text, for the terminal."""
    if not values:
        return ""
    count = min(width, len(values))
    picked = [values[i * (len(values) - 1) // max(1, count - 1)] for i in range(count)]
    ranked = sorted(picked)
    low, high = ranked[0], ranked[len(ranked) - 1 - len(ranked) // 10]  # the first losses would flatten all the others
    scale = 7 / (high - low) if high > low else 0
    return "".join("▁▂▃▄▅▆▇█"[int((min(value, high) - low) * scale)] for value in picked)
