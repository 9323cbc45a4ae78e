"""Detection of the modality of the inputs, from the first bytes of some of them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import cast

from hnet_cli import modality as modalities
from hnet_cli.data.prepare.contents import first_sources, sources
from hnet_cli.data.prepare.inputs import FileReader, InputFile, expand
from hnet_cli.data.prepare.rows import Field, NoField, NoRows
from hnet_cli.errors import HNetError, InputError
from hnet_cli.modality import Modality, Refused, Source, wide_reason
from hnet_cli.storage.streams import decompressed, shown

FLOOR = 0.1
"""Confidence below which no modality claims the input."""
STRAY = 0.7
"""Confidence at which a file of another kind than the rest is named."""
SAMPLE_BYTES = 1 << 16
FILES, PER_FILE = 24, 4
"""Number of files that are sampled, and of members or rows of each."""
MOST_LOOKED_AT = 1000
"""Members or rows of a file after which none of use is expected."""


def detect(inputs: Sequence[str | Path], field: Field = None) -> tuple[str, float, str]:
    """(name of the most likely modality, confidence from 0 to 1, why). Standard input is looked at, not consumed.

    Raises InputError where no installed modality knows the input, and for input that cannot be opened.
    """
    heads = _samples(inputs, field)
    judges = []
    for name in modalities.names():
        with contextlib.suppress(HNetError):  # a broken plugin must not hurt the others
            judges.append(modalities.get(name))
    # Each sample votes for the modality that claims it most: beside its FASTA a genome has tables that are mere text.
    # The larger the file, the more it counts, by the root: neither one stray file decides, nor one long README.
    votes: dict[str, float] = defaultdict(float)
    claims: dict[str, list[tuple[str, float]]] = {}
    for label, head, size in heads:
        confidence, name = max(((judge.detect(label, head), judge.name) for judge in judges), default=(0.0, ""))
        if confidence >= FLOOR:
            votes[name] += confidence * size**0.5
            claims.setdefault(name, []).append((label, confidence))
    if not votes:
        label, head, _ = heads[0]
        if reason := wide_reason(head):
            raise InputError(f"{label} is {reason}")
        hint = f"choose one of --modality {', '.join(modalities.names())}"
        raise InputError(f"{label} is of no known modality", hint)
    likely = max(votes, key=votes.__getitem__)
    first, confidence = claims[likely][0][0], fmean(certainty for _, certainty in claims[likely])
    if len(heads) == 1:
        return likely, confidence, f"by the look of {first}"
    # A file that another modality is surer of than any is of mere text is worth a word: it is read like the rest.
    strays = {
        name: next((label for label, certainty in claimed if certainty >= STRAY), None)
        for name, claimed in claims.items()
        if name != likely
    }
    others = "".join(
        f"; {label} looks like {name} and would be read as {likely}" for name, label in strays.items() if label
    )
    return likely, confidence, f"by the look of {len(claims[likely])} of {len(heads)} samples, {first} first{others}"


def _samples(inputs: Sequence[str | Path], field: Field) -> list[tuple[str, bytes, float]]:
    """(name, first bytes, weight in bytes) of some inputs, at least one. Raises InputError where there is none."""
    samples: list[tuple[str, bytes, float]] = []
    refused: list[Refused] = []
    failure: HNetError | None = None
    items = [item for _, item in expand(inputs, Modality())]
    files = [item for item in items if isinstance(item, InputFile)]
    chosen = files[:: max(1, -(-len(files) // FILES))]
    for number, file in enumerate([*chosen, *files]):
        if number >= len(chosen) and (samples or not isinstance(failure, NoRows)):
            break  # the others only in search of rows
        try:
            heads = [(name, head) for name, head in _heads(file, field, refused) if head]  # of stdin it may be empty
            samples += [(name, head, max(file.size, len(head)) / len(heads)) for name, head in heads]
        except (InputError, NoField) as error:
            if file.named and isinstance(error, NoField):
                raise
            failure = failure or error
    if not samples:
        if refused and not failure:
            failure = InputError(
                f"{refused[0].where}: {refused[0].reason}", "name other input, another --field, or --modality"
            )
        why = next((f": {item.reason} ({item.where})" for item in items if isinstance(item, Refused)), "")
        raise failure or InputError(f"no data in {', '.join(map(shown, inputs))}{why}", "name files that are not empty")
    return samples


def _heads(file: InputFile, field: Field, refused: list[Refused]) -> Iterator[tuple[str, bytes]]:
    """Names and first decompressed bytes of a file's contents; what cannot be read is added to `refused`."""
    if file.is_stdin:
        found = list(_heads_of(_first_sources(file, head := _peek(), field), refused))
        yield from found or [("-", head)]
        return
    yield from _heads_of(sources(FileReader(file), field, Counter()), refused)


def _first_sources(file: InputFile, head: bytes, field: Field) -> Iterator[Source | Refused]:
    with contextlib.suppress(InputError, NoRows):  # it ends in the middle
        yield from first_sources(FileReader(file), head, field)


def _heads_of(sources: Iterable[Source | Refused], refused: list[Refused]) -> Iterator[tuple[str, bytes]]:
    found = 0
    for source in islice(sources, MOST_LOOKED_AT):
        if isinstance(source, Refused):
            refused.append(source)
            continue
        with source.open() as stream:
            head = stream.read(SAMPLE_BYTES)
        if head:
            yield source.name, head
            found += 1
        if found == PER_FILE:
            return


def _peek() -> bytes:
    """The first bytes of standard input, decompressed as far as they go, left there to be read again."""
    ahead = cast(io.BufferedReader, sys.stdin.buffer).peek(SAMPLE_BYTES)
    plain = decompressed(io.BytesIO(ahead), "-")
    head = b""
    with contextlib.suppress(InputError):  # the bytes at hand end in the middle
        while len(head) < SAMPLE_BYTES and (more := plain.raw.read(256)):
            head += more
    return head
