"""Variants of a VCF file in the sequence of a FASTA file.

VCF 4.1 to 4.5 (https://github.com/samtools/hts-specs) is parsed by hand: six columns of a row are used, for which no
library without a C extension is worth depending on.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from itertools import count
from typing import NamedTuple
from urllib.parse import unquote

from hnet_cli.errors import InputError
from hnet_cli.modality import Refused, Source, Variant

from ._bytes import is_place, record_name, text_lines

BASES = re.compile(r"[ACGTacgt]+\Z")
OTHER = re.compile(r"[^ACGT]")
PURINES = "AG"
LONGEST_ALLELE = 10_000
MOST_ALTERNATIVES = 1_000
MOST_FIELDS = 10_000  # of a row; each takes half a kilobyte
FIRST_BASE = str.maketrans("URYSWKMBDHV", "TACCAGACAAA")
"""VCF has the alphabetically first of the bases that an ambiguity code of the reference stands for."""
PER_ALLELE = {"AC": "A", "AF": "A", "AD": "R", "ADF": "R", "ADR": "R", "CIGAR": "A"}
"""`Number` of the INFO fields that the format itself defines, where a header does not declare them."""
DECLARED = re.compile(r"[<,]\s*(ID|Number|Type)\s*=\s*([^\s,>]*)")
NUMBER = re.compile(r"[-+]?(\d++(\.\d*+)?|\.\d++)(e[-+]?\d++)?\Z", re.IGNORECASE)


class Field(NamedTuple):
    """Declaration of an INFO field in a header."""

    number: str
    type: str


class Call(NamedTuple):
    """One alternative of a row of the file."""

    line: int
    position: int
    """Position of the first base of `reference` in the record, from 0."""
    name: str
    reference: bytes
    alternative: bytes
    own: dict[str, str]
    """Fields with a value for each alternative."""
    shared: dict[str, str]
    """The other ones; one object for all alternatives of a row."""


def variants(calls: Source, records: Iterator[tuple[str, str]], flank: int) -> Iterator[Variant | Refused]:
    """The variants in the order of `records`, titles and sequences, of which one at a time is in memory.

    Fields that a variant has no value of are missing; of a flag, "1" or "0" is the value.
    """
    by_record: dict[str, list[Call | Refused]] = {}
    flags: set[str] = set()
    for record, call in _calls(calls, flags):
        by_record.setdefault(record, []).append(call)
    absent = dict.fromkeys(sorted(flags), "0")
    names: list[str] = []
    for title, sequence in records:
        name = record_name(title)
        names += [name[:40]] * (len(names) < 4)
        for call in by_record.pop(name, ()):
            yield call if isinstance(call, Refused) else _variant(calls.name, name, call, sequence, flank, absent)
    there = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    for number, (name, rest) in zip(count(), by_record.items(), strict=False):
        missing = f"record {name[:40]}" if number < 3 else "record of other names"  # few reasons, to be counted
        for call in rest:
            if isinstance(call, Refused):
                yield call
            else:
                where = f"{calls.name}, line {call.line}; there are {there or 'no records'}"
                yield Refused(f"no {missing} in the reference", where)


def _calls(source: Source, flags: set[str]) -> Iterator[tuple[str, Call | Refused]]:
    """The calls by the names of their records; names of flags are added to `flags`."""
    header: dict[str, Field] = {}
    escapes = False
    found = False
    for number, line in text_lines(source):
        if line.startswith("##fileformat=VCFv"):
            escapes = line.strip() >= "##fileformat=VCFv4.3"
        elif line.startswith("##INFO=<"):
            unquoted = "".join(line.replace("\\\\", "").replace('\\"', "").split('"')[::2])
            declared = dict(DECLARED.findall(unquoted))
            if "ID" in declared:
                header[declared["ID"]] = Field(declared.get("Number", "."), declared.get("Type", "String"))
                flags.update([declared["ID"]] if declared.get("Type") == "Flag" else [])
        if line.startswith("#") or not line.strip():
            continue
        found = True
        where = f"{source.name}, line {number}"
        columns = line.split("\t", 8)
        if len(columns) < 5 or not is_place(columns[1]):
            yield "", Refused("not CHROM, POS, ID, REF, ALT, set by tabs", where)
            continue
        record, position, name, before = columns[:4]
        alternatives = columns[4].split(",")
        if len(alternatives) > MOST_ALTERNATIVES:
            yield record, Refused(f"more than {MOST_ALTERNATIVES:,} alternatives", where)
            continue
        info = columns[7] if len(columns) > 7 and columns[7] != "." else ""
        if info.count(";") >= MOST_FIELDS:
            yield record, Refused(f"more than {MOST_FIELDS:,} INFO fields", where)
            continue
        fields = [_Values(pair, header, len(alternatives), escapes) for pair in map(str.strip, info.split(";")) if pair]
        shared = {field.key: value for field in fields if field.shared and (value := field.of(0)) is not None}
        fields_of_each = [field for field in fields if not field.shared]
        flags.update(field.key for field in fields if field.flag)
        reference = before.upper().encode()
        for index, alternative in enumerate(alternatives):
            if reason := _unusable(before, alternative):
                yield record, Refused(reason, where)
                continue
            label = f"{record}:{position}{_short(before)}>{_short(alternative)}" if name == "." else name
            own = {field.key: value for field in fields_of_each if (value := field.of(index)) is not None}
            yield record, Call(number, int(position) - 1, label, reference, alternative.upper().encode(), own, shared)
    if not found:
        raise InputError(f"{source.name} holds no variants", "give a VCF file")


def _short(allele: str) -> str:
    return allele if len(allele) <= 40 else f"{allele[:20]}...{len(allele)}"


def _unusable(reference: str, alternative: str) -> str:
    """The reason why there is nothing to compare, or ""."""
    if alternative in (".", ""):
        return "no alternative"
    if max(len(reference), len(alternative)) > LONGEST_ALLELE:
        return f"allele longer than {LONGEST_ALLELE:,} bases"
    if not BASES.match(reference) or not BASES.match(alternative):
        return "allele that is not written out in bases"
    return "alternative that is the reference" if reference.upper() == alternative.upper() else ""


class _Values:
    """The values of one INFO field in a row of some alternatives."""

    def __init__(self, pair: str, header: Mapping[str, Field], alternatives: int, escapes: bool) -> None:
        self.key, equals, given = pair.partition("=")
        field = header.get(self.key)
        self.flag = field.type == "Flag" if field else not equals
        self.numeric = field is not None and field.type in ("Integer", "Float")
        self.values = [unquote(value) for value in given.split(",")] if escapes else given.split(",")
        guess = "A" if len(self.values) == alternatives else "."
        number = field.number if field else PER_ALLELE.get(self.key, guess)
        self.skipped = {"A": 0, "R": 1}.get(number)  # values before that of the first alternative
        expected = {"A": alternatives, "R": alternatives + 1}.get(number, len(self.values))
        self.missing = len(self.values) != expected
        self.whole = ",".join(self.values)
        self.shared = self.flag or self.missing or self.skipped is None
        """True if it says the same of every alternative."""

    def of(self, index: int) -> str | None:
        """The value for an alternative; None where it is missing, or no number though declared as one."""
        if self.flag:
            return "1"
        if self.missing:
            return None
        value = self.whole if self.skipped is None else self.values[self.skipped + index]
        if value in ("", ".") or (self.numeric and "," not in value and not NUMBER.match(value)):
            return None
        return value


def _variant(
    file: str, record: str, call: Call, sequence: str, flank: int, absent: dict[str, str]
) -> Variant | Refused:
    """A call in its record; `absent`: the values of flags that it does not have."""
    start, end = call.position, call.position + len(call.reference)
    where = f"{file}, line {call.line}: {record[:40]}"
    if start < 0 or end > len(sequence):
        return Refused("position outside of its record", where)
    if sequence[start:end].upper().translate(FIRST_BASE).encode() != call.reference:
        return Refused("REF is not what the reference has there", where)
    around = sequence[max(0, start - flank) : start], sequence[end : end + flank]
    before, after = (part.upper().replace("U", "T") for part in around)
    before_known, after_known = OTHER.split(before)[-1], OTHER.split(after)[0]  # up to the nearest gaps
    return Variant(
        call.name,
        before_known.encode(),
        call.reference,
        call.alternative,
        after_known.encode(),
        begins=len(before_known) == start,
        ends=end + len(after_known) == len(sequence),
        fields=ChainMap(call.own, call.shared, absent),
        baselines=_baselines(call, before, after),
        record=record,
        position=start,
    )


def _baselines(call: Call, before: str, after: str) -> dict[str, float]:
    """`transition`: 1 if a purine stays a purine or a pyrimidine one. `cpg`: 1 if a CpG is broken. `gc`: change in the
    number of G and C. `length`: change in length."""
    old, new = call.reference.decode(), call.alternative.decode()
    single = len(old) == len(new) == 1
    around_old, around_new = before[-1:] + old + after[:1], before[-1:] + new + after[:1]
    return {
        "transition": float(single and (old in PURINES) == (new in PURINES)),
        "cpg": float(around_old.count("CG") > around_new.count("CG")),
        "gc": float(sum(map(new.count, "GC")) - sum(map(old.count, "GC"))),
        "length": float(len(new) - len(old)),
    }
