"""Annotations of genomes: GFF3, GTF and GenBank."""

import io
from itertools import pairwise

import numpy as np
import pytest
from dnakit import get, regions
from hypothesis import assume, given
from hypothesis import strategies as st

from hnet_cli.errors import InputError
from hnet_cli.modalities._annotation import SHORTEST_INTRON
from hnet_cli.modality import Document, Source


def test_codon_positions_on_both_strands():
    found = regions(Document(b"A" * 60, "chr1", "x.fa"))
    assert found["codon position 1+"].tolist() == [3, 6, 20, 23, 26]
    assert found["codon position 2+"].tolist() == [4, 7, 21, 24, 27]
    # bases 41 to 50 (from 1) read backwards; phase 1: the first codon is 48, 47, 46 from 0
    assert found["codon position 1-"].tolist() == [42, 45, 48]
    assert found["codon position 3-"].tolist() == [40, 43, 46, 49]
    assert found["intron"].tolist() == list(range(9, 20))
    assert found["intergenic"].tolist() == [0, 1, 2, *range(30, 40), *range(50, 60)]


def test_phases_that_are_not_told_follow_from_whole_codons():
    """The parts of a transcript are read on; one that is no whole number of codons says nothing."""
    rows = [
        "4\t8\t.\t+\t.\tParent=t",
        "21\t24\t.\t+\t.\tParent=t",
        "41\t44\t.\t-\t.\tParent=u",
        "50\t54\t.\t-\t.\tParent=u",
        "30\t33\t.\t+\t.\tParent=v",
    ]
    found = regions(Document(b"A" * 60, "chr1", "x.fa"), "".join(f"chr1\tx\tCDS\t{row}\n" for row in rows))
    assert found["codon position 1+"].tolist() == [3, 6, 21]
    assert found["codon position 3+"].tolist() == [5, 20, 23]
    assert found["codon position 1-"].tolist() == [42, 50, 53]
    assert found["codon position 3-"].tolist() == [40, 43, 51]


@given(st.integers(0, 59), st.integers(1, 60))
def test_a_piece_of_a_record_sees_its_own_part(offset, length):
    whole = regions(Document(b"A" * 60, "chr1", "x.fa"))
    piece = Document(b"A" * min(length, 60 - offset), "chr1", "x.fa", "", offset)
    found = regions(piece)
    for kind, positions in whole.items():
        own = [at - offset for at in positions if offset <= at < offset + len(piece.data)]
        assert list(found.get(kind, [])) == own


def test_genbank_says_the_same_as_gff():
    from Bio.Seq import Seq
    from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    record = SeqRecord(Seq("A" * 60), "chr1", "chr1", annotations={"molecule_type": "DNA"})
    spliced = CompoundLocation([SimpleLocation(3, 9, 1), SimpleLocation(20, 29, 1)])
    record.features = [
        SeqFeature(SimpleLocation(3, 30, 1), "gene"),
        SeqFeature(spliced, "CDS", qualifiers={"codon_start": ["1"]}),
        SeqFeature(SimpleLocation(40, 50, -1), "CDS", qualifiers={"codon_start": ["2"]}),
    ]
    text = io.StringIO()
    write([record], text, "genbank")
    document = Document(b"A" * 60, "chr1", "x.fa")
    expected, found = regions(document), regions(document, text.getvalue())
    assert {kind: list(at) for kind, at in found.items()} == {kind: list(at) for kind, at in expected.items()}


def genbank(*records):
    """GenBank of records, each (id, [(type, start, end)]) with coordinates from 0."""
    from Bio.Seq import Seq
    from Bio.SeqFeature import SeqFeature, SimpleLocation
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    made = [
        SeqRecord(
            Seq("A" * 90),
            name,
            name.partition(".")[0],
            annotations={"molecule_type": "DNA"},
            features=[SeqFeature(SimpleLocation(start, end, 1), kind) for kind, start, end in features],
        )
        for name, features in records
    ]
    text = io.StringIO()
    write(made, text, "genbank")
    return text.getvalue()


@pytest.mark.parametrize(
    "before", ["", "\ufeff", "\n\n", "GBVRL1.SEQ           Genetic Sequence Data Bank\n\n  72061 loci\n\n"]
)
def test_records_of_genbank_are_told_apart_as_those_of_fasta(before):
    """After the lines with which a file of a release begins; by both of their names."""
    text = before + genbank(("X1.2", [("gene", 0, 10)]), ("Y", [("gene", 20, 30)]), ("X1.2", [("gene", 40, 50)]))
    found = {
        name: spans(regions(Document(b"A" * 90, name, "x.fa"), text).get("gene", []))
        for name in ("X1.2", "X1", "Y", "X1.2#2", "X1#2", "Y#2")
    }
    assert found == {"X1.2": "1-10", "X1": "1-10", "Y": "21-30", "X1.2#2": "41-50", "X1#2": "41-50", "Y#2": ""}


