"""A comparison as tables: the plan; and rows of cells by title, the first of heads, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hnet_cli.comparison.plan import VALIDATION_SHARE, ComparisonPlan
from hnet_cli.comparison.verdict import MATCHED, REPEATED
from hnet_cli.terminal.console import count, duration, literal, say, show, show_data, size, table

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
    "learned from 2,048 bytes of the training split for each id, or as many as their preset says, whatever the members "
    "are trained on.",
    "bytes/chunk": "of the innermost stage, on the held-out documents; in brackets what the ratio loss aims at. Of a "
    "model of tokens, bytes per token.",
    "robustness": "100 x bits of clean documents / bits of the same documents distorted, mean over the distortions: "
    "100 where they cost nothing, more where they leave bytes out. "
    "(The paper's score needs multiple choice, where models of this size only guess.)",
    "time": "of training steps alone, measured here; validations and pauses do not count.",
    "curves": "bits per byte of the validations in training, the same {read} for all, in windows as above. They are "
    "another sample than that of the tables where there are more held-out bytes, and then another figure.",
    "crossover": "from where on a member's validation stays below {reference}'s, linear in log bytes (seconds) between "
    "validations.",
    "data efficiency": "how many times fewer bytes (seconds) a member needed to come down to where {reference} ended; "
    "- where it never did. Stable: both up to where the learning rate begins to decay, as in the paper's figure 3.",
}


def definitions(figures: Json) -> dict[str, str]:
    """The meaning of every figure, in words."""
    unit, against = figures["exam"]["unit"] or "document", figures["reference"] or "another"
    known = {"context": figures["exam"]["context"], "unit": unit, "reference": against}
    known["read"] = figures["curves"]["read"]
    return {name: text.format(**known) for name, text in DEFINITIONS.items()}


def describe(plan: ComparisonPlan, times: Mapping[str, float]) -> Json:
    """Print the plan and return it as data. `times`: seconds per byte by member, where they are measured."""
    rows = table("member", "layers", "parameters", "FLOPs/byte", "of target", "time")
    models: list[Json] = []
    for member in plan.members:
        spent = times[member.name] * (member.bytes * (1 + VALIDATION_SHARE)) if member.name in times else None
        model: Json = {
            "name": member.name,
            "layout": member.layout,
            "parameters": member.config.model.num_parameters,
            "flops_per_byte": member.flops_per_byte,
            "of_target": member.flops_per_byte / (member.share * plan.flops),
            "bytes": member.bytes,
            "steps": member.config.train.steps,
            "estimated_seconds": spent,
        }
        models.append(model)
        flops, of_target = count(member.flops_per_byte), f"{model['of_target']:.0%}"
        names = literal(member.name), literal(member.layout)
        rows.add_row(*names, count(model["parameters"]), flops, of_target, "-" if spent is None else duration(spent))
    rows.columns[1].justify = "left"
    rows.columns[0].no_wrap = True
    show(rows)
    for note in _notes(plan, models):
        say(f"[yellow]note:[/] {literal(note)}")
    seeds = f", {plan.seeds} times each from another seed" if plan.seeds > 1 else ""
    say(f"{size(plan.bytes)} for every member, {plan.epochs:.2g} times the data{literal(seeds)}.")
    if times:
        say(f"About {duration(plan.seeds * sum(model['estimated_seconds'] for model in models))} of training in all.")
    return {
        "data": str(plan.data),
        "folder": str(plan.folder),
        "device": plan.machine.device,
        "bytes": plan.bytes,
        "flops_per_byte": plan.flops,
        "seeds": plan.seeds,
        "epochs": plan.epochs,
        "models": models,
    }


def _notes(plan: ComparisonPlan, models: Sequence[Json]) -> list[str]:
    """Ways in which the members are not trained alike, or on too little data."""
    notes = [
        f"{model['name']} has {model['of_target']:.0%} of the FLOPs per byte: no number of layers comes closer "
        "(--flops asks for another budget)."
        for model in models
        if abs(model["of_target"] - 1) > MATCHED
    ]
    for name in ("batch_bytes", "sequence_length"):
        values = {member.name: getattr(member.config.train, name) for member in plan.members}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{value:,} for {member}" for member, value in values.items())
            notes.append(
                f"train.{name} is not the same for all ({listed}), so they do not see the same bytes in the same order."
            )
    if plan.epochs > REPEATED:
        notes.append("seeing the data again and again, a member can learn it by heart: that counts too.")
    return notes


def show_results(figures: Json) -> None:
    """Print the tables and the verdict on standard output."""
    for title, rows in grids(figures).items():
        made = table(*map(literal, rows[0]), title=f"[bold]{title}[/]")
        for row in rows[1:]:
            made.add_row(*map(literal, row))
        show_data(made)
        print()
    for sentence in figures["verdict"]["text"]:
        show_data(literal(sentence))


def grids(figures: Json) -> dict[str, Rows]:
    """Tables by title; those without rows are left out."""
    exam, curves = figures["exam"], figures["curves"]
    part = "all" if exam["bytes"] == exam["of"] else f"{exam['of']:,}"
    titled = {
        f"Held-out documents, {exam['bytes']:,} bytes of {part}{_chosen(exam.get('compression'))}": _scores(figures),
        "Distorted documents: bits per byte": _distorted(figures),
        f"Along the way, validated on {curves['read']}": _way(figures),
        "Seeds": _seeds(figures),
    }
    return {title: rows for title, rows in titled.items() if len(rows) > 1}


def _chosen(compression: Mapping[str, Sequence[float]] | None) -> str:
    """The choice of boundaries, in words."""
    if not compression:
        return ""
    if lengths := compression["bytes_per_chunk"]:
        return f", learned boundaries such that a chunk has {lengths[0]:g} bytes"
    return f", learned boundaries above p = {compression['thresholds'][0]:g}"


def _scores(figures: Json) -> Rows:
    against = figures["reference"]
    rows = [
        [
            "model",
            "parameters",
            "FLOPs/byte",
            "bits per byte",
            f"minus {against}",
            "outcome",
            "bytes/chunk",
            "robustness",
        ]
    ]
    for model in figures["models"]:
        gap = model["differences"].get(against)
        stages = [
            f"{stage['bytes_per_chunk']:.2f}" + (f" ({stage['target']:.1f})" if stage["target"] else "")
            for stage in model["stages"]
        ]
        rows.append(
            [
                *(model["name"], count(model["parameters"]), count(model["flops_per_byte"])),
                f"{model['bpb']:.4f}{around(model['bpb_ci95'], '.3f')}",
                f"{gap['bpb']:+.4f}{around(gap['bpb_ci95'], '+.3f')}" if gap else "",
                gap["judged"] if gap else "",
                ", ".join(stages) or f"{model['bytes_per_chunk']:.2f}",
                _number(model["robustness"]["score"], ".1f"),
            ]
        )
    return rows


def around(ci95: Sequence[float] | None, form: str) -> str:
    """An interval in brackets; nothing where it is not known."""
    return f" [{ci95[0]:{form}}, {ci95[1]:{form}}]" if ci95 else ""


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _distorted(figures: Json) -> Rows:
    names = list(dict.fromkeys(name for model in figures["models"] for name in model["robustness"]["distortions"]))
    rows = [["model", "clean", *names, "robustness"]]
    for model in figures["models"] if names else ():
        robustness = model["robustness"]
        bits = [_number(robustness["distortions"].get(name, {}).get("bpb"), ".3f") for name in names]
        rows.append([model["name"], f"{robustness['clean_bpb']:.3f}", *bits, _number(robustness["score"], ".1f")])
    return rows


def _way(figures: Json) -> Rows:
    against = figures["reference"]
    crossed = f"below {against} from", "in time from"
    rows = [["model", "speed", "time", *crossed, "data efficiency", "stable", "time efficiency", "stable"]]
    for model in figures["models"]:
        crossovers = figures["crossovers"].get(model["name"], {})
        factors = figures["efficiency"].get(model["name"], {}).get(against, {})
        rows.append(
            [
                *(model["name"], f"{size(model['bytes_per_s'])}/s", duration(model["seconds"])),
                *(_crossing(crossovers.get(key), form) for key, form in (("bytes", size), ("seconds", duration))),
                *(
                    _number(factors[key], ".2f", "x") if key in factors else ""
                    for key in ("bytes", "stable_bytes", "seconds", "stable_seconds")
                ),
            ]
        )
    return rows


def _crossing(crossover: Json | None, form: Callable[[float], str]) -> str:
    """The place where one curve passes another, in words."""
    if crossover is None:
        return ""
    if crossover["state"] == "crosses":
        return form(crossover["at"])
    return "never in this budget" if crossover["state"] == "never" else str(crossover["state"])


def _seeds(figures: Json) -> Rows:
    most = max((len(model["seeds"]) for model in figures["models"]), default=0)
    rows = [["model", *(f"seed {n}" for n in range(most)), "mean"]]
    for model in figures["models"] if most > 1 else ():
        bits = {seed["seed"]: f"{seed['bpb']:.4f}" for seed in model["seeds"]}
        rows.append([model["name"], *(bits.get(n, "-") for n in range(most)), f"{model['bpb']:.4f}"])
    return rows
