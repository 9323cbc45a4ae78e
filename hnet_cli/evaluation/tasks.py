"""Multiple choice and last words from local files, scored by likelihood as lm-evaluation-harness does.

An item is a text and some endings, one of them right. `acc`: the likeliest ending is the right one; `acc_norm`: the
likeliest per character (the harness's length normalisation). With one ending (LAMBADA), `acc`: greedy decoding yields
it; and `perplexity` of the ending. The model reads BOS, the text, a space and the ending; nothing is cut off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hnet_cli.errors import InputError
from hnet_cli.evaluation.resampling import draws, interval, mean_with_interval, ratio, with_interval
from hnet_cli.inference.continuations import loglikelihoods
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Perturbation, begin_text
from hnet_cli.model import HNetForCausalLM
from hnet_cli.storage import open_input, shown
from hnet_cli.storage.reading import reason
from hnet_cli.terminal.console import progress

PLACES = ("prompt", "completion", "both")
"""Parts of an item that a perturbation is applied to; BLT takes each as a task of its own and averages."""
AT_ONCE, AT_ONCE_SIZE = 64, 1 << 20
"""Items scored together, fewer where they are of more characters."""
MOST_ITEM = 1 << 22
"""Characters read for the largest item."""
MOST_BYTES = 64 << 20
"""Bytes of the largest file."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question."""

    text: str
    endings: tuple[str, ...]
    answer: int
    """Index of the right ending."""

    @property
    def size(self) -> int:
        """Characters that are read to score it: the text once for every ending."""
        return len(self.text) * len(self.endings) + sum(map(len, self.endings))

    @property
    def too_large(self) -> str:
        """A message, for more than `MOST_ITEM`."""
        return f"an item for which {self.size:,} characters must be read, more than {MOST_ITEM:,}"


def read_items(path: Path) -> list[Item]:
    """The items of a file: HellaSwag in six lines each, or JSON lines of HellaSwag, PIQA, ARC, LAMBADA, or `query`,
    `choices`, `gold`. Raises InputError naming the line that cannot be read."""
    with open_input(path) as file:
        content = begin_text(file, shown(path)).read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{shown(path)} has more than {MOST_BYTES:,} bytes", "give fewer items")
    try:
        lines = content.decode("utf-8").replace("\n\ufeff", "\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: byte {error.start} is not UTF-8") from error
    first = next(filter(str.strip, lines), "")
    items = _rows(path, lines) if first.lstrip().startswith("{") else _six_lines(path, lines)
    if not items:
        raise InputError(f"{shown(path)} holds no items", "give JSON lines, or HellaSwag in six lines an item")
    return items


def _six_lines(path: Path, lines: list[str]) -> list[Item]:
    items = []
    lines = lines if lines[-1] else lines[:-1]
    for at in range(0, len(lines), 6):
        block = lines[at : at + 6]
        if len(block) < 6 or block[1] not in ("0", "1", "2", "3"):
            raise InputError(f"{shown(path)}, line {at + 2}: not the number 0 to 3 of the right one among four endings")
        items.append(Item(block[0], tuple(block[2:]), int(block[1])))
        if items[-1].size > MOST_ITEM:
            raise InputError(f"{shown(path)}, line {at + 1}: {items[-1].too_large}")
    return items


def _rows(path: Path, lines: list[str]) -> list[Item]:
    items = []
    for number, line in enumerate(lines, 1):
        try:
            items += [_item(json.loads(line))] if line.strip() else []
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{shown(path)}, line {number}: no item of a known shape ({type(error).__name__}: {reason(error)})",
                "known: query, choices, gold; ctx, endings, label; goal, sol1, sol2, label; question, choices, "
                "answerKey; context, continuation; text",
            ) from error
    return items


def _item(row: dict[str, Any]) -> Item:
    """An item from a row of one of the known data sets, with the harness's prompts. Raises ValueError and others."""
    if "endings" in row:
        split = "ctx_a" in row and "ctx_b" in row
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}" if split else row["ctx"]
        context = f"{row['activity_label']}: {context}" if "activity_label" in row else context
        text, endings, answer = _wikihow(context), [_wikihow(ending) for ending in row["endings"]], int(row["label"])
    elif "sol1" in row:
        text, endings, answer = f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"])
    elif "answerKey" in row:
        text, endings = f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
        answer = row["choices"]["label"].index(row["answerKey"])
    elif "query" in row:
        text, endings, answer = row["query"], row["choices"], int(row["gold"])
    elif "continuation" in row:
        text, endings, answer = row["context"], [row["continuation"].strip()], 0
    else:
        text, _, last = row["text"].strip().rpartition(" ")
        endings, answer = [last], 0
    if not isinstance(text, str) or not endings or not all(isinstance(each, str) and each for each in endings):
        raise ValueError("the text or an ending is empty or no text")
    if not 0 <= answer < len(endings):
        raise ValueError(f"no ending is the right one: {answer} of {len(endings)}")
    for part in (text, *endings):
        part.encode()  # JSON can write half of a surrogate pair
    item = Item(text, tuple(endings), answer)
    if item.size > MOST_ITEM:
        raise ValueError(item.too_large)
    return item


def _wikihow(text: str) -> str:
    """HellaSwag's preprocessing in the harness: WikiHow's brackets, `\\[.*?\\]`, are left out, each line read once."""
    lines = text.strip().replace(" [title]", ". ").split("\n")
    return "\n".join(map(_without_brackets, lines)).replace("  ", " ")


