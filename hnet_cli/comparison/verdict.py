"""What the figures of a comparison say, in sentences; above all when the H-Net does not win."""

from __future__ import annotations

from typing import Any

from hnet_cli.comparison.plan import MATCHED
from hnet_cli.terminal.console import count, duration, size

Json = dict[str, Any]
UNSTEADY = 1.3
"""Between quartiles of its speed, a training was disturbed."""


def verdict(told: Json) -> Json:
    """`text`, a list of sentences; and `outcome` of the best H-Net against the reference, at equal bytes and FLOPs and
    at equal time: "wins", "loses", "cannot be told apart", or None where there is nothing to compare."""
    models = {model["name"]: model for model in told["models"]}
    hnets = [model for model in told["models"] if model["learned"]]
    rival = models.get(told["reference"]) if told["reference"] else None
    sentences = [_setting(told)] if models else []
    outcome: dict[str, str | None] = {"equal_bytes": None, "equal_time": None}
    champion = None
    if not hnets:
        sentences.append("No H-Net with learned boundaries took part, so nothing is said of one.")
    elif rival is None or rival["learned"]:
        sentences.append("No other model of these FLOPs took part, so nothing is said of the H-Nets against one.")
        sentences += _double(min(hnets, key=lambda model: model["bpb"]), models)
    else:
        best = min(hnets, key=lambda model: model["bpb"])
        champion = best["name"]
        gap = best["differences"][rival["name"]]
        outcome["equal_bytes"] = gap["judged"]
        sentences.append(f"At equal bytes and FLOPs {_claim(best, rival, gap)}.")
        if timed := gap["equal_time"]:
            outcome["equal_time"] = timed["judged"]
            sentences.append(
                f"At equal measured time (after {duration(timed['seconds'])} of training, before the learning rate "
                f"decays) {_claim(best, rival, timed)}."
            )
        sentences += _others(told, hnets, best, rival)
        sentences += _double(best, models)
        sentences += _unlearned(told, hnets, models)
    sentences += _reservations(told, models, rival)
    return {"hnet": champion, "reference": told["reference"], "outcome": outcome, "text": sentences}


def _setting(told: Json) -> str:
    budget = told["budget"]
    seeds = f", {budget['seeds']} seeds" if budget["seeds"] > 1 else ""
    return (
        f"On {told['dataset']['name']} ({told['dataset']['modality']}), {size(budget['bytes'])} for every member at "
        f"about {count(budget['flops_per_byte'])} FLOPs per byte{seeds}: the lowest is {told['best']} with "
        f"{next(m['bpb'] for m in told['models'] if m['name'] == told['best']):.3f} bits per byte."
    )


def _claim(own: Json, other: Json, gap: Json) -> str:
    """The one sentence that matters, with its interval."""
    bits = f"{gap['bpb']:+.3f} bits per byte"
    if gap["bpb_ci95"]:
        bits += f", 95% interval {gap['bpb_ci95'][0]:+.3f} to {gap['bpb_ci95'][1]:+.3f}"
    says = {
        "wins": f"the best H-Net ({own['name']}) wins against {other['name']}",
        "loses": f"the H-Net does not win: the best of them ({own['name']}) loses to {other['name']}",
    }.get(gap["judged"], f"the H-Net does not win: {own['name']} and {other['name']} cannot be told apart")
    return f"{says} ({bits})"


def _others(told: Json, hnets: list[Json], best: Json, rival: Json) -> list[str]:
    """How the other H-Nets fare against the reference, in one sentence."""
    parts = []
    for model in hnets:
        if model is not best:
            gap = model["differences"][rival["name"]]
            word = {"wins": "wins", "loses": "loses"}.get(gap["judged"], "cannot be told apart from it")
            parts.append(f"{model['name']} {word} ({gap['bpb']:+.3f})")
    return [f"Of the other H-Nets against {rival['name']}: {', '.join(parts)}."] if parts else []


def _double(best: Json, models: dict[str, Json]) -> list[str]:
    """The best H-Net beside the Transformer of twice the FLOPs, which the paper's two stages match."""
    twice = next((model for model in models.values() if model["share_of_flops"] > 1), None)
    if twice is None or not (gap := best["differences"].get(twice["name"])):
        return []
    return [f"Against {twice['name']}, of {twice['share_of_flops']:g} times the FLOPs: {_claim(best, twice, gap)}."]


def _unlearned(told: Json, hnets: list[Json], models: dict[str, Json]) -> list[str]:
    """Whether learning boundaries was worth it at all: the best H-Net beside the best of all others."""
    others = [model for model in models.values() if not model["learned"] and model["share_of_flops"] == 1]
    best, rival = min(hnets, key=lambda m: m["bpb"]), min(others, key=lambda m: m["bpb"])
    if rival["name"] == told["reference"]:
        return []
    if rival["bpb"] <= best["bpb"]:
        gap = best["differences"].get(rival["name"])
        known = f", {gap['judged']}" if gap else ""
        return [f"{rival['name']}, which learns no boundaries, is at least as good as every H-Net here "
                f"({best['bpb'] - rival['bpb']:+.3f} for {best['name']}{known})."]  # fmt: skip
    return [f"The best without learned boundaries is {rival['name']}, {rival['bpb'] - best['bpb']:+.3f} behind."]


def _reservations(told: Json, models: dict[str, Json], rival: Json | None) -> list[str]:
    """What the figures do not say."""
    found = []
    if told["budget"]["seeds"] == 1 and models:
        found.append(f"One seed: the intervals cover the choice of held-out {told['exam']['unit']}s, not the luck of a "
                     "training; --seeds 3 would.")  # fmt: skip
    if models and any(model["bpb_ci95"] is None for model in models.values()):
        found.append("There are too few held-out documents to say how sure any of this is.")
    if told["exam"]["unit"] == "window":
        found.append("There are few held-out documents: the intervals are over windows of these, and do not cover "
                     "another choice of documents.")  # fmt: skip
    if told["dataset"]["epochs"] > 1.5:
        found.append(f"Every member saw the data {told['dataset']['epochs']:.1f} times, so what is measured is also "
                     "how well it learns by heart.")  # fmt: skip
    if rival:
        off = [
            f"{model['name']} {away:+.0%}"
            for model in models.values()
            if model["share_of_flops"] == 1
            and abs(away := model["flops_per_byte"] / rival["flops_per_byte"] - 1) > MATCHED
        ]
        if off:
            found.append(f"Measured FLOPs per byte are not equal: {', '.join(off)} against {rival['name']}.")
    worst = max((model["unsteady"] for model in models.values()), default=1.0)
    if worst > UNSTEADY:
        found.append(f"The speed within a training varied by a factor of {worst:.1f} between its quartiles: the "
                     "machine had other work to do, so what is said of time is not reliable.")  # fmt: skip
    if told["failed"]:
        found.append(f"Failed: {', '.join(told['failed'])}.")
    if told["missing"]:
        found.append(f"Not done yet: {', '.join(told['missing'])}.")
    return found
