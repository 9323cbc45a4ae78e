"""Learned boundaries against units that people have marked, beside rules that need no learning.

Boundaries are read as people read them (`Modality.settle`: one inside a character stands at the next character, one in
white space at the next word) and compared with the starts of the units; the first position of a stretch is left out on
all sides. The rules: a boundary at every place where one can be read, at white space, at a fixed stride of the model's
own mean length, and thrown at random at the model's own rate, whose figures are expectations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hnet_cli.errors import InputError
from hnet_cli.evaluation.resampling import interval, ratio, with_interval
from hnet_cli.inference.windows import windows
from hnet_cli.modality import Annotation, Document, Gold, Modality
from hnet_cli.model import HNetForCausalLM

HITS, FOUND, EDGES, PLACES, RIGHT, PIECES, UNITS, BYTES, EXACT, RAW = range(10)
"""Columns of the counts: boundaries that are edges, boundaries, edges, places where a boundary can be; pieces between
boundaries that are whole units, pieces, units; bytes; boundaries that stand on an edge as they are, not settled, and
all of these."""


BLOCK = 10_000
"""Positions of a stretch, where what is compared is long."""


def boundaries(
    model: HNetForCausalLM, documents: Iterable[Document], input_table: bytes | None
) -> Iterator[tuple[Document, list[np.ndarray]]]:
    """Each document with, per stage, the positions where its chunks begin."""
    starts: list[np.ndarray] = []
    probability: list[np.ndarray] = []
    for window in windows(model, documents, input_table=input_table):
        starts.append(window.starts)
        probability.append(window.probability)
        if window.last:
            assert isinstance(window.document, Document)
            at, p = np.concatenate(starts), np.concatenate(probability)
            yield window.document, [at[~np.isnan(p[:, stage])] for stage in range(p.shape[1])]
            starts, probability = [], []


def against(model: HNetForCausalLM, modality: Modality, stretches: Iterable[Gold]) -> dict[str, Any]:
    """`hnet eval --gold`: {"bytes", "stretches", "kinds": {kind: [per stage: what `_figures` gives]}}."""
    waiting: list[Gold] = []

    def documents() -> Iterator[Document]:
        for stretch in stretches:
            if stretch.data:
                waiting.append(stretch)
                yield Document(stretch.data, stretch.name, stretch.name)

    counts: dict[str, list[dict[str, list[list[float]]]]] = {}
    bytes_, number = 0, 0
    for document, stages in boundaries(model, documents(), modality.input_table):
        stretch = waiting.pop(0)
        assert stretch.data == document.data
        bytes_, number = bytes_ + len(document.data), number + 1
        settled = _settled(modality, document.data)
        for kind, edges in stretch.edges.items():
            _add(counts.setdefault(kind, [{} for _ in stages]), document.data, stages, edges, settled)
    kinds = {kind: [_figures(stage) for stage in rows] for kind, rows in counts.items()}
    return {"bytes": bytes_, "stretches": number, "kinds": kinds}


def _settled(modality: Modality, data: bytes) -> np.ndarray:
    told = modality.settle(data)
    return np.arange(len(data) + 1) if told is None else np.asarray(told, np.int64)


def _add(
    rows: list[dict[str, list[list[float]]]],
    data: bytes,
    stages: Sequence[np.ndarray],
    edges: Sequence[int] | np.ndarray,
    settled: np.ndarray,
) -> None:
    """The counts of one stretch at every stage, added to those before. A long one is several, each from an edge to an
    edge, since what is drawn for the intervals are stretches."""
    edges = np.asarray(edges, np.int64)
    at = np.searchsorted(edges, np.arange(BLOCK, len(data), BLOCK))
    borders = {0, *edges[at[at < len(edges)]].tolist(), len(data)}
    for low, high in pairwise(sorted(borders)):
        own = settled[low : high + 1].clip(max=high) - low
        wanted = edges[(edges >= low) & (edges < high)] - low
        for stage, found in enumerate(stages):
            inside = found[(found >= low) & (found < high)] - low
            for name, row in _compared(data[low:high], inside, wanted, own).items():
                rows[stage].setdefault(name, []).append(row)


def _compared(
    data: bytes, found: np.ndarray, edges: Sequence[int] | np.ndarray, settled: np.ndarray
) -> dict[str, list[float]]:
    """The counts of one stretch at one stage: "model" and every rule."""
    size = len(data)
    white = np.flatnonzero(np.isin(np.frombuffer(data, np.uint8), (9, 10, 13, 32)))
    step = size / max(1, len(found))
    stride = np.arange(1, max(1, len(found))) * step

    def places(positions: np.ndarray) -> np.ndarray:
        inside = np.unique(settled[positions.astype(np.int64)])
        kept: np.ndarray = inside[(inside > settled[0]) & (inside < size)]
        return kept

    wanted = places(np.asarray(edges, np.int64))
    everywhere = places(np.arange(size))
    guesses = {
        "model": places(found),
        "every_character": everywhere,
        "whitespace": places(white),
        "fixed_stride": places(stride),
    }
    raw = found[found > 0]
    exact = [len(np.intersect1d(raw, edges)), len(raw)]
    rows = {name: [*_counts(each, wanted, len(everywhere), size), *exact] for name, each in guesses.items()}
    rate = len(guesses["model"]) / max(1, len(everywhere))
    rest = max(1, len(everywhere))
    # a unit is right if both its ends are drawn and nothing inside
    lengths = np.diff(np.searchsorted(everywhere, np.r_[settled[0], wanted, size]))
    inner = np.maximum(lengths - (np.arange(len(lengths)) > 0), 0)
    ends = np.full(len(lengths), 2)
    ends[0] -= 1
    ends[-1] -= 1
    rows["random"] = [
        *(rate * len(wanted), rate * rest, len(wanted), len(everywhere)),
        *(float((rate**ends * (1 - rate) ** inner).sum()), rate * rest + 1, len(wanted) + 1, size),
    ]
    return rows


def _counts(found: np.ndarray, wanted: np.ndarray, places: int, size: int) -> list[float]:
    hits = np.intersect1d(found, wanted, assume_unique=True)
    gold = set(zip([0, *wanted.tolist()], [*wanted.tolist(), size], strict=True))
    right = sum(pair in gold for pair in zip([0, *found.tolist()], [*found.tolist(), size], strict=True))
    return [len(hits), len(found), len(wanted), places, right, len(found) + 1, len(wanted) + 1, size]


def _figures(counts: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """precision, recall, f1 of boundaries, chance (the precision of any place), unit_f1 (whole units, both ends right),
    with intervals over stretches; precision_exact: of boundaries where they stand, not settled;
    `trivial`: the same of the rules."""
    result = _scores(np.array(counts["model"], np.float64), intervals=True)
    rules = {
        name: _scores(np.array(rows, np.float64), intervals=False) for name, rows in counts.items() if name != "model"
    }
    return result | {"trivial": rules}


def _scores(rows: np.ndarray, *, intervals: bool) -> dict[str, Any]:
    wanted = {
        "precision": (HITS, FOUND),
        "recall": (HITS, EDGES),
        "f1": (HITS, HITS, FOUND, EDGES),
        "unit_f1": (RIGHT, RIGHT, PIECES, UNITS),
        "chance": (EDGES, PLACES),
    }
    if intervals:
        wanted["precision_exact"] = (EXACT, RAW)
    result: dict[str, Any] = {}
    for name, columns in wanted.items():
        table = rows[:, columns]
        if len(columns) == 4:
            table = np.stack([table[:, 0] + table[:, 1], table[:, 2] + table[:, 3]], 1)
        result[name] = float(ratio(table.sum(0)[None])[0])
        if intervals and name != "chance":
            result[f"{name}_ci95"] = interval(table, ratio)
    return result


def of_units(modality: Modality, documents: Iterable[Document], limit: int) -> Iterator[Gold]:
    """Units known without training (`Modality.units`) as if marked, in the first `limit` bytes."""
    left = limit
    for document in documents:
        if left <= 0:
            return
        whole = document if len(document.data) <= left else _cut(document, modality.cut(document.data, left) or left)
        left -= len(document.data)
        yield Gold(whole.data, modality.units(whole), document.name)


def _cut(document: Document, length: int) -> Document:
    return Document(document.data[:length], document.name, document.source, document.group, document.offset)


def by_region(
    model: HNetForCausalLM, modality: Modality, documents: Iterable[Document], annotation: Annotation
) -> dict[str, Any]:
    """`hnet eval --annotation`: boundaries per position at each kind of place, and against the annotated edges.

    {"bases", "left_out", "regions": {kind: {"positions", "stages": [{"rate", "rate_ci95", "enrichment",
    "enrichment_ci95"}]}}, "edges": as the "kinds" of `against`}; enrichment is the rate over that of all positions.
    Records that are not annotated, of "left_out" bases, say nothing. Intervals are over stretches of `BLOCK` positions,
    since a genome is one document. Raises InputError where no document is one of the annotated records.
    """
    documents, annotated = list(documents), annotation.names()
    known = [document for document in documents if document.name in annotated] if annotated else documents
    if not known:
        there, about = (", ".join(list(dict.fromkeys(names))[:3]) for names in ([d.name for d in documents], annotated))
        raise InputError(
            f"no record that is read is annotated: the sequence has {there}, the annotation {about}",
            "names must be the same in both files",
        )
    rows: dict[str, dict[int, np.ndarray]] = {}  # by document: those that have places of this kind
    everywhere: list[np.ndarray] = []
    edges: dict[str, list[dict[str, list[list[float]]]]] = {
        kind: [{} for _ in range(model.config.num_stages)] for document in known for kind in annotation.edges(document)
    }
    for document, stages in boundaries(model, known, modality.input_table):
        size = len(document.data)
        blocks = -(-size // BLOCK)
        marks = np.zeros((size, len(stages)))
        for stage, found in enumerate(stages):
            marks[found[found > 0], stage] = 1
        for kind, positions in annotation.regions(document).items():
            own = _by_block(np.asarray(positions, np.int64), marks, blocks)
            rows.setdefault(kind, {})[len(everywhere)] = own
        everywhere.append(_by_block(np.arange(size), marks, blocks))
        settled, wanted = _settled(modality, document.data), annotation.edges(document)
        for kind, counts in edges.items():
            _add(counts, document.data, stages, wanted.get(kind, ()), settled)
    regions = {
        kind: _region(np.concatenate([np.hstack([own.get(n, 0 * each), each]) for n, each in enumerate(everywhere)]))
        for kind, own in rows.items()
    }
    kinds = {kind: [_figures(stage) for stage in stages] for kind, stages in edges.items()}
    total = sum(len(document.data) for document in known)
    left_out = sum(len(document.data) for document in documents) - total
    return {"bases": total, "left_out": left_out, "regions": regions, "edges": kinds}


def _by_block(positions: np.ndarray, marks: np.ndarray, blocks: int) -> np.ndarray:
    """(blocks, 1 + S): positions and boundaries on them per block."""
    block = positions // BLOCK
    columns = [np.bincount(block, minlength=blocks)]
    columns += [np.bincount(block, marks[positions, stage], minlength=blocks) for stage in range(marks.shape[1])]
    return np.stack(columns, 1).astype(np.float64)


def _region(rows: np.ndarray) -> dict[str, Any]:
    levels = rows.shape[1] // 2 - 1
    result = []
    for stage in range(1, levels + 1):
        rate = rows[:, [stage, 0]]
        relative = rows[:, [stage, 0, levels + 1 + stage, levels + 1]]

        def known(sums: np.ndarray) -> np.ndarray:
            """NaN where a draw has no such place, so that no interval is given for a rare kind."""
            return np.where(sums[..., 1] > 0, ratio(sums), np.nan)

        def enriched(sums: np.ndarray) -> np.ndarray:
            return np.where(sums[..., 1] > 0, ratio(ratio_pairs(sums)), np.nan)

        result.append({**with_interval("rate", rate, known), **with_interval("enrichment", relative, enriched)})
    return {"positions": int(rows[:, 0].sum()), "stages": result}


def ratio_pairs(sums: np.ndarray) -> np.ndarray:
    """(..., 4) -> (..., 2): first over second, third over fourth."""
    return np.stack([ratio(sums[..., :2]), ratio(sums[..., 2:])], -1)
