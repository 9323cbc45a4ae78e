"""The DNA plugin on FASTA as people have it, and on files that are not FASTA."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from pathlib import Path

import pytest
from Bio import SeqIO
from Bio.SeqIO.FastaIO import SimpleFastaParser
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.errors import InputError, UsageError
from hnet_cli.modalities import dna
from hnet_cli.modalities._bytes import unique_name
from hnet_cli.modality import Chunk, Document, Refused, Source

DATA = Path(__file__).parents[1] / "data" / "dna"
DNA = dna.Dna()


def outcome(source: Source) -> tuple[list[Document], Counter[str]]:
    """The documents, and the bases refused by reason."""
    documents, refused = [], Counter[str]()
    for item in DNA.documents(source):
        if isinstance(item, Refused):
            refused[item.reason] += item.bytes
        else:
            documents.append(item)
    return documents, refused


def stream(data: bytes, name: str = "x.fa") -> Source:
    """A source that is not one document already, as a file is."""
    return Source(name, lambda: io.BytesIO(data))


def file(name: str) -> Source:
    path = DATA / name
    return Source(name, lambda: gzip.open(path) if path.suffix in (".gz", ".bgz") else path.open("rb"))


SHORT = "shorter than 32 bases between gaps"
PROTEIN = "protein, not DNA"
MIXED = {SHORT: 8, "gap": 2, PROTEIN: 10}  # skbio's example: DNA, RNA, a gapped record and a protein in one file
# file: (documents, bases in them, bases refused by reason)
OUTCOMES: dict[str, tuple[int, int, dict[str, int]]] = {
    "aligned_with_gaps.fa": (3, 1483, {"gap": 546, SHORT: 32}),
    "binary_abi_trace.fsa": (0, 0, {"binary data": 2000}),
    "crlf_elderberry.nu": (1, 2050, {}),
    "crlf_no_final_newline_lavender.nu": (1, 550, {}),
    "duplicate_ids.fasta": (5, 24, {}),
    "empty": (0, 0, {"empty": 0}),
    "fasta_5_ws_lines_start_of_file": (4, 25, MIXED),
    "fasta_blank_lines_between_records": (4, 25, MIXED),
    "fasta_invalid_blank_line_within_sequence": (3, 12, {}),
    "fasta_invalid_legacy_format": (0, 0, {"FASTA of the old style with ';' headers: start each header with '>'": 40}),
    "fasta_invalid_missing_header": (0, 0, {"no records: the file has no line starting with '>'": 16}),
    "fasta_invalid_missing_seq_data_last": (2, 9, {"record without sequence": 0}),
    "fasta_invalid_missing_seq_data_middle": (2, 7, {"record without sequence": 0}),
    "fasta_invalid_whitespace_only_sequence": (2, 7, {"record without sequence": 0}),
    "fasta_max_width_1": (0, 0, {SHORT: 8, "gap": 2}),
    "fasta_prot_seqs_odd_labels": (0, 0, {PROTEIN: 10}),
    "fasta_single_rna_seq_defaults": (1, 4, {}),
    "fasta_ws_lines_end_of_file": (4, 25, MIXED),
    "fastq_not_fasta.fastq": (0, 0, {"FASTQ, not FASTA": 234}),
    "fastq_not_fasta.fastq.bgz": (0, 0, {"FASTQ, not FASTA": 234}),
    "genbank_not_fasta.gb": (0, 0, {"GenBank, not FASTA": 2500}),
    "hiv1_all_lower_case.fna": (1, 9181, {}),
    "human_hg38_soft_masked.fa": (1, 1450, {}),
    "iupac_ambiguous_tiny.fa": (0, 0, {SHORT: 40, "IUPAC ambiguity code": 10}),
    "lower_and_upper_7_records.fa": (7, 17344, {}),
    "lower_case_long_names.fasta": (7, 3276, {}),
    "mixed_case_and_n_blocks.fa": (8, 1550, {"run of N": 139, SHORT: 34}),
    "multi_tiny.fna": (3, 24, {}),
    "protein.pro.gz": (0, 0, {PROTEIN: 1377}),
    "protein_12_records.fa": (0, 0, {PROTEIN: 2267}),
    "protein_with_comment_lines.pro": (
        0,
        0,
        {"text before the first record": 11, PROTEIN: 107, "comment lines starting with ';'": 0},
    ),
    "reads_lower_case_ends_and_n.fasta": (10, 2646, {"run of N": 15, SHORT: 13}),
    "three_records_no_final_newline.fa": (9, 939, {"run of N": 89, SHORT: 489}),
    "whitespace_only": (0, 0, {"only white space": 47}),
}


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.iterdir()))
def test_outcome_of_awkward_files(name: str) -> None:
    count, bases, refused = OUTCOMES[name]
    documents, seen = outcome(file(name))
    assert (len(documents), sum(len(document.data) for document in documents), dict(seen)) == (count, bases, refused)


@pytest.mark.parametrize("name", [name for name, (count, *_) in OUTCOMES.items() if count])
def test_coordinates_are_those_of_biopython(name: str) -> None:
    """Every document is the stretch of its record that its offset says."""
    with (DATA / name).open() as stream:
        records = [str(r.seq).replace("\t", "") for r in SeqIO.parse(stream, "fasta-pearson")]
    documents, _ = outcome(file(name))
    for document in documents:
        end = document.offset + len(document.data)
        assert any(record[document.offset : end].upper() == document.data.decode().upper() for record in records)


def test_a_gap_divides_a_record_and_keeps_coordinates() -> None:
    left, right = b"ACGT" * 10, b"ttga" * 10
    documents, refused = outcome(stream(b">c1 chromosome\n" + left + b"\nNNNNN\nNNR" + right + b"\nACG-" + left))
    assert [(d.name, d.offset, d.data) for d in documents] == [
        ("c1", 0, left),
        ("c1", 48, right + b"ACG"),
        ("c1", 92, left),
    ]
    assert refused == {"run of N": 7, "IUPAC ambiguity code": 1, "gap": 1}
    assert {d.group for d in documents} == {"x.fa:c1"}


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("block", [8, 11, 1 << 18])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_hides_no_record(block: int, end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning, and where files were joined, wherever blocks tear it apart."""
    monkeypatch.setattr(dna, "PARSE_BYTES", block)
    for padding in range(12):
        one = MARK + end.join([b">a", b"ACGT" * 9, b">b", b"C" * (40 + padding), b""])
        documents, refused = outcome(stream(one + one.replace(b">", b">x")))
        assert [d.name for d in documents] == ["a", "b", "xa", "xb"]
        assert [len(d.data) for d in documents] == [36, 40 + padding] * 2
        assert not refused
    assert DNA.detect("a", MARK + b">x\nACGTNNACGT\n") == 0.99
    assert DNA.detect("a.fq", MARK + b"@r\nACGT\n+\nIIII\n") == 0.7
    (row,), _ = outcome(Source.of_bytes(MARK + b"ACGTACGTTTGA\n", "x.jsonl:3"))
    assert row.data == b"ACGTACGTTTGA"


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("café_1 a gene".encode(), "café_1"),
        ("café_1 a gene".encode("latin-1"), "café_1"),
        ("染色体1".encode(), "染色体1"),
        (b"\xe9\xa9", "é©"),
    ],
)
def test_names_are_utf8_else_latin_1(title: bytes, name: str) -> None:
    (document,), _ = outcome(stream(b">" + title + b"\nACGT\n"))
    assert document.name == name


