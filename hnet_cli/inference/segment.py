"""The chunks a model has learned, of whole files: the function behind `hnet segment`, and what it has to report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hnet_cli.data.tokens import Tokenizer
from hnet_cli.distributed.workers import Workers
from hnet_cli.errors import UsageError
from hnet_cli.inference import live_page, render
from hnet_cli.inference.agreement import Agreement
from hnet_cli.inference.chunks_page import About
from hnet_cli.inference.intake import Intake, unannotated
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.inference.windows import Stream, Window, own_modality, windows
from hnet_cli.modality import Annotation, Document, Modality, Source, escape
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.chunking import THRESHOLD

PAGE_BYTES = {"html": 1_000_000, "igv": 1_000_000, "live": live_page.EXAMPLE_BYTES}
"""A page holds at most this many bytes of text unless told otherwise: html more than anybody reads, whose surprisal
takes the whole network; live an example."""
T = TypeVar("T")
SCORED_BYTES = 1 << 16
"""Reference edges are asked for at most about this many bytes at once."""


def segment_bytes(
    model: HNetForCausalLM, data: bytes, stage: int = 0, compression: Compression = UNCHANGED
) -> list[bytes]:
    """The chunks of one document at a stage (0 = outermost); joined they are `data`. Else as `boundaries`."""
    with compression.used(model, lambda: [data.translate(table_of(model))]):
        starts, _ = boundaries(model, data, stage)
    return [data[a:b] for a, b in pairwise([*starts.tolist(), len(data)])]


def boundaries(model: HNetForCausalLM, data: bytes, stage: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places where the n chunks of one document begin at a stage, (n,) int64, and p there, (n, S) as in `Window`.

    Reads the bytes as the model's modality does, if its configuration names one. Raises UsageError for a wrong stage.
    """
    if stage not in stages_of(model.config, stage):
        raise UsageError(f"one stage is wanted, not {stage!r}", "name them one by one: 0 is the outermost")
    starts, probability = [np.empty(0, dtype=np.int64)], [np.empty((0, model.config.num_stages), dtype=np.float32)]
    for window in windows(model, [Document(data, "-", "-")], input_table=table_of(model)):
        own = ~np.isnan(window.probability[:, stage])
        starts.append(window.starts[own])
        probability.append(window.probability[own])
    return np.concatenate(starts), np.concatenate(probability)


def table_of(model: HNetForCausalLM) -> bytes | None:
    """`Modality.input_table` of the modality that the model's configuration names, if it does."""
    modality = own_modality(model)
    return modality.input_table if modality else None


def stages_of(config: HNetConfig, stage: int | str) -> range:
    """The stages meant by `--stage`: a number or "all". Raises UsageError."""
    count = config.num_stages
    if not count:
        raise UsageError("this model has no chunking stages, so there is nothing to segment", "take an H-Net")
    if stage == "all":
        return range(count)
    if not str(stage).isdecimal() or int(stage) >= count:
        there = f"{count}: 0 to {count - 1}, or all" if count > 1 else "one: 0"
        raise UsageError(f"there is no stage {stage!r}", f"this model has {there}")
    return range(int(stage), int(stage) + 1)


@dataclass
class Summary:
    """Counts of what was segmented; filled while the output is produced."""

    config: HNetConfig
    modality: Modality | None = None
    bytes: int = 0
    documents: int = 0
    chunks: list[int] = field(init=False)
    """Per stage, as are the other lists."""
    agreement: list[dict[str, Agreement]] = field(init=False)
    """Agreement of the boundaries with `Modality.reference_edges`, by kind."""
    ends: dict[str, int] = field(default_factory=dict)
    """The position up to which each record is read, where there are any."""
    intake: Intake = field(default_factory=Intake)
    """What was read, and what was not used of it."""
    on_bytes: Callable[[int], None] = lambda count: None
    """Gets `bytes` whenever they are more."""

    def __post_init__(self) -> None:
        stages = self.config.num_stages
        self.chunks = [0] * stages
        self.agreement = [{} for _ in range(stages)]
        self._positions, self._sums = np.zeros(stages, dtype=np.int64), np.zeros(stages)
        self._data = bytearray()
        self._starts: list[np.ndarray] = []
        self._probability: list[np.ndarray] = []
        self._base = 0

    def add(self, window: Window) -> None:
        self.bytes += len(window.data)
        self.on_bytes(self.bytes)
        self.documents += window.start == 0
        for stage, count in enumerate((~np.isnan(window.probability)).sum(0).tolist()):
            self.chunks[stage] += count
        self._positions += window.positions
        self._sums += window.probability_sums
        if self.modality is None:
            return
        if self.modality.records:
            name = escape(window.document.name, keep="\t")
            self.ends[name] = window.document.offset + window.start + len(window.data)
        if not self._data:
            self._base = window.start
        self._data += window.data
        self._starts.append(window.starts)
        self._probability.append(window.probability)
        if window.last or len(self._data) >= SCORED_BYTES:
            self._score(self.modality)

    def _score(self, modality: Modality) -> None:
        starts = np.concatenate(self._starts) - self._base
        probability = np.concatenate(self._probability)
        for kind, edges in modality.reference_edges(bytes(self._data)).items():
            for stage, scores in enumerate(self.agreement):
                own = starts[~np.isnan(probability[:, stage])]
                scores.setdefault(kind, Agreement()).add(own, edges, len(self._data))
        self._data, self._starts, self._probability = bytearray(), [], []

    def stages(self) -> list[dict[str, Any]]:
        """Per stage: chunks, bytes_per_chunk, target (bytes per chunk aimed at, or None), boundary_fraction (share of
        the level's positions), mean_boundary_prob, and edges: {kind: {precision, chance, recall, f1}}."""
        result: list[dict[str, Any]] = []
        for stage, chunks in enumerate(self.chunks):
            ratios, positions = self.config.target_ratios, int(self._positions[stage])
            result.append(
                {
                    "chunks": chunks,
                    "bytes_per_chunk": self.bytes / chunks if chunks else 0.0,
                    "target": math.prod(ratios[: stage + 1]) if ratios else None,
                    "boundary_fraction": chunks / positions if positions else 0.0,
                    "mean_boundary_prob": float(self._sums[stage]) / positions if positions else 0.0,
                    "edges": {kind: score.to_dict() for kind, score in self.agreement[stage].items()},
                }
            )
        return result


