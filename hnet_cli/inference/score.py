"""Bits of documents, their chunks, windows and bytes: the function behind `hnet score`.

The bits of a byte are -log2 of its probability under the model, in the windows of `inference.scoring`, so that all of
them add up to what `hnet eval` counts: of a row of prompt and completion those of the completion and the mark that ends
it, whose position 0 is where the completion begins. Chunks are those of `inference.windows`, which `hnet segment`
prints. Memory does not grow with the file: a document comes in blocks, or is one of a modality's, which bounds them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import tee
from typing import TypeVar

import numpy as np

from hnet_cli.errors import UsageError
from hnet_cli.inference.chunks import Assembler
from hnet_cli.inference.intake import Intake
from hnet_cli.inference.render import Names, json_head, json_payload, shower, tsv_field
from hnet_cli.inference.scoring import (
    Stretch,
    carried_block,
    check_windows,
    default_context,
    passes,
    precision,
    stretches,
)
from hnet_cli.inference.segment import stages_of
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.inference.windows import LONGEST_CHUNK, Stream, own_modality, windows
from hnet_cli.modality import Document, Modality, Source, escape
from hnet_cli.model import HNetForCausalLM

PER = ("document", "chunk", "window", "byte")
FORMATS = ("tsv", "jsonl", "bedgraph")
WINDOW = 1000
"""Bytes of a window of `--per window` unless told otherwise."""
AT_ONCE = 1 << 14
"""Rows of bytes made at once."""
T = TypeVar("T")


@dataclass(frozen=True)
class ScoreRequest:
    """The options of `hnet score`. Raises UsageError where they contradict each other."""

    per: str | None = None
    """One of `PER`. Default: documents; windows where their length is given; bytes in bedGraph."""
    format: str = "tsv"
    """One of `FORMATS`."""
    stage: str | None = None
    """That of the chunks, or "all". Default: 0, the outermost."""
    window: int | None = None
    """Bytes of a row; rows begin at its multiples in the coordinates of the source."""
    context: int | None = None
    """Bytes back; 0: the whole document. Default: `default_context`."""
    stride: int | None = None
    """Bytes between the windows of the model. Default: the context."""
    both_strands: bool = False
    """Average the bits of each byte with those it has in the mirrored document (`Modality.mirror`)."""

    def __post_init__(self) -> None:
        for option, value, known in (("--per", self.per, PER), ("--format", self.format, FORMATS)):
            if value is not None and value not in known:
                raise UsageError(f"{option} is {value!r}", f"choose from {', '.join(known)}")
        if self.window is not None and self.per not in (None, "window"):
            raise UsageError("--window is the length of windows", f"leave it out, or --per {self.per}")
        if self.window is not None and not 1 <= self.window <= LONGEST_CHUNK:
            raise UsageError(f"--window is {self.window}", f"give 1 to {LONGEST_CHUNK:,} bytes")
        if self.stage is not None and self.unit != "chunk":
            raise UsageError("--stage is that of chunks", "say --per chunk too, or leave it out")
        if self.stage == "all" and self.format == "bedgraph":
            raise UsageError("the chunks of all stages lie over each other, which bedGraph excludes", "name one stage")
        check_windows(1 << 62 if self.context is None else self.context, self.stride)

    @property
    def unit(self) -> str:
        """What a row is: one of `PER`."""
        return self.per or ("window" if self.window else "byte" if self.format == "bedgraph" else "document")

    def fit(self, model: HNetForCausalLM, modality: Modality | None) -> ScoreRequest:
        """The request with the model's context. Raises UsageError for what the model or the modality lacks."""
        name = modality.name if modality else "a file of raw bytes"
        if self.format == "bedgraph" and not (modality and modality.records):
            raise UsageError(f"{name} has no records with coordinates, which bedGraph is of", "take tsv or jsonl")
        if self.both_strands and (modality is None or modality.mirror(b"") is None):
            raise UsageError(f"--both-strands: {name} has no other strand", "leave it out")
        if self.unit == "chunk":
            stages_of(model.config, self.stage or 0)
        context = default_context(model.config) if self.context is None else self.context
        check_windows(context, self.stride)
        return replace(self, context=context)


@dataclass
class Totals:
    """Sums over everything that was scored so far."""

    bytes: int = 0
    bits: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """Bits of successive bytes of a document."""

    document: Document | Stream
    start: int
    """Position in the document of the first of them."""
    data: bytes
    """As stored."""
    bits: np.ndarray
    """(n,) float64."""


