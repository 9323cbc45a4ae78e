"""Figures of a mixture's sources in a record of a validation, where they lie flat: `val_bpb/books`. Nobody else takes
such keys apart or puts them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hnet_cli.data.figures import named
from hnet_cli.report.stages import VALIDATION, stage_key
from hnet_cli.storage.jsonl import number

NUMBERS = ("share", "epochs", "bytes", "of")
BASELINES = ("xz", "order_k", "uniform")
MOST, LONGEST = 64, 4000
"""Sources of a record that are read, and characters of their names: a record may come from anywhere."""


def source_key(name: str, source: str) -> str:
    """The key of a figure of a source, without the prefix of validations."""
    return f"{name}/{source}"


@dataclass(frozen=True)
class SourceFigures:
    """Figures of one source in a validation; None where a record does not have them."""

    name: str
    bpb: float
    share: float | None = None
    """Of the bytes read."""
    epochs: float | None = None
    """Times that its training split had been read."""
    bytes: float | None = None
    """Held-out bytes that were scored."""
    of: float | None = None
    """Held-out bytes that there are."""
    bytes_per_chunk: float | None = None
    """At the outermost stage."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Bits per byte of the baselines on the same bytes: "xz", "order-k", "uniform"."""


def sources_of(record: Mapping[str, Any]) -> list[SourceFigures]:
    """The sources of a validation's record, in their order; none for a run on a single dataset."""
    begin = VALIDATION + source_key("bpb", "")
    names = [key.removeprefix(begin) for key in record if key.startswith(begin) and len(key) < LONGEST][:MOST]
    sources = []
    for name in names:
        keys = {"bytes_per_chunk": stage_key(0, "bytes_per_chunk")} | {key: key for key in (*NUMBERS, *BASELINES)}
        figures = {key: record.get(VALIDATION + source_key(flat, name)) for key, flat in keys.items()}
        if (bits := number(record[begin + name])) is not None:
            numbers = {key: number(figures[key]) for key in ("bytes_per_chunk", *NUMBERS)}
            sources.append(SourceFigures(name, bits, **numbers, baselines=named(figures | {"k": "k"})))
    return sources


def times(epochs: float) -> str:
    """The number of times a source is read, in words: "42% of it", "3.5 times"."""
    return f"{epochs:.{0 if epochs >= 0.1 else 1}%} of it" if epochs < 0.995 else f"{epochs:.1f} times"


def rows_of(sources: Sequence[SourceFigures]) -> list[list[str]]:
    """A table of sources, the first row of heads; the heads alone where there are none."""
    beside = list(dict.fromkeys(name for source in sources for name in source.baselines))
    heads = ["source", "share of the bytes", "training split read", "held out", "bits per byte", *beside]
    rows = [[*heads, "bytes per chunk"]]
    for source in sources:
        known = source.baselines
        figures = [None if source.share is None else f"{source.share:.1%}"]
        figures += [None if source.epochs is None else times(source.epochs)]
        figures += [None if source.bytes is None else f"{source.bytes:,.0f} bytes", f"{source.bpb:.3f}"]
        figures += [f"{known[name]:.3f}" if name in known else None for name in beside]
        figures += [None if source.bytes_per_chunk is None else f"{source.bytes_per_chunk:.2f}"]
        rows.append([source.name, *(cell or "-" for cell in figures)])
    return rows
