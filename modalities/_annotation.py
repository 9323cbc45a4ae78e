"""Annotations of DNA: GFF3 and GTF, or GenBank (read with Biopython), as edges and as kinds of places.

GFF is parsed by hand: five columns of a row are used, in one pass, where libraries build a database of all features.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from Bio import BiopythonParserWarning, SeqIO
from Bio.SeqRecord import SeqRecord

from hnet_cli.errors import InputError
from hnet_cli.modality import Annotation, Document, Source

from ._bytes import is_place

KINDS = ("gene", "exon", "CDS")
STRANDS = {"+": 1, "-": -1}
SHORTEST_INTRON = 10  # bases; a smaller gap between parts is a frameshift of the ribosome
PARENT = re.compile(r'(?:Parent=|transcript_id[ =]"?)([^;"]+)')


@dataclass(frozen=True, slots=True)
class Feature:
    """A stretch of a record. Coordinates from 0, half open."""

    kind: str
    start: int
    end: int
    strand: int
    phase: int | None
    """Bases of a CDS before its first whole codon, in the direction of the strand."""


class Features(Annotation):
    """Features by record. A gene that is read on the other strand counts for the other strand's codon positions."""

    def __init__(self, records: dict[str, list[Feature]], declared: Collection[str] = ()) -> None:
        """`declared`: records that were annotated, whether or not anything was found on them."""
        self.records, self.declared = records, declared

    def names(self) -> Collection[str]:
        return list(dict.fromkeys([*(name for name, features in self.records.items() if features), *self.declared]))

    def _within(self, document: Document) -> Iterator[Feature]:
        end = document.offset + len(document.data)
        for feature in self.records.get(document.name, []):
            if feature.start < end and feature.end > document.offset:
                yield feature

    def edges(self, document: Document) -> Mapping[str, Sequence[int]]:
        """Positions where features of each kind begin and end: "gene edge", "exon edge", "CDS edge"."""
        size = len(document.data)
        edges: dict[str, set[int]] = {}
        for feature in self._within(document):
            ends = (feature.start - document.offset, feature.end - document.offset)
            if feature.kind != "intron":
                edges.setdefault(f"{feature.kind} edge", set()).update(end for end in ends if 0 < end < size)
        return {kind: sorted(positions) for kind, positions in sorted(edges.items())}

    def regions(self, document: Document) -> Mapping[str, Sequence[int]]:
        """Positions by kind: "gene", "exon", "CDS", "intron" (in a gene that has exons, outside of all exons),
        "intergenic", and "codon position 1+" to "3+", "1-" to "3-": the place in the codon, by strand."""
        size = len(document.data)
        marks = {kind: np.zeros(size, bool) for kind in (*KINDS, "intron")}
        codons = {(place, strand): np.zeros(size, bool) for strand in (1, -1) for place in range(3)}
        for feature in self._within(document):
            start, end = feature.start - document.offset, feature.end - document.offset
            low, high = max(0, start), min(size, end)
            marks[feature.kind][low:high] = True
            if feature.kind == "CDS" and feature.phase is not None and feature.strand:
                for place in range(3):
                    shift = feature.phase + place
                    base = start + shift if feature.strand > 0 else end - 1 - shift
                    codons[place, feature.strand][low + (base - low) % 3 : high : 3] = True
        kinds = {kind: mark for kind, mark in marks.items() if mark.any()}
        kinds["intron"] = marks["intron"] & ~marks["exon"] & ~marks["CDS"]
        kinds["intergenic"] = ~(marks["gene"] | marks["CDS"] | marks["exon"])
        for (place, strand), mark in codons.items():
            kinds[f"codon position {place + 1}{'+' if strand > 0 else '-'}"] = mark
        return {kind: np.flatnonzero(mark) for kind, mark in kinds.items() if mark.any()}  # type: ignore[misc]


def annotation(source: Source) -> Features:
    """The features of a GFF, GTF or GenBank file. Raises InputError for a file with none, or that is neither."""
    with source.open() as stream:
        genbank = stream.readline().startswith(b"LOCUS")
    with source.open() as stream:
        text = io.TextIOWrapper(stream, "utf-8", "replace")
        declared: set[str] = set()
        records = _genbank(source.name, text) if genbank else _gff(source.name, text, declared)
    if not any(records.values()):
        raise InputError(f"{source.name} holds no gene, exon or CDS", "give GFF3, GTF or GenBank")
    return Features(records, sorted(declared))


