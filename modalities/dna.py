"""DNA and RNA in FASTA, read as Biopython does: stretches of A, C, G, T (or U) with their coordinates kept.

A record is one document, unless it holds letters that are no bases: runs of N, IUPAC ambiguity codes and gaps are
refused with their number of bases and divide the record, so that no document joins what a gap separates.
`Document.offset` counts bases from the start of the record, from 0, white space aside. `Refused.bytes` counts bases too
(outside of records: bytes).

Case is kept: a lower-case base is a soft-masked repeat. The model reads upper case (`input_table`), and predicting a
masked base weighs 0.1 (`loss_weights`; Evo 2's trainer Savanna calls it `lowercase_loss_reweighting: 0.1`; the weight
goes with the base that is predicted, not with the one that is read). A record without any upper-case base is not masked
but just written so, and stored in upper case; a long one that begins in lower case is looked at twice to know.

FASTA is parsed by hand, block by block: Biopython's parser holds a whole record, up to gigabytes, and is slower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from hnet_cli.errors import InputError
from hnet_cli.modality import (
    MARK,
    Annotation,
    Automaton,
    Chunk,
    Document,
    Modality,
    Perturbation,
    Refused,
    Source,
    Variant,
    suffix,
)

from ._annotation import annotation
from ._bytes import as_text, binary_reason, blank_reason, drain, read, unique_name, words
from ._noise import DNA, reverse_complement
from ._variants import variants

PARSE_BYTES = 1 << 18  # bytes of a file parsed at once; small enough for a processor's cache
PIECE = 1 << 20  # longest document in bases
SHORTEST = 32  # bases; a shorter stretch between two gaps teaches nothing
HELD = 4 << 20  # letters at the start of a record, none of an upper-case base, that wait for one
LONGEST_TITLE = 1 << 16  # bytes; the end of a longer one is dropped
MASKED_WEIGHT = 0.1

SUFFIXES = words(".fa .fasta .fna .ffn .frn .nu .fas .fsa")
OTHER_FORMATS = (
    (re.compile(rb"@[^\n]*\n[A-Za-z.*-]+\n\+"), "FASTQ, not FASTA"),
    (re.compile(rb"LOCUS  "), "GenBank, not FASTA"),
    (re.compile(rb"ID   "), "EMBL, not FASTA"),
    (re.compile(rb"##gff-version"), "GFF, not FASTA"),
    (re.compile(rb"##fileformat=VCF"), "VCF, not FASTA"),
    (re.compile(rb"@(?:HD|SQ)\t"), "SAM, not FASTA"),
    (re.compile(rb"CLUSTAL"), "Clustal alignment, not FASTA"),
)
HEADER = re.compile(rb"^>", re.MULTILINE)
COMMENT = re.compile(rb"^;.*\n?", re.MULTILINE)
BARE = re.compile(rb"[ACGTUNacgtun\s]+\Z")
LETTERS = re.compile(rb"\s*[A-Za-z.-][A-Za-z.\s-]*\Z")
UPPER, LOWER = b"ACGTU", b"acgtu"
REASONS = ("", "run of N", "IUPAC ambiguity code", "gap", "letter that is no base")
IUPAC = b"RYSWKMBDHVryswkmbdhv"
SPACE = b" \t\n\r\v\f"
RARE_SPACE = (b"\x1c", b"\x1d", b"\x1e", b"\x1f", b"\x85", b"\xa0")
KIND = bytes(  # for each byte, which of REASONS it is refused for; 0: it is a base
    0 if byte in b"ACGTUacgtu" else 1 if byte in b"Nn" else 2 if byte in IUPAC else 3 if byte in b"-." else 4
    for byte in range(256)
)

COLOURS = (("0,114,178", "86,180,233"), ("196,78,0", "240,146,76"))
"""Of the chunks in BED: dark and light in turn, blue for even stages, orange for odd ones."""


class Dna(Modality):
    name = "dna"
    summary = "DNA or RNA in FASTA: soft-masking and coordinates kept, N and ambiguity codes left out"
    example = (
        "ATGAAACGCATTAGCACCACCATTACCACCACCATCACCATTACCACAGGTAACGGTGCGGGCTGACGCGTACAGGAAACACAGAAAAAAGCCCGCACCTGACAGTGCGGGC"
        "TTTTTTTTTCGACCAAAGGTAACGAGGTAACAACCATGCGAGTGTTGAAGTTCGGCGGTACATCAGTGGCAAATGCAGAACGTTTTCTGCGTGTTGCCGATATTCTG"
    )
    presets = {"nano": "nano-dna", "small": "small-dna", "base": "base-dna"}  # noqa: RUF012
    line_up = ("dna-transformer", "dna-mamba", "dna-1stage-transformer", "dna-1stage-mamba")  # paper, Table 5
    formats = ("bed", "bedgraph")
    records = True
    unit = "base"
    margin = "row"
    input_table = bytes.maketrans(b"acgtuU", b"ACGTTT")
    loss_weights = tuple(MASKED_WEIGHT if byte in b"acgtu" else 1.0 for byte in range(256))

    def detect(self, name: str, head: bytes) -> float:
        by_name = 0.6 if suffix(name) in SUFFIXES else 0.0
        head = head[:65536].removeprefix(MARK).replace(b"\r", b"\n").lstrip()
        if any(pattern.match(head) for pattern, _ in OTHER_FORMATS):
            return 0.7  # sequences or notes about them, though not FASTA: this plugin can say so
        if len(head) >= 100 and BARE.match(head):
            return 0.6
        lines = COMMENT.sub(b"", head).lstrip().split(b"\n")
        if not lines[0].startswith(b">"):
            return by_name
        text = b"".join(line.strip() for line in lines if not line.startswith(b">"))
        sequence = text.translate(None, SPACE)
        if not sequence or len(sequence) < 0.88 * len(text):  # words, not blocks of ten letters: quoted mail, Markdown
            return by_name
        reason = not_dna(sequence)
        return 0.99 if not reason else max(by_name, 0.8 if reason == PROTEIN else 0.0)

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        with source.open() as stream, closing(cased(source)) as cases:
            raw = read(stream, -1 if source.whole else PARSE_BYTES)
            head = _without_marks(_line_feeds(raw.removeprefix(MARK)))
            if source.whole and LETTERS.match(head) and not not_dna(head):  # a row that holds a sequence and no header
                head = b">" + "_".join(source.name.split()).encode() + b"\n" + head
            if reason := not_fasta(head):
                yield Refused(reason, source.name, len(raw) + drain(stream))
                return
            first = next(HEADER.finditer(head)).start()
            if before := COMMENT.sub(b"", head[:first]).strip():
                yield Refused("text before the first record", source.name, len(before))
            parts = Parts(head[first:], stream)
            seen: dict[str, int] = {}
            record, number, asked = None, -1, -1

            def is_masked() -> bool:
                nonlocal asked
                try:
                    while asked < number:
                        masked, asked = next(cases), asked + 1
                except InputError:  # standard input: such a long stretch of repeats begins hardly any record
                    return False
                return masked

            for title, sequence, ends in parts:
                if record is None:
                    number += 1
                    name, notes = unique_name(title, seen)
                    group = f"{source.group or source.name}:{name}"
                    if ends and 0 < len(sequence) <= PIECE and not sequence.translate(None, b"ACGT"):
                        yield Document(sequence, name, source.name, group, 0, notes)  # what most records are
                        continue
                    record = Record(name, source.name, group, notes, is_masked)
                yield from record.add(sequence, ends)
                record = None if ends else record
            if comments := len(COMMENT.findall(head[:first])) + parts.comments:
                yield Refused("comment lines starting with ';'", f"{source.name}: {comments} lines")

    def automaton(self) -> Automaton:
        return Automaton.of_alphabet(b"ACGT")

    def reference_edges(self, data: bytes) -> Mapping[str, Sequence[int]]:
        """`homopolymer`: every start of a run of three or more equal bases."""
        bases = np.frombuffer(data.translate(self.input_table), dtype=np.uint8)
        same = np.concatenate(([False], bases[1:] == bases[:-1], [False, False]))  # each base and the one before it
        return {"homopolymer": np.flatnonzero(same[1:-1] & same[2:] & ~same[:-2]).tolist()}

    def annotation(self, source: Source) -> Annotation:
        """GFF3, GTF or GenBank; see `_annotation`."""
        return annotation(source)

    def perturbations(self) -> Mapping[str, Perturbation]:
        return DNA

    def mirror(self, data: bytes) -> bytes:
        """The reverse complement."""
        return reverse_complement(data)

    def variants(self, calls: Source, reference: Source, flank: int) -> Iterator[Variant | Refused]:
        """VCF and FASTA; see `_variants`."""
        return variants(calls, whole_records(reference), flank)

    def render(self, document: Document, chunks: Iterable[Chunk], format: str) -> Iterator[str]:
        """BED9: sequence name, start from 0, end, `stage0`, score 0 to 1000, ".", start, end, colour: two in turn for
        the chunks of a stage, which abut; by start, the outermost stage first.
        bedGraph: the probability at each boundary of the outermost stage shown, on its one base."""
        if format not in self.formats:
            yield from super().render(document, chunks, format)
        ordered = sorted(chunks, key=lambda chunk: (chunk.start, chunk.stage))  # a document is at most PIECE long
        outermost = min((chunk.stage for chunk in ordered), default=0)
        turn = dict[int, int]()
        for chunk in ordered:
            start, end = document.offset + chunk.start, document.offset + chunk.end
            if format == "bed":
                turn[chunk.stage] = 1 - turn.get(chunk.stage, 1)
                score, colour = round(1000 * chunk.probability), COLOURS[chunk.stage % 2][turn[chunk.stage]]
                yield f"{document.name}\t{start}\t{end}\tstage{chunk.stage}\t{score}\t.\t{start}\t{end}\t{colour}"
            elif chunk.stage == outermost:
                yield f"{document.name}\t{start}\t{start + 1}\t{chunk.probability:.4f}"


@dataclass
class Record:
    """One record while it is turned into documents; `add` takes its sequence part by part."""

    name: str
    source: str
    group: str
    notes: tuple[str, ...]
    is_masked: Callable[[], bool]
    """Looks ahead: True if the record has an upper-case base, so that lower case means something."""
    position: int = 0
    """Bases read so far."""
    stretch: bytearray = field(default_factory=bytearray)
    """Bases of the next document; they end at `position`."""
    stretch_cut: bool = False
    """True if `stretch` continues a document."""
    masked: bool | None = None
    """None as long as it is not known."""
    waiting: list[bytes] = field(default_factory=list)
    """Parts not yet looked at, for that reason."""

    def add(self, sequence: bytes, ends: bool) -> Iterator[Document | Refused]:
        """Take the next part of the sequence; `ends`: the last one."""
        if self.masked is None:
            self.waiting.append(sequence)
            lower = any(holds(part, LOWER) for part in self.waiting)
            if ends or holds(sequence, UPPER):
                self.masked = holds(sequence, UPPER)
            elif lower and sum(map(len, self.waiting)) <= HELD:
                return
            elif lower:
                self.masked = self.is_masked()
            if self.masked is False and lower:
                self._note("all lower case, stored in upper case")
            *before, sequence = self.waiting
            self.waiting = []
            for part in before:
                yield from self._add(part, ends=False)
        yield from self._add(sequence, ends)

    def _add(self, sequence: bytes, ends: bool) -> Iterator[Document | Refused]:
        odd = sequence.translate(None, b"ACGTacgt")
        if odd.translate(None, SPACE) != odd:
            sequence, odd = sequence.translate(None, SPACE), odd.translate(None, SPACE)
        if odd and (reason := not_dna(sequence)):
            yield from self._close(ends=False)
            yield self._refused(reason, len(sequence))
            return
        if b"U" in odd or b"u" in odd:
            self._note("RNA, U read as T")
        if not self.masked:
            sequence = sequence.upper()
        for kind, start, end in runs(sequence) if odd else [(0, 0, len(sequence))]:
            if kind:
                yield from self._close(ends=False)
                yield self._refused(REASONS[kind], end - start)
                continue
            self.stretch += sequence[start:end]
            self.position += end - start
            while len(self.stretch) > PIECE:
                yield self._document(bytes(memoryview(self.stretch)[:PIECE]))
                self.stretch, self.stretch_cut = self.stretch[PIECE:], True
        if ends and not self.position:
            yield self._refused("record without sequence", 0)
        elif ends:
            yield from self._close(ends=True)

    def _close(self, ends: bool) -> Iterator[Document | Refused]:
        """End the stretch: at the end of the record, or before a letter that is no base."""
        bases = bytes(self.stretch)
        whole_record = ends and len(bases) == self.position
        if bases and len(bases) < SHORTEST and not self.stretch_cut and not whole_record:
            self.position -= len(bases)
            yield self._refused(f"shorter than {SHORTEST} bases between gaps", len(bases))
        elif bases:
            yield self._document(bases)
        self.stretch, self.stretch_cut = bytearray(), False

    def _document(self, bases: bytes) -> Document:
        start = self.position - len(self.stretch)
        return Document(bases, self.name, self.source, self.group, start, self.notes)

    def _refused(self, reason: str, bases: int) -> Refused:
        where = f"{self.source}: {self.name}, base {self.position}"
        self.position += bases
        return Refused(reason, where, bases)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes = (*self.notes, note)


class Parts:
    """The records of a FASTA file as (title, sequence, whether the record ends), in parts of about PARSE_BYTES bytes:
    whole records, and of a longer record one part after the other.

    Titles and sequences are those of Biopython's parser, which holds a record in memory and looks at every line; white
    space within lines is left to `Record`.
    """

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.rest, self.stream = head, stream
        self.comments = 0

    def __iter__(self) -> Iterator[tuple[str, bytes, bool]]:
        inside = False
        while True:
            more = read(self.stream, PARSE_BYTES)
            block, ends = self._next_block(at_end=not more)
            self.rest += _line_feeds(more)
            if MARK[-1:] in more:  # the last byte of one, where blocks tear it apart too
                self.rest = _without_marks(self.rest)
            if block or not more:
                yield from self._parse(block, inside, ends)
                inside = not ends
            if not more:
                return

    def _next_block(self, at_end: bool) -> tuple[bytes, bool]:
        """Take a block from `rest`. Returns it and whether its last record ends with it."""
        rest = self.rest
        if at_end:
            self.rest = b""
            return rest, True
        if at := rest.rfind(b"\n>") + 1:  # the start of the last record
            self.rest = rest[at:]
            return rest[:at], True
        if len(rest) < PARSE_BYTES:
            return b"", True
        at = rest.rfind(b"\n")  # kept for the next block, which may begin with a header
        if at < 0 and rest.startswith(b">"):
            self.rest = rest[:LONGEST_TITLE]
            return b"", True
        at = at if at > 0 else len(rest)
        self.rest = rest[at:]
        return rest[:at], False

    def _parse(self, block: bytes, inside: bool, ends: bool) -> Iterator[tuple[str, bytes, bool]]:
        if b";" in block:
            block, comments = COMMENT.subn(b"", block)
            self.comments += comments
        at = 0
        if inside:
            at = 0 if block.startswith(b">") else block.find(b"\n>") + 1 or len(block)
            yield "", block[:at].replace(b"\n", b""), ends or at < len(block)
        while at < len(block):
            end = block.find(b"\n>", at) + 1 or len(block)
            line = block.find(b"\n", at, end)
            line = line if line >= 0 else end
            yield as_text(block[at + 1 : line]).rstrip(), joined(block[line + 1 : end]), ends or end < len(block)
            at = end


def whole_records(source: Source) -> Iterator[tuple[str, str]]:
    """Title and sequence of each record of a FASTA file, in the coordinates of `Document.offset`."""
    with source.open() as stream:
        titles, sequence = list[str](), list[str]()
        for title, part, ends in _from_first_record(stream):
            titles.append(title)
            sequence.append(part.translate(None, SPACE).decode("latin-1"))
            if ends:
                yield titles[0], "".join(sequence)
                titles, sequence = [], []


def _from_first_record(stream: BinaryIO) -> Iterator[tuple[str, bytes, bool]]:
    """The parts of a FASTA file, whatever stands before its first record."""
    head = _without_marks(_line_feeds(read(stream, PARSE_BYTES).removeprefix(MARK)))
    start = HEADER.search(head)
    return iter(Parts(head[start.start() :], stream)) if start else iter(())


def cased(source: Source) -> Generator[bool, None, None]:
    """For each record of a FASTA file, True if it has an upper-case base; reads no further than it must."""
    with source.open() as stream:
        upper = False
        for _, sequence, ends in _from_first_record(stream):
            if not upper and holds(sequence, UPPER):
                upper = True
                yield True
            elif ends and not upper:
                yield False
            upper = upper and not ends


def holds(sequence: bytes, letters: bytes) -> bool:
    """True if one of the letters is in the sequence."""
    return len(sequence.translate(None, letters)) < len(sequence)


PROTEIN = "protein, not DNA"


def joined(lines: bytes) -> bytes:
    """Join the lines of a sequence, stripped as Biopython does: of all that is white space in Latin-1."""
    if any(mark in lines for mark in RARE_SPACE):
        lines = b"\n".join(line.decode("latin-1").rstrip().encode("latin-1") for line in lines.split(b"\n"))
    return lines.replace(b"\n", b"")


def runs(sequence: bytes) -> Iterator[tuple[int, int, int]]:
    """(kind, start, end) of every longest run of letters of one KIND."""
    kinds = np.frombuffer(sequence.translate(KIND), dtype=np.uint8)
    edges = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(kinds)]
    yield from zip(kinds[edges[:-1]].tolist(), edges[:-1], edges[1:], strict=True)


def not_dna(sequence: bytes) -> str:
    """The reason why these letters are no nucleotides, or "".

    The bounds leave room for stray letters, which are refused singly: a third of a protein is amino acids whose letters
    mean nothing in DNA (E, F, I, L, P, Q).
    """
    letters = sequence.upper().translate(None, b"ACGTUNRYSWKMBDHVX-. \t\n")
    symbols = letters.translate(None, b"EFIJLOPQZ*")
    if len(symbols) > 0.02 * len(sequence):
        return "not a nucleotide sequence"
    return PROTEIN if len(letters) > 0.05 * len(sequence) else ""


def not_fasta(head: bytes) -> str:
    """The reason why a file that begins with `head` is not FASTA, or "".

    The other formats come first, for a line of theirs may start with '>' too.
    """
    if reason := blank_reason(head) or binary_reason(head):
        return reason
    start = head.lstrip()
    for pattern, reason in OTHER_FORMATS:
        if pattern.match(start):
            return reason
    if HEADER.search(head):
        return ""
    if start.startswith(b";"):
        return "FASTA of the old style with ';' headers: start each header with '>'"
    return "no records: the file has no line starting with '>'"


def _line_feeds(block: bytes) -> bytes:
    """Convert line ends to line feeds. A pair torn apart between two blocks becomes an empty line: harmless."""
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block


def _without_marks(block: bytes) -> bytes:
    """Drop the byte order marks that begin lines, where files were joined."""
    return block.replace(b"\n" + MARK, b"\n") if MARK in block else block
