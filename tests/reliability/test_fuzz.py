"""Every reader of a user's file on input damaged at random (R14): documents, or one clear error.

An input is made from its number alone, so that one that fails can be made again: `spoilt("tar", 17)`.
"""

from __future__ import annotations

import gzip
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forms import trials
from hostilekit import GENOME, HAN, PACKERS, PROSE, ROWS, SOURCE, flipped, table_of, tar_of

from hnet_cli import modality
from hnet_cli.data.prepare.contents import sources_of
from hnet_cli.errors import HNetError
from hnet_cli.evaluation.material import file_source
from hnet_cli.modality import Document, Modality, Refused, Source

PROSE, HAN, SOURCE = PROSE[:3000], HAN[:2400], SOURCE[:3000]
DNA = GENOME[:1200] + b";old\n>chr2 masked\r\n" + b"TTgacNNcRA-\n" * 40 + b">chr3\n" + b"acgu" * 90 + b"\n>chr1\nACGT\n"
TREEBANK = b"""# text = Don't go.
1-2\tDon't\t_
1\tDo\tdo\tAUX\t_\t_\t0\troot\t_\tSpaceAfter=No
2\tn't\tnot
2.1\tempty
3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\tSpaceAfter=No
4\t.\t.

"""
GFF = b"""##gff-version 3
chr1\tRefSeq\tgene\t1\t300\t.\t+\t.\tID=g
chr1\tRefSeq\texon\t1\t90\t.\t+\t.\tParent=t1,t2
chr1\tRefSeq\texon\t150\t300\t.\t-\t.\tParent=t1
chr1\tRefSeq\tCDS\t10\t90\t.\t+\t0\tParent=t1
##FASTA
"""
GENBANK = (
    b"""LOCUS       chr1                     420 bp    DNA     linear   UNK 01-JAN-1980
DEFINITION  A record.
ACCESSION   chr1
FEATURES             Location/Qualifiers
     gene            complement(1..300)
     CDS             join(10..90,complement(150..>301))
                     /codon_start=2
ORIGIN
"""
    + b"".join(b"%9d" % at + b" acgttgcagg" * 6 + b"\n" for at in range(1, 420, 60))
    + b"//\n"
)
VCF = b"""##fileformat=VCFv4.2
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
chr1\t1\trs1\tA\tC,G\t.\t.\tAF=0.1,0.2;DB
chr1\t7\t.\tCA\tC\t.\t.\tAF=0.3
chr2\t1\t.\tT\t<DEL>\t.\t.\t.
"""
Read = Callable[[Path, Modality], Iterator[Any]]
READERS: dict[str, tuple[str, str, bytes]] = {
    "text": ("text", "x.txt", PROSE),
    "chinese": ("chinese", "x.txt", HAN.encode("gb18030")),
    "code": ("code", "x.py", SOURCE),
    "dna": ("dna", "x.fa", DNA),
    "jsonl": ("text", "x.jsonl", ROWS),
    "jsonl of dna": ("dna", "x.jsonl", ROWS.replace(b"words", b"ACGT")),
    "tar": ("text", "x.tar", tar_of({"a.txt": PROSE[:900], "b.jsonl": ROWS[:900], "c.gz": gzip.compress(PROSE)})),
    "tar of code": ("code", "x.tar", tar_of({".gitignore": b"*.o\n!a.o\n", "a.py": SOURCE[:700], "b.o": SOURCE[:700]})),
    "parquet": ("text", "x.parquet", table_of(text=[PROSE.decode()[:2000], None, "x"], id=["a", "b", "c"])),
    **dict.fromkeys(PACKERS, ("text", "x.txt", PROSE)),
    "gold in a treebank": ("text", "x.conllu", TREEBANK * 3),
    "gold of words": ("chinese", "x.txt", "一个 人 在 北京\n的 街道 上\n".encode() * 9),
    "gold of morphemes": ("text", "x.tsv", b"running dogs\trun @@ing dog @@s\nhappiest\thappy @@est\n" * 5),
    "annotation in GFF": ("dna", "x.gff", GFF),
    "annotation in GenBank": ("dna", "x.gb", GENBANK),
    "variants": ("dna", "x.vcf", VCF),
}
PIECES = [bytes([byte]) for byte in b'\0\xff\x80\n\r>;"{[N\t ']
PIECES += b"\\u|\xef\xbb\xbf|PK\x03\x04|PAR1|\x1f\x8b\x08|-1|\xd9\xa3|\xe2\x82|\xed\xa0\x80|1e999|NaN".split(b"|")
PIECES += [bytes(512), b"9" * 30, b"9" * 5000, b"{" * 3000]


