"""Multiple choice and last words from local files, scored by likelihood as lm-evaluation-harness does.

An item is a text and some endings, one of them right. `acc`: the likeliest ending is the right one; `acc_norm`: the
likeliest per character (the harness's length normalisation). With one ending (LAMBADA), `acc`: greedy decoding gives
it; and `perplexity` of the ending. The model reads BOS, the text, a space and the ending; nothing is cut off.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hnet_cli.errors import InputError
from hnet_cli.evaluation.resampling import interval, ratio, with_interval
from hnet_cli.evaluation.scoring import loglikelihoods
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Perturbation
from hnet_cli.model import HNetForCausalLM
from hnet_cli.storage.streams import open_input

PLACES = ("prompt", "completion", "both")
"""Where a perturbation is applied; BLT takes each as a task of its own and averages."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question."""

    text: str
    endings: tuple[str, ...]
    answer: int
    """Index of the right ending."""


def read(path: Path) -> list[Item]:
    """The items of a file: HellaSwag in six lines each, or JSON lines of HellaSwag, PIQA, ARC, LAMBADA, or `query`,
    `choices`, `gold`. Raises InputError naming the line that cannot be read."""
    with open_input(path) as file:
        try:
            lines = file.read().decode("utf-8").replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: byte {error.start} is not UTF-8") from error
    items = _rows(path, lines) if lines and lines[0].lstrip().startswith("{") else _six_lines(path, lines)
    if not items:
        raise InputError(f"{path} holds no items", "give JSON lines, or HellaSwag in six lines an item")
    return items


def _six_lines(path: Path, lines: list[str]) -> list[Item]:
    items = []
    lines = lines if not lines or lines[-1] else lines[:-1]
    for at in range(0, len(lines), 6):
        own = lines[at : at + 6]
        if len(own) < 6 or own[1] not in ("0", "1", "2", "3"):
            raise InputError(f"{path}, line {at + 2}: not the number 0 to 3 of the right one among four endings")
        items.append(Item(own[0], tuple(own[2:]), int(own[1])))
    return items


def _rows(path: Path, lines: list[str]) -> list[Item]:
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: no item of a known shape ({type(error).__name__}: {error})",
                "known: query, choices, gold; ctx, endings, label; goal, sol1, sol2, label; question, choices, "
                "answerKey; context, continuation; text",
            ) from error
    return items


