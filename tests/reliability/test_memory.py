"""Memory that does not grow with the input: bombs, giant lines, corpora larger than memory, many tiny documents."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from forms import FORM, trials
from pyarrow import parquet

LIMIT = 400
"""MiB that `prepare` may take, whatever the input."""
SLOPE = 16
"""MiB more that ten times the input may take."""
MIB = 1 << 20
PROGRAM = """
import json, os, resource, sys
import Bio.SeqIO, pyarrow.parquet
from hnet_cli import modality
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import HNetError
plugins = {name: modality.get(name) for name in ("text", "dna")}
for line in sys.stdin:
    path, kind, out, measure, limit = json.loads(line)
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + limit, held + limit))
    try:
        summary = prepare([path], plugins[kind], out, overwrite=True, measure=measure)
        code, said = 0, str(summary.refused)
    except HNetError as error:
        code, said = error.exit_code, str(error)
    except BaseException as error:
        code, said = 1, repr(error)
    print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, said]), flush=True)
    os._exit(0)
"""
Prepare = Callable[..., tuple[int, float, str]]


@pytest.fixture(scope="module")
def prepared() -> Iterator[Prepare]:
    """Exit code, peak MiB and what was refused, of `prepare` in a process of its own, forked from one that has done
    the imports and limited (RLIMIT_AS) to so many MiB more than they take; with the baselines, which take seconds
    each, but in the short form and for DNA, whose files here do not fill what baselines may hold."""
    # A shell in between: a process begins with the peak memory of the one it was forked from.
    command = ["sh", "-c", '"$@"', "sh", sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        ask, answers = process.stdin, process.stdout
        assert ask is not None
        assert answers is not None

        def run(file: Path, kind: str, limit: int = LIMIT) -> tuple[int, float, str]:
            out = file.parent / "out"
            ask.write(json.dumps([str(file), kind, str(out), FORM != "short" and kind != "dna", limit * MIB]) + "\n")
            ask.flush()
            answer = answers.readline()
            assert answer, "prepare ended without an answer"
            code, peak, said = json.loads(answer)
            file.unlink()
            shutil.rmtree(out, ignore_errors=True)
            return code, peak, said

        yield run
        ask.close()


def repeated(path: Path, piece: bytes, size: int, begin: bytes = b"") -> Path:
    """A file of about `size` bytes of repetitions."""
    block = piece * max(1, MIB // len(piece))
    with path.open("wb") as file:
        file.write(begin)
        for _ in range(size // len(block)):
            file.write(block)
    return path


def zeros(path: Path, size: int, begin: bytes = b"") -> Path:
    """About `size` zeros as gzip packs them best, a thousandth of that; the work is done once for all blocks, each of
    which stands by itself."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block, crc = bytes(MIB), zlib.crc32(begin)
    start = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    with path.open("wb") as file:
        file.write(b"\x1f\x8b\x08" + bytes(7) + start)
        for _ in range(size // MIB):
            file.write(packed)
            crc = zlib.crc32(block, crc)
        length = len(begin) + size // MIB * MIB
        file.write(packer.flush() + crc.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little"))
    return path


BOMBS: dict[str, tuple[str, Callable[[Path, int], Path], str]] = {
    "zeros in gz": ("text", lambda p, n: zeros(p / "x.txt.gz", n), "binary data"),
    "zeros in gz as rows": ("text", lambda p, n: zeros(p / "x.jsonl.gz", n), "row longer"),
    "one line of text": ("text", lambda p, n: repeated(p / "x.txt", b"word ", n // 2), ""),
    "one row": ("text", lambda p, n: repeated(p / "x.jsonl", b"x", n // 2, b'{"text": "'), "row longer than 64 MiB"),
    "one record": ("dna", lambda p, n: repeated(p / "x.fa", b"ACGTTGCA", n // 2, b">a\n"), ""),
    "one record in lines": ("dna", lambda p, n: repeated(p / "x.fa", b"ACGTTGCA" * 8 + b"\n", n // 2, b">a\n"), ""),
    "zeros in a tar": ("text", lambda p, n: tar_of_zeros(p / "x.tar.gz", n), "binary data"),
    "nothing but headers": ("dna", lambda p, n: repeated(p / "x.fa", b">" + b"n" * 62 + b"\n", n // 8), "without seq"),
    "gz in gz": ("text", lambda p, n: twice(p, n), "gzip"),
    "one element of a list": (
        "text",
        lambda p, n: repeated(p / "x.json", b"x", n // 2, b'[{"text": "a"}, {"text": "'),
        "JSON list does not end",
    ),
    "one record in lower case": (
        "dna",
        lambda p, n: repeated(p / "x.fa", b"acgttgca" * 8 + b"\n", n // 2, b">a\n"),
        "",
    ),
}


def tar_of_zeros(path: Path, size: int) -> Path:
    """The zeros that end the archive are of the same kind as those in it."""
    member = tarfile.TarInfo("zeros.txt")
    member.size = size // MIB * MIB - MIB
    return zeros(path, size, member.tobuf())


def twice(place: Path, size: int) -> Path:
    inner = zeros(place / "inner.gz", size)
    outer = place / "x.txt.gz"
    outer.write_bytes(gzip.compress(inner.read_bytes(), 1))
    inner.unlink()
    return outer


@pytest.mark.parametrize("bomb", BOMBS if FORM != "short" else list(BOMBS)[:5])
def test_r16_bombs(bomb: str, prepared: Prepare, tally: Any, tmp_path: Path) -> None:
    """10 GB of zeros in 10 MB and 4 GiB lines and records in the long form; a fiftieth of that in the short one."""
    counted = tally("R16", "bombs: peak memory of prepare at most 400 MiB, also as a limit of address space", bomb)
    kind, make, why = BOMBS[bomb]
    size = trials(150 * 10**6, 2 * 10**9, 8 << 30 if "zeros" not in bomb and "gz" not in bomb else 10**10)
    file = make(tmp_path, size)
    counted.figures |= {"file MB": round(file.stat().st_size / 10**6, 1)}
    code, peak, error = prepared(file, kind)
    counted.figures |= {"peak MiB": round(peak)}
    counted.count(peak <= LIMIT, f"{peak:.0f} MiB")
    counted.count(code in (0, 3) and why in error, f"exit {code}: {error}")


def rows(path: Path, size: int) -> Path:
    """JSON lines like those of the Pile."""
    text = "and so on for many words " * 40
    with path.open("wb") as file:
        for number in range(size):
            file.write(json.dumps({"text": f"document {number} {text}", "meta": {"set": "x"}}).encode() + b"\n")
            if file.tell() >= size:
                break
    return path


def list_of_rows(path: Path, size: int) -> Path:
    """The same as one JSON list."""
    rows(path, size)
    path.write_bytes(b"[" + path.read_bytes().strip().replace(b"}\n{", b"},\n{") + b"]\n")
    return path


def parquet_rows(path: Path, size: int) -> Path:
    """Row groups with the columns of FineWeb-Edu; the text cannot be compressed much."""
    strings = ("text", "id", "dump", "url", "date", "file_path", "language")
    others = {"language_score": 0.0, "token_count": 0, "score": 0.0, "int_score": 0}
    rng, count, writer = random.Random(0), 10_000, None
    for _ in range(-(-size // (3000 * count))):
        columns: dict[str, list[Any]] = {name: ["x"] * count for name in strings}
        columns |= {name: [value] * count for name, value in others.items()}
        columns["text"] = [rng.randbytes(1500).hex() for _ in range(count)]
        table = pyarrow.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()
    return path


def lines_of_text(path: Path, size: int) -> Path:
    return repeated(path, b"It was the best of times, it was the worst of times.\n", size)


def tiny_records(path: Path, size: int) -> Path:
    """A document for every 24 bytes: the table of documents is as large as the documents."""
    with path.open("wb") as file:
        for number in range(0, size // 24 + 1, 40_000):
            file.write(b"".join(b">%d\nACGTTGCATTAC\n" % n for n in range(number, number + 40_000)))
    return path


FLAT: dict[str, tuple[str, Callable[[Path, int], Path], float, int]] = {
    "x.txt": ("text", lines_of_text, 20, 400),
    "x.jsonl": ("text", rows, 10, 400),
    "x.json": ("text", list_of_rows, 10, 400),
    "x.parquet": ("text", parquet_rows, 8, 400),
    "x.fa": ("dna", tiny_records, 0.3, 40),
}
"""Modality, maker, and MB of the smaller file in the short and in the long form."""


@pytest.mark.parametrize("name", FLAT)
def test_r26_memory_is_flat(name: str, prepared: Prepare, tally: Any, tmp_path: Path) -> None:
    """Ten times the input, the same memory: 0.4 and 4 GB in the long form, for FASTA 1.7 and 17 million records."""
    counted = tally(
        "R26", "peak memory of prepare on a file and on a tenth of it, also as a limit of address space", name
    )
    kind, make, short, long = FLAT[name]
    peaks, base = [], int({"short": short, "nightly": 100, "long": long}[FORM] * 10**6)
    for factor in (1, 10):
        file = make(tmp_path / name, factor * base)
        code, peak, error = prepared(file, kind, trials(LIMIT // 4, LIMIT, LIMIT))  # always less than the file has
        counted.count(code == 0 and peak <= LIMIT, f"exit {code}, {peak:.0f} MiB: {error}")
        peaks.append(peak)
    counted.figures |= {"MB": 10 * base / 10**6, "peak MiB": round(peaks[1]), "growth": round(peaks[1] - peaks[0], 1)}
    # Below some ten MB not even the blocks that are held at once are filled.
    counted.count(peaks[1] - peaks[0] <= (SLOPE if FORM == "long" else 4 * SLOPE), f"{peaks}")
