"""What is annotated on DNA: GFF3 and GTF, or GenBank (read with Biopython), as edges and as kinds of places."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from Bio import SeqIO

from hnet_cli.errors import InputError
from hnet_cli.modality import Annotation, Document, Source

KINDS = ("gene", "exon", "CDS")
STRANDS = {"+": 1, "-": -1}


@dataclass(frozen=True, slots=True)
class Feature:
    """A stretch of a record. Coordinates from 0, half open."""

    kind: str
    start: int
    end: int
    strand: int
    phase: int | None
    """Of a CDS: bases before the first whole codon, in the direction of the strand."""


class Features(Annotation):
    """Features by record. A gene that is read on the other strand counts for the other strand's codon positions."""

    def __init__(self, records: dict[str, list[Feature]]) -> None:
        self.records = records

    def _within(self, document: Document) -> Iterator[Feature]:
        end = document.offset + len(document.data)
        for feature in self.records.get(document.name, []):
            if feature.start < end and feature.end > document.offset:
                yield feature

    def edges(self, document: Document) -> Mapping[str, Sequence[int]]:
        """Where features of each kind begin and end: "gene edge", "exon edge", "CDS edge"."""
        size = len(document.data)
        found: dict[str, set[int]] = {}
        for feature in self._within(document):
            ends = (feature.start - document.offset, feature.end - document.offset)
            found.setdefault(f"{feature.kind} edge", set()).update(end for end in ends if 0 < end < size)
        return {kind: sorted(edges) for kind, edges in sorted(found.items())}

    def regions(self, document: Document) -> Mapping[str, Sequence[int]]:
        """ "gene", "exon", "CDS"; "intron" (in a gene that has exons, outside of all exons); "intergenic"; and "codon
        position 1+" to "3+", "1-" to "3-": the place in the codon, by strand."""
        size = len(document.data)
        marks = {kind: np.zeros(size, bool) for kind in KINDS}
        codons = {(place, strand): np.zeros(size, bool) for strand in (1, -1) for place in range(3)}
        for feature in self._within(document):
            start, end = feature.start - document.offset, feature.end - document.offset
            low, high = max(0, start), min(size, end)
            marks[feature.kind][low:high] = True
            if feature.kind == "CDS" and feature.phase is not None and feature.strand:
                for place in range(3):
                    if feature.strand > 0:
                        first = start + feature.phase + place
                        codons[place, 1][low + (first - low) % 3 : high : 3] = True
                    else:
                        last = end - 1 - feature.phase - place
                        codons[place, -1][low + (last - low) % 3 : high : 3] = True
        spliced = marks["exon"] if marks["exon"].any() else marks["CDS"]
        kinds = {kind: mark for kind, mark in marks.items() if mark.any()}
        kinds["intron"] = marks["gene"] & ~spliced & bool(marks["exon"].any())
        kinds["intergenic"] = ~(marks["gene"] | marks["CDS"] | marks["exon"])
        for (place, strand), mark in codons.items():
            kinds[f"codon position {place + 1}{'+' if strand > 0 else '-'}"] = mark
        return {kind: np.flatnonzero(mark) for kind, mark in kinds.items() if mark.any()}  # type: ignore[misc]


def annotation(source: Source) -> Features:
    """The features of a GFF, GTF or GenBank file. Raises InputError for a file with none, or that is neither."""
    with source.open() as stream:
        text = io.TextIOWrapper(stream, "utf-8", "replace")
        first = text.readline()
        lines = chain([first], text)
        records = _genbank(source.name, first, text) if first.startswith("LOCUS") else _gff(source.name, lines)
    if not any(records.values()):
        raise InputError(f"{source.name} holds no gene, exon or CDS", "give GFF3, GTF or GenBank")
    return Features(records)


def _gff(name: str, lines: Iterator[str]) -> dict[str, list[Feature]]:
    records: dict[str, list[Feature]] = {}
    for number, line in enumerate(lines, 1):
        if line.startswith("##FASTA"):
            break
        if line.startswith("#") or not line.strip():
            continue
        columns = line.rstrip("\n").split("\t")
        if len(columns) < 8 or not (columns[3].isdecimal() and columns[4].isdecimal()):
            raise InputError(f"{name}, line {number}: no row of GFF", "its nine columns are set by tabs")
        if columns[2] in KINDS and not columns[1].startswith("RNASeq"):
            phase = int(columns[7]) if columns[7] in ("0", "1", "2") else None
            start, end = int(columns[3]) - 1, int(columns[4])
            feature = Feature(columns[2], start, end, STRANDS.get(columns[6], 0), phase)
            records.setdefault(columns[0], []).append(feature)
    return records


def _genbank(name: str, first: str, rest: io.TextIOWrapper) -> dict[str, list[Feature]]:
    records: dict[str, list[Feature]] = {}
    try:
        for record in SeqIO.parse(_Joined(first, rest), "genbank"):
            features = records.setdefault(record.id, [])
            records[record.name] = features  # LOCUS, where the FASTA file has no version
            for each in record.features:
                if each.type not in KINDS or each.location is None:
                    continue
                read = int(each.qualifiers.get("codon_start", ["1"])[0]) - 1
                phase = read
                for part in each.location.parts:  # in the direction of reading
                    features.append(
                        Feature(each.type, int(part.start), int(part.end), part.strand or 0,
                                phase if each.type == "CDS" else None)
                    )  # fmt: skip
                    phase = (phase - len(part)) % 3
    except (ValueError, AssertionError, KeyError, IndexError) as error:
        raise InputError(f"{name} is no whole GenBank file: {error}") from error
    return records


class _Joined(io.TextIOBase):
    """A text stream whose first line was read already."""

    def __init__(self, first: str, rest: io.TextIOWrapper) -> None:
        self.first, self.rest = first, rest

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        line, self.first = self.first, ""
        return line or self.rest.readline()

    def read(self, size: int | None = -1) -> str:
        line, self.first = self.first, ""
        return line + self.rest.read(-1 if size is None else size)
