"""Chunks for genome browsers: the line before a track, and one page with igv.js in it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli import storage
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.modality import Annotation, Document, Shown, escape
from hnet_cli.pages import html

MOST_SCRIPT = 16 << 20
"""Bytes of igv.js."""
Track = Callable[[int, str], Iterator[str]]
"""Lines of the chunks of a stage in a format."""


def track_line(name: str, format: str) -> str:
    """The line with which a custom track of the UCSC browser begins: its name, and how it is drawn."""
    shown = escape(name, keep="").replace('"', "'")
    drawn = {"bed": 'itemRgb="On" visibility=pack', "bedgraph": "visibility=full autoScale=off viewLimits=0:1"}[format]
    kind = "type=bedGraph " if format == "bedgraph" else ""
    return f'track {kind}name="{shown}" description="{shown}" {drawn}\n'


def igv_script() -> str:
    """The script of igv.js. Raises EnvironmentLimit where no package brings it."""
    found = find_spec("igv_notebook")  # not imported: it wants a notebook
    path = Path(found.origin).parent / "js" / "igv.min.js" if found and found.origin else None
    if path is None or not path.is_file():
        raise EnvironmentLimit("a page of igv.js needs the package igv-notebook", "pip install 'hnet-cli[igv]'")
    return storage.read_text(path, MOST_SCRIPT).replace("</script", "<\\/script")


def igv_page(
    documents: Sequence[Document],
    stages: Sequence[int],
    track: Track,
    annotation: Annotation | None = None,
    title: str = "",
    model: str = "",
    note: str = "",
) -> Iterator[str]:
    """One page, which fetches nothing: igv.js, the sequence of the documents with N between them, the chunks of each
    stage, the probability of the boundaries of the outermost, and the genes of an annotation."""
    tracks: list[dict[str, Any]] = []
    genes: list[dict[str, Any]] = []
    if annotation is not None:
        records = dict[str, dict[Shown, None]]()  # what lies over a gap is shown by the documents on both sides
        for document in documents:
            placed = (_placed(each, document.offset) for each in annotation.shown(document))
            records.setdefault(document.name, {}).update(dict.fromkeys(placed))
        genes = [gene for name, features in records.items() for gene in _genes(name, features)]
        tracks.append(
            {"name": "genes", "type": "annotation", "displayMode": "EXPANDED", "features": genes, "height": 70}
        )
    for stage in stages:
        chunks = _packed(track(stage, "bed"))
        name = "chunks" if len(stages) == 1 else f"chunks, stage {stage}"
        tracks.append({"name": name, "type": "annotation", "format": "bed", "url": chunks, "height": 35})
    chances = {"name": "p of boundaries", "type": "wig", "format": "bedgraph", "height": 60}
    tracks.append(chances | {"url": _packed(track(stages[0], "bedgraph")), "autoscale": False, "min": 0, "max": 1})
    for each in tracks:
        each |= {"indexed": False, "visibilityWindow": -1}
    first, *_ = documents
    seen: dict[str, Any] = genes[0] if genes else {"chr": first.name, "start": first.offset, "end": first.offset + 2000}
    options = {
        "reference": {"id": title, "name": title, "fastaURL": _packed(_fasta(documents)), "indexed": False},
        "locus": f"{seen['chr']}:{max(1, seen['start'] - 300)}-{seen['end'] + 300}",
        "tracks": tracks,
        "loadDefaultGenomes": False,
    }
    told = json.dumps(options, separators=(",", ":"))
    yield html.page("igv.html", title=title, model=model, note=note, options=told, igv=html.Script(igv_script()))


def _packed(lines: Iterable[str]) -> str:
    """Lines as a compressed data URI."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)  # gzip, without a date
    parts = [packer.compress(line.encode()) for line in lines]
    return f"data:application/gzip;base64,{base64.b64encode(b''.join([*parts, packer.flush()])).decode()}"


def _fasta(documents: Iterable[Document]) -> Iterator[str]:
    """The records of documents, with N for what is missing of them."""
    now, at = "", 0
    for document in documents:
        if document.name != now or document.offset < at:
            yield f"{chr(10) if now else ''}>{document.name}\n"
            now, at = document.name, 0
        yield "N" * (document.offset - at)
        yield document.data.decode("ascii")
        at = document.offset + len(document.data)


def _placed(feature: Shown, offset: int) -> Shown:
    """A feature in the coordinates of its record."""
    return replace(feature, start=feature.start + offset, end=feature.end + offset)


def _genes(record: str, features: Iterable[Shown]) -> Iterator[dict[str, Any]]:
    """Genes of a record as igv.js takes them, with the exons and coding parts on their strand that lie within them."""
    features = sorted(features, key=lambda each: each.start)
    parts = [each for each in features if each.kind != "gene"]
    starts = np.array([part.start for part in parts])
    for gene in features:
        if gene.kind != "gene":
            continue
        low, high = np.searchsorted(starts, [gene.start, gene.end])
        own = [part for part in parts[low:high] if part.end <= gene.end and part.strand == gene.strand]
        exons = [part for part in own if part.kind == "exon"] or own
        coding = [part for part in own if part.kind == "CDS"]
        place = {"chr": record, "start": gene.start, "end": gene.end}
        told: dict[str, Any] = place | {"name": escape(gene.name), "strand": {1: "+", -1: "-"}.get(gene.strand, ".")}
        if coding:
            told["cdStart"] = min(part.start for part in coding)
            told["cdEnd"] = max(part.end for part in coding)
        if exons:
            both = {(part.start, part.end) for part in exons}
            told["exons"] = [{"start": start, "end": end} for start, end in sorted(both)]
        yield told
