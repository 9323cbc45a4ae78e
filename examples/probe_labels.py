"""Labels for `hnet eval --probe`, from annotations and folders, as TSV on standard output; random, with a fixed seed.

python examples/probe_labels.py genome genome.fa.gz genome.gff.gz   coding on either strand, or between features
python examples/probe_labels.py texts FOLDER-or-FILE...             the folder or file that a text is from
python examples/probe_labels.py packages FOLDER                     Python code of a package, or of its tests
"""

from __future__ import annotations

import gzip
import random
import sys
from collections.abc import Iterator
from pathlib import Path

LENGTH, REGIONS = 300, 25
"""Bases of a region, and regions of each kind per sequence."""
EXCERPT, EXCERPTS, TEXTS = 600, 4, 30
"""Bytes of an excerpt, excerpts of a text, and texts of each kind."""
LUCK = random.Random(0)


def lines(path: str) -> list[str]:
    opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path)  # noqa: SIM115
    with opened as file:
        return file.read().splitlines()


def genome(fasta: str, annotation: str) -> None:
    """The group is the sequence (chromosome)."""
    sizes, name = dict[str, int](), ""
    for line in lines(fasta):
        if line.startswith(">"):
            name = line[1:].split()[0]
            sizes[name] = 0
        else:
            sizes[name] += len(line.strip())
    rows = [line.split("\t") for line in lines(annotation) if line.count("\t") == 8]
    print("name\tstart\tend\tlabel\tgroup")
    for name, size in sizes.items():
        places: dict[str, list[int]] = {"CDS+": [], "CDS-": []}
        covered = bytearray(size)
        for _, _, kind, first, last, _, strand, *_ in (row for row in rows if row[0] == name and row[2] != "region"):
            start, end = int(first) - 1, int(last)
            covered[start:end] = b"\1" * (end - start)
            if kind == "CDS" and end - start >= LENGTH:
                places[f"CDS{strand}"].append(LUCK.randrange(start, end - LENGTH + 1))
        places["between"] = [at for at in range(0, size - LENGTH, LENGTH) if not any(covered[at : at + LENGTH])]
        for label, starts in places.items():
            for at in sorted(LUCK.sample(starts, min(REGIONS, len(starts)))):
                print(f"{name}\t{at}\t{at + LENGTH}\t{label}\t{name}")


def texts(*places: str) -> None:
    """The group is the text: a file of a folder, or a part of a file between two blank lines."""
    print("name\tstart\tend\tlabel\tgroup")
    for place in map(Path, places):
        found = list(parts(place)) if place.is_file() else [(path, 0, path.read_bytes()) for path in files(place)]
        for path, offset, data in LUCK.sample(found, min(TEXTS, len(found))):
            excerpts(path, offset, data, place.stem, f"{path}:{offset}")


def packages(place: str) -> None:
    """The group is the package."""
    print("name\tstart\tend\tlabel\tgroup")
    for package in sorted(path for path in Path(place).iterdir() if path.is_dir()):
        kinds: dict[str, list[Path]] = {"package": [], "tests": []}
        for path in files(package, "*.py"):
            kinds["tests" if {"test", "tests"} & set(path.parts) else "package"].append(path)
        if min(map(len, kinds.values())) >= 5:
            for label, own in kinds.items():
                for path in LUCK.sample(own, min(8, len(own))):
                    excerpts(path, 0, path.read_bytes(), label, package.name)


def files(folder: Path, pattern: str = "*") -> list[Path]:
    """Files long enough for excerpts."""
    return sorted(path for path in folder.rglob(pattern) if path.is_file() and path.stat().st_size > 2 * EXCERPT)


def parts(path: Path) -> Iterator[tuple[Path, int, bytes]]:
    """The parts of a file that are long enough."""
    data = path.read_bytes()
    gap = b"\n\n\n" if b"\n\n\n" in data else b"\n\n"
    offset = 0
    for part in data.split(gap):
        if len(part) > 2 * EXCERPT:
            yield path, offset, part
        offset += len(part) + len(gap)


def excerpts(path: Path, offset: int, data: bytes, label: str, group: str) -> None:
    """Rows of a text, which do not begin inside a character."""
    for _ in range(EXCERPTS):
        at = LUCK.randrange(len(data) - EXCERPT - 4)
        while data[at] & 0xC0 == 0x80:
            at += 1
        print(f"{path}\t{offset + at}\t{offset + at + EXCERPT}\t{label}\t{group}")


if __name__ == "__main__":
    {"genome": genome, "texts": texts, "packages": packages}[sys.argv[1]](*sys.argv[2:])