@dataclass(frozen=True, slots=True)
class Rows:
    """n stretches of a document, or of the record or file that it is a part of."""

    document: Document | Stream
    starts: np.ndarray
    """(n,) int64, in the coordinates of the source."""
    ends: np.ndarray
    """(n,) int64."""
    lengths: np.ndarray
    """(n,) int64: number of bytes that were scored, fewer than from start to end where a gap lies between."""
    bits: np.ndarray
    """(n,) float64, the sum over these bytes."""
    data: Sequence[bytes] | None = None
    stage: int | None = None


def score(
    model: HNetForCausalLM,
    sources: Iterable[Source],
    modality: Modality | None = None,
    request: ScoreRequest = ScoreRequest(),
    intake: Intake | None = None,
    totals: Totals | None = None,
    max_bytes: int | None = None,
    progress: Callable[[], None] = lambda: None,
    compression: Compression = UNCHANGED,
) -> Iterator[str]:
    """Pieces of text that, written one after the other, are the rows of all sources.

    `modality` None reads every source as one document of raw bytes. `intake` and `totals` are filled on the way;
    `progress` is called whenever they have grown. `compression` as in `segment`. Raises UsageError at once; InputError
    at the end if there was nothing, or no source was whole; NumericalError.
    """
    request = request.fit(model, modality)
    intake, totals = intake or Intake(), totals or Totals()
    intake.stored = True

    def counted(parts: Iterable[Part]) -> Iterator[Part]:
        for part in parts:
            totals.bytes += len(part.bits)
            totals.bits += float(part.bits.sum())
            progress()
            yield part

    documents, table = intake.documents(sources, modality, max_bytes), modality.input_table if modality else None
    intake.applied, documents = compression.apply_to(model, documents, table)
    rows = _rows(model, documents, modality, request, counted)

    def pieces() -> Iterator[str]:
        yield from WRITERS[request.format](rows, request.unit, modality)
        intake.check("score")

    return pieces()


def score_bytes(
    model: HNetForCausalLM,
    documents: Sequence[bytes],
    request: ScoreRequest = ScoreRequest(),
    compression: Compression = UNCHANGED,
) -> list[np.ndarray]:
    """The bits of every byte of documents in memory, (n,) float64 each, read as the model's modality does.

    Of `request`, only context, stride and strands count. `compression` holds for this call. Raises UsageError,
    NumericalError.
    """
    modality = own_modality(model)
    bits: list[list[np.ndarray]] = [[np.empty(0)] for _ in documents]
    named = (Document(data, str(number), str(number)) for number, data in enumerate(documents))
    table = modality.input_table if modality else None
    with compression.used(model, lambda: [data.translate(table) for data in documents]):
        for part in _scored(model, named, modality, request.fit(model, modality)):
            bits[int(part.document.name)].append(part.bits)
    return [np.concatenate(parts) for parts in bits]


# -- bits --------------------------------------------------------------------------------------------------------------


def _scored(
    model: HNetForCausalLM, documents: Iterable[Document | Stream], modality: Modality | None, request: ScoreRequest
) -> Iterator[Part]:
    """The bits of all documents in order; those without bytes give none."""
    context, block = request.context or None, carried_block(model)
    table = modality.input_table if modality else None
    waiting: deque[Document | Stream] = deque()  # those whose stretches are on their way

    def items() -> Iterator[Stretch]:
        for number, document in enumerate(documents):
            waiting.append(document)
            if not isinstance(document, Document):
                yield from stretches(document.blocks, number, context, request.stride, block)
                continue
            read = document.data.translate(table)
            yield from stretches(read, number, context, request.stride, block, document.prompt)
            if request.both_strands and modality is not None:
                if document.prompt:
                    raise UsageError(
                        "--both-strands: a row of prompt and completion is read in one direction", "leave it out"
                    )
                yield from stretches(modality.mirror(read) or b"", number, context, request.stride, block)

    number = done = 0  # bytes of the document that were given
    strands: list[np.ndarray] = []  # bits of the document, then of its mirror
    for result in under(precision(model)[1], passes(model, items())):
        for stretch, low, high in zip(result.stretches, result.offsets, result.offsets[1:], strict=False):
            while number < stretch.owner:
                waiting.popleft()
                number, done, strands = number + 1, 0, []
            bits, data = result.nats[low + stretch.skip : high] / math.log(2), stretch.targets[stretch.skip :]
            if not len(bits):  # all of it is prompt
                continue
            start = done
            if isinstance(document := waiting[0], Document):
                start += document.prompt
                if request.both_strands:
                    strands.append(bits)
                    if sum(map(len, strands)) < 2 * len(document.data):
                        continue
                    forward, backward = np.split(np.concatenate(strands), 2)
                    bits = (forward + backward[::-1]) / 2
                data = document.data[start : start + len(bits)]
            yield Part(document, start, data, bits)
            done += len(bits)


