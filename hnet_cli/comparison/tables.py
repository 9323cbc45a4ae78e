"""A comparison as tables: titles with rows of cells, the first of heads, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hnet_cli.terminal.console import count, duration, literal, show_data, size, table

Json = dict[str, Any]
Rows = list[list[str]]

DEFINITIONS = {
    "bits per byte": "the sum of -log2 P over all held-out bytes, divided by their number; of a model of tokens, the "
    "sum over its tokens divided by the same bytes (one tokenisation of many, so slightly too high). Documents are "
    "read in windows of {context} bytes, the same for all; of the weights after the last step.",
    "interval": "95%, by bootstrap over {unit}s of the held-out documents, the same draws for all members, so that "
    "differences are paired; with several seeds, Student's t for their spread is added.",
    "equal": "bytes, their order (per seed), and FLOPs per byte forward where chunks are as long as aimed at (paper, "
    "appendix B). Not equal: parameters, memory, time; and tokens were "
    "learned from up to 16 MB of the training split, whatever the members are trained on.",
    "bytes/chunk": "of the innermost stage, on the held-out documents; in brackets what the ratio loss aims at. Of a "
    "model of tokens, bytes per token.",
    "robustness": "100 x bits of clean documents / bits of the same documents distorted, mean over the distortions: "
    "100 where they cost nothing, more where they leave bytes out. "
    "(The paper's score needs multiple choice, where models of this size only guess.)",
    "time": "of training steps alone, measured here; validations and pauses do not count.",
    "crossover": "from where on a member's validation stays below {reference}'s, linear in log bytes (seconds) between "
    "validations.",
    "data efficiency": "how many times fewer bytes (seconds) a member needed to come down to where {reference} ended; "
    "- where it never did. Stable: both up to where the learning rate begins to decay, as in the paper's figure 3.",
}


def definitions(told: Json) -> dict[str, str]:
    """What every figure means, in words."""
    exam = told["exam"]
    known = {
        "context": exam["context"],
        "unit": exam["unit"] or "document",
        "reference": told["reference"] or "another",
    }
    return {name: text.format(**known) for name, text in DEFINITIONS.items()}


def grids(told: Json) -> dict[str, Rows]:
    """Tables by title; those without rows are left out."""
    found = {
        "Held-out documents": _scores(told),
        "Distorted documents: bits per byte": _distorted(told),
        "Along the way": _way(told),
        "Seeds": _seeds(told),
    }
    return {title: rows for title, rows in found.items() if len(rows) > 1}


def show(told: Json) -> None:
    """The tables and the verdict on standard output."""
    for title, rows in grids(told).items():
        made = table(*map(literal, rows[0]), title=f"[bold]{title}[/]")
        for row in rows[1:]:
            made.add_row(*map(literal, row))
        show_data(made)
        print()
    for sentence in told["verdict"]["text"]:
        show_data(literal(sentence))


def _scores(told: Json) -> Rows:
    against = told["reference"]
    rows = [["model", "parameters", "FLOPs/byte", "bits per byte", f"minus {against}", "", "bytes/chunk",
             "robustness"]]  # fmt: skip
    for model in told["models"]:
        gap = model["differences"].get(against)
        rows.append([
            model["name"], count(model["parameters"]), count(model["flops_per_byte"]),
            f"{model['bpb']:.4f}{around(model['bpb_ci95'], '.3f')}",
            f"{gap['bpb']:+.4f}{around(gap['bpb_ci95'], '+.3f')}" if gap else "", gap["judged"] if gap else "",
            chunks(model), number(model["robustness"]["score"], ".1f"),
        ])  # fmt: skip
    return rows


def around(ci95: Sequence[float] | None, form: str) -> str:
    """An interval in brackets; nothing where it is not known."""
    return f" [{ci95[0]:{form}}, {ci95[1]:{form}}]" if ci95 else ""


def number(value: float | None, form: str) -> str:
    """A number, or - where there is none."""
    return "-" if value is None else f"{value:{form}}"


def chunks(model: Json) -> str:
    """Bytes per chunk of every stage, with the target."""
    parts = [
        f"{stage['bytes_per_chunk']:.2f}" + (f" ({stage['target']:.1f})" if stage["target"] else "")
        for stage in model["stages"]
    ]
    return ", ".join(parts) or f"{model['bytes_per_chunk']:.2f}"


def _distorted(told: Json) -> Rows:
    names = list(dict.fromkeys(name for model in told["models"] for name in model["robustness"]["distortions"]))
    rows = [["model", "clean", *names, "robustness"]] if names else [[]]
    for model in told["models"] if names else ():
        own = model["robustness"]
        each = [number((own["distortions"].get(name) or {}).get("bpb"), ".3f") for name in names]
        rows.append([model["name"], f"{own['clean_bpb']:.3f}", *each, number(own["score"], ".1f")])
    return rows


def _way(told: Json) -> Rows:
    against = told["reference"]
    rows = [["model", "speed", "time", f"below {against} from", "in time from", "data efficiency", "stable",
             "time efficiency", "stable"]]  # fmt: skip
    for model in told["models"]:
        crossed = told["crossovers"].get(model["name"], {})
        factor = told["efficiency"].get(model["name"], {}).get(against, {})
        keys = ("bytes", "stable_bytes", "seconds", "stable_seconds")
        rows.append([
            model["name"], f"{size(model['bytes_per_s'])}/s", duration(model["seconds"]),
            *(crossing(crossed[unit], unit) if unit in crossed else "" for unit in ("bytes", "seconds")),
            *(times(factor[key]) if key in factor else "" for key in keys),
        ])  # fmt: skip
    return rows


def crossing(found: Json, unit: str) -> str:
    """Where one curve passes another, in words."""
    state: str = found["state"]
    if state != "crosses":
        return "never in this budget" if state == "never" else state
    return size(found["at"]) if unit == "bytes" else duration(found["at"])


def times(factor: float | None) -> str:
    """A factor of efficiency."""
    return "-" if factor is None else f"{factor:.2f}x"


def _seeds(told: Json) -> Rows:
    most = max((len(model["seeds"]) for model in told["models"]), default=0)
    if most < 2:
        return [[]]
    rows = [["model", *(f"seed {n}" for n in range(most)), "mean"]]
    for model in told["models"]:
        each = {seed["seed"]: f"{seed['bpb']:.4f}" for seed in model["seeds"]}
        rows.append([model["name"], *(each.get(n, "-") for n in range(most)), f"{model['bpb']:.4f}"])
    return rows