def _gff(name: str, lines: Iterable[str], declared: set[str]) -> dict[str, list[Feature]]:
    """The features by record; records that the file declares are added to `declared`."""
    records: dict[str, list[Feature]] = {}
    parts: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    unphased: dict[tuple[str, str], list[int]] = {}  # indices of the CDS of one transcript that tell no phase
    for number, line in enumerate(lines, 1):
        if line.startswith("##FASTA"):
            break
        if line.startswith("##sequence-region") and len(words := line.split()) > 1:
            declared.add(words[1])
        if line.startswith("#") or not line.strip():
            continue
        columns = line.rstrip("\n").split("\t")
        if len(columns) < 8 or not (is_place(columns[3]) and is_place(columns[4])):
            raise InputError(f"{name}, line {number}: no row of GFF", "its nine columns are set by tabs")
        if columns[2] in KINDS and not columns[1].startswith("RNASeq"):
            phase = int(columns[7]) if columns[7] in ("0", "1", "2") else None
            start, end = int(columns[3]) - 1, int(columns[4])
            feature = Feature(columns[2], start, end, STRANDS.get(columns[6], 0), phase)
            features = records.setdefault(columns[0], [])
            features.append(feature)
            match = PARENT.search(columns[8]) if len(columns) > 8 else None
            transcripts = match[1].split(",") if match else []
            if feature.kind != "gene":
                for transcript in transcripts:
                    parts.setdefault((columns[0], feature.kind, transcript), []).append((start, end))
            if feature.kind == "CDS" and phase is None:
                first = transcripts[0] if transcripts else f"line {number}"
                unphased.setdefault((columns[0], first), []).append(len(features) - 1)
    for (record, _), indices in unphased.items():
        _phase(records[record], indices)
    for (record, _, _), pairs in parts.items():
        records[record] += introns(sorted(pairs))
    return records


def _phase(features: list[Feature], indices: list[int]) -> None:
    """Give the CDS of one transcript their phases, if they are whole codons together and hence begin with one."""
    parts = [features[at] for at in indices]
    if sum(part.end - part.start for part in parts) % 3 or len({part.strand for part in parts}) > 1:
        return
    phase = 0
    for at in sorted(indices, key=lambda at: features[at].start * (features[at].strand or 1)):
        features[at] = replace(features[at], phase=phase)
        phase = (phase - (features[at].end - features[at].start)) % 3


def introns(parts: Iterable[tuple[int, int]]) -> list[Feature]:
    """The gaps between the parts of one transcript, which ascend; none where it crosses the origin of a circle."""
    return [
        Feature("intron", end, start, 0, None)
        for (_, end), (start, _) in pairwise(parts)
        if start - end >= SHORTEST_INTRON
    ]


def _genbank(name: str, text: io.TextIOWrapper) -> dict[str, list[Feature]]:
    records: dict[str, list[Feature]] = {}
    try:
        for record in _parsed(text):
            features = records.setdefault(str(record.id), [])
            records[record.name] = features  # LOCUS, where the FASTA file has no version
            for entry in record.features:
                if entry.type not in KINDS or entry.location is None:
                    continue
                parts = [(int(part.start), int(part.end)) for part in entry.location.parts]  # as they are read
                features += introns(parts[::-1] if entry.location.strand == -1 else parts)
                phase = int(entry.qualifiers.get("codon_start", ["1"])[0]) - 1
                for part, (start, end) in zip(entry.location.parts, parts, strict=True):
                    known = phase if entry.type == "CDS" else None
                    features.append(Feature(entry.type, start, end, part.strand or 0, known))
                    phase = (phase - len(part)) % 3
    except (ValueError, AssertionError, KeyError, IndexError) as error:
        raise InputError(f"{name} is no whole GenBank file: {' '.join(str(error).split())}") from error
    return records


def _parsed(text: io.TextIOWrapper) -> Iterator[SeqRecord]:
    """The records, without Biopython's warnings about their form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiopythonParserWarning)
        yield from SeqIO.parse(text, "genbank")
