"""What a trained member is on the held-out documents: bits per document clean and distorted, its chunks; kept in
`measured/`, so that nothing is computed twice."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hnet_cli import modality, storage
from hnet_cli.checkpoints.find import load
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.errors import InputError
from hnet_cli.evaluation.material import Material, gather
from hnet_cli.evaluation.report import precision, share
from hnet_cli.evaluation.resampling import FEWEST
from hnet_cli.evaluation.scoring import COLUMNS, Scores, score

FORMAT = 2
NOISE_SHARE = 0.25
"""Of the held-out bytes: how many are distorted, in each of the ways; every document gives its share."""


@dataclass(frozen=True)
class Exam:
    """The documents all members are measured on, and how."""

    documents: list[bytes]
    """As stored."""
    noisy: list[bytes]
    """Of them, what is distorted."""
    kind: modality.Modality
    context: int
    """Bytes of a window: a byte is predicted from those before it in its window, and one more."""
    chosen: str

    @staticmethod
    def of(data: Path, kind: modality.Modality, max_bytes: int, context: int) -> Exam:
        """Raises InputError where the held-out split is too small to say anything."""
        material: Material = gather([str(data)], kind, max_bytes or None)
        if material.bytes < FEWEST * context:
            raise InputError(
                f"{material.bytes:,} held-out bytes of {data} are less than {FEWEST} windows of {context:,}",
                "give a larger --max-bytes, or prepare the data with a larger --val",
            )
        limit = int(NOISE_SHARE * material.bytes)
        noisy = [each.data for each in share(material.documents, limit)]
        return Exam([each.data for each in material.documents], noisy, kind, context, material.chosen)

    @property
    def bytes(self) -> int:
        return sum(map(len, self.documents))

    @property
    def passes(self) -> float:
        """How often the held-out bytes are read in all."""
        return 1 + NOISE_SHARE * (1 + len(self.kind.perturbations()))

    def key(self, model: Path) -> str:
        """Of everything that a measurement depends on."""
        digest = hashlib.sha256(f"{FORMAT} {self.context} {NOISE_SHARE} {self.kind.name}".encode())
        for data in (*self.documents, *self.noisy):
            digest.update(hashlib.sha256(data).digest())
        digest.update((model / storage.MANIFEST).read_bytes())
        return digest.hexdigest()


def measured(file: Path, model: Path, exam: Exam, device: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """The measurement of the model folder `model`, from `file` if it is there, else made and written. `tell` hears
    what is being done. Raises DamagedError, NumericalError, StorageError."""
    key = exam.key(model)
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["key"] == key:
            return dict(known)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = {"key": key} | _measure(model, exam, device, tell)
    storage.make_folder(file.parent)
    storage.write_json(file, found)
    return found


def _measure(folder: Path, exam: Exam, device: str, tell: Callable[[str], None]) -> dict[str, Any]:
    model = load(folder, device)
    table = exam.kind.input_table

    def scored(data: Sequence[bytes]) -> Scores:
        return score(model, [each.translate(table) for each in data], exam.context)

    _, autocast = precision(model)
    with autocast:
        tell("held-out documents")
        began = time.monotonic()
        clean = scored(exam.documents)
        seconds = time.monotonic() - began
        tell("undistorted")
        noise = {"": _documents(scored(exam.noisy), exam.noisy)}
        for name, perturb in exam.kind.perturbations().items():
            tell(name)
            distorted = [perturb(data, Random(f"0 {name} {number}")) for number, data in enumerate(exam.noisy)]
            noise[name] = _documents(scored(distorted), distorted)
    columns = {name: float(clean.stages[:, 0, n].sum()) for n, name in enumerate(COLUMNS) if clean.stages.shape[1]}
    boundaries = clean.stages[:, :, COLUMNS.index("boundaries")].sum(0).tolist()
    return {
        "unit": clean.unit,
        "units": clean.units(clean.nats / math.log(2), clean.bytes).tolist(),
        "noise": noise,
        "tokens": _tokens(model, [each.translate(table) for each in exam.documents], exam.context),
        "positions": columns.get("positions", 0.0),
        "boundaries": boundaries,
        "seconds": seconds,
        "bytes_per_s": float(clean.bytes.sum()) / seconds,
    }


def _tokens(model: LoadedModel, documents: Sequence[bytes], context: int) -> int | None:
    """Tokens of all windows; None of a model that reads bytes."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None
    windows = [data[at : at + context] for data in documents for at in range(0, len(data), context)]
    return sum(map(len, tokenizer.encode(windows)))


def _documents(scores: Scores, documents: Sequence[bytes]) -> list[list[float]]:
    """Bits and bytes of each document; of one without bytes, zeros."""
    rows = np.zeros((len(documents), 2))
    rows[[n for n, data in enumerate(documents) if data]] = scores.per_document(
        np.stack([scores.nats / math.log(2), scores.bytes], 1)
    )
    return rows.tolist()
