"""Vectors of documents, of chunks, or of windows of bytes: outputs of a layer, pooled. Memory does not grow with files.

A document is read as `segment` reads it (`hnet_cli.inference.windows`), so chunks are the same. A unit has the vectors
that lie in it: of its bytes, or of the chunks that begin in it. They are averaged, or the last one is taken. Where none
lies in it, in a window inside a long chunk, it has that of the chunk it is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from hnet_cli.errors import NumericalError, UsageError
from hnet_cli.inference.intake import Intake
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.inference.windows import LONGEST_CHUNK, Stream, Vectors, Window, own_modality, windows
from hnet_cli.modality import Document, Modality, Source
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.hidden import LAYERS, Layer

PER = ("document", "chunk", "window")
POOLS = ("mean", "last")
DTYPES = ("float32", "float16")
WINDOW = 1000
"""Bytes of a window unless told otherwise."""


@dataclass(frozen=True)
class Wanted:
    """The vectors that are wanted. Raises UsageError for what does not exist."""

    per: str = "document"
    """One of `PER`."""
    stage: int = 0
    """That of the layer, and of the chunks."""
    layer: str = "decoder"
    """One of `LAYERS`."""
    pool: str = "mean"
    """One of `POOLS`."""
    window: int | None = None
    """Bytes, for windows; None: `WINDOW`."""
    dtype: str = "float32"
    """One of `DTYPES`."""

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--per", self.per, PER),
            ("--layer", self.layer, LAYERS),
            ("--pool", self.pool, POOLS),
            ("--dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise UsageError(f"{option} is {value!r}", f"choose from {', '.join(known)}")
        if self.window is not None and self.per != "window":
            raise UsageError("--window is the length of windows", "say --per window too, or leave it out")
        if self.window is not None and not 1 <= self.window <= LONGEST_CHUNK:
            raise UsageError(f"--window is {self.window}", f"give 1 to {LONGEST_CHUNK:,} bytes")

    def layer_of(self, model: HNetForCausalLM) -> Layer:
        """The layer of a model. Raises UsageError for a stage it lacks, and for a model of tokens."""
        stages = model.config.num_stages
        if model.tokenizer is not None:
            raise UsageError("this model reads tokens, and vectors are of bytes and chunks", "take a model of bytes")
        if not stages:
            if self.per == "chunk" or self.stage or self.layer == "encoder":
                raise UsageError(
                    "this model has no chunking stages, only a main network of bytes",
                    "leave out --stage and --layer, and take documents or windows",
                )
            return Layer(-1, "main")
        if not 0 <= self.stage < stages:
            there = f"{stages}: 0 to {stages - 1}" if stages > 1 else "one: 0"
            raise UsageError(f"there is no stage {self.stage}", f"this model has {there}")
        return Layer(self.stage, self.layer)


@dataclass(frozen=True, slots=True)
class Block:
    """The units of a document that end in one window of reading."""

    document: Document | Stream
    starts: np.ndarray
    """(n,) int64: where units begin, in the coordinates of `Document.offset`."""
    ends: np.ndarray
    """(n,) int64."""
    vectors: np.ndarray
    """(n, D), in the dtype that is wanted."""
    texts: list[bytes] | None
    """The bytes of each, if asked for."""


def embed(
    model: HNetForCausalLM,
    sources: Iterable[Source],
    modality: Modality | None = None,
    wanted: Wanted = Wanted(),
    *,
    texts: bool = False,
    intake: Intake | None = None,
    carried: bool = False,
    compression: Compression = UNCHANGED,
) -> Iterator[Block]:
    """The vectors of all sources in order, block by block; `texts` with the bytes of chunks or windows.

    `modality` None reads every source as one document. `intake` counts what is read. `carried` as in `windows`,
    `compression` as in `segment`. Raises UsageError at once; InputError at the end if there was nothing, or no source
    was whole; NumericalError where a vector is not finite in its dtype.
    """
    layer = wanted.layer_of(model)
    if texts and wanted.per == "document":
        raise UsageError("the text of a document is the file", "take chunks or windows, or leave out --text")
    intake = intake if intake is not None else Intake()
    documents = intake.documents(sources, modality)
    table = modality.input_table if modality else None
    intake.applied, documents = compression.apply_to(model, documents, table)
    aligned = modality is not None and modality.records

    def blocks() -> Iterator[Block]:
        for block, _ in _blocks(model, documents, table, wanted, layer, texts, carried, aligned):
            if len(block.starts):
                yield block
        intake.check("embed")

    return blocks()


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors of some documents; N units."""

    vectors: np.ndarray
    """(N, D)."""
    document: np.ndarray
    """(N,) int64: the index of the document of each."""
    start: np.ndarray
    """(N,) int64: the position of its first byte in the document."""
    end: np.ndarray
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.vectors)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.vectors, dtype=dtype, copy=copy)