def under(context: AbstractContextManager[object], items: Iterable[T]) -> Iterator[T]:
    """The items, each made inside the context, which is left while they are used."""
    iterator = iter(items)
    while True:
        with context:
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


# -- rows --------------------------------------------------------------------------------------------------------------


def _rows(
    model: HNetForCausalLM,
    documents: Iterable[Document | Stream],
    modality: Modality | None,
    request: ScoreRequest,
    counted: Callable[[Iterable[Part]], Iterator[Part]],
) -> Iterator[Rows]:
    chunks = documents
    if request.unit == "chunk":
        documents, chunks = _twice(documents)
    parts = counted(_scored(model, documents, modality, request))
    if request.unit == "chunk":
        stages = stages_of(model.config, request.stage or 0)
        return _by_chunk(model, parts, chunks, modality.input_table if modality else None, stages)
    if request.unit == "byte":
        return _by_byte(parts)
    return _by_record(parts) if request.unit == "document" else _by_window(parts, request.window or WINDOW)


def _by_byte(parts: Iterable[Part]) -> Iterator[Rows]:
    for part in parts:
        for at in range(0, len(part.bits), AT_ONCE):
            bits = part.bits[at : at + AT_ONCE]
            starts = part.document.offset + part.start + at + np.arange(len(bits))
            data = [bytes([byte]) for byte in part.data[at : at + AT_ONCE]]
            yield Rows(part.document, starts, starts + 1, np.ones_like(starts), bits, data)


def _by_record(parts: Iterable[Part]) -> Iterator[Rows]:
    """A row for each record or file, which may be several documents: a chromosome divided by gaps, a long book."""
    rows: Rows | None = None
    for part in parts:
        document, start = part.document, part.document.offset + part.start
        this = _ranges(document, np.array([start, start + len(part.bits)]), part.bits)
        same = rows is not None and (document.source, document.name) == (rows.document.source, rows.document.name)
        if rows is not None and same and start >= rows.ends[-1]:  # else the same source again
            sums = rows.lengths + this.lengths, rows.bits + this.bits
            rows = Rows(rows.document, rows.starts, this.ends, *sums)
            continue
        if rows is not None:
            yield rows
        rows = this
    if rows is not None:
        yield rows


def _by_window(parts: Iterable[Part], width: int) -> Iterator[Rows]:
    """Rows end at the multiples of `width` in the coordinates of the source, and where a document does."""
    document: Document | Stream = Stream((), "", "")
    start, bits = 0, np.empty(0)  # of the window that is open

    def rows(count: int) -> Rows:
        edges = np.arange(start - start % width, start + count, width)
        edges[0] = start
        return _ranges(document, np.append(edges, start + count), bits[:count])

    for part in parts:
        if part.document is not document:
            if len(bits):
                yield rows(len(bits))
            document, start, bits = part.document, part.document.offset + part.start, np.empty(0)
        bits = np.concatenate([bits, part.bits])
        end = start + len(bits)
        if (whole := end - end % width - start) > 0:
            yield rows(whole)
            start, bits = start + whole, bits[whole:]
    if len(bits):
        yield rows(len(bits))


def _by_chunk(
    model: HNetForCausalLM,
    parts: Iterator[Part],
    documents: Iterable[Document | Stream],
    table: bytes | None,
    stages: Iterable[int],
) -> Iterator[Rows]:
    """Rows are the chunks of each stage. One that begins in a prompt is shown from where the completion begins."""
    assemblers = [Assembler(stage) for stage in stages]
    base, bits = 0, np.empty(0)  # of the bytes from position `base` on, which the chunks that are open need
    for window in windows(model, documents, input_table=table):
        prompt = window.document.prompt if isinstance(window.document, Document) else 0
        base = max(base, prompt)  # a prompt has no bits
        for assemble in assemblers:
            block = assemble(window)
            while base + len(bits) < block.starts[-1]:
                bits = np.concatenate([bits, next(parts).bits])
            edges, chunks = _after(prompt, block.starts, block.chunks)
            if chunks:
                first, last = edges[0] - base, edges[-1] - base
                rows = _ranges(window.document, edges + window.document.offset, bits[first:last])
                yield replace(rows, data=chunks, stage=assemble.stage)
        opened = 0 if window.last else max(prompt, min(int(assemble.start[0]) for assemble in assemblers))
        base, bits = opened, np.empty(0) if window.last else bits[opened - base :]