def segment(
    model: HNetForCausalLM,
    sources: Iterable[Source],
    modality: Modality | None = None,
    *,
    format: str = "plain",
    stage: int | str = "all",
    headings: bool = False,
    summary: Summary | None = None,
    max_bytes: int | None = None,
    title: str = "",
    label: str = "",
    annotation: Annotation | None = None,
    beside: Beside | None = None,
    carried: bool = False,
    compression: Compression = UNCHANGED,
    workers: Workers | None = None,
) -> Iterator[str]:
    """Pieces of text that, written one after the other, are the chunks of all sources in `format`.

    `modality` None reads every source as one document of raw bytes. `format` is one of `render.formats(modality)`.
    `headings` names each source in the formats for people. `summary` is filled on the way. After `max_bytes` (of
    all documents together; pages have `PAGE_BYTES` where nothing is said) it ends, and `summary.intake.cut` is
    true. `title` and `label` name the input and the model on the page, which shows the features of an `annotation` and,
    chunk by chunk, another model's boundaries `beside`; its thresholds are chosen likewise. `carried` and `workers` as
    in `windows`. `compression` sets the model's thresholds and `applied` of the intake, at once; a length is met on the
    beginning of the input. A source that turns out to be damaged ends there, and the others follow. Raises UsageError
    for an unknown format or stage at once, InputError at the end if there was nothing, or no source was whole.
    """
    stages = stages_of(model.config, stage)
    render.check(format, modality)
    summary = summary if summary is not None else Summary(model.config, modality)

    if format == "live":
        live_page.check(model, stages, max_bytes)
    limit = max_bytes or PAGE_BYTES.get(format)

    table = modality.input_table if modality else None
    documents = summary.intake.documents(sources, modality, limit)
    if format == "live":
        documents = islice(documents, 1)
    applied, documents = compression.apply_to(model, documents, table)
    summary.intake.applied = applied
    if applied is not None:
        label = f"{label}, {applied}"

    others, stages_beside, other = beside.windows(modality, limit, compression, carried) if beside else ((), (), "")
    about = About(
        Path(title).name or "Learned chunks",
        title,
        label,
        other,
        modality.unit if modality else "byte",
        modality.margin if modality else "offset",
        min(model.thresholds, default=THRESHOLD),
    )

    def counted() -> Iterator[Window]:
        wanted: dict[str, Any] = {"surprisal": format == "html", "carried": carried, "workers": workers}
        names = dict[str, None]()
        for window in windows(model, documents, input_table=table, **wanted):
            summary.add(window)
            if annotation:
                names[window.document.name] = None
            yield window
        if annotation and names.keys().isdisjoint(annotation.names()):
            raise unannotated(names, annotation)
        summary.intake.check("segment")

    def note() -> str:
        cut = f"Only the first {summary.bytes:,} {about.unit}s are on this page; --max-bytes changes that."
        return cut if summary.intake.cut else ""

    if format == "live":
        return live_page.page(counted(), model, stages, modality, label, carried)
    pair = (others, stages_beside) if beside else None
    return render.render(counted(), format, stages, modality, headings, about, note, annotation, pair)


@dataclass(frozen=True)
class Beside:
    """Another model, or a tokenizer, whose chunks are shown beside."""

    model: HNetForCausalLM | Tokenizer
    name: str
    sources: Callable[[], Iterable[Source]]
    """The same sources, to be read once more."""

    def windows(
        self, modality: Modality | None, limit: int | None, compression: Compression, carried: bool
    ) -> tuple[Iterator[Window], Sequence[int], str]:
        """The windows of the documents, the stages to show, and the name to show. Raises UsageError."""
        table = modality.input_table if modality else None
        documents = Intake().documents(self.sources(), modality, limit)
        if isinstance(self.model, Tokenizer):
            return _tokens(self.model, documents, table), range(1), self.name
        stages = stages_of(self.model.config, "all")
        applied, documents = (compression if self.model.thresholds else UNCHANGED).apply_to(
            self.model, documents, table
        )
        name = self.name if applied is None else f"{self.name}, {applied}"
        return windows(self.model, documents, input_table=table, carried=carried), stages, name


def token_starts(tokenizer: Tokenizer, data: bytes) -> np.ndarray:
    """Places where the tokens of one document begin, (n,) int64."""
    (tokens,) = tokenizer.encode([data])
    lengths = tokenizer.lengths[tokens]
    return np.cumsum(lengths) - lengths


def _tokens(tokenizer: Tokenizer, documents: Iterable[Document | Stream], table: bytes | None) -> Iterator[Window]:
    """The tokens of each document as chunks of one stage, in one window. `table`: `Modality.input_table`, through which
    tokens are learned and models of them read."""
    for index, document in enumerate(documents):
        data = document.data if isinstance(document, Document) else b"".join(document.blocks)
        if not data:
            continue
        starts = token_starts(tokenizer, data.translate(table))
        sure = np.ones((len(starts), 1), dtype=np.float32)
        yield Window(document, index, 0, data, True, starts, sure, np.array([len(data)]), sure.sum(0, dtype=np.float64))
