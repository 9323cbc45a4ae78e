"""Annotations of genomes: GFF3, GTF and GenBank."""

import io

import pytest
from dnakit import regions
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.errors import InputError
from hnet_cli.modality import Document


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