def test_a_gene_across_the_origin_of_a_circle_has_no_intron():
    from Bio.Seq import Seq
    from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    record = SeqRecord(Seq("A" * 90), "chr1", "chr1", annotations={"molecule_type": "DNA"})
    for strand, first in ((1, SimpleLocation(60, 90, 1)), (-1, SimpleLocation(0, 9, -1))):
        second = SimpleLocation(0, 9, 1) if strand > 0 else SimpleLocation(60, 90, -1)
        record.features = [SeqFeature(CompoundLocation([first, second]), "CDS")]
        text = io.StringIO()
        write([record], text, "genbank")
        found = regions(Document(b"A" * 90, "chr1", "x.fa"), text.getvalue())
        assert "intron" not in found
        assert list(found["intergenic"]) == list(range(9, 60))
    spliced = CompoundLocation([SimpleLocation(60, 90, -1), SimpleLocation(0, 9, -1)])
    record.features = [SeqFeature(spliced, "CDS")]
    text = io.StringIO()
    write([record], text, "genbank")
    assert list(regions(Document(b"A" * 90, "chr1", "x.fa"), text.getvalue())["intron"]) == list(range(9, 60))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chr1\tx\tgene\n",
        "LOCUS       broken\n",
        "##gff-version 3\n",
        "what is this",
        f"chr1\tx\tgene\t{'9' * 5000}\t5\t.\t+\t.\tID=g\n",
    ],
)
def test_a_file_that_is_no_annotation_is_named(text):
    with pytest.raises(InputError, match=r"a\.gff") as error:
        regions(Document(b"A", "chr1", ""), text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        (f"     gene            1..{'9' * 26}\n", "the location of a gene ends beyond base 999,999,999,999,999,999"),
        (f"     CDS             join(1..9,{'9' * 26}..{'9' * 27})\n", "the location of a CDS ends beyond base"),
        (f"     gene            1..{'9' * 5_000}\n", "."),
        ('     gene            1..9                  /gene="x"\n', "AssertionError in Biopython's parser"),
    ],
    ids=["26 digits", "27 digits", "5,000 digits", "qualifier on the line of its feature"],
)
def test_a_genbank_file_that_is_damaged_is_named_with_the_reason(feature, says):
    head = "LOCUS       chr1 60 bp DNA linear CON 09-MAR-2022\nFEATURES             Location/Qualifiers\n"
    with pytest.raises(InputError, match=rf"^a\.gff is no whole GenBank file: {says}") as error:
        regions(Document(b"A" * 60, "chr1", "x.fa"), head + feature + "ORIGIN\n//\n")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def gff(*rows):
    """GFF3 or GTF of one record from rows "TYPE START END STRAND ATTRIBUTES", or whole rows and lines."""
    lines = [row if "\t" in row or row.startswith(("#", ">")) else row_of(*row.split(" ", 4)) for row in rows]
    return "".join(line + "\n" for line in lines)


def row_of(kind, start, end, strand="+", attributes="."):
    phase = "0" if kind == "CDS" else "."
    return f"chr1\tx\t{kind}\t{start}\t{end}\t.\t{strand}\t{phase}\t{attributes}"


def spans(positions):
    """Positions as stretches "first-last", from 1, as they stand in a file."""
    parts = np.split(np.asarray(positions), np.flatnonzero(np.diff(positions) > 1) + 1) if len(positions) else []
    return " ".join(f"{part[0] + 1}-{part[-1] + 1}" for part in parts)


def found_in(*rows, size=6000):
    found = regions(Document(b"A" * size, "chr1", "x.fa"), gff(*rows))
    return {kind: spans(positions) for kind, positions in found.items()}


