"""Annotations of DNA: GFF3 and GTF, or GenBank (read with Biopython), as edges and as kinds of places.

GFF3 is read by the specification of the Sequence Ontology, version 1.26
(https://github.com/The-Sequence-Ontology/Specifications/blob/master/gff3.md), by hand: seven columns of a row are used,
in one pass, where libraries build a database of all features.
"""

from __future__ import annotations

import io
import re
import warnings
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate, chain, pairwise
from urllib.parse import unquote

import numpy as np
from Bio import BiopythonParserWarning, SeqIO
from Bio.SeqFeature import SeqFeature
from Bio.SeqRecord import SeqRecord

from hnet_cli.errors import InputError
from hnet_cli.modality import Annotation, Document, Shown, Source

from ._bytes import is_place, read, record_name, text_lines, unique_name

HEAD = 1 << 14  # bytes; a file of a release of GenBank begins with some lines about it
LOCUS = re.compile(rb"^(?:\xef\xbb\xbf)?LOCUS {2}", re.MULTILINE)
LONGEST_TYPE = 100  # letters that are looked at; patterns backtrack
LONGEST_NAME = 40  # letters of a gene's name that are kept
LAST = 10**18 - 1  # position, as in `is_place`
LONGEST_REASON = 200  # letters of what Biopython says, which may quote a file
MOST_PARENTS = 10_000  # of a row; each takes half a kilobyte
MOST_LINES = 20_000  # of a feature of GenBank; Biopython takes the square of their number
WITH_EDGES = ("gene", "exon", "CDS")
STRANDS = {"+": 1, "-": -1}
PHASES = {"0": 0, "1": 1, "2": 2}
SHORTEST_INTRON = 10  # bases; a smaller gap between parts is a frameshift of the ribosome
TRANS_SPLICED = re.compile(r"trans[-_ ]splic")
TYPES = {
    "gene": re.compile(r".*gene(_segment|_with_\w+)?"),
    "transcript": re.compile(r".*(rna|transcript)(_with_\w+|_variant)?"),
    "exon": re.compile(r".*exon"),
    "UTR": re.compile(r".*utr|start_codon|stop_codon"),
    "CDS": re.compile(r"(\w+_)?cds(_\w+)?"),
    "intron": re.compile(r".*intron"),
}
"""Types of features, in lower case, by their kind here. The names of the Sequence Ontology are composed: ncRNA_gene,
pseudogene, transposable_element_gene; pre_miRNA, pseudogenic_transcript; noncoding_exon. The stop codon of GTF is in an
exon but not in the CDS."""
ACCESSIONS = {
    **dict.fromkeys(("SO:0000704", "SO:0000336", "SO:0001217", "SO:0001263"), "gene"),
    **dict.fromkeys(("SO:0000673", "SO:0000234", "SO:0000655", "SO:0000252", "SO:0000253"), "transcript"),
    **dict.fromkeys(("SO:0000203", "SO:0000204", "SO:0000205"), "UTR"),
    **{"SO:0000147": "exon", "SO:0000316": "CDS", "SO:0000188": "intron"},
}
"""The kinds of types that are given by their number in the Sequence Ontology."""
APART = {"CDS": {"trans_splicing", "pseudo", "pseudogene"}}
"""Qualifiers of GenBank by kind, for `_Gff.apart`."""
# Possessive, and begun where a name begins: linear in what a row holds, whatever that is.
GFF3 = re.compile(r'\s*+[^\s;="]++\s*+=')
GFF3_PAIR = re.compile(
    r"(?:^|;)\s*+(ID|Parent|Name|gene|exception|gene_id|Is_circular|pseudo|transcript_id)\s*+=([^;\t]*+)"
)
GTF_PAIR = re.compile(r'(?<![^\s;])([^\s;"]++)\s++(?:"([^"]*+)"\s*+(?:;|$)|([^;]*+))')
BARE = re.compile(r'\s*+([^\s;="]++)\s*+(?:;|$)')


