"""Good input of every kind to spoil, and the command line as the tests of hostile input run it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import signal
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import zstandard
from pyarrow import parquet

from hnet_cli.cli.app import run

PROSE = b"".join(b"It was line %d of the best of times, and of the worst.\n" % n for n in range(200))
GENOME = b">chr1\n" + b"ACGTTGCAGGCATTACGATC\n" * 300 + b">chr2\n" + b"TTGACCA" * 400 + b"\n"
HAN = "一个人在北京的街道上慢慢地走着，他看见了很多的书。\n" * 100
SOURCE = b"import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 100
ROWS = b"".join(json.dumps({"text": f"row {n} " + "of many words " * 9}).encode() + b"\n" for n in range(60))
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def table_of(**columns: list[Any]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def flipped(data: bytes, at: float, bit: int = 0) -> bytes:
    place = min(int(at * len(data)), len(data) - 1)
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


class Hung(Exception):
    """A command took a minute."""


def command(place: Path, given: str, kind: str, *options: str) -> int:
    """Run `hnet prepare`, remove what it wrote and return its exit code. Raises Hung after a minute."""

    def stop(number: int, frame: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        return run(["prepare", given, "--modality", kind, "--out", str(place / "out"), *options])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        shutil.rmtree(place / "out", ignore_errors=True)


def is_clear(error: str, code: int, name: str, why: str) -> bool:
    """Return True if an error is one line with the file, the fault and, in brackets, the remedy."""
    lines = error.strip().splitlines()
    why = re.sub(r"(jsonl|tar):", r"\1(\\.\\w+)?:", why)  # the same, compressed
    good = re.search(why, error, re.DOTALL) is not None and "Traceback" not in error and "a bug of ours" not in error
    return good and (code == 0 or (lines[-1].startswith("hnet: ") and name in lines[-1] and lines[-1].endswith(")")))