def test_genes_of_all_types_are_genes():
    """Genes in Ensembl's form: 100 + 900 + 1000 bases on 6,000."""
    rows = [
        "gene 1 100 + ID=gene:a",
        "mRNA 1 100 + ID=transcript:a;Parent=gene:a",
        "exon 1 100 + Parent=transcript:a",
        "ncRNA_gene 1001 1900 + ID=gene:b;biotype=lncRNA",
        "lnc_RNA 1001 1900 + ID=transcript:b;Parent=gene:b",
        "exon 1001 1100 + Parent=transcript:b",
        "exon 1801 1900 + Parent=transcript:b",
        "pseudogene 3001 4000 - ID=gene:c",
        "pseudogenic_transcript 3001 4000 - ID=transcript:c;Parent=gene:c",
        "exon 3901 4000 - Parent=transcript:c",
        "exon 3001 3100 - Parent=transcript:c",
        "biological_region 1 6000 . external_name=x",
        "chromosome 1 6000 . ID=chromosome:1",
    ]
    found = regions(Document(b"A" * 6000, "chr1", "x.fa"), gff(*rows))
    assert len(found["intergenic"]) == 4000
    assert {kind: spans(positions) for kind, positions in found.items()} == {
        "gene": "1-100 1001-1900 3001-4000",
        "exon": "1-100 1001-1100 1801-1900 3001-3100 3901-4000",
        "intron": "1101-1800 3101-3900",
        "intergenic": "101-1000 1901-3000 4001-6000",
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Prokka and Bakta: RNA without a gene, CDS without one
        (["tRNA 11 90 + ID=x", "CDS 101 199 - ID=y"], {"gene": "11-90 101-199", "exon": "11-90 101-199"}),
        # SGD
        (
            [
                "tRNA_gene 11 90 + ID=t",
                "tRNA 11 90 + ID=r;Parent=t",
                "noncoding_exon 11 40 + Parent=r",
                "noncoding_exon 61 90 + Parent=r",
                "intron 41 60 + Parent=r",
            ],
            {"gene": "11-90", "exon": "11-40 61-90", "intron": "41-60"},
        ),
        (
            [
                "gene 51 90 + ID=g",
                "mRNA 51 90 + ID=m;Parent=g",
                "CDS 51 90 + Parent=m",
                "five_prime_UTR_intron 21 50 + Parent=m",
            ],
            {"gene": "21-90", "exon": "51-90", "intron": "21-50"},
        ),
        # TAIR
        (
            [
                "transposable_element_gene 11 90 + ID=g",
                "mRNA_TE_gene 11 90 + ID=m;Parent=g",
                "exon 11 90 + Parent=m",
                "pseudogenic_transcript 101 199 + ID=p",
                "pseudogenic_exon 101 120 + Parent=p",
                "pseudogenic_exon 151 199 + Parent=p",
                "transposable_element 201 299 + ID=te",
            ],
            {"gene": "11-90 101-199", "exon": "11-90 101-120 151-199", "intron": "121-150"},
        ),
        # numbers of the Sequence Ontology
        (
            ["SO:0001263 11 90 + ID=g", "SO:0000147 11 40 + Parent=g", "SO:0000147 61 90 + Parent=g"],
            {"gene": "11-90", "exon": "11-40 61-90", "intron": "41-60"},
        ),
        # JBrowse: UTR and CDS without exons
        (
            [
                "mRNA 11 90 + ID=m",
                "UTR 11 20 + Parent=m",
                "CDS 21 40 + Parent=m",
                "CDS 61 80 + Parent=m",
                "UTR 81 90 + Parent=m",
                "protein_coding_primary_transcript 101 150 + Name=x",
                "polypeptide 1 300 + ID=p",
            ],
            {"gene": "11-90 101-150", "exon": "11-40 61-90 101-150", "intron": "41-60"},
        ),
        # MetaGeneMark: a space after the semicolon; without Parent
        (
            [
                "gene 11 90 + ID=gene_1;",
                "CDS 11 90 + ID=1; Parent=gene_1; gene_type=native;",
                "CDS 101 199 + gene_id=2",
            ],
            {"gene": "11-90 101-199", "exon": "11-90 101-199"},
        ),
        # its seqid is the whole header
        (
            ["chr1 length:300\tx\tgene\t11\t90\t.\t-\t0\tgene_id 1", "chr1 x\tx\tgene\t101\t120\t.\t-\t.\tID=a"],
            {"gene": "11-90 101-120"},
        ),
        # tabs among the attributes
        (
            [row_of("exon", 11, 40, "+", "ID=a;Parent=m\t"), row_of("exon", 61, 90, "+", "Parent=m\tand so on")],
            {"gene": "11-90", "intron": "41-60"},
        ),
        # a gene alone
        (["gene 11 90 . ID=g"], {"gene": "11-90"}),
        # one feature on several lines, of a transcript and without Parent
        (
            ["tRNA 11 40 + ID=r", "tRNA 61 90 + ID=r", "CDS 101 120 + ID=c", "CDS 151 190 + ID=c"],
            {"gene": "11-90 101-190", "exon": "11-40 61-90 101-120 151-190", "intron": "41-60 121-150"},
        ),
        # features in any order, several parents, parts that touch or overlap
        (
            [
                "exon 61 90 + Parent=a,b",
                "exon 11 30 + Parent=b",
                "exon 11 40 + Parent=a",
                "exon 31 40 + Parent=b",
                "mRNA 11 90 + ID=b;Parent=g",
                "gene 11 90 + ID=g",
                "mRNA 11 90 + ID=a;Parent=g",
            ],
            {"gene": "11-90", "exon": "11-40 61-90", "intron": "41-60"},
        ),
        # two coding sequences of one transcript
        (
            [
                "mRNA 11 250 + ID=m",
                "CDS 11 40 + ID=c;Parent=m",
                "CDS 61 90 + ID=c;Parent=m",
                "CDS 151 180 + ID=d;Parent=m",
                "CDS 221 250 + ID=d;Parent=m",
            ],
            {"gene": "11-250", "exon": "11-40 61-90 151-180 221-250", "intron": "41-60 181-220"},
        ),
        # the same with IDs of their own: parts of one
        (
            ["mRNA 11 90 + ID=m", "CDS 11 40 + ID=c1;Parent=m", "CDS 61 90 + ID=c2;Parent=m"],
            {"gene": "11-90", "exon": "11-40 61-90", "intron": "41-60"},
        ),
        # a transcript beside parts of its gene is no exon
        (
            ["gene 11 90 + ID=g", "mRNA 11 90 + ID=m;Parent=g", "CDS 11 40 + Parent=g", "CDS 61 90 + Parent=g"],
            {"gene": "11-90", "exon": "11-40 61-90", "intron": "41-60"},
        ),
        # a frameshift of the ribosome is no intron
        (["CDS 11 40 + ID=c", "CDS 42 90 + ID=c"], {"gene": "11-90", "exon": "11-40 42-90"}),
        # attributes are told by their whole names
        (["CDS 11 40 + original_Parent=m", "CDS 61 90 + original_Parent=m"], {"gene": "11-40 61-90"}),
        (["CDS 11 40 + parent=m", "CDS 61 90 + parent=m"], {"gene": "11-40 61-90"}),
        (["CDS 11 40 + Note=Parent=m", "CDS 61 90 + Note=Parent=m"], {"gene": "11-40 61-90"}),
        # escapes in the ninth column, undone when commas and semicolons have been read
        (
            ["CDS 11 40 + ID=1;Parent=a%2Cb%3Bc%09", "CDS 61 90 + ID=2;Parent=a%2Cb%3Bc%09", "CDS 101 140 + Parent=a"],
            {"gene": "11-90 101-140", "intron": "41-60"},
        ),
        (["CDS 11 40 + Parent=%6D", "CDS 61 90 + Parent=m"], {"gene": "11-90", "intron": "41-60"}),
        (["ex%6Fn 11 40 + ID=a", "exon 61 90 + ID=b"], {"gene": "61-90"}),
        # reads are no annotation
        (["exon 11 40 + ID=a", "intron 41 60 + ID=b", "intron 71 99 + Name=c"], {"gene": "11-40"}),
    ],
)
def test_gff3_as_it_is_written(rows, expected):
    found = found_in(*rows, size=300)
    expected = {"intron": ""} | expected
    assert {kind: found.get(kind, "") for kind in expected} == expected