def _item(row: dict[str, Any]) -> Item:
    if "endings" in row:
        split = "ctx_a" in row and "ctx_b" in row
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}" if split else row["ctx"]
        context = f"{row['activity_label']}: {context}" if "activity_label" in row else context
        return _checked(_wikihow(context), [_wikihow(each) for each in row["endings"]], int(row["label"]))
    if "sol1" in row:
        return _checked(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"]))
    if "answerKey" in row:
        choices = row["choices"]
        return _checked(
            f"Question: {row['question']}\nAnswer:", choices["text"], choices["label"].index(row["answerKey"])
        )
    if "query" in row:
        return _checked(row["query"], row["choices"], int(row["gold"]))
    if "continuation" in row:
        return _checked(row["context"], [row["continuation"].strip()], 0)
    before, _, last = row["text"].strip().rpartition(" ")
    return _checked(before, [last], 0)


def _checked(text: str, endings: Sequence[str], answer: int) -> Item:
    if not isinstance(text, str) or not endings or not all(isinstance(each, str) and each for each in endings):
        raise ValueError("the text or an ending is empty or no text")
    for each in (text, *endings):
        each.encode()  # JSON can write half of a surrogate pair
    return Item(text, tuple(endings), range(len(endings))[answer])


def _wikihow(text: str) -> str:
    """What the harness does to HellaSwag: the brackets of WikiHow are left out."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def perturbed(items: Iterable[Item], name: str, perturb: Perturbation, place: str, seed: int = 0) -> Iterator[Item]:
    """The items with text, endings or both distorted; an item's chance depends on (seed, name, place, number) only."""
    for number, item in enumerate(items):
        random = Random(f"{seed} {name} {place} {number}")

        def distorted(text: str, random: Random = random) -> str:
            return perturb(text.encode(), random).decode("utf-8", "replace") or text

        text = distorted(item.text) if place != "completion" else item.text
        endings = tuple(map(distorted, item.endings)) if place != "prompt" else item.endings
        yield replace(item, text=text, endings=endings)


@dataclass(frozen=True)
class Outcome:
    """Per item, (n,) each."""

    right: np.ndarray
    right_norm: np.ndarray
    log: np.ndarray
    """ln P of the right ending."""
    bytes: np.ndarray
    """Of the right ending, the space before it too."""
    chance: np.ndarray


def run(
    model: HNetForCausalLM,
    items: Sequence[Item],
    table: bytes | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Score the items, some at a time. `table` as `Modality.input_table`."""
    right, right_norm, logs, sizes, chance = [], [], [], [], []
    waiting = iter(items)
    while some := list(islice(waiting, 64)):
        pairs = [
            (BOS + item.text.encode().translate(table), (" " + ending).encode().translate(table))
            for item in some
            for ending in item.endings
        ]
        log, greedy = loglikelihoods(model, pairs)
        at = 0
        for item in some:
            own = log[at : at + len(item.endings)]
            lengths = np.array([len(ending) for ending in item.endings])
            single = len(item.endings) == 1
            right.append(bool(greedy[at]) if single else int(own.argmax()) == item.answer)
            right_norm.append(bool(greedy[at]) if single else int((own / lengths).argmax()) == item.answer)
            logs.append(float(own[item.answer]))
            sizes.append(len(pairs[at + item.answer][1]))
            chance.append(0.0 if single else 1 / len(item.endings))
            at += len(item.endings)
        progress(len(right))
    return Outcome(*(np.array(column, float) for column in (right, right_norm, logs, sizes, chance)))


def figures(outcome: Outcome) -> dict[str, Any]:
    """items, acc, acc_norm (with _ci95 over items), chance; of single endings perplexity instead of acc_norm;
    answer_bpb: bits per byte of the right endings, which tells models apart that are all at chance."""
    ones = np.ones(len(outcome.right))
    chance = float(outcome.chance.mean())
    result: dict[str, Any] = {"items": len(ones), **with_interval("acc", np.stack([outcome.right, ones], 1))}
    if chance:
        result |= with_interval("acc_norm", np.stack([outcome.right_norm, ones], 1))
    else:
        logs = np.stack([-outcome.log, ones], 1)
        result |= with_interval("perplexity", logs, lambda sums: np.exp(ratio(sums)))
    return result | with_interval("answer_bpb", _answer(outcome)) | {"chance": chance}


def _answer(outcome: Outcome) -> np.ndarray:
    return np.stack([-outcome.log / math.log(2), outcome.bytes], 1)


def robustness(
    model: HNetForCausalLM,
    items: Sequence[Item],
    perturbations: dict[str, Perturbation],
    clean: Outcome,
    table: bytes | None = None,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> dict[str, Any]:
    """acc_norm (acc of single endings) and answer_bpb, per byte after the perturbation, of each perturbation at each
    place and averaged over `PLACES`; and the paper's robustness score 100 (perturbed - chance) / max(clean - chance, 0)
    of the average over perturbations. `progress` is told the items done, of all perturbations and places."""
    result: dict[str, Any] = {}
    means, done = [], 0
    for name, perturb in perturbations.items():
        outcomes = []
        for place in PLACES:

            def note(n: int, before: int = done, what: str = f"{name}, {place}") -> None:
                progress(before + n, what)

            outcomes.append(run(model, list(perturbed(items, name, perturb, place)), table, note))
            done += len(items)
        mean = np.mean([outcome.right_norm for outcome in outcomes], 0)
        means.append(mean)
        ones = np.ones(len(mean))
        result[name] = {
            **with_interval("acc", np.stack([mean, ones], 1)),
            **with_interval("answer_bpb", np.sum([_answer(outcome) for outcome in outcomes], 0)),
        }
        for place, outcome in zip(PLACES, outcomes, strict=True):
            result[name] |= with_interval(place, np.stack([outcome.right_norm, ones], 1))
            result[name] |= with_interval(f"{place}_answer_bpb", _answer(outcome))
    rows = np.stack([np.mean(means, 0), clean.right_norm, clean.chance, np.ones(len(clean.chance))], 1)

    def score(sums: np.ndarray) -> np.ndarray:
        noisy, good, chance = (sums[..., column] / sums[..., 3] for column in range(3))
        return np.where(good > chance, 100 * (noisy - chance) / np.maximum(good - chance, 1e-12), np.nan)

    value = float(score(rows.sum(0)[None])[0])
    return {
        "perturbations": result,
        "robustness_score": value if math.isfinite(value) else None,
        "robustness_score_ci95": interval(rows, score),
    }
