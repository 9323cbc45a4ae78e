"""A genome with an annotation, and calls of variants in it."""

from functools import cache

from hnet_cli import modality
from hnet_cli.modality import Source

get = cache(modality.get)  # reads the metadata of all installed packages

GFF = """\
##gff-version 3
chr1\tx\tgene\t4\t30\t.\t+\t.\tID=g
chr1\tx\tCDS\t4\t9\t.\t+\t0\tParent=t
chr1\tx\tCDS\t21\t29\t.\t+\t0\tParent=t
chr1\tx\tCDS\t41\t50\t.\t-\t1\tParent=u
"""
GENOME = "ACGTTGCAACGGATTCCAGT" * 5


def regions(document, text=GFF):
    return get("dna").annotation(Source.of_bytes(text.encode(), "a.gff")).regions(document)


def calls(tmp_path, *rows, genome=GENOME):
    (tmp_path / "x.fa").write_text(f">chr1 a genome\n{genome[:40]}\n{genome[40:]}\n")
    text = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "x.vcf").write_text(text + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return tmp_path / "x.vcf", tmp_path / "x.fa"


def substitution(at, info="."):
    """A row that replaces the base at a position of the genome by another."""
    return "chr1", at + 1, f"v{at}", GENOME[at], "ACGT"["ACGT".find(GENOME[at]) - 1], ".", ".", info
