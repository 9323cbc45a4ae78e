"""Likelihood ratios of variants: how much less likely the alternative is than the reference, on both strands.

The score of a variant is ln P(alternative + what follows | what precedes) - ln P(reference + what follows | what
precedes). Both read exactly the same flanks, of their full length for indels too: nothing is padded and no base of a
flank is read with one allele only. The mirrored sequence (`Modality.mirror`), where the modality has such a thing, is
scored likewise, and the mean reported. Negative: the model finds the alternative worse. An insertion has more bytes to
pay for; compare like with like. Ranks and areas are hand-written: ten lines against a dependency on scipy.

What precedes begins at a border, of which there is one every half of the context: variants between the same two read
the same reference, which a CPU does once for all of them. Borders depend on the place in the record alone, so that a
score does not depend on which other variants a file has. What follows is short: every allele has to read it anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hnet_cli import storage
from hnet_cli.errors import InputError
from hnet_cli.evaluation.material import file_source
from hnet_cli.evaluation.resampling import FEWEST, mean_with_interval, midranks
from hnet_cli.inference.continuations import Branch, Track, goes_on, loglikelihoods, read_tracks
from hnet_cli.inference.intake import few
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Modality, Refused, Variant
from hnet_cli.model import HNetForCausalLM
from hnet_cli.terminal.console import progress

AT_ONCE = 64
"""Variants scored together, on both strands: neighbours among them share what is read."""
TIMES = 200
"""Draws for the interval of a correlation."""
MOST_FIELDS = 20
"""Names of fields shown to choose from."""


@dataclass(frozen=True)
class Calls:
    """A file of calls that has been read and fits its reference."""

    modality: Modality
    calls: Path
    reference: Path
    number: int
    """Variants that can be scored."""
    left_out: Mapping[str, int]
    """Number of those that cannot, by reason."""
    left_out_first: Mapping[str, str]
    label: str | None
    """The field to compare with."""
    values: np.ndarray
    """(number,) float64: that field; NaN where a variant has none. Empty without a label."""

    def variants(self, flank: int) -> Iterator[Variant]:
        for item in self.modality.variants(file_source(self.calls), file_source(self.reference), flank):
            if isinstance(item, Variant):
                yield item


def read(modality: Modality, calls: Path, reference: Path, label: str | None = None) -> Calls:
    """Read a file of calls, to see before anything is scored what can be.

    `label`: a field of the file to compare the scores with; default AF, if there are values to compare. Raises
    InputError where no variant can be scored or compared.
    """
    left_out: Counter[str] = Counter()
    first: dict[str, str] = {}
    given: list[str | None] = []
    fields: dict[str, None] = {}
    for item in modality.variants(file_source(calls), file_source(reference), 1):
        if isinstance(item, Refused):
            left_out[item.reason] += 1
            first.setdefault(item.reason, item.where)
        else:
            given.append(item.fields.get(label or "AF"))
            fields.update(dict.fromkeys(islice(item.fields, MOST_FIELDS)) if len(fields) < MOST_FIELDS else {})
    if not given:
        reason = left_out.most_common(1)[0][0] if left_out else "it is empty"
        raise InputError(f"no variant of {calls} can be scored: {reason}{f' ({first[reason]})' if left_out else ''}")
    values = np.empty(0)
    try:
        values = _numbers(label or "AF", given)
    except InputError as error:
        if label:
            raise InputError(str(error), f"name another field with --label: {few(fields, MOST_FIELDS)}") from error
    compared = (label or "AF") if len(values) else None
    return Calls(modality, calls, reference, len(given), dict(left_out), first, compared, values)


def _numbers(label: str, given: Sequence[str | None]) -> np.ndarray:
    """(n,) float64: the values of a field, NaN where there is none; of two words, 1 for the later in the alphabet.

    Raises InputError where there is nothing to compare with.
    """
    known = [value for value in given if value is not None and "," not in value]
    words = sorted(set(known))
    try:
        table = {word: float(word) for word in words}
    except ValueError as error:
        if len(words) != 2:
            raise InputError(f"{label} is neither a number nor one of two values: {few(words)}") from error
        table = {words[0]: 0.0, words[1]: 1.0}
    numbers = np.array([table.get(value, np.nan) if value is not None else np.nan for value in given])
    numbers[~np.isfinite(numbers)] = np.nan
    if len(np.unique(numbers[np.isfinite(numbers)])) < 2:
        if words:
            raise InputError(f"{label} has fewer than two different values: {few(words)}")
        raise InputError(
            f"{label} has several values for an allele" if any(given) else f"no variant has a value of {label}"
        )
    return numbers


def score(
    model: HNetForCausalLM, calls: Calls, context: int, out: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Score every variant. `context`: bases, of which `_Reach` takes parts. `out`: a TSV, a line each."""
    scored: list[Variant] = []
    parts: list[np.ndarray] = []
    reach = _Reach.of(context)
    waiting, strands = calls.variants(3 * reach.before), calls.modality.mirror(b"") is not None
    with progress("variants", calls.number) as bar:
        while batch := list(islice(waiting, AT_ONCE)):
            sites = [_site(variant, variant.position, reach) for variant in batch]
            if strands:
                sites += [_site(*_mirrored(calls.modality, variant), reach, "-") for variant in batch]
            ratios = _ratios(model, sites)
            parts.append(np.stack([ratios[: len(batch)], ratios[-len(batch) :]], 1))
            scored += [replace(variant, before=b"", after=b"", fields={}) for variant in batch]  # flanks are long
            bar.update(len(scored))
    if len(scored) != calls.number:
        raise InputError(f"{calls.calls} or {calls.reference} has changed since it was read", "run this again")
    table = np.concatenate(parts)
    mean, kinds = table.mean(1), np.array([_kind(variant) for variant in scored])
    if out is not None:
        _write(out, scored, table, overwrite)
    result: dict[str, Any] = {
        "variants": len(scored),
        "left_out": calls.left_out,
        "left_out_first": calls.left_out_first,
        "kinds": dict(Counter(kinds.tolist())),
        **mean_with_interval("llr", mean),
    }
    for kind in result["kinds"]:
        result |= mean_with_interval(f"llr_{kind}", mean[kinds == kind])
    if strands:
        result |= _rank_interval("strand_correlation", _spearman, table[:, 0], table[:, 1])
    return result | ({"label": _labelled(scored, mean, calls)} if calls.label else {})


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