@dataclass(slots=True)
class Feature:
    """A stretch of a record. Coordinates from 0, half open."""

    kind: str
    """A key of `TYPES`, or "gap": between the parts of a transcript, too short for an intron."""
    start: int
    end: int
    strand: int
    phase: int | None = None
    """Bases of a CDS before its first whole codon, in the direction of the strand."""
    name: str = ""
    """Of a gene."""


class Features(Annotation):
    """Features by record. A gene that is read on the other strand counts for the other strand's codon positions."""

    def __init__(
        self,
        rows: Mapping[str, list[Feature]],
        implied: Mapping[str, list[Feature]],
        declared: Iterable[str] = (),
        refused: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        """`implied`: features that follow from `rows`. `declared`: records that were annotated, whether or not anything
        was found on them. `refused`: by reason, the number of rows that cannot be used and where the first is."""
        self.rows, self.implied, self.declared, self.refused = rows, implied, declared, refused or {}
        self._tables: dict[str, tuple[list[Feature], np.ndarray, np.ndarray]] = {}
        """Features by record, their starts, their ends."""

    def names(self) -> Collection[str]:
        return list(dict.fromkeys([*(name for name, features in self.rows.items() if features), *self.declared]))

    def left_out(self, read: Mapping[str, int]) -> Mapping[str, tuple[int, str]]:
        result = dict(self.refused)
        known = {id(self.rows.get(name)) for name in read}  # a record of GenBank has two names
        unread = {id(rows): name for name, rows in self.rows.items() if rows and id(rows) not in known}
        if unread:
            names = ", ".join(name[:40] for name in [*unread.values()][:3]) + ", ..." * (len(unread) > 3)
            result["on a record that is not read"] = sum(len(self.rows[name]) for name in unread.values()), names
        beyond = [
            f"{name[:40]}, base {feature.start + 1}"
            for name, end in read.items()
            for feature in self.rows.get(name, ())
            if feature.end > end
        ]
        if beyond:
            result["ends beyond what is read of its record"] = len(beyond), beyond[0]
        return result

    def _within(self, document: Document) -> Iterator[Feature]:
        name = document.name
        if name not in self._tables:
            features = [*self.rows.get(name, ()), *self.implied.get(name, ())]
            starts, ends = (np.array([getattr(each, at) for each in features], np.int64) for at in ("start", "end"))
            self._tables[name] = features, starts, ends
        features, starts, ends = self._tables[name]
        inside = (starts < document.offset + len(document.data)) & (ends > document.offset)
        return (features[at] for at in np.flatnonzero(inside))

    def shown(self, document: Document) -> Sequence[Shown]:
        """Genes, exons with UTR, and coding sequences."""
        kinds = {"gene": "gene", "exon": "exon", "UTR": "exon", "CDS": "CDS"}
        found = (
            Shown(kinds[each.kind], each.start - document.offset, each.end - document.offset, each.strand, each.name)
            for each in self._within(document)
            if each.kind in kinds
        )
        return sorted(dict.fromkeys(found), key=lambda each: each.start)  # transcripts of a gene share exons

    def edges(self, document: Document) -> Mapping[str, Sequence[int]]:
        """Positions where features of each kind begin and end: "gene edge", "exon edge", "CDS edge"."""
        size = len(document.data)
        edges: dict[str, set[int]] = {}
        for feature in self._within(document):
            ends = (feature.start - document.offset, feature.end - document.offset)
            if feature.kind in WITH_EDGES:
                edges.setdefault(f"{feature.kind} edge", set()).update(end for end in ends if 0 < end < size)
        return {kind: sorted(positions) for kind, positions in sorted(edges.items())}

    def regions(self, document: Document) -> Mapping[str, Sequence[int]]:
        """Positions by kind: "gene" (genes of all types, with all that is theirs) or "intergenic"; in genes "exon" (CDS
        and UTR are in exons) or "intron" (between the parts of a transcript, and in no exon); "CDS"; and "codon
        position 1+" to "3+", "1-" to "3-": the place in the codon, by strand."""
        size = len(document.data)
        marks = {kind: np.zeros(size, bool) for kind in (*WITH_EDGES, "intron")}
        codons = {(place, strand): np.zeros(size, bool) for strand in (1, -1) for place in range(3)}
        for feature in self._within(document):
            start, end = feature.start - document.offset, feature.end - document.offset
            low, high = max(0, start), min(size, end)
            marks.get("exon" if feature.kind == "UTR" else feature.kind, marks["gene"])[low:high] = True
            if feature.kind == "CDS" and feature.phase is not None and feature.strand:
                for place in range(3):
                    shift = feature.phase + place
                    base = start + shift if feature.strand > 0 else end - 1 - shift
                    codons[place, feature.strand][low + (base - low) % 3 : high : 3] = True
        marks["exon"] |= marks["CDS"]
        marks["gene"] |= marks["exon"] | marks["intron"]
        marks["intron"] &= ~marks["exon"]
        marks["intergenic"] = ~marks["gene"]
        for (place, strand), mark in codons.items():
            marks[f"codon position {place + 1}{'+' if strand > 0 else '-'}"] = mark
        return {kind: np.flatnonzero(mark) for kind, mark in marks.items() if mark.any()}  # type: ignore[misc]


def annotation(source: Source) -> Features:
    """The features of a GFF, GTF or GenBank file. Raises InputError for a file with none, or that is neither."""
    with source.open() as stream:
        genbank = LOCUS.search(read(stream, HEAD))
    features = _genbank(source) if genbank else _Gff(source).features()
    if not any(features.rows.values()):
        reason = next((f": {reason} ({where})" for reason, (_, where) in features.refused.items()), "")
        raise InputError(f"{source.name} holds no gene, exon or CDS{reason}", "give GFF3, GTF or GenBank")
    return features


@lru_cache(1024)
def kind_of(type_name: str) -> str:
    """The key of `TYPES` for a type of the Sequence Ontology, of GTF or of GenBank; "" if it is of no gene."""
    lower = type_name[:LONGEST_TYPE].lower()
    fitting = (kind for kind, pattern in TYPES.items() if pattern.fullmatch(lower))
    return ACCESSIONS.get(type_name) or next(fitting, "")


@dataclass(slots=True)
class Transcript:
    """Features that belong together by `Parent` or by ID: those of a transcript, or of a gene that has only parts."""

    rows: list[Feature] = field(default_factory=list)
    """Its own rows, several where it is discontinuous."""
    parents: list[str] = field(default_factory=list)
    exons: list[Feature] = field(default_factory=list)
    """With UTR."""
    cds: dict[str, list[Feature]] = field(default_factory=dict)
    """By ID, "" for those without."""

    def coding(self) -> list[list[Feature]]:
        """The coding sequences: one for each ID where rows share an ID, else all rows are of one."""
        if any(name and len(rows) > 1 for name, rows in self.cds.items()):
            return list(self.cds.values())
        return [[*chain(*self.cds.values())]]

    def spliced(self) -> list[list[Feature]]:
        """Lists of features between which there are introns."""
        if self.exons:
            return [[*self.exons, *chain(*self.cds.values())]]
        return self.coding() if self.cds else [self.rows]


class _Gff:
    """A GFF3 or GTF file, read row by row."""

    def __init__(self, source: Source) -> None:
        self.rows: dict[str, list[Feature]] = {}
        self.declared: dict[str, int] = {}
        """The ends of records that the file declares, 0 if it does not say."""
        self.circular: set[str] = set()
        self.transcripts: defaultdict[tuple[str, str], Transcript] = defaultdict(Transcript)
        """By record and ID."""
        self.apart: set[tuple[str, str]] = set()
        """Records and IDs of what is not joined by splicing: trans-spliced, or a pseudogene that is interrupted."""
        self.genes: defaultdict[tuple[str, str], list[Feature]] = defaultdict(list)
        """Rows by record and ID, several of a gene that is transcribed in parts."""
        self.refused: dict[str, tuple[int, str]] = {}
        for number, line in text_lines(source):
            if line.startswith((">", "##FASTA")):
                break
            if line.startswith("##sequence-region") and len(words := line.split()) > 1:
                self.declared[unquote(words[1])] = int(words[3]) if len(words) > 3 and is_place(words[3]) else 0
            if line.strip() and not line.startswith("#") and (reason := self._row(line.split("\t", 8), number)):
                count, where = self.refused.get(reason, (0, f"{source.name}, line {number}"))
                self.refused[reason] = count + 1, where

    def _row(self, columns: list[str], number: int) -> str:
        """Take a row. Returns the reason if it cannot be used."""
        if len(columns) < 8 or not (is_place(columns[3]) and is_place(columns[4])):
            return "no row of GFF, whose nine columns are set by tabs"
        start, end = int(columns[3]) - 1, int(columns[4])
        if not 0 <= start < end:
            return "starts at 0 or after its end"
        kind, given = kind_of(columns[2]), columns[8] if len(columns) > 8 else ""
        gtf = bool(given.strip(". ")) and not GFF3.match(given)
        record = record_name(columns[0])  # MetaGeneMark has the whole header there
        record = record if gtf else unquote(record)
        found = _attributes(given, gtf) if kind or "Is_circular" in given else {}
        if found.get("Is_circular", "").lower() == "true":
            self.circular.add(record)
            self.declared[record] = max(end, self.declared.get(record, 0))
        if not kind:
            return ""
        if found.get("Parent", "").count(",") >= MOST_PARENTS:
            return f"more than {MOST_PARENTS:,} parents"
        parents = [unquote(parent.strip()) for parent in found.get("Parent", "").split(",")]
        own, transcript, gene = unquote(found.get("ID", "")), found.get("transcript_id", ""), found.get("gene_id", "")
        if gtf:
            own, parents = (transcript, [gene]) if kind == "transcript" else ("", [transcript or gene])
        elif kind not in ("gene", "transcript") and parents == [""]:
            parents = [transcript]
        phase = PHASES.get(columns[7]) if kind == "CDS" else None
        names = (found.get(key, "") for key in ("Name", "gene_name", "gene", "gene_id", "ID"))
        name = unquote(next(filter(None, names), ""))[:LONGEST_NAME] if kind in ("gene", "transcript") else ""
        feature = Feature(kind, start, end, STRANDS.get(columns[6], 0), phase, name)
        apart = bool(TRANS_SPLICED.search(found.get("exception", "")))
        apart |= kind == "CDS" and found.get("pseudo") == "true"
        self._add(record, feature, own, list(dict.fromkeys(filter(None, parents))), apart, number)
        return ""

    def _add(self, record: str, feature: Feature, own: str, parents: list[str], apart: bool, number: int) -> None:
        """Put a feature where it belongs; `own`: its ID or "", `parents`: those of what it is a part of."""
        alone = own or f"\n{number}"  # as no ID is
        groups = [alone]
        if feature.kind == "intron":
            if not parents:
                return  # evidence from reads, not part of a gene
        elif feature.kind == "gene":
            self.genes[record, alone].append(feature)
        elif feature.kind == "transcript":
            transcript = self.transcripts[record, alone]
            transcript.rows.append(feature)
            transcript.parents += parents
            if apart:
                feature.kind = "trans-spliced"
            elif not parents:
                feature.kind = "gene"
        else:
            groups = parents or [alone]
            for group in groups:
                transcript = self.transcripts[record, group]
                rows = transcript.cds.setdefault(own, []) if feature.kind == "CDS" else transcript.exons
                rows.append(feature)
        if apart:
            self.apart.update((record, group) for group in groups)
        if feature.kind != "trans-spliced":
            self.rows.setdefault(record, []).append(feature)

    def features(self) -> Features:
        implied: defaultdict[str, list[Feature]] = defaultdict(list)
        loci = cache(lambda owner: Loci((row.start, row.end) for row in self.genes[owner]))
        for (record, name), transcript in self.transcripts.items():
            owners = [(record, owner) for owner in dict.fromkeys((name, *transcript.parents))]
            for parts in transcript.coding():
                _phase(parts)
            if not any(self._has_parts(owner) for owner in owners):
                implied[record] += [Feature("exon", row.start, row.end, row.strand) for row in transcript.rows]
            genes = [loci(owner) for owner in owners if owner in self.genes]
            if sum(len(each.spans) for each in genes) < 2:
                genes = []
            whole = not genes and self.apart.isdisjoint(owners)
            length = self.declared.get(record, 0) if record in self.circular else 0
            for parts in transcript.spliced():
                for strand in {part.strand for part in parts}:
                    same = [(part.start, part.end) for part in parts if part.strand == strand]
                    implied[record] += introns(_gaps(same, length), None if whole else genes)
        for record in self.circular:
            for table in (self.rows, implied):
                if record in table:
                    table[record] = [part for row in table[record] for part in _wrapped(row, self.declared[record])]
        return Features(self.rows, implied, self.declared, self.refused)

    def _has_parts(self, key: tuple[str, str]) -> bool:
        transcript = self.transcripts.get(key)
        return transcript is not None and bool(transcript.exons or transcript.cds)


def _attributes(text: str, gtf: bool) -> dict[str, str]:
    """The attributes of a row that are of use here. The escapes of GFF3 are left, for commas without one set values
    apart."""
    if gtf and (bare := BARE.match(text)):  # AUGUSTUS gives the rows of genes and transcripts just their ID
        return {"transcript_id": bare[1]}
    if gtf:
        return {key: quoted or bare.strip() for key, quoted, bare in GTF_PAIR.findall(text)}
    return {key: value.strip() for key, value in GFF3_PAIR.findall(text)}


def _phase(parts: list[Feature]) -> None:
    """Give the parts of one CDS that tell no phase theirs, if they are whole codons together and so begin with one."""
    untold = [part for part in parts if part.phase is None]
    if sum(part.end - part.start for part in untold) % 3 or len({part.strand for part in untold}) > 1:
        return
    phase = 0
    for part in sorted(untold, key=lambda part: part.start * (part.strand or 1)):
        part.phase = phase
        phase = (phase - (part.end - part.start)) % 3


def _gaps(parts: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Gaps between the parts of a transcript. On a circle of `length` bases that it closes by parts at both ends,
    the longest gap is what lies outside."""
    ordered = sorted(parts)
    gaps, end = [], ordered[0][1]
    for start, next_end in ordered[1:]:
        if start > end:
            gaps.append((end, start))
        end = max(end, next_end)
    if gaps and length and (ordered[0][0], end) == (0, length):
        gaps.remove(max(gaps, key=lambda gap: gap[1] - gap[0]))
    return gaps


class Loci:
    """The places that are transcribed as a whole."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self.spans = sorted(spans)
        self.starts = [start for start, _ in self.spans]
        self.reach = [0, *accumulate((end for _, end in self.spans), max)]
        """The farthest end of those up to each start."""

    def hold(self, start: int, end: int) -> bool:
        """True if all of a stretch is within one of them."""
        return end <= self.reach[bisect_right(self.starts, start)]


def introns(gaps: Iterable[tuple[int, int]], loci: Sequence[Loci] | None = None) -> list[Feature]:
    """Introns, or gaps too short for one. Of a transcript that is joined from several, only those within one of its
    `loci`."""
    gaps = list(gaps)
    if loci and len(loci) * len(gaps) > sum(len(each.spans) for each in loci):
        loci = [Loci(chain.from_iterable(each.spans for each in loci))]
    return [
        Feature("intron" if end - start >= SHORTEST_INTRON else "gap", start, end, 0)
        for start, end in gaps
        if loci is None or any(each.hold(start, end) for each in loci)
    ]


def _wrapped(feature: Feature, length: int) -> list[Feature]:
    """A feature on a circle: what ends beyond `length` goes on at the start of the record."""
    kind, start, end, strand, phase = feature.kind, feature.start, feature.end, feature.strand, feature.phase
    if not length < end <= 2 * length:
        return [feature]
    if start >= length:
        return [Feature(kind, start - length, end - length, strand, phase, feature.name)]
    before = phase if phase is None or strand > 0 else (phase - (end - length)) % 3
    after = phase if phase is None or strand < 0 else (phase - (length - start)) % 3
    return [
        Feature(kind, start, length, strand, before, feature.name),
        Feature(kind, 0, end - length, strand, after, feature.name),
    ]


def _genbank(source: Source) -> Features:
    rows: dict[str, list[Feature]] = {}
    implied: dict[str, list[Feature]] = {}
    seen: tuple[dict[str, int], dict[str, int]] = {}, {}
    try:
        with source.open() as stream:
            for record in _parsed(_Lines(stream, "utf-8-sig", "replace")):
                own, between = list[Feature](), list[Feature]()
                for title, earlier in zip((str(record.id), record.name), seen, strict=True):  # FASTA without versions
                    name, _ = unique_name(title, earlier)
                    rows[name], implied[name] = own, between
                features = [(kind_of(entry.type), entry, _parts(entry)) for entry in record.features]
                apart = [entry.qualifiers.keys() & APART.get(kind, {"trans_splicing"}) for kind, entry, _ in features]
                loci = Loci(
                    (part.start, part.end)
                    for (kind, _, parts), split in zip(features, apart, strict=True)
                    for part in parts
                    if split and kind == "gene" and len(parts) > 1
                )
                for (kind, _, parts), split in zip(features, apart, strict=True):
                    own += parts
                    if kind not in ("gene", "intron"):
                        between += introns(_between(parts), [loci] if split else None)
    except (ValueError, AssertionError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or f"{type(error).__name__} in Biopython's parser"
        raise InputError(f"{source.name} is no whole GenBank file: {reason}") from error
    return Features(rows, implied)


def _parts(entry: SeqFeature) -> list[Feature]:
    """The parts of a feature in the order in which they are read; those of other records are left out."""
    kind = kind_of(entry.type)
    if not kind or entry.location is None or (kind == "intron" and not entry.qualifiers.keys() & {"gene", "locus_tag"}):
        return []
    phase = {"1": 0, "2": 1, "3": 2}.get(entry.qualifiers.get("codon_start", ["1"])[0]) if kind == "CDS" else None
    names = (entry.qualifiers.get(key, [""])[0] for key in ("gene", "locus_tag")) if kind == "gene" else ()
    features, name = [], next(filter(None, names), "")[:LONGEST_NAME]
    for part in entry.location.parts:
        if part.ref is None:
            strand, kind = part.strand or 0, "exon" if kind == "transcript" else kind
            if part.end > LAST:
                raise ValueError(f"the location of a {entry.type[:LONGEST_TYPE]} ends beyond base {LAST:,}")
            features.append(Feature(kind, int(part.start), int(part.end), strand, phase, name))
        phase = None if phase is None else (phase - (int(part.end) - int(part.start))) % 3
    return features


def _between(parts: list[Feature]) -> Iterator[tuple[int, int]]:
    """The gaps between parts that follow each other on a strand; none where they go back, as across an origin."""
    for part, other in pairwise(parts):
        low, high = (other.end, part.start) if part.strand < 0 else (part.end, other.start)
        if part.strand == other.strand and low < high:
            yield low, high


class _Lines(io.TextIOWrapper):
    """The lines of a file in bounded features."""

    within = 0
    """Lines since one began a feature or qualifier."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """Read a line. Raises ValueError for one too many of a feature."""
        line = super().readline(size)
        self.within = self.within + 1 if line.startswith(" " * 21) and line[21:22] != "/" else 0
        if self.within > MOST_LINES:
            raise ValueError(f"a feature of more than {MOST_LINES:,} lines")
        return line


def _parsed(text: io.TextIOWrapper) -> Iterator[SeqRecord]:
    """The records, without Biopython's warnings about their form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiopythonParserWarning)
        yield from SeqIO.parse(text, "genbank")