def _after(prompt: int, starts: Sequence[int], chunks: Sequence[bytes]) -> tuple[np.ndarray, Sequence[bytes]]:
    """The edges (n + 1,) and bytes of the n chunks that end after a prompt, without what is prompt of the first."""
    edges = np.maximum(starts, prompt)
    kept = max(0, int(np.searchsorted(edges, prompt, side="right")) - 1)
    edges, chunks = edges[kept:], chunks[kept:]
    return edges, [chunk[len(chunk) - size :] for chunk, size in zip(chunks, np.diff(edges).tolist(), strict=True)]


def _ranges(document: Document | Stream, edges: np.ndarray, bits: np.ndarray) -> Rows:
    """Rows [edges[i], edges[i + 1]) of a document, the first of `bits` being that at edges[0]."""
    return Rows(document, edges[:-1], edges[1:], np.diff(edges), np.add.reduceat(bits, edges[:-1] - edges[0]))


def _twice(
    documents: Iterable[Document | Stream],
) -> tuple[Iterator[Document | Stream], Iterator[Document | Stream]]:
    """The documents, to be read by two who keep about the same pace."""

    def both(document: Document | Stream) -> tuple[Document | Stream, Document | Stream]:
        if isinstance(document, Document):
            return document, document
        one, other = tee(document.blocks)
        return replace(document, blocks=one), replace(document, blocks=other)

    first, second = tee(map(both, documents))
    return (one for one, _ in first), (other for _, other in second)


# -- formats -----------------------------------------------------------------------------------------------------------


COLUMNS = {
    "document": ("start", "end", "length", "bits", "bits_per_byte", "perplexity"),
    "chunk": ("stage", "start", "end", "bits", "bits_per_byte"),
    "window": ("start", "end", "bits", "bits_per_byte"),
    "byte": ("start", "end", "bits"),
}
"""Numbers of a row by what it is; behind source and record, before the text of chunks and bytes."""


def _columns(rows: Rows, unit: str) -> list[list[str]]:
    """The values of `COLUMNS` as text."""
    mean = rows.bits / rows.lengths
    with np.errstate(over="ignore"):
        numbers = {"bits": rows.bits, "bits_per_byte": mean, "perplexity": np.exp2(mean)}
    columns = {name: [f"{number:.6f}" for number in column.tolist()] for name, column in numbers.items()}
    for name, whole in (("start", rows.starts), ("end", rows.ends), ("length", rows.lengths)):
        columns[name] = list(map(str, whole.tolist()))
    columns["stage"] = [str(rows.stage)] * len(mean)
    return [columns[name] for name in COLUMNS[unit]]


def _tsv(rows: Iterable[Rows], unit: str, modality: Modality | None) -> Iterator[str]:
    heading = "\t".join(["source", "record", *COLUMNS[unit], *["text"] * (unit in ("chunk", "byte"))]) + "\n"
    show = shower(modality)
    for each in rows:
        yield heading
        heading = ""  # written once, and not at all where there is nothing
        head = "\t".join(tsv_field(escape(name)) for name in (each.document.source, each.document.name))
        texts = [f"\t{tsv_field(show(data))}" for data in each.data] if each.data else [""] * len(each.bits)
        columns = zip(*_columns(each, unit), texts, strict=True)
        yield "".join(f"{head}\t{chr(9).join(row)}{text}\n" for *row, text in columns)


def _jsonl(rows: Iterable[Rows], unit: str, modality: Modality | None) -> Iterator[str]:
    """A text that is no UTF-8 is "bytes", in base64."""
    for each in rows:
        head = json_head(each.document, modality)
        texts = [f", {json_payload(data)}" for data in each.data] if each.data else [""] * len(each.bits)
        for *row, text in zip(*_columns(each, unit), texts, strict=True):
            values = ("null" if value == "inf" else value for value in row)
            pairs = (f'"{name}": {value}' for name, value in zip(COLUMNS[unit], values, strict=True))
            yield f"{head}{', '.join(pairs)}{text}}}\n"


def _bedgraph(rows: Iterable[Rows], unit: str, modality: Modality | None) -> Iterator[str]:
    """Record, start, end and the mean bits per byte; in the order of the file, ascending within a record.

    Raises InputError as `Names`.
    """
    names = Names()
    document: Document | Stream = Document(b"", "", "")
    for each in rows:
        if each.document is not document:
            names.check(document := each.document)
        means, name = each.bits / each.lengths, escape(document.name, keep="")
        columns = zip(each.starts.tolist(), each.ends.tolist(), means.tolist(), strict=True)
        yield "".join(f"{name}\t{start}\t{end}\t{mean:.4f}\n" for start, end, mean in columns)


WRITERS = {"tsv": _tsv, "jsonl": _jsonl, "bedgraph": _bedgraph}