@pytest.mark.parametrize(
    ("rows", "intron", "intergenic"),
    [
        # parts of a transcript on both strands
        (["CDS 101 200 - ID=c", "CDS 5001 5100 + ID=c"], "", "1-100 201-5000 5101-6000"),
        # said to be trans-spliced, by itself or by its gene, which has a row for each part
        (
            ["CDS 101 200 + ID=c;exception=trans-splicing", "CDS 5001 5100 + ID=c;exception=trans-splicing"],
            "",
            "1-100 201-5000 5101-6000",
        ),
        (
            [
                "gene 101 200 - ID=g;part=1;exception=trans-splicing",
                "gene 4801 5100 - ID=g;part=2;exception=trans-splicing",
                "CDS 101 200 - ID=c;Parent=g",
                "CDS 5001 5100 - ID=c;Parent=g",
                "CDS 4801 4900 - ID=c;Parent=g",
            ],
            "4901-5000",
            "1-100 201-4800 5101-6000",
        ),
        (
            ["mRNA 101 5100 ? ID=m;exception=trans-splicing", "exon 101 200 - Parent=m", "exon 5001 5100 + Parent=m"],
            "",
            "1-100 201-5000 5101-6000",
        ),
        # a gene that spans all of it says so
        (
            [
                "gene 101 5100 + ID=g;exception=trans-splicing",
                "mRNA 101 5100 + ID=m;Parent=g",
                "CDS 5001 5100 + Parent=m",
                "CDS 101 200 + Parent=m",
            ],
            "",
            "1-100 5101-6000",
        ),
        # of two genes: a leader of another
        (
            [
                "gene 101 200 + ID=a",
                "gene 5001 5300 + ID=b",
                "mRNA 101 200 + ID=m;Parent=a,b",
                "mRNA 5001 5300 + ID=m;Parent=a,b",
                "exon 101 200 + Parent=m",
                "exon 5001 5100 + Parent=m",
                "exon 5201 5300 + Parent=m",
            ],
            "5101-5200",
            "1-100 201-5000 5301-6000",
        ),
    ],
)
def test_what_is_spliced_from_several_transcripts_has_no_intron_between_them(rows, intron, intergenic):
    found = found_in(*rows)
    assert (found.get("intron", ""), found["intergenic"]) == (intron, intergenic)


