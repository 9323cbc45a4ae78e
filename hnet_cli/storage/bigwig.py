"""bigWig, which pyBigWig writes under the name of a staged file."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hnet_cli.errors import EnvironmentLimit, InputError
from hnet_cli.storage.files import GrowingFile

ENTRIES = 1 << 16
"""Entries written at once."""
ROW = np.dtype([("start", "<u4"), ("value", "<f4")])


def library() -> Any:
    """pyBigWig. Raises EnvironmentLimit where it is not installed."""
    try:
        import pyBigWig
    except ImportError as error:
        raise EnvironmentLimit("bigWig needs the package pyBigWig", "pip install 'hnet-cli[bigwig]'") from error
    return pyBigWig


def write_bigwig(pieces: Iterable[str], path: str, spool: GrowingFile, lengths: Callable[[], dict[str, int]]) -> None:
    """Write bedGraph rows of one base each, sorted within a record, as bigWig under `path`.

    A bigWig begins with the `lengths` of all records, known when all is read: the rows wait in `spool`. Raises
    InputError for a record that comes twice, EnvironmentLimit.
    """
    library()
    places: dict[str, int] = {}
    """Offset in the spool of the rows of each record; they end where those of the next begin."""
    now, last = "", -1
    for piece in pieces:
        rows: list[tuple[int, float]] = []
        for line in piece.splitlines():
            name, start, _, value = line.rsplit("\t", 3)
            if name != now or int(start) <= last:
                spool.write(np.array(rows, ROW))
                rows = []
                if name in places:
                    raise InputError(f"two sequences are called {name[:40]}", "a bigWig holds a sequence once")
                places[name], now = spool.size, name
            last = int(start)
            rows.append((last, float(value)))
        spool.write(np.array(rows, ROW))
    known = lengths()
    ends = [*list(places.values())[1:], spool.size]
    try:
        with library().open(path, "w") as file:
            file.addHeader([(name, known[name]) for name in places])
            for (name, begin), end in zip(places.items(), ends, strict=True):
                for at in range(begin, end, ENTRIES * ROW.itemsize):
                    block = np.frombuffer(spool.read(at, min(ENTRIES * ROW.itemsize, end - at)), ROW)
                    values = block["value"].astype(np.float64)
                    file.addEntries(name, block["start"].astype(np.int64), values=values, span=1)
    except RuntimeError as error:  # which is what the library raises where a disk is full
        raise OSError(errno.EIO, f"pyBigWig: {error}") from error
