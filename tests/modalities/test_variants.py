"""Calls of variants: what is read of them, and the flanks in the genome."""

import bz2
import gzip
import tracemalloc
from itertools import product

import pytest
from dnakit import GENOME, calls

from hnet_cli import modality
from hnet_cli.errors import InputError
from hnet_cli.evaluation.material import file_source
from hnet_cli.modality import Refused, Source

AF = '##INFO=<ID=AF,Number=A,Type=Float,Description="frequency, of <ID=XX,Number=R>">\n'


def found_in(vcf, fasta, flank=30):
    return list(modality.get("dna").variants(file_source(vcf), file_source(fasta), flank))


def read(rows, header="", genome=GENOME, name="chr1"):
    """The variants and refusals of rows "POS REF ALT INFO" or of whole rows, in a genome of one record."""
    lines = [row if "\t" in row else "{}\t{}\t.\t{}\t{}\t.\t.\t{}".format(name, *row.split()) for row in rows]
    vcf, fasta = header + "".join(line + "\n" for line in lines), f">{name} of this test\n{genome}\n"
    sources = [Source.of_bytes(text.encode(), name) for text, name in ((vcf, "x.vcf"), (fasta, "x.fa"))]
    return list(modality.get("dna").variants(*sources, 30))


def test_variants_and_what_surrounds_them(tmp_path):
    vcf, fasta = calls(
        tmp_path,
        ("chr1", 2, "rs1", "C", "T,CA", ".", ".", "AF=0.1,0.2;DB"),
        ("chr1", 50, ".", GENOME[49:52], GENOME[49], ".", ".", "AF=0.3"),
        ("chr1", 5, ".", "A", "G", ".", ".", "."),
        ("chr1", 6, ".", "G", "<DEL>", ".", ".", "."),
        ("chrX", 6, ".", "G", "A", ".", ".", "."),
    )
    first, second, deletion, wrong, symbolic, unknown = found_in(vcf, fasta)
    assert (first.before, first.reference, first.alternative, first.begins, first.ends) == (
        b"A",
        b"C",
        b"T",
        True,
        False,
    )
    assert (first.record, first.position) == ("chr1", 1)
    assert first.after.decode() == GENOME[2:32]
    assert (first.fields["AF"], second.fields["AF"], second.alternative) == ("0.1", "0.2", b"CA")
    assert first.baselines == {"transition": 1.0, "cpg": 1.0, "gc": -1.0, "length": 0.0}
    assert (deletion.before + deletion.reference + deletion.after).decode() == GENOME[19:82]
    assert deletion.baselines["length"] == -2
    assert isinstance(wrong, Refused)
    assert "REF" in wrong.reason
    assert "not written out" in symbolic.reason
    assert "no record chrX" in unknown.reason
    assert "there are chr1" in unknown.where


def test_flanks_stop_at_what_is_not_known(tmp_path):
    genome = GENOME[:45] + "N" + GENOME[46:60] + "n" + GENOME[61:]
    vcf, fasta = calls(tmp_path, ("chr1", 51, ".", GENOME[50], "A" if GENOME[50] != "A" else "C"), genome=genome)
    (found,) = found_in(vcf, fasta)
    assert found.before.decode() == GENOME[46:50]
    assert found.after.decode() == GENOME[51:60]
    assert not found.begins
    assert not found.ends


@pytest.mark.parametrize(
    ("declared", "given", "values"),
    [
        ("Number=A,Type=Float", "0.1,0.2", ("0.1", "0.2")),
        ("Number=A,Type=Float", "0.1,.", ("0.1", None)),
        ("Number=A,Type=Float", ".", (None, None)),
        ("Number=A,Type=Float", "", (None, None)),
        ("Number=A,Type=Float", "0.1", (None, None)),
        ("Number=A,Type=Float", "1e-5,.5", ("1e-5", ".5")),
        ("Number=A,Type=Float", "high,0.2", (None, "0.2")),
        ("Number=R,Type=Integer", "90,7,3", ("7", "3")),
        ("Number=R,Type=Integer", "90,.,3", (None, "3")),
        ("Number=R,Type=Integer", "90,7", (None, None)),
        ("Number=1,Type=Float", "0.5", ("0.5", "0.5")),
        ("Number=1,Type=Float", ".", (None, None)),
        ("Number=.,Type=Float", "0.5", ("0.5", "0.5")),
        ("Number=2,Type=Float", "0.5,0.6", ("0.5,0.6", "0.5,0.6")),
        ("Number=G,Type=Float", "1,2,3,4,5,6", ("1,2,3,4,5,6",) * 2),
        ("Number=1,Type=String", "benign", ("benign", "benign")),
        ("Number=1,Type=String", ".", (None, None)),
        ("Number=0,Type=Flag", None, ("0", "0")),
        (" Number=0, Type=Flag", None, ("0", "0")),  # with spaces: 1000 Genomes, pilot
        (" Number=R, Type=Integer", "90,7,3", ("7", "3")),
    ],
)
def test_values_are_those_of_the_allele_by_the_header(declared, given, values):
    """`Number`: one for each alternative, for each allele with the reference first, of fixed or unknown number."""
    header = f'##INFO=<ID=X,{declared},Description="a, \\"b\\" <ID=Y,Number=G>">\n'
    items = read([f"2 C T,CA {'Y=1' if given is None else f'X={given};Y=1'}"], header)
    assert tuple(item.fields.get("X") for item in items) == values
    assert all("Y" in item.fields for item in items)