def _without_brackets(line: str) -> str:
    kept, at = [], 0
    while (begin := line.find("[", at)) >= 0 and (end := line.find("]", begin)) >= 0:
        kept.append(line[at:begin])
        at = end + 1
    return "".join(kept) + line[at:]


def perturbed(items: Iterable[Item], name: str, perturb: Perturbation, place: str) -> Iterator[Item]:
    """The items with text, endings or both distorted; the random numbers depend only on name, place and index."""
    for number, item in enumerate(items):
        random = Random(f"0 {name} {place} {number}")

        def distorted(text: str, random: Random = random) -> str:
            return perturb(text.encode(), random).decode("utf-8", "replace") or text

        text = distorted(item.text) if place != "completion" else item.text
        endings = tuple(map(distorted, item.endings)) if place != "prompt" else item.endings
        yield replace(item, text=text, endings=endings)


@dataclass(frozen=True)
class Outcome:
    """Scores of n items, (n,) float64 each."""

    right: np.ndarray
    right_norm: np.ndarray
    log: np.ndarray
    """ln P of the right ending."""
    bytes: np.ndarray
    """Bytes of the right ending and the space before it."""
    chance: np.ndarray

    @property
    def answer_bits(self) -> np.ndarray:
        """(n, 2): bits and bytes of the right endings."""
        return np.stack([-self.log / math.log(2), self.bytes], 1)


def score_items(
    model: HNetForCausalLM,
    items: Sequence[Item],
    table: bytes | None = None,
    update: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Score the items; `table` as `Modality.input_table`; `update` gets the number done. Raises NumericalError."""
    rows: list[tuple[float, ...]] = []
    for batch in _batches(items):
        pairs = [
            (BOS + item.text.encode().translate(table), (" " + ending).encode().translate(table))
            for item in batch
            for ending in item.endings
        ]
        logs, greedy = loglikelihoods(model, pairs)
        at = 0
        for item in batch:
            log, answer = logs[at : at + len(item.endings)], at + item.answer
            right, right_norm, chance = float(greedy[at]), float(greedy[at]), 0.0
            if len(item.endings) > 1:
                right = float(log.argmax() == item.answer)
                right_norm = float((log / [len(ending) for ending in item.endings]).argmax() == item.answer)
                chance = 1 / len(item.endings)
            rows.append((right, right_norm, logs[answer], len(pairs[answer][1]), chance))
            at += len(item.endings)
        update(len(rows))
    return Outcome(*np.array(rows, np.float64).T)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == AT_ONCE or size + item.size > AT_ONCE_SIZE):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield batch


def figures(outcome: Outcome) -> dict[str, Any]:
    """items, acc, acc_norm (with _ci95 over items), chance; of single endings perplexity instead of acc_norm;
    answer_bpb: bits per byte of the right endings, which tells models apart that are all at chance."""
    chance = float(outcome.chance.mean())
    result: dict[str, Any] = {"items": len(outcome.right), **mean_with_interval("acc", outcome.right)}
    if chance:
        result |= mean_with_interval("acc_norm", outcome.right_norm)
    else:
        logs = np.stack([-outcome.log, np.ones(len(outcome.log))], 1)
        with np.errstate(over="ignore"):  # of whole endings: infinite from 710 nats on, and null in JSON
            result |= with_interval("perplexity", logs, lambda sums: np.exp(ratio(sums)))
    return result | with_interval("answer_bpb", outcome.answer_bits) | {"chance": chance}


def robustness(
    model: HNetForCausalLM,
    items: Sequence[Item],
    perturbations: Mapping[str, Perturbation],
    clean: Outcome,
    table: bytes | None = None,
    label: str = "task",
    scored: Collection[str] = (),
) -> dict[str, Any]:
    """acc_norm (acc of single endings) and answer_bpb, per byte after the perturbation, of each perturbation at each
    place and averaged over `PLACES`; and the paper's robustness score 100 (perturbed - chance) / max(clean - chance, 0)
    of the average over the perturbations named in `scored` (none: over all), None for a model at chance."""
    result: dict[str, Any] = {}
    means, done = [], 0
    with progress(f"{label}, distorted", len(PLACES) * len(perturbations) * len(items)) as bar:
        for name, perturb in perturbations.items():
            outcomes = {}
            for place in PLACES:
                bar.update(done, note=f"{name}, {place}")
                distorted = list(perturbed(items, name, perturb, place))
                outcomes[place] = score_items(model, distorted, table)
                done += len(items)
            mean = np.mean([outcome.right_norm for outcome in outcomes.values()], 0)
            means += [mean] * (not scored or name in scored)
            answers = np.sum([outcome.answer_bits for outcome in outcomes.values()], 0)
            result[name] = mean_with_interval("acc", mean) | with_interval("answer_bpb", answers)
            for place, outcome in outcomes.items():
                result[name] |= mean_with_interval(place, outcome.right_norm)
                result[name] |= with_interval(f"{place}_answer_bpb", outcome.answer_bits)
    rows = np.stack([np.mean(means, 0), clean.right_norm, clean.chance, np.ones(len(clean.chance))], 1)

    def score(sums: np.ndarray) -> np.ndarray:
        noisy, good, chance = (sums[..., column] / sums[..., 3] for column in range(3))
        return np.where(good > chance, 100 * (noisy - chance) / np.maximum(good - chance, 1e-12), np.nan)

    value = float(score(rows.sum(0)[None])[0])
    return {
        "perturbations": result,
        "robustness_score": value if math.isfinite(value) else None,
        "robustness_score_ci95": interval(draws(rows, score)),
    }