def damaged(data: bytes, luck: random.Random) -> bytes:
    """One to four edits, one in eight at an end."""
    for _ in range(luck.randint(1, 4)):
        where = luck.choice((0.0, 1.0)) if luck.random() < 0.125 else luck.random()
        at, count, to = int(where * len(data)), luck.randrange(256), luck.randrange(len(data) + 1)
        edits = {
            "flip": flipped(data, where, luck.randrange(8)) if data else data,
            "cut": data[:at],
            "insert": data[:at] + luck.choice(PIECES) + data[at:],
            "drop": data[:at] + data[at + count :],
            "repeat": data[: at + count] + data[at:],
            "move": data[:to] + data[at : at + count] + data[to:],
            "overwrite": data[:at] + luck.randbytes(count % 16) + data[at + count % 16 :],
        }
        data = luck.choice(list(edits.values()))
    return data


def spoilt(reader: str, number: int) -> tuple[bytes, bytes]:
    """Input `number` for a reader, and what it holds where that is known: damaged as packed, or whole around something
    damaged, so that checksums do not hide what stands behind them."""
    luck = random.Random(f"{reader} {number}")
    _, _, sound = READERS[reader]
    outside = luck.random() < 0.5
    if reader in PACKERS:
        plain = sound if outside else damaged(sound, luck)
        packed = PACKERS[reader](plain)
        return (damaged(packed, luck) if outside else packed), plain
    data = damaged(sound, luck)
    if reader.startswith("tar") and not outside:
        data = b"".join(_with_checksum(data[at : at + 512]) for at in range(0, len(data), 512))
    return data, data


def _with_checksum(block: bytes) -> bytes:
    """A block of a tar with the checksum it ought to have, if it is a header."""
    if block[257:262] != b"ustar":
        return block
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


SMALL_BLOCKS = {"dna.PARSE_BYTES": 128, "dna.PIECE": 300, "_utf8.PIECE": 700}
"""Sizes in bytes with which files of a few kB are many blocks; every other file is read with them."""


@pytest.mark.parametrize("reader", READERS)
def test_r14_fuzz(reader: str, tally: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the errors a user can cause escapes; documents of plain files are bytes that were there."""
    counted = tally("R14", "inputs damaged at random: documents, or one clear error", reader)
    kind, name, _ = READERS[reader]
    plugin = modality.get(kind)
    file = tmp_path / (f"{name}.{reader}" if reader in PACKERS else name)
    read = READ.get(reader, documents)
    exact = kind in ("text", "code") and reader in ("text", "code", *PACKERS)
    with file.open("wb", buffering=0) as opened:  # kept open, for to truncate is not to write to disk
        for number in range(trials(40, 2000, 20_000)):
            data, plain = spoilt(reader, number)
            os.pwrite(opened.fileno(), data, 0)
            os.ftruncate(opened.fileno(), len(data))
            for place, size in SMALL_BLOCKS.items() if number % 2 else ():
                monkeypatch.setattr(f"hnet_cli.modalities.{place}", size)
            began = time.process_time()
            try:
                items = list(read(file, plugin))
                parts = [document.data for document in items] if exact else []
                good = all(part in 8 * plain or part in data for part in parts)  # streams may repeat
            except HNetError as error:
                good = bool(str(error)) and "\n" not in str(error)
            except Exception as error:
                counted.count(False, f"spoilt({reader!r}, {number}): {type(error).__name__}: {error}")
                continue
            finally:
                monkeypatch.undo()
            seconds = time.process_time() - began
            counted.count(good and seconds < 10, f"spoilt({reader!r}, {number}): {seconds} s")


def documents(file: Path, plugin: Modality) -> Iterator[Document]:
    for source in sources_of([file], plugin):
        if not isinstance(source, Refused):
            for document in plugin.documents(source):
                if isinstance(document, Document):
                    assert isinstance(document.data, bytes)
                    assert document.offset >= 0
                    yield document


def gold(file: Path, plugin: Modality) -> Iterator[Any]:
    for item in plugin.gold(file_source(file)):
        if not isinstance(item, Refused):
            for edges in item.edges.values():
                assert list(edges) == sorted(edges)
                assert not edges or 0 <= edges[0] <= edges[-1] <= len(item.data)
        yield item


def annotated(file: Path, plugin: Modality) -> Iterator[Any]:
    known = plugin.annotation(file_source(file))
    for document in (Document(b"ACGT" * 50, "chr1", "a", offset=offset) for offset in (0, 40)):
        yield known.edges(document), known.regions(document)


def variants(file: Path, plugin: Modality) -> Iterator[Any]:
    return plugin.variants(file_source(file), Source.of_bytes(DNA, "x.fa"), 30)


READ: dict[str, Read] = {
    **dict.fromkeys(("gold in a treebank", "gold of words", "gold of morphemes"), gold),
    **dict.fromkeys(("annotation in GFF", "annotation in GenBank"), annotated),
    "variants": variants,
}