def test_a_title_longer_than_a_block_is_no_sequence() -> None:
    for size in (dna.PARSE_BYTES - 2, dna.PARSE_BYTES, 3 * dna.PARSE_BYTES):
        documents, refused = outcome(stream(b">a " + b"long " * (size // 5) + b"\nACGTA\n>b\nCC\n"))
        assert [(d.name, d.data) for d in documents] == [("a", b"ACGTA"), ("b", b"CC")]
        assert not refused


def test_a_name_has_bounded_length_for_output_has_it_in_every_line() -> None:
    documents, _ = outcome(stream(b">%b\nACGTA\n>%b\nACG\n" % (b"x" * 300_000, b"x" * 300_000)))
    assert [(d.name, d.data) for d in documents] == [("x" * 1000, b"ACGTA"), ("x" * 1000 + "#2", b"ACG")]


def test_a_repeated_name_gets_a_number_that_is_free() -> None:
    names = ["chr1", "chr1#2", "chr1", "chr1", "b", "b", "b#2"]
    documents, _ = outcome(stream(b"".join(b">%b\nACGT\n" % name.encode() for name in names)))
    assert [d.name for d in documents] == ["chr1", "chr1#2", "chr1#3", "chr1#4", "b", "b#2", "b#2#2"]


def test_records_are_groups_and_repeated_names_are_told_apart() -> None:
    documents, _ = outcome(stream(b">a\nACGT\n>a\nCCGT\n>b\nAC\n"))
    assert [d.name for d in documents] == ["a", "a#2", "b"]
    assert len({d.group for d in documents}) == 3
    assert [bool(d.notes) for d in documents] == [False, True, False]


def test_case_marks_repeats_unless_all_is_lower() -> None:
    (masked,), _ = outcome(stream(b">a\nACGTacgt\n"))
    (plain,), _ = outcome(stream(b">a\nacgtnacgt\n".replace(b"n", b"")))
    assert (masked.data, plain.data) == (b"ACGTacgt", b"ACGTACGT")
    assert masked.data.translate(DNA.input_table) == plain.data
    assert [DNA.loss_weights[byte] for byte in b"Aa"] == [1.0, 0.1]
    assert b"uU".translate(DNA.input_table) == b"TT"


@pytest.mark.parametrize("length", [dna.PIECE - 1, dna.PIECE, dna.PIECE + 5, 3 * dna.PIECE + 7])
@pytest.mark.parametrize("width", [70, 0])
def test_long_records_are_divided(length: int, width: int) -> None:
    sequence = (b"GATTACACCTG" * (length // 11 + 1))[:length]
    lines = b"\n".join(sequence[i : i + width] for i in range(0, length, width)) if width else sequence
    documents, refused = outcome(stream(b">long\n" + lines + b"\n>next\n" + b"ACGT" * 9 + b"\n"))
    assert b"".join(d.data for d in documents[:-1]) == sequence
    assert max(len(d.data) for d in documents) <= dna.PIECE
    ends = [0, *(d.offset + len(d.data) for d in documents[:-1])]
    assert [d.offset for d in documents[:-1]] == ends[:-1]
    assert (documents[-1].name, documents[-1].offset, documents[-1].data) == ("next", 0, b"ACGT" * 9)
    assert not refused


LETTERS = st.text("ACGTacgtNn-RU", max_size=120)
CASED = st.lists(st.sampled_from(["acgt" * 5, "acgt" * 30, "A", "NNN", "nn", "ttt", "G" * 40]), max_size=9).map("".join)


@given(records=st.lists(CASED, min_size=1, max_size=6), block=st.integers(8, 64), held=st.integers(0, 200))
def test_case_is_decided_by_the_record(records: list[str], block: int, held: int) -> None:
    """Wherever an upper-case base stands, and however little of the record is held in memory."""
    text = "".join(
        f">r{i}\n" + "".join(s[j : j + 60] + "\n" for j in range(0, len(s), 60)) for i, s in enumerate(records)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dna, "PARSE_BYTES", block)
        patch.setattr(dna, "HELD", held)
        patch.setattr(dna, "PIECE", 48)
        documents, _ = outcome(stream(text.encode()))
    for document in documents:
        record = records[int(document.name[1:])]
        stored = record if set(record) & set("ACGT") else record.upper()
        assert document.data.decode() == stored[document.offset : document.offset + len(document.data)]
        assert ("all lower case, stored in upper case" in document.notes) == (stored != record)


def test_a_long_soft_masked_beginning_weighs_what_its_end_weighs() -> None:
    """Longer than what is held; with 9 bases of a hundred in upper case, at the very end."""
    size = dna.HELD + 3 * dna.PARSE_BYTES
    sequence = b"acgtg" * (size // 5) + b"ACGTACGTA"
    other = b"ttga" * (size // 4)
    documents, _ = outcome(stream(b">low\n" + other + b"\n>mixed\n" + sequence + b"\n>low2\nacgt\n"))
    by_name = {name: b"".join(d.data for d in documents if d.name == name) for name in ("low", "mixed", "low2")}
    assert by_name == {"low": other.upper(), "mixed": sequence, "low2": b"ACGT"}


def test_standard_input_decides_by_what_is_held() -> None:
    def once(data: bytes) -> Source:
        streams = [io.BytesIO(data)]

        def take() -> io.BytesIO:
            if not streams:
                raise InputError("standard input can be read only once")
            return streams.pop()

        return Source("-", take)

    for size in (dna.PARSE_BYTES * 3, dna.HELD * 2):
        documents, _ = outcome(once(b">a\n" + b"acgt" * (size // 4) + b"ACGT\n"))
        assert documents[0].data[:4] == (b"acgt" if size < dna.HELD else b"ACGT")


@given(st.lists(LETTERS, min_size=1, max_size=6), st.integers(1, 30), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_blocks_do_not_matter(records: list[str], width: int, end: str, data: st.DataObject) -> None:
    """However small the blocks a file is read in, every base is in a document at its place or refused."""
    text = "".join(
        f">r{i}{end}" + "".join(s[j : j + width] + end for j in range(0, len(s), width)) for i, s in enumerate(records)
    )
    block = data.draw(st.integers(8, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dna, "PARSE_BYTES", block)
        patch.setattr(dna, "PIECE", 48)
        documents, refused = outcome(stream(text.encode()))
    assert sum(len(d.data) for d in documents) + refused.total() == sum(map(len, records))
    for document in documents:
        record = records[int(document.name[1:])]
        assert record[document.offset : document.offset + len(document.data)].upper() == document.data.decode().upper()
        assert len(document.data) <= 48


@given(st.text("ACgtN>\n \t\x1c\xa0\x85", max_size=200))
def test_records_are_those_of_biopython(text: str) -> None:
    """Titles and sequences, but for white space within lines, which is left to whoever reads them."""
    whole = (">" + text).encode("latin-1")
    found = [(title, data.translate(None, b" \t"), ends) for title, data, ends in dna.Parts(b"", io.BytesIO(whole))]
    expected = SimpleFastaParser(io.StringIO(whole.decode("latin-1"), newline="\n"))
    assert found == [(title, data.replace("\t", "").encode("latin-1"), True) for title, data in expected]


@given(st.text("ACgtNU>;\n \t\v\r\x1c\xa0", max_size=200))
def test_whole_records_have_the_coordinates_of_documents(text: str) -> None:
    source, seen = Source.of_bytes((">" + text).encode("latin-1"), "x.fa"), dict[str, int]()
    records = {unique_name(title, seen)[0]: sequence for title, sequence in dna.whole_records(source)}
    documents, _ = outcome(source)
    for document in documents:
        found = records[document.name][document.offset : document.offset + len(document.data)]
        assert found.upper() == document.data.decode().upper()


def test_a_row_of_a_table_may_hold_a_bare_sequence() -> None:
    (document,), _ = outcome(Source.of_bytes(b"ACGTACGTTTGA\n", "x.jsonl:3"))
    assert (document.name, document.data) == ("x.jsonl:3", b"ACGTACGTTTGA")
    _, refused = outcome(Source.of_bytes(b"hello there\n", "x.jsonl:4"))
    assert list(refused) == ["no records: the file has no line starting with '>'"]


@pytest.mark.parametrize(
    ("name", "data", "score"),
    [
        ("a", b">x\nACGTNNACGT\n", 0.99),
        ("a.fa", b">x\nMKVLAEFIPQ\n", 0.8),
        ("a.fa.gz", b">x\n", 0.6),
        ("a.txt", b"> quoted, she said\nand so on it went\n", 0.0),
        ("a.txt", b"Call me Ishmael.\n", 0.0),
        ("a.fq", b"@r\nACGT\n+\nIIII\n", 0.7),
        ("a.gff", b"##gff-version 3\nchr1\tx\tgene\t1\t9\n", 0.7),
    ],
)
def test_detect(name: str, data: bytes, score: float) -> None:
    assert DNA.detect(name, data) == score


def test_bed_lines() -> None:
    document = Document(b"ACGTACGT", "chr1", "x.fa", offset=100)
    chunks = [Chunk(0, 0, 3, 0.98), Chunk(0, 3, 5, 0.7), Chunk(1, 0, 5, 1.0), Chunk(1, 5, 8, 0.5), Chunk(0, 5, 8, 0.5)]
    assert [line.split("\t") for line in DNA.render(document, chunks, "bed")] == [
        ["chr1", "100", "103", "stage0", "980", ".", "100", "103", "0,114,178"],
        ["chr1", "100", "105", "stage1", "1000", ".", "100", "105", "196,78,0"],
        ["chr1", "103", "105", "stage0", "700", ".", "103", "105", "86,180,233"],
        ["chr1", "105", "108", "stage0", "500", ".", "105", "108", "0,114,178"],
        ["chr1", "105", "108", "stage1", "500", ".", "105", "108", "240,146,76"],
    ]
    with pytest.raises(UsageError, match="gff"):
        list(DNA.render(document, [], "gff"))


def test_homopolymer_runs() -> None:
    assert DNA.reference_edges(b"aaACCGGGGTuU") == {"homopolymer": [0, 5, 9]}
    assert DNA.reference_edges(b"A") == {"homopolymer": []}
