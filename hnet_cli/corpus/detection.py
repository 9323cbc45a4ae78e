"""Which modality the inputs are, from the first bytes of some of them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

from hnet_cli import modality as modalities
from hnet_cli.corpus.contents import sources
from hnet_cli.corpus.inputs import FileReader, InputFile, expand
from hnet_cli.errors import HNetError, InputError
from hnet_cli.modality import Modality, Refused
from hnet_cli.streams import decompressed

FLOOR = 0.1
"""Confidence below which nobody claims the input."""
HEAD = 1 << 16
FILES, PER_FILE = 24, 4
"""How many files are sampled, and how many members or rows of each."""


def detect(inputs: Sequence[str | Path], field: str | None = None) -> tuple[str, float, str]:
    """(name of the most likely modality, confidence from 0 to 1, why). Standard input is looked at, not consumed.

    Raises InputError where no installed modality knows the input, and for input that cannot be opened.
    """
    heads, failure = [], None
    files = [found for _, found in expand(inputs, Modality()) if isinstance(found, InputFile)]
    for file in files[:: max(1, -(-len(files) // FILES))]:
        try:
            heads += [(name, head) for name, head in _heads(file, field) if head]
        except InputError as error:
            failure = failure or error
    if not heads:
        raise failure or InputError(f"no data in {', '.join(map(str, inputs))}", "name files that are not empty")
    judges = []
    for name in modalities.names():
        with contextlib.suppress(HNetError):  # a broken plugin must not hurt the others
            judges.append(modalities.get(name))
    # Each sample votes for the modality that claims it most: beside its FASTA a genome has tables that are mere text.
    votes: dict[str, float] = defaultdict(float)
    examples: dict[str, list[str]] = {}
    for called, head in heads:
        confidence, name = max(((judge.detect(called, head), judge.name) for judge in judges), default=(0.0, ""))
        if confidence >= FLOOR:
            votes[name] += confidence
            examples.setdefault(name, []).append(called)
    if not votes:
        raise InputError(
            f"{heads[0][0]} is of no known modality", f"choose one of --modality {', '.join(modalities.names())}"
        )
    likely = max(votes, key=votes.__getitem__)
    agreeing = examples[likely]
    first = agreeing[0] if len(heads) == 1 else f"{len(agreeing)} of {len(heads)} samples, {agreeing[0]} first"
    return likely, votes[likely] / len(agreeing), f"by the look of {first}"


def _heads(file: InputFile, field: str | None) -> Iterator[tuple[str, bytes]]:
    """Names and first decompressed bytes of what a file holds."""
    if file.is_stdin:
        yield "-", _peeked()
        return
    for source in islice(sources(FileReader(file), field, Counter()), PER_FILE):
        if not isinstance(source, Refused):
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
