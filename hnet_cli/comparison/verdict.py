"""The figures of a comparison in sentences; above all when the H-Net does not win."""

from __future__ import annotations

from typing import Any

from hnet_cli.terminal.console import count, duration, size

Json = dict[str, Any]
MATCHED = 0.05
"""Relative difference of FLOPs per byte above which it is mentioned."""
REPEATED = 1.5
"""Epochs above which learning by heart is mentioned."""
UNSTEADY = 1.3
"""Ratio of the quartiles of a training's speed above which it was disturbed."""


def verdict(figures: Json) -> Json:
    """`text`, a list of sentences; and `outcome` of the best H-Net against the reference, at equal bytes and FLOPs and
    at equal time: "wins", "loses", "cannot be told apart", or None where there is nothing to compare."""
    models = {model["name"]: model for model in figures["models"]}
    hnets = sorted((model for model in figures["models"] if model["learned"]), key=lambda model: model["bpb"])
    rival = models.get(figures["reference"])
    sentences = [_setting(figures, models)] if models else []
    outcome: dict[str, str | None] = {"equal_bytes": None, "equal_time": None}
    best = hnets[0] if hnets else None
    champion = None
    if best is None:
        sentences.append("No H-Net with learned boundaries took part, so nothing is said of one.")
    elif rival is None or rival["learned"]:
        sentences.append("No other model of these FLOPs took part, so nothing is said of the H-Nets against one.")
        sentences += _double(best, models)
    else:
        champion, gap = best["name"], best["differences"][rival["name"]]
        outcome["equal_bytes"] = gap["judged"]
        sentences.append(f"At equal bytes and FLOPs {_claim(best, rival, gap)}.")
        if timed := gap["equal_time"]:
            outcome["equal_time"] = timed["judged"]
            moment = f"after {duration(timed['seconds'])} of training, before the learning rate decays"
            sentences.append(f"At equal measured time ({moment}) {_claim(best, rival, timed)}.")
        others = [_other(model, rival) for model in models.values() if model["learned"] and model is not best]
        if others:
            sentences.append(f"Of the other H-Nets against {rival['name']}: {', '.join(others)}.")
        sentences += _double(best, models)
        sentences += _unlearned(figures, best, models)
    sentences += _reservations(figures, models, rival)
    return {"hnet": champion, "reference": figures["reference"], "outcome": outcome, "text": sentences}


def headline(figures: Json) -> str:
    """The verdict in one sentence, with its interval; "not settled" where the interval does not settle it."""
    models, told = {model["name"]: model for model in figures["models"]}, figures["verdict"]
    best, rival = models.get(told["hnet"]), models.get(told["reference"])
    if best is None or rival is None:
        return "Not settled: there is no H-Net with learned boundaries beside another model of these FLOPs."
    gap = best["differences"][rival["name"]]
    names = f"the H-Net {best['name']} and {rival['name']}"
    settled = {
        "wins": f"The H-Net wins: {best['name']} needs {-gap['bpb']:.3f} bits per byte less than {rival['name']}",
        "loses": f"The H-Net loses: {best['name']} needs {gap['bpb']:.3f} bits per byte more than {rival['name']}",
    }
    claim = settled.get(gap["judged"], f"Not settled: {names} cannot be told apart, {gap['bpb']:+.3f} bits per byte")
    ci95 = gap["bpb_ci95"]
    sure = f"95% interval of the difference {ci95[0]:+.3f} to {ci95[1]:+.3f}" if ci95 else "no interval is known"
    seeds, timed = figures["budget"]["seeds"], told["outcome"]["equal_time"]
    late = "; at equal measured time it does not win" if gap["judged"] == "wins" and timed not in ("wins", None) else ""
    return (
        f"{claim} ({best['bpb']:.3f} against {rival['bpb']:.3f}; {sure}), "
        f"at equal bytes and FLOPs, with {seeds} seed{'s' * (seeds != 1)}{late}."
    )


def _setting(figures: Json, models: dict[str, Json]) -> str:
    budget = figures["budget"]
    seeds = f", {budget['seeds']} seeds" if budget["seeds"] > 1 else ""
    dataset, best = figures["dataset"], figures["best"]
    return (
        f"On {dataset['name']} ({dataset['modality']}), {size(budget['bytes'])} for every member at "
        f"about {count(budget['flops_per_byte'])} FLOPs per byte{seeds}: the lowest is {best} with "
        f"{models[best]['bpb']:.3f} bits per byte."
    )


