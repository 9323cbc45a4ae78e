"""What the page of `hnet play` asks for: chunks of a text, its continuation, the text of a file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hnet_cli import modality as modalities
from hnet_cli.checkpoints.find import load_any, modality_of, starters
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.data.tokens import Tokenizer
from hnet_cli.errors import HNetError, InputError, StorageError, UsageError
from hnet_cli.inference.chunks_page import Piece, lists_of
from hnet_cli.inference.generate import Printer, generate, typical
from hnet_cli.inference.intake import one_document
from hnet_cli.inference.render import whole_characters
from hnet_cli.inference.segment import token_starts
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.inference.windows import own_modality, windows
from hnet_cli.modality import Document, Modality, Refused, Source, escape
from hnet_cli.model.config import EOS
from hnet_cli.report import history

MOST_BYTES = 20_000
"""Bytes of a text that are cut at once."""
MOST_FILE = 4 << 20
"""Bytes of a file that is dropped onto the page."""
MOST_NEW = 2_000
"""Bytes of a continuation."""
LOADED = 3
"""Models held in memory, those used last."""
RUNS = 50
"""Runs that are offered, the newest."""
Length = Annotated[float, Field(ge=1, le=1000)] | None
"""Bytes per chunk of the innermost stage; None: as the model has been trained."""


class Request(BaseModel):
    """A request that names a model by its place in the list of the page: never by a path."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: Annotated[int, Field(ge=0)]


class CutRequest(Request):
    """A text to cut."""

    text: Annotated[str, Field(max_length=MOST_BYTES)]
    bytes_per_chunk: Length = None
    bits: bool = True
    """False: without the bits of the bytes, for which the whole network has to run."""


class ContinueRequest(CutRequest):
    """A text to continue."""

    max_bytes: Annotated[int, Field(ge=1, le=MOST_NEW)] = 200
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.8
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] = 0


@dataclass(frozen=True)
class Choice:
    """A model, or a tokenizer, that the page offers."""

    name: str
    """As the user has named it."""
    modality: str | None
    is_tokenizer: bool = False


class Session:
    """The models of a page. Calls from several threads take turns."""

    def __init__(self, names: Sequence[str] = (), device: str = "cpu") -> None:
        """`names`: models and tokenizer.json files, which are offered first; starters and the newest runs follow."""
        others = [*starters(), *(str(run) for run in _runs())]
        self.choices = [_choice(name) for name in dict.fromkeys([*names, *others])]
        self.device, self._lock = device, Lock()
        self._loaded: OrderedDict[int, LoadedModel | Tokenizer] = OrderedDict()

    def offered(self) -> list[dict[str, Any]]:
        """What the page shows of the choices, and an example of each modality."""
        return [
            {"name": escape(choice.name), "modality": choice.modality, "example": _example(choice.modality)}
            for choice in self.choices
        ]

    def cut(self, request: CutRequest) -> dict[str, Any]:
        """The chunks of a text as the page draws them, and their figures.

        "lists" as in `chunks_page.lists_of`; "stages", "bytes", "chunks"; "bits" where they are asked for, None of a
        tokenizer.
        Raises UsageError, InputError, DamagedError, NumericalError.
        """
        data = _read(request.text)
        with self._lock:
            player = self.player(request.model)
            if isinstance(player, Tokenizer):
                return _cut_by_tokens(player, data)
            return _cut(player, data, Compression.of(None, request.bytes_per_chunk), request.bits)

    def continued(self, request: ContinueRequest) -> Iterator[str]:
        """The continuation of a text, piece by piece; the lock is free between two bytes. Errors as of `cut`."""
        data = _read(request.text)
        with self._lock:
            player = self.player(request.model)
            if isinstance(player, Tokenizer):
                raise InputError("a tokenizer cuts, it continues nothing", "choose a model")
            modality = own_modality(player)
            compression = Compression.of(None, request.bytes_per_chunk)
            with compression.used(player, lambda: typical(player, data, modality)):
                thresholds = player.thresholds
        try:
            drawn = generate(
                player,
                [data],
                max_bytes=request.max_bytes,
                temperature=request.temperature,
                seed=request.seed,
                eos=EOS,
                automaton=modality.automaton() if modality else None,
                input_table=modality.input_table if modality else None,
            )
        except UsageError as error:  # its hint is about options, which a page does not have
            raise UsageError(str(error), "correct the text, or choose another model") from error
        printer = Printer(modality)
        while True:
            with self._lock, player.set_thresholds(thresholds) if thresholds else nullcontext():
                each = next(drawn, None)
            if each is None:
                break
            if text := printer.feed(each.byte):
                yield text
        yield printer.finish()

    def text_of(self, number: int, data: bytes) -> tuple[str, bool]:
        """The beginning of the first document of a file's bytes, as the modality of a model reads it; True if there is
        more. Raises InputError where there is none."""
        if not 0 <= number < len(self.choices):
            raise InputError(f"there is no model {number}", "load the page again")
        name = self.choices[number].modality
        modality = modalities.get(name) if name else None
        source = Source.of_bytes(data, "the file")
        reason = "it is empty"
        # One text, so that a sequence needs no heading; else, since it may end inside a character, as files are read.
        for whole in (True, False):
            each = replace(source, whole=whole)
            for item in modality.documents(each) if modality else one_document(each):
                if not isinstance(item, Refused):
                    cut = (modality or Modality()).cut
                    read = item.data[: cut(item.data, MOST_BYTES)] if len(item.data) > MOST_BYTES else item.data
                    return read.decode("utf-8", "replace"), len(read) < len(item.data)
                reason = item.reason if whole else reason
        raise InputError(f"nothing of this file can be read: {reason}", "take another")

    def player(self, number: int) -> LoadedModel | Tokenizer:
        """A model by its place in the list, loaded if it is not. Raises InputError, DamagedError."""
        if number >= len(self.choices):
            raise InputError(f"there is no model {number}", "load the page again")
        if number not in self._loaded:
            self._loaded[number] = load_any(self.choices[number].name, self.device)
            while len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(number)
        return self._loaded[number]


