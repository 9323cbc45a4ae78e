"""Calls of variants: what is read of them, and the flanks in the genome."""

from dnakit import GENOME, calls

from hnet_cli import modality
from hnet_cli.modality import Refused, Source


def found_in(vcf, fasta, flank=30):
    sources = [Source(path.name, lambda path=path: path.open("rb")) for path in (vcf, fasta)]
    return list(modality.get("dna").variants(*sources, flank))


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
    assert first.after.decode() == GENOME[2:32]
    assert (first.fields["AF"], second.fields["AF"], second.alternative) == ("0.1", "0.2", b"CA")
    assert first.baselines == {"transition": 1.0, "cpg": 1.0, "gc": -1.0, "length": 0.0}
    assert (deletion.before + deletion.reference + deletion.after).decode() == GENOME[19:82]
    assert deletion.baselines["length"] == -2
    assert isinstance(wrong, Refused)
    assert "REF" in wrong.reason
    assert "not written out" in symbolic.reason
    assert "no record chrX" in unknown.reason


def test_flanks_stop_at_what_is_not_known(tmp_path):
    genome = GENOME[:45] + "N" + GENOME[46:60] + "n" + GENOME[61:]
    vcf, fasta = calls(tmp_path, ("chr1", 51, ".", GENOME[50], "A" if GENOME[50] != "A" else "C"), genome=genome)
    (found,) = found_in(vcf, fasta)
    assert found.before.decode() == GENOME[46:50]
    assert found.after.decode() == GENOME[51:60]
    assert not found.begins
    assert not found.ends