GTF = ["exon 11 40", "CDS 21 40", "exon 61 90", "CDS 61 77", "stop_codon 78 80", "exon 151 190", "exon 221 250"]


@pytest.mark.parametrize(
    "rows",
    [
        ['gene 11 90 + gene_id "g"; note "a; b=c"', 'transcript 11 90 + gene_id "g"; transcript_id "t"; n "x"'],
        ["gene 11 90 + g", "transcript 11 90 + t"],
        ["transcript 11 90 + t;Parent=g"],
        ["\t".join(["chr1\tx\ttranscript\t11\t90\t.\t+\t.", "gene_id", '"g";', "transcript_id", '"t";'])],
        [],
    ],
)
def test_gtf_with_and_without_rows_of_genes(rows):
    """Ensembl's older and StringTie's files have none, AUGUSTUS's have just an ID; the stop codon is beside the CDS."""
    parts = [f'{row} + gene_id "g"; transcript_id "{"t" if at < 5 else "u"}";' for at, row in enumerate(GTF)]
    assert found_in(*rows, *parts, size=300) == {
        "gene": "11-90 151-250",
        "exon": "11-40 61-90 151-190 221-250",
        "CDS": "21-40 61-77",
        "intron": "41-60 191-220",
        "intergenic": "1-10 91-150 251-300",
        "codon position 1+": found_in("CDS 21 40", "CDS 61 77", size=300)["codon position 1+"],
        "codon position 2+": found_in("CDS 21 40", "CDS 61 77", size=300)["codon position 2+"],
        "codon position 3+": found_in("CDS 21 40", "CDS 61 77", size=300)["codon position 3+"],
    }


def test_gtf_has_no_escapes_and_an_empty_transcript_is_none():
    rows = ['exon 11 40 + gene_id "g%2C1"; transcript_id "";', 'exon 61 90 + gene_id "g,1"; transcript_id ""']
    assert "intron" not in found_in(*rows)
    rows = ['exon 11 40 + gene_id "g"; transcript_id "";', "exon 61 90 + gene_id g; transcript_id t"]
    assert "intron" not in found_in(*rows)
    rows = ["exon 11 40 + gene_id g,1; transcript_id t", 'exon 61 90 + gene_id "x"; transcript_id "t"']
    assert found_in(*rows)["intron"] == "41-60"


CIRCLE = "region 1 100 + ID=chr1;Is_circular=true"


@pytest.mark.parametrize("order", [1, -1])
def test_a_circle_goes_on_at_its_start(order):
    rows = [CIRCLE, "gene 81 120 + ID=g", "CDS 82 120 + ID=c;Parent=g"]
    found = found_in(*rows[::order], size=100)
    assert (found["gene"], found["intergenic"]) == ("1-20 81-100", "21-80")
    plus = regions(Document(b"A" * 100, "chr1", ""), gff(*rows[::order]))
    assert plus["codon position 1+"].tolist() == [at % 100 for at in (102, 105, 108, 111, 114, 117)] + [
        *range(81, 100, 3)
    ]
    minus = regions(Document(b"A" * 100, "chr1", ""), gff(CIRCLE, "CDS 82 120 - ID=c"))
    assert minus["codon position 1-"].tolist() == sorted(at % 100 for at in range(119, 80, -3))


@pytest.mark.parametrize(
    ("rows", "gene", "intron"),
    [
        (["CDS 81 110 + ID=c", "CDS 131 140 + ID=c"], "1-40 81-100", "11-30"),
        (["CDS 71 90 + ID=c", "CDS 121 130 + ID=c"], "1-30 71-100", "1-20 91-100"),
        (["CDS 81 100 + ID=c", "CDS 1 10 + ID=c", "CDS 31 40 + ID=c"], "1-40 81-100", "11-30"),
    ],
)
def test_introns_on_a_circle(rows, gene, intron):
    found = found_in(CIRCLE, *rows, size=100)
    assert (found["gene"], found["intron"]) == (gene, intron)