def test_values_without_a_declaration():
    """The format defines AC, AF (per alternative) and AD (per allele); flags are told by having no value."""
    first, second, third = read(["2 C T,CA AF=.1,.2;AD=9,8,7;XS=a,b;XT=c,d,e;XU=f;DB;AC=.", "3 G T AF=0.2"])
    wanted = {"AF": ".1", "AD": "8", "XS": "a", "XT": "c,d,e", "XU": "f", "DB": "1"}
    assert dict(first.fields) == wanted
    assert dict(second.fields) == wanted | {"AF": ".2", "AD": "7", "XS": "b"}
    assert dict(third.fields) == {"AF": "0.2", "DB": "0"}


@pytest.mark.parametrize(("version", "value"), [("", "50%25"), ("4.1", "50%25"), ("4.2", "50%25"), ("4.3", "50%")])
def test_escapes_are_of_version_4_3_on(version, value):
    header = f"##fileformat=VCFv{version}\n" if version else ""
    (found,) = read(["2 C T X=50%25"], header)
    assert found.fields["X"] == value


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2 C . .", "no alternative"),
        ("2 C <DEL> .", "allele that is not written out in bases"),
        ("2 C <*> .", "allele that is not written out in bases"),
        ("2 C * .", "allele that is not written out in bases"),
        ("2 C C[chr2:321682[ .", "allele that is not written out in bases"),
        ("2 C ]chr2:5]C .", "allele that is not written out in bases"),
        ("2 C R .", "allele that is not written out in bases"),
        ("2 N T .", "allele that is not written out in bases"),
        ("2 C c .", "alternative that is the reference"),
        ("2 G T .", "REF is not what the reference has there"),
        ("0 A T .", "position outside of its record"),
        ("101 A T .", "position outside of its record"),
        ("100 TA T .", "position outside of its record"),
        ("99999999999999999 A T .", "position outside of its record"),
        (f"2 C {'A' * 3_000_000} .", "allele longer than 10,000 bases"),
        (f"2 C {','.join('T' * 20_000)} .", "more than 1,000 alternatives"),
        ("2 C T " + "X=1;" * 20_000, "more than 10,000 INFO fields"),
        ("chr1 2 . C T\t", "not CHROM, POS, ID, REF, ALT, set by tabs"),
        ("chr1\ttwo\t.\tC\tT", "not CHROM, POS, ID, REF, ALT, set by tabs"),
        ("chr1\t-2\t.\tC\tT", "not CHROM, POS, ID, REF, ALT, set by tabs"),
        (f"chr1\t{'9' * 5000}\t.\tC\tT", "not CHROM, POS, ID, REF, ALT, set by tabs"),
        ("chrX\t2\t.\tC\tT", "no record chrX in the reference"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused_and_the_rest_is_not(row, reason):
    items = read(["3 G T .", row, "4 t c ."])
    refused = [item for item in items if isinstance(item, Refused)]
    assert [item.reason for item in refused] == [reason]
    assert refused[0].where.startswith("x.vcf, line 2")
    assert [item.alternative for item in items if not isinstance(item, Refused)] == [b"T", b"C"]


def test_one_alternative_of_several_may_be_scored():
    deleted, substituted = read(["2 C *,G AF=0.1,0.2"])
    assert isinstance(deleted, Refused)
    assert (substituted.alternative, substituted.fields["AF"]) == (b"G", "0.2")


@pytest.mark.parametrize(
    "genome",
    [
        f"; assembled 2019\n{GENOME}",
        f"{GENOME[:7]}\n;{GENOME}\n{GENOME[7:]}",
        f"{GENOME[:10]}\t{GENOME[10:]}",
        f"{GENOME[:10]}\v\n{GENOME[10:]}",
        f"{GENOME[:10]} \f\x1d\n\n{GENOME[10:]}\x1c",
    ],
    ids=["comment", "comment within", "tab", "vertical tab", "other white space"],
)
def test_positions_are_those_of_the_bases_that_are_read(genome):
    """Comments and white space are no bases, as where a genome is read to be segmented."""
    found = read([f"{at + 1} {GENOME[at]} {'G' if GENOME[at] != 'G' else 'T'} ." for at in range(100)], genome=genome)
    assert [item.before.decode()[-1:] + item.reference.decode() for item in found] == [
        GENOME[max(0, at - 1) : at + 1] for at in range(100)
    ]


def test_an_ambiguity_code_of_the_reference_is_its_first_base():
    """VCF: "R as a reference base is converted to A"."""
    genome = "TTTTRYSWKMBDHVu" + GENOME
    rows = [f"{at + 5} {base} {'G' if base != 'G' else 'T'} ." for at, base in enumerate("ACCAGACAAAT")]
    assert not [item for item in read(rows, genome=genome) if isinstance(item, Refused)]
    (found,) = read(["5 G T ."], genome=genome)
    assert isinstance(found, Refused)


def test_spaces_around_values_are_none_of_theirs():
    (found,) = read(["chr1\t2\t.\tC\tT\t.\t.\t AF=0.2 ; DB "], AF)
    assert dict(found.fields) == {"AF": "0.2", "DB": "1"}


def test_reasons_stay_few():
    items = read([f"chr{number}\t2\t.\tC\tT" for number in range(2, 50)])
    assert len({item.reason for item in items}) == 4


def test_files_as_they_are_packed(tmp_path):
    """With marks, other line ends, blank lines, compression: the same variants, also of a name that is not ASCII."""
    text = f"##fileformat=VCFv4.2\n{AF}\n#CHROM\tPOS\ncafé_1\t2\t.\tC\tT\t.\t.\tAF=0.5\n"
    fasta = f">café_1 of this test\n{GENOME}\n"
    seen = set()
    packings = {"x": bytes, "gz": gzip.compress, "bz2": bz2.compress}
    for end, mark, (suffix, pack) in product(("\n", "\r\n", "\r"), ("", "\ufeff"), packings.items()):
        paths = tmp_path / f"a.vcf.{suffix}", tmp_path / f"a.fa.{suffix}"
        for path, content in zip(paths, (text, fasta), strict=True):
            path.write_bytes(pack((mark + content.replace("\n", end)).encode()))
        (found,) = found_in(*paths)
        seen.add((found.name, found.record, found.before, found.fields["AF"]))
    assert seen == {("café_1:2C>T", "café_1", b"A", "0.5")}
    for path, content in zip(paths, (text, fasta), strict=True):
        path.write_bytes(content.encode("latin-1"))
    assert found_in(*paths)[0].record == "café_1"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no variants"),
        (b"##fileformat=VCFv4.2\n#CHROM\tPOS\n", "holds no variants"),
        (b"BCF\x02\x02\0\0\0", "binary data"),
        ("chr1\t2\t.\tC\tT\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_vcf_is_named(data, says):
    with pytest.raises(InputError, match=says) as error:
        list(modality.get("dna").variants(Source.of_bytes(data, "a.vcf"), Source.of_bytes(b">chr1\nACGT\n"), 9))
    assert "a.vcf" in str(error.value)


def test_a_long_name_is_made_of_the_ends_of_its_alleles():
    (found,) = read([f"2 C {'CA' * 4_000} ."])
    assert found.name == "chr1:2C>CACACACACACACACACACA...8000"


def test_alternatives_share_what_a_row_says_of_all():
    """A row of 90 KB took a hundred megabytes, a copy of its fields for each alternative."""
    alternatives = [*map("".join, product("ACGT", repeat=5))][:500]
    fields = {f"X{number}": str(number) for number in range(5_000)}
    info = ";".join(f"{key}={value}" for key, value in fields.items())
    numbers = [str(number) for number in range(500)]
    tracemalloc.start()
    found = read([f"2 C {','.join(alternatives)} {info};AF={','.join(numbers)}"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [item.fields["AF"] for item in found] == numbers
    assert dict(found[-1].fields) == fields | {"AF": "499"}
    assert peak < 20e6


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("##INFO=<ID=X," + '"' * 300_001, "2 C T X=1"),
        ("##INFO=<ID=X," + '"\\' * 300_000, "2 C T X=1"),
        ("##INFO=" + "<ID=," * 300_000, "2 C T X=1"),
        ("##INFO=<ID=X,Number=1,Type=Float>", f"2 C T X={'1' * 300_000}e"),
        ("", "2 C T " + ";".join(f"X{number}=1" for number in range(10_000))),
        ("", f"2 C {','.join(['T', 'G'] * 500)} X={','.join('1' * 100_000)}"),
    ],
    ids=range(6),
)
def test_work_is_linear_in_a_row(header, row):
    assert {item.position for item in read([row], header + "\n")} == {1}