def embed_bytes(
    model: HNetForCausalLM,
    data: bytes | str | Sequence[bytes | str],
    wanted: Wanted = Wanted(),
    carried: bool = False,
    compression: Compression = UNCHANGED,
) -> Embedding:
    """The vectors of one document or of several, in memory, read as the model's modality does.

    `compression` holds for this call. Raises UsageError for an empty document, which has none; else as `embed`.
    """
    items = [data] if isinstance(data, bytes | str) else data
    documents = [item.encode() if isinstance(item, str) else item for item in items]
    if b"" in documents:
        raise UsageError(f"document {documents.index(b'')} is empty: it has no vector", "leave it out")
    layer, modality = wanted.layer_of(model), own_modality(model)
    table = modality.input_table if modality else None
    empty = np.empty(0, np.int64)
    parts = [(np.empty((0, model.config.d_model[layer.level]), wanted.dtype), empty, empty, empty)]
    number = -1
    # A source of its own for each: `Window.index` counts within a source.
    named = (Document(item, str(at), str(at)) for at, item in enumerate(documents))
    with compression.used(model, lambda: [data.translate(table) for data in documents]):
        for block, window in _blocks(model, named, table, wanted, layer, False, carried, False):
            number += window.start == 0
            parts.append((block.vectors, np.full(len(block.starts), number), block.starts, block.ends))
    return Embedding(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _blocks(
    model: HNetForCausalLM,
    documents: Iterable[Document | Stream],
    table: bytes | None,
    wanted: Wanted,
    layer: Layer,
    texts: bool,
    carried: bool,
    aligned: bool,
) -> Iterator[tuple[Block, Window]]:
    pool = Pool(wanted, layer, texts, aligned)
    for window in windows(model, documents, input_table=table, carried=carried, layers=[layer]):
        yield pool(window, window.vectors[0]), window


class Pool:
    """Pools the vectors of a layer over units, which may span windows."""

    def __init__(self, wanted: Wanted, layer: Layer, texts: bool = False, aligned: bool = False) -> None:
        """`aligned`: windows begin at multiples of their length in the coordinates of `Document.offset`, so that those
        of a record that gaps divide lie in one grid."""
        self.wanted, self.layer, self.texts, self.aligned = wanted, layer, texts, aligned
        self.width = wanted.window or WINDOW
        self.start = np.empty(0, np.int64)
        """Where the open unit begins, (1,), or (0,) before the first."""
        self.total = np.zeros(0)
        """(D,) float64: the sum of the open unit's vectors."""
        self.count = 0
        """Number of them."""
        self.before = np.zeros(0)
        """(D,) float64: the document's last vector so far."""
        self.data = b""
        """Bytes of the open unit."""

    def __call__(self, window: Window, vectors: Vectors) -> Block:
        """The units that end in a window."""
        if window.start == 0:
            self.start, self.count, self.data = self.start[:0], 0, b""
        edges = np.concatenate([self.start, self._starts(window)])
        end = window.start + len(window.data)
        pooled, counts = self._pooled(np.append(edges, end), vectors)
        text = self.data + window.data if self.texts else b""
        if window.last:
            edges = np.append(edges, end)
        else:
            self.start, self.total, self.count = edges[-1:], pooled[-1].copy(), int(counts[-1])
        at, whole = (edges - edges[0]).tolist(), len(edges) - 1
        self.data = text[at[-1] :]
        if self.wanted.pool == "mean":
            pooled = pooled / np.maximum(counts, 1)[:, None]
        offset = window.document.offset
        return Block(
            window.document,
            edges[:-1] + offset,
            edges[1:] + offset,
            _finite(pooled[:whole], self.wanted.dtype),
            [text[a:b] for a, b in pairwise(at)] if self.texts else None,
        )

    def _starts(self, window: Window) -> np.ndarray:
        """Where units begin in a window."""
        if self.wanted.per == "document":
            return np.zeros(int(window.start == 0), np.int64)
        if self.wanted.per == "chunk":
            starts: np.ndarray = window.starts[~np.isnan(window.probability[:, self.layer.stage])]
            return starts
        end = window.start + len(window.data)
        offset = window.document.offset if self.aligned else 0
        starts = np.arange(window.start + -(window.start + offset) % self.width, end, self.width, dtype=np.int64)
        return np.unique(np.append(0, starts)) if window.start == 0 else starts

    def _pooled(self, edges: np.ndarray, vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
        """(n, D) float64 and (n,): the sum of each unit's vectors so far, and their number; for "last", and for a unit
        without any, the last vector before its end. `edges` (n + 1,)."""
        places, values = vectors.places, vectors.values
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        unit = np.searchsorted(edges, places, "right") - 1
        counts = np.bincount(unit, minlength=len(edges) - 1)
        last = np.searchsorted(places, edges[1:]) - 1
        pooled = np.zeros((len(last), values.shape[1]))
        pooled[last >= 0] = _numbers(values[torch.from_numpy(last[last >= 0]).to(values.device)])
        pooled[last < 0] = self.before if len(self.before) else 0
        if self.wanted.pool == "mean":
            sums = values.new_zeros(pooled.shape).index_add_(0, torch.from_numpy(unit).to(values.device), values)
            pooled = np.where(counts[:, None] > 0, _numbers(sums), pooled)
            if len(self.start) and self.count:
                pooled[0] = self.total + pooled[0] * (counts[0] > 0)
                counts[0] += self.count
        if len(values):
            self.before = _numbers(values[-1])
        return pooled, counts


def _numbers(values: torch.Tensor) -> np.ndarray:
    numbers: np.ndarray = values.double().cpu().numpy()
    return numbers


def _finite(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """The vectors in a dtype. Raises NumericalError."""
    with np.errstate(over="ignore"):
        cast = vectors.astype(dtype)
    if not np.isfinite(cast).all():
        small = np.isfinite(vectors).all()
        raise NumericalError(
            f"a vector is not finite{f' in {dtype}' if small else ''}",
            "take --dtype float32" if small else "the model's weights are damaged or overflow",
        )
    return cast
