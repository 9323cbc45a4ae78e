"""Likelihood ratios of variants: how much less likely the alternative is than the reference, on both strands.

The score of a variant is ln P(alternative + what follows | what precedes) - ln P(reference + what follows | what
precedes). Both read exactly the same flanks, of their full length for indels too: nothing is padded and no base of a
flank is read with one allele only. The mirrored sequence (`Modality.mirror`), where the modality has such a thing, is
scored likewise, and the mean reported. Negative: the model finds the alternative worse. An insertion has more bytes to
pay for; compare like with like. Ranks and areas are hand-written: ten lines against a dependency on scipy.
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
from hnet_cli.evaluation.resampling import FEWEST, mean_with_interval
from hnet_cli.evaluation.scoring import loglikelihoods
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Modality, Refused, Variant
from hnet_cli.model import HNetForCausalLM
from hnet_cli.terminal.console import progress

AT_ONCE = 64
"""Variants scored together."""
TIMES = 200
"""Draws for the interval of a correlation."""


def score_variants(
    model: HNetForCausalLM,
    modality: Modality,
    calls: Path,
    reference: Path,
    context: int,
    out: Path | None = None,
    label: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score every variant of a file of calls; half of `context` is read on either side. `out`: a TSV, a line each.

    `label`: a field of the file to compare with; default AF where it is there. Raises InputError if nothing is scored.
    """
    refused: Counter[str] = Counter()
    first: dict[str, str] = {}

    def variants() -> Iterator[Variant]:
        for item in modality.variants(file_source(calls), file_source(reference), max(1, context // 2)):
            if isinstance(item, Refused):
                refused[item.reason] += 1
                first.setdefault(item.reason, item.where)
            else:
                yield item

    scored: list[Variant] = []
    parts: list[np.ndarray] = []
    waiting, strands = variants(), modality.mirror(b"") is not None
    with progress("variants") as bar:
        while batch := list(islice(waiting, AT_ONCE)):
            forward = _ratios(model, batch)
            backward = _ratios(model, [_mirrored(modality, variant) for variant in batch]) if strands else forward
            parts.append(np.stack([forward, backward], 1))
            scored += batch
            bar.update(len(scored))
    if not scored:
        reason = refused.most_common(1)[0][0] if refused else "it is empty"
        raise InputError(f"no variant of {calls} can be scored: {reason}{f' ({first[reason]})' if refused else ''}")
    table = np.concatenate(parts)
    mean, kinds = table.mean(1), np.array([_kind(variant) for variant in scored])
    if out is not None:
        _write(out, scored, table, overwrite)
    result: dict[str, Any] = {
        "variants": len(scored),
        "left_out": dict(refused),
        "left_out_first": first,
        "kinds": dict(Counter(kinds.tolist())),
        **mean_with_interval("llr", mean),
    }
    for kind in result["kinds"]:
        result |= mean_with_interval(f"llr_{kind}", mean[kinds == kind])
    if strands:
        result |= _rank_interval("strand_correlation", _spearman, table[:, 0], table[:, 1])
    label = label or ("AF" if all("AF" in variant.fields for variant in scored) else None)
    return result | ({"label": _labelled(scored, mean, label)} if label else {})


def _rank_interval(
    name: str, measure: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray
) -> dict[str, Any]:
    """{name: the measure of a and b, (n,) each; name_ci95: over `TIMES` draws of variants, the same for everything}."""
    result: dict[str, Any] = {name: measure(a, b), f"{name}_ci95": None}
    if len(a) >= FEWEST:
        drawn = np.random.default_rng(0).integers(0, len(a), (TIMES, len(a)))
        low, high = np.nanpercentile([measure(a[at], b[at]) for at in drawn], [2.5, 97.5])
        result[f"{name}_ci95"] = [float(low), float(high)]
    return result


def _ratios(model: HNetForCausalLM, variants: Iterable[Variant]) -> np.ndarray:
    """(n,) in nats."""
    pairs = []
    for variant in variants:
        before = (BOS if variant.begins else b"") + variant.before
        before = before or BOS  # an unknown base precedes: BOS comes nearest
        pairs += [(before, allele + variant.after) for allele in (variant.alternative, variant.reference)]
    log, _ = loglikelihoods(model, pairs)
    return log[::2] - log[1::2]


def _mirrored(modality: Modality, variant: Variant) -> Variant:
    before, reference, alternative, after = (
        modality.mirror(part) or b"" for part in (variant.after, variant.reference, variant.alternative, variant.before)
    )
    return Variant(variant.name, before, reference, alternative, after, variant.ends, variant.begins)


def _kind(variant: Variant) -> str:
    change = len(variant.alternative) - len(variant.reference)
    if change:
        return "insertion" if change > 0 else "deletion"
    return "substitution" if len(variant.reference) == 1 else "block"


def _baselines(variants: list[Variant]) -> dict[str, np.ndarray]:
    """Scores that need no model, (n,) each, by name."""
    names = sorted({name for variant in variants for name in variant.baselines})
    return {name: np.array([variant.baselines.get(name, 0.0) for variant in variants]) for name in names}


def _labelled(variants: list[Variant], scores: np.ndarray, label: str) -> dict[str, Any]:
    """Agreement of the scores (n,), and of baselines, with a field: Spearman's rho, or, for a field of two values, the
    area under the ROC curve for the greater one; with intervals over variants. Raises InputError."""
    try:
        given = [variant.fields[label] for variant in variants]
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
    rivals: dict[str, Any] = {}
    for name, values in _baselines(variants).items():
        rivals |= _rank_interval(name, measure, values, numbers)
    return {
        "field": label,
        "measure": "auroc" if binary else "spearman",
        **_rank_interval("model", measure, scores, numbers),
        "baselines": rivals,
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1, ties share the mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def _auc(scores: np.ndarray, values: np.ndarray) -> float:
    high = values == values.max()
    positive, negative = int(high.sum()), int((~high).sum())
    if not positive or not negative:
        return float("nan")
    return float((_ranks(scores)[high].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _write(out: Path, variants: list[Variant], table: np.ndarray, overwrite: bool) -> None:
    """A TSV of `table` (n, 2), the scores of both strands, with their mean and the baselines. Raises StorageError."""
    baselines = _baselines(variants)
    lines = ["\t".join(["variant", "kind", "llr", "llr_forward", "llr_reverse", *baselines])]
    columns = np.column_stack([table.mean(1), table, *baselines.values()])
    for variant, row in zip(variants, columns.tolist(), strict=True):
        lines.append("\t".join([variant.name, _kind(variant), *(f"{number:.6g}" for number in row)]))
    storage.write_output(out, "\n".join(lines) + "\n", overwrite)
