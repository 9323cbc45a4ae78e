"""Learned boundaries against units that people have marked, beside rules that need no learning.

Boundaries are read as people read them (`Modality.settle`: one inside a character stands at the next character, one in
white space at the next word) and compared with the starts of the units; the first position of a stretch is left out on
all sides. The rules: a boundary at every place where one can be read, at white space, at a fixed stride of the model's
own mean length, and at random at the model's own rate, whose figures are expectations.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hnet_cli.evaluation.material import beginning
from hnet_cli.evaluation.resampling import ratio, with_interval
from hnet_cli.inference.intake import few, unannotated
from hnet_cli.inference.windows import windows
from hnet_cli.modality import Annotation, Document, Gold, Modality
from hnet_cli.model import HNetForCausalLM

STRETCH = 10_000
"""Positions of a unit of the bootstrap where what is compared is long: a genome is one document."""


class Counts(NamedTuple):
    """Counts of one stretch at one stage, for the model or a rule; expectations for the random rule."""

    hits: float
    """Boundaries that are edges."""
    boundaries: float
    edges: float
    places: float
    """Positions where a boundary can be read."""
    right: float
    """Pieces between boundaries that are whole units."""
    pieces: float
    units: float
    exact: float = 0.0
    """Boundaries on an edge as they stand, not settled."""
    unsettled: float = 0.0
    """Boundaries as they stand, not settled."""


ByRule = dict[str, "array[float]"]
"""`Counts` of every stretch, one after the other: of "model", and of every rule by its name."""


def boundaries(
    model: HNetForCausalLM, documents: Iterable[Document], input_table: bytes | None
) -> Iterator[tuple[Document, list[np.ndarray]]]:
    """Each document with, per stage, the positions where its chunks begin."""
    parts = []
    for window in windows(model, documents, input_table=input_table):
        parts.append((window.starts, window.probability))
        if window.last:
            assert isinstance(window.document, Document)
            starts, probability = map(np.concatenate, zip(*parts, strict=True))
            yield window.document, [starts[~np.isnan(column)] for column in probability.T]
            parts = []


def against_gold(model: HNetForCausalLM, modality: Modality, stretches: Iterable[Gold]) -> dict[str, Any]:
    """`hnet eval --gold`: {"bytes", "stretches", "kinds": {kind: [`_figures` of every stage]}}."""
    waiting: deque[Gold] = deque()

    def documents() -> Iterator[Document]:
        for stretch in stretches:
            if stretch.data:
                waiting.append(stretch)
                yield Document(stretch.data, stretch.name, stretch.name)

    counts: dict[str, list[ByRule]] = {}
    size, number = 0, 0
    for document, stages in boundaries(model, documents(), modality.input_table):
        size, number = size + len(document.data), number + 1
        settled = _settled(modality, document.data)
        for kind, edges in waiting.popleft().edges.items():
            _count(counts.setdefault(kind, [{} for _ in stages]), document.data, stages, edges, settled)
    kinds = {kind: [_figures(stage) for stage in rows] for kind, rows in counts.items()}
    return {"bytes": size, "stretches": number, "kinds": kinds}


def known_units(modality: Modality, documents: Iterable[Document], limit: int) -> Iterator[Gold]:
    """Units known without training (`Modality.units`) as if marked, in the first `limit` bytes."""
    left = limit
    for document in documents:
        if left <= 0:
            return
        fits = len(document.data) <= left
        part = document if fits else beginning(document, modality.cut(document.data, left) or left)
        left -= len(document.data)
        yield Gold(part.data, modality.units(part), document.name)


def _settled(modality: Modality, data: bytes) -> np.ndarray:
    settled = modality.settle(data)
    return np.arange(len(data) + 1) if settled is None else np.asarray(settled, np.int64)


def _count(
    rows: Sequence[ByRule],
    data: bytes,
    stages: Sequence[np.ndarray],
    edges: Sequence[int] | np.ndarray,
    settled: np.ndarray,
) -> None:
    """Append the counts of one document at every stage. A long one is several stretches, each from edge to edge."""
    edges = np.asarray(edges, np.int64)
    at = np.searchsorted(edges, np.arange(STRETCH, len(data), STRETCH))
    borders = {0, *edges[at[at < len(edges)]].tolist(), len(data)}
    for low, high in pairwise(sorted(borders)):
        inside = settled[low : high + 1].clip(max=high) - low
        wanted, *starts = (places[(places >= low) & (places < high)] - low for places in (edges, *stages))
        for by_rule, positions in zip(rows, starts, strict=True):
            for name, counts in _compared(data[low:high], positions, wanted, inside).items():
                by_rule.setdefault(name, array("d")).extend(counts)


def _compared(data: bytes, starts: np.ndarray, edges: np.ndarray, settled: np.ndarray) -> dict[str, Counts]:
    """The counts of one stretch at one stage: "model" and every rule."""
    size = len(data)

    def places(positions: np.ndarray) -> np.ndarray:
        at = np.unique(settled[positions.astype(np.int64)])
        inside: np.ndarray = at[(at > settled[0]) & (at < size)]
        return inside

    wanted, everywhere = places(edges), places(np.arange(size))
    chunks = max(1, len(starts))
    guesses = {
        "model": places(starts),
        "every_character": everywhere,
        "whitespace": places(np.flatnonzero(np.isin(np.frombuffer(data, np.uint8), (9, 10, 13, 32)))),
        "fixed_stride": places(np.arange(1, chunks) * (size / chunks)),
    }
    unsettled = starts[starts > 0]
    exact = len(np.intersect1d(unsettled, edges)), len(unsettled)
    rows = {}
    for name, guess in guesses.items():
        hits = len(np.intersect1d(guess, wanted, assume_unique=True))
        pieces, units = (set(pairwise([0, *positions.tolist(), size])) for positions in (guess, wanted))
        whole = len(pieces & units), len(pieces), len(units)
        rows[name] = Counts(hits, len(guess), len(wanted), len(everywhere), *whole, *exact)
    rate = len(guesses["model"]) / max(1, len(everywhere))
    drawn = rate * max(1, len(everywhere))
    # A unit is right if a boundary is drawn at both its ends and none inside; the ends of the stretch are given.
    lengths = np.diff(np.searchsorted(everywhere, np.r_[settled[0], wanted, size]))
    inner = np.maximum(lengths - (np.arange(len(lengths)) > 0), 0)
    ends = np.full(len(lengths), 2)
    ends[0] -= 1
    ends[-1] -= 1
    right = float((rate**ends * (1 - rate) ** inner).sum())
    rows["random"] = Counts(rate * len(wanted), drawn, len(wanted), len(everywhere), right, drawn + 1, len(wanted) + 1)
    return rows


def _figures(counts: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """precision, recall, f1 of boundaries, chance (the precision of any place), unit_f1 (whole units, both ends right)
    and precision_exact (boundaries as they stand, not settled), with intervals over stretches; `trivial`: the same of
    the rules, without intervals and precision_exact."""
    result: dict[str, Any] = {}
    for name, units in _ratios(counts["model"]).items():
        result |= with_interval(name, units)
    result.pop("chance_ci95")
    result["trivial"] = {}
    for rule, rows in counts.items():
        if rule != "model":
            sums = {name: units.sum(0) for name, units in _ratios(rows).items() if name != "precision_exact"}
            result["trivial"][rule] = {name: float(ratio(pair[None])[0]) for name, pair in sums.items()}
    return result


def _ratios(rows: Sequence[float]) -> dict[str, np.ndarray]:
    """(U, 2) float64 for every figure: what is divided, and by what, per stretch."""
    of = Counts(*np.array(rows, np.float64).reshape(-1, len(Counts._fields)).T)
    pairs = {
        "precision": (of.hits, of.boundaries),
        "recall": (of.hits, of.edges),
        "f1": (2 * of.hits, of.boundaries + of.edges),
        "unit_f1": (2 * of.right, of.pieces + of.units),
        "chance": (of.edges, of.places),
        "precision_exact": (of.exact, of.unsettled),
    }
    return {name: np.stack(pair, 1) for name, pair in pairs.items()}


def by_region(
    model: HNetForCausalLM, modality: Modality, documents: Sequence[Document], annotation: Annotation
) -> dict[str, Any]:
    """`hnet eval --annotation`: boundaries per position at each kind of place, and against the annotated edges.

    {"bases", "left_out", "left_out_first", "rows_left_out", "rows_left_out_first", "regions": {kind: {"positions",
    "stages": [{"rate", "rate_ci95", "enrichment", "enrichment_ci95"}]}}, "edges": as the "kinds" of `against_gold`};
    enrichment is the rate over that of all positions. Records that are not annotated, "left_out" bases of them, are not
    counted. "rows_left_out": numbers of rows of the annotation by the reason why they say nothing here. Intervals are
    over stretches of `STRETCH` positions. Raises InputError as `annotated` does.
    """
    known = annotated(documents, annotation)
    edges: dict[str, list[ByRule]] = {
        kind: [{} for _ in range(model.config.num_stages)] for document in known for kind in annotation.edges(document)
    }
    counts: list[tuple[dict[str, np.ndarray], np.ndarray]] = []  # per document: by kind of place, and of all positions
    for document, stages in boundaries(model, known, modality.input_table):
        marks = np.zeros((len(document.data), len(stages)))
        for stage, starts in enumerate(stages):
            marks[starts[starts > 0], stage] = 1
        regions = {kind: np.asarray(at, np.int64) for kind, at in annotation.regions(document).items()}
        by_kind = {kind: _by_stretch(positions, marks) for kind, positions in regions.items()}
        counts.append((by_kind, _by_stretch(np.arange(len(marks)), marks)))
        settled, wanted = _settled(modality, document.data), annotation.edges(document)
        for kind, rows in edges.items():
            _count(rows, document.data, stages, wanted.get(kind, ()), settled)
    kinds = dict.fromkeys(kind for by_kind, _ in counts for kind in by_kind)
    size = sum(len(document.data) for document in known)
    read: dict[str, int] = {}
    for document in documents:
        read[document.name] = max(read.get(document.name, 0), document.offset + len(document.data))
    unused = annotation.left_out(read)
    counted = {document.name for document in known}
    return {
        "bases": size,
        "left_out": sum(len(document.data) for document in documents) - size,
        "left_out_first": few(name for name in read if name not in counted),
        "rows_left_out": {reason: count for reason, (count, _) in unused.items()},
        "rows_left_out_first": {reason: where for reason, (_, where) in unused.items()},
        "regions": {
            kind: _region(
                np.concatenate([np.hstack([by_kind.get(kind, 0 * whole), whole]) for by_kind, whole in counts])
            )
            for kind in kinds
        },
        "edges": {kind: [_figures(stage) for stage in stages] for kind, stages in edges.items()},
    }


def annotated(documents: Sequence[Document], annotation: Annotation) -> list[Document]:
    """The documents that an annotation is about. Raises InputError where there are none."""
    names = dict.fromkeys(annotation.names())
    known = [document for document in documents if document.name in names or not names]
    if not known:
        raise unannotated((document.name for document in documents), annotation)
    return known


def _by_stretch(positions: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """(U, 1 + S) float64: positions and boundaries on them per stretch; `marks` (L, S) is 1 at boundaries."""
    stretch, number = positions // STRETCH, -(-len(marks) // STRETCH)
    weights = [None, *marks[positions].T]
    return np.stack([np.bincount(stretch, weight, minlength=number) for weight in weights], 1).astype(np.float64)


def _region(rows: np.ndarray) -> dict[str, Any]:
    """Figures of one kind of place; `rows` (U, 2 + 2S): `_by_stretch` of it, then of all positions."""

    def rate(sums: np.ndarray) -> np.ndarray:
        """NaN where a draw has no such place, so that a rare kind gets no interval."""
        return np.where(sums[..., 1] > 0, ratio(sums), np.nan)

    def enrichment(sums: np.ndarray) -> np.ndarray:
        relative = ratio(np.stack([ratio(sums[..., :2]), ratio(sums[..., 2:])], -1))
        return np.where(sums[..., 1] > 0, relative, np.nan)

    whole = rows.shape[1] // 2
    stages = []
    for stage in range(1, whole):
        relative = rows[:, [stage, 0, whole + stage, whole]]
        stages.append(
            with_interval("rate", rows[:, [stage, 0]], rate) | with_interval("enrichment", relative, enrichment)
        )
    return {"positions": int(rows[:, 0].sum()), "stages": stages}