def test_rows_that_cannot_be_used_are_left_out_and_counted():
    rows = [
        "gene 11 90",
        "gene 90 11",
        "gene 0 5",
        "gene 95 99999",
        "chr1 x gene 3 9\t",
        "chr2\tx\tgene\t1\t9\t.\t+\t.",
    ]
    rows += ["gene ten 90", "gene -1 90", f"gene {'9' * 5000} 90", "gene 21 30"]
    known = get("dna").annotation(Source.of_bytes(gff("##gff-version 3", *rows).encode(), "a.gff"))
    assert spans(known.regions(Document(b"A" * 100, "chr1", ""))["gene"]) == "11-90 95-100"
    assert known.left_out({"chr1": 100}) == {
        "starts at 0 or after its end": (2, "a.gff, line 3"),
        "no row of GFF, whose nine columns are set by tabs": (4, "a.gff, line 6"),
        "on a record that is not read": (1, "chr2"),
        "ends beyond what is read of its record": (1, "chr1, base 95"),
    }
    assert known.left_out({"chr1": 10, "chr2": 9, "chr3": 5})["ends beyond what is read of its record"] == (
        3,
        "chr1, base 11",
    )
    many = "".join(f"chr{number}\tx\tgene\t1\t9\t.\t+\t.\n" for number in range(2, 9))
    known = get("dna").annotation(Source.of_bytes(many.encode(), "a.gff"))
    assert known.left_out({"chr2": 9})["on a record that is not read"] == (6, "chr3, chr4, chr5, ...")


@pytest.mark.parametrize("start", ["##FASTA", "##FASTA ", ">chr1 the sequence", ">chr1\tx\tgene\t1\t9\t.\t+\t.\t."])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_sequences_end_the_annotation(start, end, mark):
    """`##FASTA`, or a line that begins with ">" alone, as in JBrowse's volvox.gff3."""
    lines = ["##gff-version 3", "", "chr1\tx\tgene\t3\t8\t.\t+\t.\tID=g", "###", start, "ACGT\tx\tgene\t1\t9\t.\t+\t."]
    text = mark + end.join([*lines, "chr1\tx\tgene\t1\t9\t.\t+\t.\t."])
    for data in (text, "##sequence-region chr9 1 5" + text[len(mark) :] if mark else text):
        known = get("dna").annotation(Source.of_bytes(data.encode(), "a.gff"))
        assert spans(known.regions(Document(b"A" * 20, "chr1", ""))["gene"]) == "3-8"
        assert known.left_out({"chr1": 20}) == {}


def test_names_of_records_are_escaped_in_gff3_and_may_be_latin_1():
    names = ("chr%201%09a", "café_1", "%3Echr")
    rows = "".join(f"{name}\tx\tgene\t1\t9\t.\t+\t.\tID=g\n" for name in names)
    rows += '100%25\tx\texon\t1\t9\t.\t+\t.\tgene_id "g"; transcript_id "t";\n'
    expected = ["chr 1\ta", "café_1", ">chr", "100%25", "a b"]
    for encoding in ("utf-8", "latin-1"):
        data = f"{rows}##sequence-region a%20b 1 9\n".encode(encoding)
        assert list(get("dna").annotation(Source.of_bytes(data, "a.gff")).names()) == expected


# Rows of NCBI's annotation of Escherichia coli K-12 MG1655, NC_000913.3 (public domain; attributes shortened), and its
# features in GenBank: a gene of tRNA, a pseudogene that an insertion interrupts, a programmed frameshift.
NCBI = """\
gene\t225381\t225457\t.\t+\t.\tID=gene-b0202;gene_biotype=tRNA
tRNA\t225381\t225457\t.\t+\t.\tID=rna-b0202;Parent=gene-b0202
exon\t225381\t225457\t.\t+\t.\tID=exon-b0202-1;Parent=rna-b0202
pseudogene\t257829\t259006\t.\t+\t.\tID=gene-b0240;gene_biotype=pseudogene;pseudo=true
CDS\t257829\t257899\t.\t+\t0\tID=cds-gnl|b0240|CDS%3D250;Parent=gene-b0240;pseudo=true
CDS\t258676\t259006\t.\t+\t1\tID=cds-gnl|b0240|CDS%3D250;Parent=gene-b0240;pseudo=true
gene\t3035184\t3036282\t.\t-\t.\tID=gene-b2891
CDS\t3036208\t3036282\t.\t-\t0\tID=cds-NP_417367.1;Parent=gene-b2891;exception=ribosomal slippage
CDS\t3035184\t3036206\t.\t-\t0\tID=cds-NP_417367.1;Parent=gene-b2891;exception=ribosomal slippage
"""
GENBANK = """\
LOCUS       NC_000913            4641652 bp    DNA     circular CON 09-MAR-2022
VERSION     NC_000913.3
FEATURES             Location/Qualifiers
     gene            225381..225457
     tRNA            225381..225457
     gene            257829..259006
                     /pseudo
     CDS             join(257829..257899,258676..259006)
                     /pseudo
     gene            complement(3035184..3036282)
     CDS             complement(join(3035184..3036206,3036208..3036282))
                     /ribosomal_slippage
ORIGIN
//
"""


