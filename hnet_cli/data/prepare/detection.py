"""Which modality the inputs are, from the first bytes of some of them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import cast

from hnet_cli import modality as modalities
from hnet_cli.data.prepare.contents import sources
from hnet_cli.data.prepare.inputs import FileReader, InputFile, expand
from hnet_cli.errors import HNetError, InputError
from hnet_cli.modality import Modality, Refused
from hnet_cli.storage.streams import decompressed

FLOOR = 0.1
"""Confidence below which nobody claims the input."""
STRAY = 0.7
"""Confidence at which a file of another kind than the rest is named."""
HEAD = 1 << 16
FILES, PER_FILE = 24, 4
"""How many files are sampled, and how many members or rows of each."""


def detect(inputs: Sequence[str | Path], field: str | None = None) -> tuple[str, float, str]:
    """(name of the most likely modality, confidence from 0 to 1, why). Standard input is looked at, not consumed.

    Raises InputError where no installed modality knows the input, and for input that cannot be opened.
    """
    heads: list[tuple[str, bytes, float]] = []
    damaged: list[Refused] = []
    failure = None
    files = [each for _, each in expand(inputs, Modality()) if isinstance(each, InputFile)]
    for file in files[:: max(1, -(-len(files) // FILES))]:
        try:
            found = [(name, head) for name, head in _heads(file, field, damaged) if head]
            heads += [(name, head, max(file.size, len(head)) / len(found)) for name, head in found]
        except InputError as error:
            failure = failure or error
    if not heads:
        if damaged and not failure:
            failure = InputError(f"{damaged[0].where}: {damaged[0].reason}", "name other input, or another --field")
        raise failure or InputError(f"no data in {', '.join(map(str, inputs))}", "name files that are not empty")
    judges = []
    for name in modalities.names():
        with contextlib.suppress(HNetError):  # a broken plugin must not hurt the others
            judges.append(modalities.get(name))
    # Each sample votes for the modality that claims it most: beside its FASTA a genome has tables that are mere text.
    # The larger the file, the more it counts, by the root: neither one stray file decides, nor one long README.
    votes: dict[str, float] = defaultdict(float)
    agreeing: dict[str, list[tuple[str, float]]] = {}
    for called, head, size in heads:
        confidence, name = max(((judge.detect(called, head), judge.name) for judge in judges), default=(0.0, ""))
        if confidence >= FLOOR:
            votes[name] += confidence * size**0.5
            agreeing.setdefault(name, []).append((called, confidence))
    if not votes:
        raise InputError(
            f"{heads[0][0]} is of no known modality", f"choose one of --modality {', '.join(modalities.names())}"
        )
    likely = max(votes, key=votes.__getitem__)
    first, confidence = agreeing[likely][0][0], fmean(sure for _, sure in agreeing[likely])
    if len(heads) == 1:
        return likely, confidence, f"by the look of {first}"
    # What some other modality is surer of than anybody is of mere text is worth a word: it is read like the rest.
    others = "".join(
        f"; {strays[0][0]} looks like {name} and would be read as {likely}"
        for name, claimed in agreeing.items()
        if name != likely and (strays := [each for each in claimed if each[1] >= STRAY])
    )
    return likely, confidence, f"by the look of {len(agreeing[likely])} of {len(heads)} samples, {first} first{others}"


def _heads(file: InputFile, field: str | None, damaged: list[Refused]) -> Iterator[tuple[str, bytes]]:
    """Names and first decompressed bytes of what a file holds; what cannot be read is added to `damaged`."""
    if file.is_stdin:
        yield "-", _peeked()
        return
    for source in islice(sources(FileReader(file), field, Counter()), PER_FILE):
        if isinstance(source, Refused):
            damaged += [source] if source.damaged else []
        else:
            with source.open() as stream:
                yield source.name, stream.read(HEAD)


def _peeked() -> bytes:
    """The first bytes of standard input, decompressed as far as they go, left there to be read again."""
    ahead = cast(io.BufferedReader, sys.stdin.buffer).peek(HEAD)
    plain = decompressed(io.BytesIO(ahead), "-")
    head = b""
    with contextlib.suppress(InputError):  # what is there ends in the middle
        while len(head) < HEAD and (more := plain.raw.read(256)):
            head += more
    return head
