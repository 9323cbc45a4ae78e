"""Rewrite the tables of docs/results/README.md from the JSON files beside it; measures nothing itself.

    python benchmarks/results.py

Reads docs/results/*.json (each the `compare.json` of a comparison), evidence.json (output of benchmarks/evidence.py),
switches.json, switches-broad.json and switches-rate.json (outputs of benchmarks/switches.py on the starters' data, on
broad data, and on twice as much of it). The text around the two marks of the page is written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "results"
BEGIN, END = "<!-- tables: python benchmarks/results.py -->", "<!-- end of the tables -->"
PAPER = {
    **{"transformer": 0.756, "transformer-2x": 0.730, "llamabyte": 0.859, "llamabyte-global": 0.845},
    **{"mambabyte": 0.845, "spacebyte": 0.791, "spacebyte++": 0.760, "pool": 0.780, "space": 0.755},
    **{"1stage": 0.755, "2stage": 0.743},
}
"""Bits per byte of the paper's Table 2, Large (the Transformer of twice the FLOPs: XL)."""


def interval(values: list[float] | None, sign: str = "") -> str:
    return "" if values is None else f"{values[0]:{sign}.3f} to {values[1]:{sign}.3f}"


def comparison(data: dict[str, Any]) -> list[str]:
    found, models, reference = data["dataset"], data["models"], data["reference"]
    text = "text" in found["modality"]
    lines = [f"### {found['modality']}: {models[0]['bytes'] / 1e6:.1f} MB for every model", ""]
    head = ["model", "layers", "parameters", "MFLOPs/byte", "bits/byte", "95%", f"to {reference}", "95%", "bytes/chunk"]
    head += ["robustness", "kB/s"] + ["paper, Large"] * text
    lines += ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    best = min(each["bpb"] for each in models)
    for each in models:
        away = each["differences"].get(reference, {})
        robustness = f"{each['robustness']['score']:.1f}" if each.get("robustness") else ""
        bpb = f"**{each['bpb']:.3f}**" if each["bpb"] == best else f"{each['bpb']:.3f}"
        cells = [
            each["name"],
            f"`{each['layout']}`",
            f"{each['parameters'] / 1e6:.2f}M",
            f"{each['flops_per_byte'] / 1e6:.2f}",
            bpb,
            interval(each["bpb_ci95"]),
            f"{away['bpb']:+.3f}" if away else "",
            interval(away.get("bpb_ci95"), "+"),
            f"{each['bytes_per_chunk']:.2f}",
            robustness,
            f"{each['bytes_per_s'] / 1e3:.1f}",
        ]
        cells += [f"{PAPER[each['name']]:.3f}" if each["name"] in PAPER else ""] * text
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "\n>\n".join(f"> {line}" for line in data["verdict"]["text"]), ""]


def amount(nbytes: float) -> str:
    """500 kB, 2 MB, 1.3 GB."""
    unit, name = next(
        (unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if nbytes >= unit
    )
    return f"{nbytes / unit:.3g} {name}"


def evidence(told: dict[str, Any]) -> list[str]:
    """Two tables per modality: bits of every member by learning rate; then its bits after each budget, its gap to the
    reference, and where that would be 0."""
    lines: list[str] = []
    for modality, found in told.items():
        rates: dict[str, dict[str, float]] = found["rates"]
        if rates:
            lines += [f"### {modality}, learning rates on {amount(found['tuned_on'])}", ""]
            tried = sorted({rate for bits in rates.values() for rate in bits}, key=float)
            lines.append("| model | " + " | ".join(f"{float(rate):g}" for rate in tried) + " |")
            lines.append("|---|" + "--:|" * len(tried))
            for name, bits in rates.items():
                cells = [f"{bits[rate]:.3f}" if rate in bits else "" for rate in tried]
                best = min(bits, key=lambda rate: bits[rate])
                cells[tried.index(best)] = f"**{bits[best]:.3f}**"
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            lines.append("")
        if found["budgets"]:
            lines += _budgets(modality, found)
    return lines


def _budgets(modality: str, found: dict[str, Any]) -> list[str]:
    budgets: dict[str, dict[str, Any]] = found["budgets"]
    names = dict.fromkeys(name for budget in budgets.values() for name in budget)
    lines = [f"### {modality}, by the bytes that all have read", ""]
    lines.append("| model | learning rate | " + " | ".join(amount(int(n)) for n in budgets) + " | gap 0 at |")
    lines.append("|---|--:|" + "--:|" * len(budgets) + "--:|")
    lowest = {n: min(model["bpb"] for model in budget.values()) for n, budget in budgets.items()}
    for name in names:
        cells = []
        for n, budget in budgets.items():
            member = budget.get(name, {})
            bits, bold = member.get("bpb"), "**" * (member.get("bpb") == lowest[n])
            gap = f" ({member['gap']['bpb']:+.3f})" if member.get("gap") else ""
            cells.append("" if bits is None else f"{bold}{bits:.3f}{bold}{gap}")
        tried = found["rates"].get(name, {})
        rate = f"{float(min(tried, key=lambda rate: tried[rate])):g}" if tried else ""
        where, known = found["crossings"].get(name), name in found["crossings"]
        cells.append(amount(where) if where else "never" if known else "")
        lines.append(f"| {name} | {rate} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def switches(results: list[dict[str, Any]]) -> list[str]:
    known = ["text", "chinese", "code", "dna"]
    modalities = sorted(
        dict.fromkeys(r["modality"] for r in results), key=lambda name: known.index(name.partition(",")[0])
    )
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results:
        by_name.setdefault(row["name"], {})[row["modality"]] = row
    head = ["choice", *modalities, "MFLOPs/byte", "wins on"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for name, rows in by_name.items():
        cells, wins = [], 0
        for modality in modalities:
            entry = rows.get(modality)
            if entry is None:
                cells.append("")
            elif "change" in entry:
                won, around = bool(entry["wins"]), interval(entry["change_ci95"], "+")
                wins += won
                cells.append(f"{'**' * won}{entry['change']:+.4f}{'**' * won} ({around}){_worth(entry)}")
            else:
                cells.append(" / ".join(f"{bpb:.3f}" for bpb in entry["bpb"]) + _worth(entry))
        some = next(iter(rows.values()))
        total = f"{wins} of {len(rows)}" if "change" in some else ""
        name = f"{name}, each seed" if "change" not in some else name
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {some['flops_per_byte'] / 1e6:.2f} | {total} |")
    return [*lines, ""]


def _worth(entry: dict[str, Any]) -> str:
    """The worth of the outermost stage's chunks with each seed; empty where it was not measured."""
    known = [worth for worth in entry.get("worth", []) if worth]
    return f"; worth {' / '.join(f'{worth[0]:.3f}' for worth in known)}" if known else ""


def main() -> None:
    lines: list[str] = []
    for name in ("text", "chinese", "code", "dna"):
        if (file := FOLDER / f"{name}.json").exists():
            lines += comparison(json.loads(file.read_text()))
    if (file := FOLDER / "evidence.json").exists():
        lines += ["## Learning rates, and more bytes", "", *evidence(json.loads(file.read_text()))]
    for title, name in (
        ("## Beyond the paper", "switches.json"),
        ("### On broad data, two seeds", "switches-broad.json"),
        ("### The main network's learning rate, 2 MB of broad data", "switches-rate.json"),
    ):
        lines += [title, "", *switches(json.loads((FOLDER / name).read_text())["results"])]
    page = FOLDER / "README.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