def test_gff3_and_genbank_of_ncbi_say_the_same():
    rows = "".join(f"NC_000913.3\tRefSeq\t{row}\n" for row in NCBI.splitlines())
    for start in (225300, 257800, 3035100):
        document = Document(b"A" * 1300, "NC_000913.3", "x.fa", offset=start)
        expected, found = regions(document, rows), regions(document, GENBANK)
        assert {kind: list(at) for kind, at in found.items()} == {kind: list(at) for kind, at in expected.items()}
        assert "intron" not in found
        assert "exon" in found


def test_genbank_parts_that_are_transcribed_apart():
    """Trans-splicing in a chloroplast, the first part on either strand; a part on another record is left out."""
    for first in ("complement(101..200)", "101..200"):
        features = [
            f"     gene            join({first},4801..5200)\n                     /trans_splicing\n",
            f"     CDS             join({first},4801..4900,5001..5200)\n                     /trans_splicing\n",
            "     tRNA            join(5301..5340,5351..5400)\n",
            "     mRNA            join(J00194.1:100..202,5501..5600)\n",
        ]
        head = "LOCUS       chr1 6000 bp DNA linear CON 09-MAR-2022\nFEATURES             Location/Qualifiers\n"
        found = regions(Document(b"A" * 6000, "chr1", "x.fa"), head + "".join(features) + "ORIGIN\n//\n")
        assert spans(found["intron"]) == "4901-5000 5341-5350"
        assert spans(found["intergenic"]) == "1-100 201-4800 5201-5300 5401-5500 5601-6000"


ORDER = ["intergenic", "gene", "intron", "exon"]


@st.composite
def models(draw):
    """Genes of a record of 200 bases that overlap freely: [(start, end, [[exon, ...] of a transcript, ...])], the exons
    (start, end, start and end of the CDS in it), 10 bases or more apart."""
    genes = []
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, 180))
        end = draw(st.integers(start + 1, 200))
        transcripts = []
        for _ in range(draw(st.integers(0, 3))):
            at, exons = draw(st.integers(start, end - 1)), []
            while at < end and len(exons) < 4:
                stop = draw(st.integers(at + 1, end))
                inside = sorted(draw(st.lists(st.integers(at, stop), min_size=2, max_size=2)))
                exons.append((at, stop, *inside))
                at = stop + draw(st.integers(SHORTEST_INTRON, 60))
            transcripts.append(exons)
        genes.append((start, end, transcripts))
    return genes


@given(models(), st.sampled_from(["exon", "UTR", "GTF"]), st.sampled_from("+-"), st.randoms())
def test_places_are_a_partition_and_those_of_painting_every_base(genes, style, strand, random):
    """In exons, in introns, elsewhere in genes, or between them. `style`: exons and CDS; CDS and UTR; GTF, without rows
    of genes and transcripts."""
    kinds, coding, rows = ["intergenic"] * 200, set(), []
    for number, (start, end, transcripts) in enumerate(genes):
        if style != "GTF":
            rows.append(f"ncRNA_gene {start + 1} {end} {strand} ID=g{number}")
            kinds[start:end] = [max(kind, "gene", key=ORDER.index) for kind in kinds[start:end]]
        for variety, exons in enumerate(transcripts):
            name = f"t{number}.{variety}"
            parent = f'gene_id "g{number}"; transcript_id "{name}";' if style == "GTF" else f"Parent={name}"
            if style != "GTF":
                rows.append(f"mRNA {exons[0][0] + 1} {exons[-1][1]} {strand} ID={name};Parent=g{number}")
            for (*_, stop, _, _), (at, *_) in pairwise(exons):
                kinds[stop:at] = [max(kind, "intron", key=ORDER.index) for kind in kinds[stop:at]]
            for at, stop, first, last in exons:
                kinds[at:stop] = ["exon"] * (stop - at)
                coding.update(range(first, last))
                parts = [("exon", at, stop)] if style != "UTR" else [("UTR", at, first), ("UTR", last, stop)]
                parts.append(("CDS", first, last))
                rows += [f"{kind} {a + 1} {b} {strand} {parent}" for kind, a, b in parts if a < b]
    random.shuffle(rows)
    assume(rows)
    found = regions(Document(b"A" * 200, "chr1", "x.fa"), gff(*rows))
    assert {at for kind in ("exon", "intron", "gene") for at in found.get(kind, [])} == set(found.get("gene", []))
    painted = {kind: [at for at in range(200) if kinds[at] == kind] for kind in ORDER}
    painted["gene"] = [at for at in range(200) if kinds[at] != "intergenic"]
    painted["CDS"] = sorted(coding)
    assert {kind: list(found.get(kind, [])) for kind in painted} == painted