def _runs() -> list[Path]:
    """The newest runs under `runs/` that have a model; none where the folder cannot be read."""
    try:
        glances = [history.glance(run) for run in history.find(Path("runs"))]
    except StorageError:
        return []
    usable = [run for run in glances if run.steps is not None and (run.path / "latest").exists()]
    return [run.path for run in sorted(usable, key=lambda run: run.when, reverse=True)[:RUNS]]


def _choice(name: str) -> Choice:
    if Path(name).is_file():
        return Choice(name, None, is_tokenizer=True)
    return Choice(name, modality_of(Path(name)))


def _example(name: str | None) -> str:
    """The example of a modality; empty where it is not installed, or broken: the other models are still offered."""
    try:
        return modalities.get(name).example if name else ""
    except HNetError:
        return ""


def _read(text: str) -> bytes:
    """The bytes of a text, at most `MOST_BYTES`; half of a surrogate pair, which UTF-8 cannot hold, is a "?"."""
    data = text.encode("utf-8", "replace")
    if len(data) > MOST_BYTES:
        raise InputError(f"the text has {len(data):,} bytes, {MOST_BYTES:,} can be cut at once", "shorten it")
    return data


def _cut(model: LoadedModel, data: bytes, compression: Compression, scored: bool) -> dict[str, Any]:
    modality = own_modality(model)
    table = modality.input_table if modality else None
    stages = model.config.num_stages
    places: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    probability, bits = [np.empty((0, stages))], [np.empty(0)]
    with (compression if data else UNCHANGED).used(model, lambda: [data.translate(table)]):
        for window in windows(model, [Document(data, "-", "-")], input_table=table, surprisal=scored):
            places.append(window.starts)
            probability.append(window.probability)
            bits.append(np.asarray(window.surprisal) if scored else bits[0])
    told = _told(data, np.concatenate(places), np.concatenate(probability), np.concatenate(bits), modality)
    return told | {"bits": round(float(np.nansum(np.concatenate(bits))), 2)} if scored else told


def _cut_by_tokens(tokenizer: Tokenizer, data: bytes) -> dict[str, Any]:
    starts = token_starts(tokenizer, data)
    told = _told(data, starts, np.ones((len(starts), 1)), np.empty(0), None)
    return told | {"bits": None}


def _told(
    data: bytes, places: np.ndarray, probability: np.ndarray, bits: np.ndarray, modality: Modality | None
) -> dict[str, Any]:
    """starts (n,), probability (n, S) as in `Window`, bits (len(data),) or none."""
    ends = [*places.tolist(), len(data)]
    drawn = whole_characters([data[a:b] for a, b in pairwise(ends)])
    syntax = (modality.syntax(Document(data, "-", "-")) if modality else None) or b""
    pieces, at = list[Piece](), 0
    for (a, b), text, row in zip(pairwise(ends), drawn, probability.tolist(), strict=True):
        pieces.append(Piece(a, b, text, tuple(row), bits[a:b], syntax[at : at + len(text)]))
        at += len(text)
    return {
        "lists": lists_of(pieces, probability.shape[1]),
        "stages": probability.shape[1],
        "bytes": len(data),
        "chunks": [int(count) for count in (~np.isnan(probability)).sum(0)],
    }