class _Reach(NamedTuple):
    """Numbers of bases that are read around alleles."""

    before: int
    """At least that many bases before them, less than three times as many: borders are twice as far apart."""
    after: int

    @classmethod
    def of(cls, context: int) -> _Reach:
        """A quarter of the context and an eighth."""
        return cls(max(1, context // 4), max(1, context // 8))


class _Site(NamedTuple):
    """A variant on one strand, with what is read around it."""

    strand: str
    record: str
    begin: int
    """Place on the strand of the first base that is read."""
    head: bytes
    """BOS at the beginning of the record, and for a base that is not known; else nothing."""
    before: bytes
    reference: bytes
    alternative: bytes
    after: bytes

    @property
    def at(self) -> int:
        """Place on the strand of the first base of the alleles."""
        return self.begin + len(self.before)

    @property
    def key(self) -> tuple[str, str, int, bytes]:
        """Sites of the same key read the same reference."""
        return self.strand, self.record, self.begin, self.head


def _site(variant: Variant, at: int, reach: _Reach, strand: str = "+") -> _Site:
    """A variant, its alleles at place `at` of their strand, as it is read: from a border or the last gap on."""
    border = (at - reach.before) // (2 * reach.before) * (2 * reach.before)
    before = variant.before[border - at :]
    begins = variant.begins and len(before) == len(variant.before)
    head = BOS if begins or not before else b""  # an unknown base precedes: BOS comes nearest
    begin, after = at - len(before), variant.after[: reach.after]
    return _Site(strand, variant.record, begin, head, before, variant.reference, variant.alternative, after)


def _mirrored(modality: Modality, variant: Variant) -> tuple[Variant, int]:
    """A variant on the other strand and its place there: what ends at p begins at -p."""
    before, reference, alternative, after = (
        modality.mirror(part) or b"" for part in (variant.after, variant.reference, variant.alternative, variant.before)
    )
    changed = replace(variant, before=before, reference=reference, alternative=alternative, after=after)
    ends = variant.position + len(variant.reference)
    return replace(changed, begins=variant.ends, ends=variant.begins), -ends


def _ratios(model: HNetForCausalLM, sites: Sequence[_Site]) -> np.ndarray:
    """(n,) in nats."""
    if not goes_on(model):
        pairs = []
        for site in sites:
            before = site.head + site.before
            pairs += [(before, allele + site.after) for allele in (site.alternative, site.reference)]
        log, _ = loglikelihoods(model, pairs)
        return log[::2] - log[1::2]
    ratios = np.empty(len(sites))
    order = sorted(range(len(sites)), key=lambda index: (sites[index].key, sites[index].at))
    groups = [list(group) for _, group in groupby(order, key=lambda index: sites[index].key)]
    tracks = [_track([sites[index] for index in group]) for group in groups]
    for group, track, (text, branches) in zip(groups, tracks, read_tracks(model, tracks), strict=True):
        for index, branch, alternative in zip(group, track.branches, branches, strict=True):
            reference = text.nats[branch.at - 1 :][: len(sites[index].reference + sites[index].after)]
            ratios[index] = reference.sum() - alternative.nats.sum()
    return ratios


def _track(sites: Sequence[_Site]) -> Track:
    """The reference that sites of one key read, in the order of their places, with their alternatives."""
    text, start = bytearray(sites[0].head), sites[0].begin - len(sites[0].head)
    branches = []
    for site in sites:
        end = start + len(text)
        text += site.before[len(site.before) - max(0, site.at - end) :]
        text += (site.reference + site.after)[max(0, end - site.at) :]
        branches.append(Branch(site.at - start, site.alternative + site.after))
    return Track(bytes(text), branches)


def _kind(variant: Variant) -> str:
    change = len(variant.alternative) - len(variant.reference)
    if change:
        return "insertion" if change > 0 else "deletion"
    return "substitution" if len(variant.reference) == 1 else "block"


def _baselines(variants: list[Variant]) -> dict[str, np.ndarray]:
    """Scores that need no model, (n,) each, by name."""
    names = sorted({name for variant in variants for name in variant.baselines})
    return {name: np.array([variant.baselines.get(name, 0.0) for variant in variants]) for name in names}


def _labelled(variants: list[Variant], scores: np.ndarray, calls: Calls) -> dict[str, Any]:
    """Agreement of the scores (n,), and of baselines, with a field of the variants that have a value: Spearman's rho,
    or, for a field of two values, the area under the ROC curve for the greater one; with intervals over variants."""
    known = np.isfinite(calls.values)
    numbers = calls.values[known]
    binary = len(np.unique(numbers)) == 2
    measure = _auc if binary else _spearman
    rivals: dict[str, Any] = {}
    for name, values in _baselines(variants).items():
        rivals |= _rank_interval(name, measure, values[known], numbers)
    return {
        "field": calls.label,
        "variants": len(numbers),
        "left_out": len(known) - len(numbers),
        "measure": "auroc" if binary else "spearman",
        **_rank_interval("model", measure, scores[known], numbers),
        "baselines": rivals,
    }


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (ranks - ranks.mean() for ranks in (midranks(a), midranks(b)))
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def _auc(scores: np.ndarray, values: np.ndarray) -> float:
    high = values == values.max()
    positive, negative = int(high.sum()), int((~high).sum())
    if not positive or not negative:
        return float("nan")
    return float((midranks(scores)[high].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _write(out: Path, variants: list[Variant], table: np.ndarray, overwrite: bool) -> None:
    """A TSV of `table` (n, 2), the scores of both strands, with their mean and the baselines; CHROM, POS, REF and ALT
    as in VCF. Raises StorageError."""
    baselines = _baselines(variants)
    names = ["CHROM", "POS", "REF", "ALT", "variant", "kind", "llr", "llr_forward", "llr_reverse", *baselines]
    columns = np.column_stack([table.mean(1), table, *baselines.values()])
    with storage.output_file(out, overwrite) as file:
        file.write(("\t".join(names) + "\n").encode())
        for variant, row in zip(variants, columns.tolist(), strict=True):
            alleles = variant.reference.decode("latin-1"), variant.alternative.decode("latin-1")
            place = variant.record, str(variant.position + 1), *alleles, variant.name, _kind(variant)
            file.write(("\t".join([*place, *(f"{number:.6g}" for number in row)]) + "\n").encode())