@pytest.mark.parametrize(
    "row",
    [
        row_of("gene", 1, 5, attributes=" " * 300_000 + '"'),
        row_of("gene", 1, 5, attributes="a" * 300_000),
        row_of("gene", 1, 5, attributes="a" + " " * 300_000 + '"'),
        row_of("gene", 1, 5, attributes='a "' * 300_000),
        row_of("gene", 1, 5, attributes=(";" + " " * 9) * 300_000),
        row_of("cds_" * 300_000 + "!", 1, 5),
        row_of("rna_with_" * 300_000, 1, 5),
        row_of("exon", 1, 5, attributes="Parent=" + "a," * 100_000),
        "c" * 3_000_000,
        f"chr1\tx\tgene\t1\t{'9' * 18}\t.\t+\t.\tIs_circular=true",
    ],
    ids=range(10),
)
def test_work_is_linear_in_a_row(row):
    """Each of these would take hours if a pattern went back over it."""
    assert spans(regions(Document(b"A" * 40, "chr1", ""), gff(row + "\t", "gene 11 20"))["gene"]).endswith(("20", "40"))


def test_parents_of_a_row_and_lines_of_a_feature_are_bounded():
    """4,000,000 parents in a row of 33 MB took 2 GB; 400,000 lines of a location hours."""
    parents = ",".join(f"p{n}" for n in range(10_001))
    found = get("dna").annotation(
        Source.of_bytes(gff(row_of("gene", 1, 9), row_of("exon", 1, 9, "+", f"Parent={parents}")).encode(), "x")
    )
    assert found.left_out({"chr1": 60}) == {"more than 10,000 parents": (1, "x, line 2")}
    head = "LOCUS       chr1          60 bp    DNA     linear   BCT 01-JAN-2000\n"
    head += "FEATURES             Location/Qualifiers\n"
    for lines in (100, 25_000):
        location = (",\n" + " " * 21).join(f"{at}..{at}" for at in range(1, 2 * lines, 2))
        text = f"{head}     gene            join({location})\nORIGIN\n//\n"
        if lines == 100:
            assert len(get("dna").annotation(Source.of_bytes(text.encode(), "x")).rows["chr1"]) == 100
        else:
            with pytest.raises(InputError, match="a feature of more than 20,000 lines"):
                get("dna").annotation(Source.of_bytes(text.encode(), "x"))


@pytest.mark.slow
def test_many_rows_of_one_gene_take_little_time():
    """In GFF3, those of a gene that is transcribed in parts; in GenBank, trans-spliced ones of a record."""
    count, places = 20_000, []
    rows = [f"gene {at} {at + 39} + ID=g" for at in range(1, 50 * count, 50)]
    for number, at in enumerate(range(1, 50 * count, 50)):
        rows += [f"mRNA {at} {at + 39} + ID=t{number};Parent=g"]
        rows += [f"exon {at} {at + 9} + Parent=t{number}", f"exon {at + 30} {at + 39} + Parent=t{number}"]
    found = get("dna").annotation(Source.of_bytes(gff(*rows).encode(), "x"))
    assert [(each.start, each.end) for each in found.implied["chr1"]] == [
        (at + 10, at + 30) for at in range(0, 50 * count, 50)
    ]
    count = 5_000
    for at in range(1, 50 * count, 50):
        for kind in ("gene", "mRNA"):
            places.append(f"     {kind:<16}join({at}..{at + 9},{at + 30}..{at + 39})\n")
            places.append(" " * 21 + "/trans_splicing\n")
    head = "LOCUS       chr1          60 bp    DNA     linear   BCT 01-JAN-2000\n"
    head += "FEATURES             Location/Qualifiers\n"
    text = head + "".join(places) + "ORIGIN\n//\n"
    found = get("dna").annotation(Source.of_bytes(text.encode(), "x"))
    assert len(found.rows["chr1"]) == 4 * count
    assert not found.implied["chr1"]