def _claim(hnet: Json, other: Json, gap: Json) -> str:
    """The one sentence that matters, with its interval."""
    bits = f"{gap['bpb']:+.3f} bits per byte"
    if gap["bpb_ci95"]:
        bits += f", 95% interval {gap['bpb_ci95'][0]:+.3f} to {gap['bpb_ci95'][1]:+.3f}"
    claims = {
        "wins": f"the best H-Net ({hnet['name']}) wins against {other['name']}",
        "loses": f"the H-Net does not win: the best of them ({hnet['name']}) loses to {other['name']}",
    }
    undecided = f"the H-Net does not win: {hnet['name']} and {other['name']} cannot be told apart"
    return f"{claims.get(gap['judged'], undecided)} ({bits})"


def _other(model: Json, rival: Json) -> str:
    gap = model["differences"][rival["name"]]
    word = {"wins": "wins", "loses": "loses"}.get(gap["judged"], "cannot be told apart from it")
    return f"{model['name']} {word} ({gap['bpb']:+.3f})"


def _double(best: Json, models: dict[str, Json]) -> list[str]:
    """The best H-Net beside the Transformer of twice the FLOPs, which the paper's two stages match."""
    twice = next((model for model in models.values() if model["share_of_flops"] > 1), None)
    if twice is None or not (gap := best["differences"].get(twice["name"])):
        return []
    return [f"Against {twice['name']}, of {twice['share_of_flops']:g} times the FLOPs: {_claim(best, twice, gap)}."]


def _unlearned(figures: Json, best: Json, models: dict[str, Json]) -> list[str]:
    """The worth of learning boundaries at all: the best H-Net beside the best of all others."""
    others = [model for model in models.values() if not model["learned"] and model["share_of_flops"] == 1]
    rival = min(others, key=lambda model: model["bpb"])
    if rival["name"] == figures["reference"]:
        return []
    ahead = best["bpb"] - rival["bpb"]
    if ahead < 0:
        return [f"The best without learned boundaries is {rival['name']}, {-ahead:+.3f} behind."]
    gap = best["differences"].get(rival["name"])
    known = f" for {best['name']}" + (f", {gap['judged']}" if gap else "")
    as_good = f"{rival['name']}, which learns no boundaries, is at least as good as every H-Net here"
    return [f"{as_good} ({ahead:+.3f}{known})."]


def _reservations(figures: Json, models: dict[str, Json], rival: Json | None) -> list[str]:
    """Reasons to read the figures with care."""
    sentences, exam, epochs = [], figures["exam"], figures["dataset"]["epochs"]
    if figures["budget"]["seeds"] == 1 and models:
        sentences.append(
            f"One seed: the intervals cover the choice of held-out {exam['unit']}s, not the luck of a training; "
            "--seeds 3 would."
        )
    if any(model["bpb_ci95"] is None for model in models.values()):
        sentences.append("There are too few held-out documents to say how sure any of this is.")
    if exam["unit"] == "window":
        sentences.append(
            "There are few held-out documents: the intervals are over windows of these, and do not cover another "
            "choice of documents."
        )
    if epochs > REPEATED:
        sentences.append(
            f"Every member saw the data {epochs:.1f} times, so what is measured is also how well it learns by heart."
        )
    if rival:
        flops = {
            name: model["flops_per_byte"] / rival["flops_per_byte"] - 1
            for name, model in models.items()
            if model["share_of_flops"] == 1
        }
        if off := [f"{name} {away:+.0%}" for name, away in flops.items() if abs(away) > MATCHED]:
            sentences.append(f"Measured FLOPs per byte are not equal: {', '.join(off)} against {rival['name']}.")
    worst = max((model["unsteady"] for model in models.values()), default=1.0)
    if worst > UNSTEADY:
        sentences.append(
            f"The speed within a training varied by a factor of {worst:.1f} between its quartiles: the machine had "
            "other work to do, so what is said of time is not reliable."
        )
    for label, names in (("Failed", figures["failed"]), ("Not done yet", figures["missing"])):
        if names:
            sentences.append(f"{label}: {', '.join(names)}.")
    return sentences
