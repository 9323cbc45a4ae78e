"""What a model says about variants: how much less likely the alternative is than the reference, on both strands.

The score of a variant is ln P(alternative + what follows | what precedes) - ln P(reference + what follows | what
precedes). Both read exactly the same flanks, of their full length for indels too: nothing is padded and no base of a
flank is read with one allele only. The mirrored sequence (`Modality.mirror`), where the modality has such a thing, is
scored likewise, and the mean reported.
Negative: the model finds the alternative worse. An insertion has more bytes to pay for; compare like with like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli import storage
from hnet_cli.errors import InputError
from hnet_cli.evaluation.material import file_source
from hnet_cli.evaluation.resampling import FEWEST, with_interval
from hnet_cli.evaluation.scoring import loglikelihoods
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Modality, Refused, Variant
from hnet_cli.model import HNetForCausalLM

AT_ONCE = 64
TIMES = 200
"""Draws for the interval of a correlation."""


def score_variants(
    model: HNetForCausalLM,
    kind: Modality,
    calls: Path,
    reference: Path,
    context: int,
    out: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
    label: str | None = None,
) -> dict[str, Any]:
    """Score every variant of a file of calls; half of `context` is read on either side. `out`: a TSV, a line each.

    `label`: a field of the file to compare with; default AF where it is there. Raises InputError if nothing is scored.
    """
    refused: Counter[str] = Counter()
    first: dict[str, str] = {}
    kept: list[Variant] = []
    scores: list[tuple[float, float]] = []

    def variants() -> Iterator[Variant]:
        for item in kind.variants(file_source(calls), file_source(reference), max(1, context // 2)):
            if isinstance(item, Refused):
                refused[item.reason] += 1
                first.setdefault(item.reason, item.where)
            else:
                yield item

    waiting, strands = variants(), kind.mirror(b"") is not None
    while some := list(islice(waiting, AT_ONCE)):
        forward = _ratios(model, some)
        backward = _ratios(model, [_mirrored(kind, each) for each in some]) if strands else forward
        scores += zip(forward.tolist(), backward.tolist(), strict=True)
        kept += some
        progress(len(kept))
    if not kept:
        reason = refused.most_common(1)[0][0] if refused else "it is empty"
        raise InputError(f"no variant of {calls} can be scored: {reason}{f' ({first[reason]})' if refused else ''}")
    table = np.array(scores)
    mean = table.mean(1)
    if out is not None:
        _write(out, kept, table, mean)
    kinds = Counter(_kind(each) for each in kept)
    result: dict[str, Any] = {
        "variants": len(kept),
        "left_out": dict(refused),
        "left_out_first": first,
        "kinds": dict(kinds),
        **with_interval("llr", np.stack([mean, np.ones(len(mean))], 1)),
        **_by_kind(kinds, np.array([_kind(each) for each in kept]), mean),
    }
    if strands:
        result |= _with_interval("strand_correlation", _spearman, table[:, 0], table[:, 1])
    label = label or ("AF" if all("AF" in each.fields for each in kept) else None)
    return result | ({"label": _labelled(kept, mean, label)} if label else {})


def _by_kind(kinds: Iterable[str], own: np.ndarray, mean: np.ndarray) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in kinds:
        of_kind = mean[own == name]
        result |= with_interval(f"llr_{name}", np.stack([of_kind, np.ones(len(of_kind))], 1))
    return result


def _with_interval(
    name: str, measure: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray
) -> dict[str, Any]:
    """{name: of all variants, name_ci95: over `TIMES` draws of variants, the same draws for everything}. (n,) each."""
    if len(a) < FEWEST:
        return {name: measure(a, b), f"{name}_ci95": None}
    random = np.random.default_rng(0)
    drawn = [measure(a[at], b[at]) for at in random.integers(0, len(a), (TIMES, len(a)))]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {name: measure(a, b), f"{name}_ci95": [float(low), float(high)]}


def _ratios(model: HNetForCausalLM, variants: Iterable[Variant]) -> np.ndarray:
    """(n,) in nats."""
    pairs = []
    for each in variants:
        before = (BOS if each.begins else b"") + each.before
        if not before:  # nothing known precedes: the base before it is unknown, which BOS says best
            before = BOS
        pairs += [(before, each.alternative + each.after), (before, each.reference + each.after)]
    log, _ = loglikelihoods(model, pairs)
    return log[::2] - log[1::2]


def _mirrored(kind: Modality, each: Variant) -> Variant:
    before, reference, alternative, after = (
        kind.mirror(part) or b"" for part in (each.after, each.reference, each.alternative, each.before)
    )
    return Variant(each.name, before, reference, alternative, after, each.ends, each.begins)


def _kind(each: Variant) -> str:
    change = len(each.alternative) - len(each.reference)
    if change:
        return "insertion" if change > 0 else "deletion"
    return "substitution" if len(each.reference) == 1 else "block"


def _labelled(kept: list[Variant], mean: np.ndarray, label: str) -> dict[str, Any]:
    """How well the scores agree with a field: Spearman's rho, or, where it has two values, the area under the ROC curve
    for the value that is greater; of the model (with an interval over variants) and of what needs none."""
    try:
        given = [each.fields[label] for each in kept]
    except KeyError as error:
        raise InputError(f"a variant has no field {label}", "name another with --label") from error
    classes = sorted(set(given))
    try:
        numbers = np.array([float(value.split(",")[0]) for value in given])
    except ValueError as error:
        if len(classes) != 2:
            raise InputError(f"{label} is neither a number nor one of two values") from error
        numbers = np.array([float(value == classes[1]) for value in given])
    if not np.isfinite(numbers).all():
        raise InputError(f"{label} is not finite for every variant", "leave those out of the file")
    binary = len(set(numbers.tolist())) == 2
    measure = _auc if binary else _spearman
    names = sorted({name for each in kept for name in each.baselines})
    rivals: dict[str, Any] = {}
    for name in names:
        values = np.array([each.baselines.get(name, 0.0) for each in kept])
        rivals |= _with_interval(name, measure, values, numbers)
    return {
        "field": label,
        "measure": "auroc" if binary else "spearman",
        **_with_interval("model", measure, mean, numbers),
        "baselines": rivals,
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1, ties share the mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def _auc(scores: np.ndarray, values: np.ndarray) -> float:
    high = values == values.max()
    positive, negative = int(high.sum()), int((~high).sum())
    if not positive or not negative:
        return float("nan")
    return float((_ranks(scores)[high].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _write(out: Path, kept: list[Variant], table: np.ndarray, mean: np.ndarray) -> None:
    names = sorted({name for each in kept for name in each.baselines})
    lines = ["\t".join(["variant", "kind", "llr", "llr_forward", "llr_reverse", *names]) + "\n"]
    for each, (forward, backward), score in zip(kept, table.tolist(), mean.tolist(), strict=True):
        numbers = [score, forward, backward, *(each.baselines.get(name, 0.0) for name in names)]
        lines.append("\t".join([each.name, _kind(each), *(f"{number:.6g}" for number in numbers)]) + "\n")
    storage.write_text(out, "".join(lines))
