"""Bits per byte against bytes per chunk: one model at several compressions, on the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hnet_cli.errors import UsageError
from hnet_cli.evaluation import compression
from hnet_cli.inference.scoring import Scores
from hnet_cli.inference.thresholds import calibrate
from hnet_cli.model import HNetForCausalLM
from hnet_cli.pages import html
from hnet_cli.pages.plot import Chart, Line, chart, look
from hnet_cli.terminal.chart import Chart as TerminalChart
from hnet_cli.terminal.chart import Curve

FACTORS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0)
"""Lengths of the innermost learned chunks that are tried, in lengths of those that the model makes by itself."""
TITLE = "Bits per byte against bytes per chunk"


def check(model: HNetForCausalLM) -> None:
    """Raise UsageError for a model whose chunks cannot be chosen."""
    if not model.thresholds:
        raise UsageError("--elastic is for boundaries that are learned, and this model learns none", "leave it out")


def sweep(
    model: HNetForCausalLM, own: Scores, score: Callable[[int], Scores], sample: Sequence[bytes]
) -> list[dict[str, Any]]:
    """The points, chunks growing longer: bits per byte, bytes per chunk of each stage, thresholds, and the difference
    of the bits from those of the model as it is, paired.

    `own`: the scores as it is, at the thresholds it has; `score` gives them at others, called with the number of calls
    before. Thresholds are found on `sample`, documents as the model reads them; of factors that come to the same ones
    there is one point, and none where no chunk begins in what counts. Raises UsageError where none does as it is.
    """
    innermost = max(stage for stage, router in enumerate(model.routers) if router.learned)
    lengths = [stage["bytes_per_chunk"] for stage in compression.stages(own, model.config)]
    if None in lengths:
        raise UsageError(
            f"--elastic needs chunks, and none of stage {lengths.index(None)} begins in the bytes that count",
            "leave it out",
        )
    usual = lengths[innermost]
    points, times = dict[tuple[float, ...], dict[str, Any]](), 0
    for factor in FACTORS:
        thresholds, scores = tuple(model.thresholds), own
        if factor != 1:
            thresholds = tuple(calibrate(model, sample, [factor * usual]).thresholds)
            if thresholds in points or thresholds == tuple(model.thresholds):
                continue
            with model.set_thresholds(thresholds):
                scores = score(times)
            times += 1
        lengths = [stage["bytes_per_chunk"] for stage in compression.stages(scores, model.config)]
        if None in lengths:
            continue
        points[thresholds] = {
            "thresholds": list(thresholds),
            "bytes_per_chunk": lengths,
            **{name: value for name, value in compression.figures(scores).items() if name in ("bpb", "bpb_ci95")},
            "bytes": int(scores.bytes.sum()),
            "difference": compression.difference(own, scores) if scores is not own else None,
        }
    return sorted(points.values(), key=lambda point: point["bytes_per_chunk"][-1])


def page(result: Mapping[str, Any]) -> str:
    """The page of `evaluate`'s result, of one model or two."""
    models = result.get("models", [result])
    lines, tables = [], {}
    for n, model in enumerate(models):
        points = model["elastic"]
        lengths = [point["bytes_per_chunk"][-1] for point in points]
        lines.append(Line(model["model"], {"bytes": lengths}, [point["bpb"] for point in points], *look(n)))
        tables[model["model"]] = rows(model)
        own = next(point for point in points if point["difference"] is None)
        lines.append(
            Line("", {"bytes": [own["bytes_per_chunk"][-1]]}, [own["bpb"]], look(n)[0], "dots", model["model"])
        )
    note = f"lower is better; the same {models[0]['bytes']:,} bytes at every point; the dot: as the model is"
    return html.page(
        "elastic.html",
        name=" and ".join(model["model"] for model in models),
        figure=chart(Chart(TITLE, lines, note)),
        tables=tables,
        about=models[0]["definition"]["bytes_counted"],
    )


def drawn(models: Sequence[Mapping[str, Any]], byte: str) -> TerminalChart:
    """The curves of one model or two for a terminal; `byte`: the word for it."""
    curves = []
    for model in models:
        points = model["elastic"]
        own = next(n for n, point in enumerate(points) if point["difference"] is None)
        lengths = [point["bytes_per_chunk"][-1] for point in points]
        curves.append(Curve(model["model"], lengths, [point["bpb"] for point in points], own))
    return TerminalChart(curves, f"{byte}s per chunk", f"bits per {byte}", "as the model is")


def rows(model: Mapping[str, Any]) -> list[list[str]]:
    """The points of a model as a table, the first row of heads."""
    stages = len(model["elastic"][0]["bytes_per_chunk"])
    heads = ["bytes/chunk", *(f"of stage {stage}" for stage in range(stages - 1))]
    table = [[*heads, "threshold", "bits per byte", "95%", "change", "95%"]]
    for point in model["elastic"]:
        *outer, inner = (f"{length:.2f}" for length in point["bytes_per_chunk"])
        thresholds = ", ".join(f"{threshold:.4g}" for threshold in point["thresholds"])
        change = point["difference"] or {"bpb": 0.0, "bpb_ci95": None}
        table.append(
            [
                *(inner, *outer, thresholds),
                *(f"{point['bpb']:.4f}", _interval(point["bpb_ci95"], ".4f")),
                *("as it is" if point["difference"] is None else f"{change['bpb']:+.4f}",),
                _interval(change["bpb_ci95"], "+.4f"),
            ]
        )
    return table


def _interval(interval: Sequence[float] | None, form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""
