"""`compare.html`: a comparison on one page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hnet_cli.comparison.curves import Curve
from hnet_cli.comparison.tables import around, definitions, grids
from hnet_cli.comparison.verdict import headline
from hnet_cli.pages import html
from hnet_cli.pages.plot import AXES, Bar, Chart, Line, bars, chart, look
from hnet_cli.terminal.console import count, duration, size

Json = dict[str, Any]
BEGIN = 0.1
"""Share of the budget from which on curves are drawn: the first steps would flatten all that comes after them."""
PAPER = {  # arXiv 2507.07955, by modality: where it stands, and bits per byte of the members
    "text": (
        "Table 2 (Large): FineWeb-Edu, 100 billion tokens of text",
        {
            "transformer": 0.756,
            "llamabyte": 0.859,
            "llamabyte-global": 0.845,
            "mambabyte": 0.845,
            "spacebyte": 0.791,
            "spacebyte++": 0.760,
            "pool": 0.780,
            "space": 0.755,
            "1stage": 0.755,
            "2stage": 0.743,
        },
    ),
    "chinese": (
        "Table 4: FineWeb-Edu Chinese, 46 billion tokens, XL",
        {
            "transformer": 0.7404,
            "space": 0.7478,
            "2stage": 0.7032,
        },
    ),
    "code": (
        "Table 4: GitHub code, 46 billion tokens, XL",
        {
            "transformer": 0.3376,
            "space": 0.3163,
            "2stage": 0.3161,
        },
    ),
    "dna": (
        "Table 5: the human genome HG38, log2 of the perplexity",
        {
            "dna-transformer": 1.469,
            "dna-mamba": 1.463,
            "dna-1stage-transformer": 1.436,
            "dna-1stage-mamba": 1.431,
        },
    ),
}


def page(told: Json) -> str:
    """The page of `compare.json`."""
    machine = told["machine"]
    place = [told["dataset"]["modality"], f"{machine['device']} ({machine['name']}, {machine['threads']} threads)"]
    tables = grids(told)
    scores = next(iter(tables), "")
    source, bits = PAPER.get(told["dataset"]["modality"], ("", {}))
    return html.page(
        "compare.html",
        name=f"{told['dataset']['name']}, {told['size']}",
        machine=" · ".join([*place, *(f"{key} {value}" for key, value in machine["versions"].items())]),
        tile_rows=_tiles(told),
        headline=headline(told),
        outcome=told["verdict"]["outcome"]["equal_bytes"],
        verdict=told["verdict"]["text"],
        scores=scores,
        score_rows=tables.pop(scores, []),
        marks={model["name"]: "H-Net" for model in told["models"] if model["learned"]},
        curves=_curves(told),
        gaps={axis: _gaps(told, axis) for axis in AXES},
        bars=_bars(told),
        tables=tables,
        paper_source=source,
        paper=[
            ["model", "bits per byte here", "bits per byte in the paper"],
            *([m["name"], f"{m['bpb']:.3f}", f"{bits[m['name']]:.3f}"] for m in told["models"] if m["name"] in bits),
        ],
        settings="Settings: " + ", ".join(told["settings"]) if told["settings"] else "",
        plan=_plan(told),
        definitions=definitions(told),
    )


def _tiles(told: Json) -> list[tuple[str, str, str]]:
    budget = told["budget"]
    return [
        ("trained on", size(budget["bytes"]), f"each; {told['dataset']['epochs']:.2g} times the data"),
        ("matched at", count(budget["flops_per_byte"]), "FLOPs per byte, forward"),
        ("seeds", str(budget["seeds"]), "trainings of every member"),
        (
            "held out",
            size(told["exam"]["bytes"]),
            f"of {size(told['exam']['of'])}, windows of {told['exam']['context']} bytes",
        ),
    ]


def _curves(told: Json) -> Markup:
    lines = []
    for n, model in enumerate(told["models"]):
        points = _drawn(told, model)
        xs = {"bytes": [x for x, _, _ in points], "time": [x for _, x, _ in points]}
        lines.append(Line(_named(model), xs, [y for *_, y in points], *look(n)))
    note = f"lower is better; on {_read(told)}"
    return chart(Chart("Validation, bits per byte", lines, note, told["curves"]["baselines"]))


def _named(model: Json) -> str:
    """The name of a member in charts, H-Nets marked."""
    return f"{model['name']} (H-Net)" if model["learned"] else model["name"]


def _read(told: Json) -> str:
    """The held-out bytes of the curves, in words."""
    curves = told["curves"]
    return f"{curves['read']} held out" if curves["alike"] else "held-out bytes that are not the same for all"


def _drawn(told: Json, model: Json) -> list[tuple[float, float, float]]:
    """Bytes, seconds and bits per byte of the validations that are drawn."""
    pairs = zip(model["curve"], model["curve_seconds"], strict=False)
    return [(x, s, y) for (x, y), (s, _) in pairs if x >= BEGIN * told["budget"]["bytes"]]


def _gaps(told: Json, axis: str) -> Markup:
    """Distance of every member from the reference at equal bytes, or equal time."""
    key = "curve" if axis == "bytes" else "curve_seconds"
    rival = next((m for m in told["models"] if m["name"] == told["reference"]), None)
    if rival is None:
        return Markup()
    curve, lines = Curve.of(*zip(*rival[key], strict=True)), []
    for n, model in enumerate(told["models"]):
        places = [(x if axis == "bytes" else s, y) for x, s, y in _drawn(told, model)]
        points = [(x, y - there) for x, y in places if (there := curve.at(x)) is not None]
        if model is not rival and points:
            lines.append(Line(_named(model), {axis: [x for x, _ in points]}, [y for _, y in points], *look(n)))
    spent = "bytes" if axis == "bytes" else "seconds"
    note = f"below 0: better than {rival['name']} after as many {spent}; on {_read(told)}"
    return chart(Chart(f"Bits per byte minus {rival['name']}", lines, note, {rival["name"]: 0.0}))


def _bars(told: Json) -> list[Markup]:
    models, against = told["models"], told["reference"]

    def bar(n: int, value: float, form: str, ci95: Sequence[float] | None = None) -> Bar:
        return Bar(_named(models[n]), value, f"{value:{form}}{around(ci95, form)}", ci95, n)

    gaps = [(n, model["differences"].get(against)) for n, model in enumerate(models)]
    sturdy = [(n, model["robustness"]["score"]) for n, model in enumerate(models)]
    return [
        bars(
            "Bits per byte, held out",
            [bar(n, m["bpb"], ".3f", m["bpb_ci95"]) for n, m in enumerate(models)],
            f"lower is better; 95% intervals; on {told['exam']['bytes']:,} bytes",
        ),
        bars(
            f"Bits per byte minus {against}",
            [bar(n, gap["bpb"], "+.3f", gap["bpb_ci95"]) for n, gap in gaps if gap],
            "paired by document; left of 0 is better",
            origin=True,
        ),
        bars(
            "Robustness",
            [bar(n, score, ".1f") for n, score in sturdy if score is not None],
            "100: distortions cost nothing",
        ),
        bars(
            "Speed of training",
            [Bar(_named(m), m["bytes_per_s"], f"{size(m['bytes_per_s'])}/s", None, n) for n, m in enumerate(models)],
            "bytes per second, measured here",
            "bytes",
        ),
        bars(
            "Bytes per innermost chunk",
            [bar(n, m["bytes_per_chunk"], ".2f") for n, m in enumerate(models)],
            "of a model of tokens: per token",
        ),
        bars(
            "Parameters",
            [Bar(_named(m), m["parameters"], count(m["parameters"]), None, n) for n, m in enumerate(models)],
            "not equal: FLOPs are",
            "count",
        ),
    ]


def _plan(told: Json) -> list[list[str]]:
    rows = [["model", "layers", "parameters", "FLOPs/byte planned", "measured", "bytes", "steps", "training time"]]
    for model in told["models"]:
        planned, measured = count(model["planned_flops_per_byte"]), count(model["flops_per_byte"])
        amounts = f"{model['bytes']:,}", f"{model['steps']:,}", duration(model["seconds"])
        rows.append([model["name"], model["layout"], f"{model['parameters']:,}", planned, measured, *amounts])
    return rows
