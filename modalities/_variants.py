"""Variants of a VCF file in the sequence of a FASTA file.

VCF is parsed by hand: six columns of a row are used, for which no library without a C extension is worth depending on.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from Bio.SeqIO.FastaIO import SimpleFastaParser

from hnet_cli.errors import InputError
from hnet_cli.modality import Refused, Source, Variant

from ._bytes import is_place

BASES = re.compile(r"[ACGTacgt]+\Z")
OTHER = re.compile(r"[^ACGT]")
PURINES = "AG"


class Call(NamedTuple):
    """One alternative of a row of the file."""

    line: int
    position: int
    """Position of the first base of `reference` in the record, from 0."""
    name: str
    reference: str
    alternative: str
    fields: dict[str, str]


def variants(calls: Source, reference: Source, flank: int) -> Iterator[Variant | Refused]:
    """The variants in the order of the records of the FASTA file, a record in memory at a time."""
    by_record: dict[str, list[Call | Refused]] = {}
    for record, call in _calls(calls):
        by_record.setdefault(record, []).append(call)
    if not by_record:
        raise InputError(f"{calls.name} holds no variants", "give a VCF file")
    with reference.open() as stream:
        for title, sequence in SimpleFastaParser(io.TextIOWrapper(stream, "latin-1")):
            name = (title.split(None, 1) or [""])[0]
            if name in by_record:
                bases = sequence.upper().replace("U", "T")
                for call in by_record.pop(name):
                    yield call if isinstance(call, Refused) else _variant(calls.name, name, call, bases, flank)
    for name, rest in by_record.items():
        for call in rest:
            where = call.where if isinstance(call, Refused) else f"{calls.name}, line {call.line}"
            yield Refused(f"no record {name} in the reference", where)


def _calls(source: Source) -> Iterator[tuple[str, Call | Refused]]:
    with source.open() as stream:
        for number, line in enumerate(stream, 1):
            if line.startswith(b"#") or not line.strip():
                continue
            columns = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
            where = f"{source.name}, line {number}"
            if len(columns) < 5 or not is_place(columns[1]):
                raise InputError(f"{where}: not CHROM, POS, ID, REF, ALT", "give a VCF file, its columns set by tabs")
            record, position, name, before, after = columns[:5]
            info = dict(pair.partition("=")[::2] for pair in columns[7].split(";")) if len(columns) > 7 else {}
            for index, alternative in enumerate(after.split(",")):
                if not BASES.match(before) or not BASES.match(alternative):
                    yield record, Refused("allele that is not written out in bases", where)
                    continue
                fields = {k: _of_allele(v, index, after.count(",") + 1) for k, v in info.items()}
                label = name if name != "." else f"{record}:{position}{before}>{alternative}"
                yield record, Call(number, int(position) - 1, label, before.upper(), alternative.upper(), fields)


def _of_allele(value: str, index: int, alternatives: int) -> str:
    parts = value.split(",")
    return parts[index] if len(parts) == alternatives else value


def _variant(file: str, record: str, call: Call, bases: str, flank: int) -> Variant | Refused:
    start, end = call.position, call.position + len(call.reference)
    if start < 0 or bases[start:end] != call.reference:
        return Refused("REF is not what the reference has there", f"{file}, line {call.line}: {record}")
    before, after = bases[max(0, start - flank) : start], bases[end : end + flank]
    before_known, after_known = OTHER.split(before)[-1], OTHER.split(after)[0]  # up to the nearest gaps
    return Variant(
        call.name,
        before_known.encode(),
        call.reference.encode(),
        call.alternative.encode(),
        after_known.encode(),
        begins=len(before_known) == start,
        ends=end + len(after_known) == len(bases),
        fields=call.fields,
        baselines=_baselines(call, before, after),
    )


def _baselines(call: Call, before: str, after: str) -> dict[str, float]:
    """`transition`: 1 if a purine stays a purine or a pyrimidine one. `cpg`: 1 if a CpG is broken. `gc`: change in the
    number of G and C. `length`: change in length."""
    old, new = call.reference, call.alternative
    single = len(old) == len(new) == 1
    around_old, around_new = before[-1:] + old + after[:1], before[-1:] + new + after[:1]
    return {
        "transition": float(single and (old in PURINES) == (new in PURINES)),
        "cpg": float(around_old.count("CG") > around_new.count("CG")),
        "gc": float(sum(map(new.count, "GC")) - sum(map(old.count, "GC"))),
        "length": float(len(new) - len(old)),
    }
