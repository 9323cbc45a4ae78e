"""Measurement of a trained member on the held-out documents: bits per document, clean and distorted, and its chunks;
kept in `measured/`, so that nothing is computed twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hnet_cli import storage
from hnet_cli.checkpoints.find import load
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.comparison.plan import ComparisonPlan
from hnet_cli.config.bounds import Bounds, typed
from hnet_cli.errors import DamagedError, InputError
from hnet_cli.evaluation.material import equal_shares, gather
from hnet_cli.evaluation.noise import distorted
from hnet_cli.inference.scoring import COLUMNS, FEWEST, Scores, precision, score
from hnet_cli.inference.thresholds import SAMPLE_BYTES, UNCHANGED, Compression
from hnet_cli.modality import Document, Modality
from hnet_cli.storage import shown

FORMAT = 3
NOISE_SHARE = 0.25
"""Share of the held-out bytes that are distorted, in each of the ways; every document gives its share."""


@dataclass(frozen=True)
class Exam:
    """The documents all members are measured on, and how."""

    documents: list[bytes]
    """Documents as stored."""
    noisy: list[bytes]
    """The parts of them that are distorted."""
    modality: Modality
    context: int
    """Bytes of a window: a byte is predicted from those before it in its window, and one more."""
    chosen: str
    """The choice of documents, in words."""
    owners: Sequence[int] | None = None
    """The field of the same name in `Material`."""
    noisy_owners: Sequence[int] | None = None
    """The same of the parts that are distorted."""
    compression: Compression = UNCHANGED
    """Choice of boundaries of the members that learn them."""

    @staticmethod
    def of(plan: ComparisonPlan) -> Exam:
        """Raises InputError where the held-out split is too small to say anything."""
        material = gather([str(plan.data)], plan.modality, plan.max_bytes or None, context=plan.context)
        held_out = plan.dataset.nbytes("val")
        asked = min(plan.max_bytes or held_out, held_out)
        if asked < FEWEST * plan.context:
            raise InputError(
                f"{asked:,} held-out bytes of {plan.data} are less than {FEWEST} windows of {plan.context:,}",
                "give a larger --max-bytes, or prepare the data with a larger --val",
            )
        noisy = material.shares(int(NOISE_SHARE * material.bytes))
        return Exam(
            [document.data for document in material.documents],
            [document.data for document in noisy.documents],
            plan.modality,
            plan.context,
            material.chosen,
            material.owners,
            noisy.owners,
            plan.compression,
        )

    @property
    def bytes(self) -> int:
        return sum(map(len, self.documents))

    @property
    def passes(self) -> float:
        """Number of times that the held-out bytes are read in all."""
        return 1 + NOISE_SHARE * (1 + len(self.modality.perturbations()))

    def key(self, model: Path) -> str:
        """A hash of everything that a measurement of the model folder depends on."""
        noise = f"{NOISE_SHARE} {list(self.modality.perturbations())}"
        digest = hashlib.sha256(f"{FORMAT} {self.context} {noise} {self.modality.name} {self.owners}".encode())
        for data in (*self.documents, *self.noisy):
            digest.update(hashlib.sha256(data).digest())
        if not self.compression.is_default:
            digest.update(repr(self.compression).encode())
        digest.update(storage.read_bytes(model / storage.MANIFEST))
        return digest.hexdigest()


Number = Annotated[float, Bounds(least=-1e30, most=1e30)]


@dataclass
class _Measurement:
    """Content of a file of `measured/`, typed and bounded; a file that does not fit is measured again."""

    key: str
    unit: str
    units: list[tuple[Number, Number]]
    noise: dict[str, list[tuple[Number, Number]]]
    tokens: Number | None
    positions: Number
    boundaries: list[Number]
    seconds: Number
    bytes_per_s: Number
    thresholds: list[Number] | None = None
    """Thresholds of the learned stages, where they were chosen."""


def measured(file: Path, model: Path, exam: Exam, device: str, note: Callable[[str], None]) -> dict[str, Any]:
    """The measurement of the model folder `model`, from `file` if it is there, otherwise made and written.

    `note` gets what is being done. Raises DamagedError, NumericalError, StorageError.
    """
    key = exam.key(model)
    try:
        known = storage.read_json(file, storage.LARGE)
        if known.get("key") == key:
            typed(_Measurement, known, shown(file))
            return known
    except (FileNotFoundError, DamagedError):
        pass
    measurement = {"key": key} | _measure(model, exam, device, note)
    storage.make_folder(file.parent)
    storage.write_json(file, measurement)
    return measurement


def _measure(folder: Path, exam: Exam, device: str, note: Callable[[str], None]) -> dict[str, Any]:
    model = load(folder, device)

    def read(documents: Sequence[bytes]) -> list[bytes]:
        return [data.translate(exam.modality.input_table) for data in documents]

    def per_document(documents: Sequence[bytes]) -> list[list[float]]:
        """Bits and bytes of each part, or of the documents they are of where these are enough to draw; of one without
        bytes, zeros."""
        scores = score(model, read(documents), exam.context)
        rows = np.zeros((len(documents), 2))
        filled = [number for number, data in enumerate(documents) if data]
        rows[filled] = scores.per_document(np.stack([scores.bits, scores.bytes], 1))
        firsts = np.unique(exam.noisy_owners or [], return_index=True)[1]
        if len(firsts) >= FEWEST:
            rows = np.add.reduceat(rows, firsts)
        return rows.tolist()

    def sample() -> list[bytes]:
        documents = [Document(data, "", "") for data in exam.documents]
        return read([each.data for each in equal_shares(documents, SAMPLE_BYTES)])

    with precision(model)[1]:
        applied = exam.compression.apply(model, sample) if model.thresholds else None
        note("held-out documents")
        began = time.monotonic()
        clean: Scores = score(model, read(exam.documents), exam.context)
        seconds = time.monotonic() - began
        clean = clean.grouped(exam.owners)
        note("undistorted")
        noise = {"": per_document(exam.noisy)}
        for name, perturb in exam.modality.perturbations().items():
            note(name)
            noise[name] = per_document(distorted(exam.noisy, name, perturb))
    columns = clean.stages.sum(0)
    return {
        "unit": clean.unit,
        "units": clean.units(clean.bits, clean.bytes).tolist(),
        "noise": noise,
        "tokens": _tokens(model, read(exam.documents), exam.context),
        "positions": float(columns[0, COLUMNS.index("positions")]) if len(columns) else 0.0,
        "boundaries": columns[:, COLUMNS.index("boundaries")].tolist(),
        "seconds": seconds,
        "bytes_per_s": float(clean.bytes.sum()) / seconds,
        "thresholds": applied.thresholds if applied else None,
    }


def _tokens(model: LoadedModel, documents: Sequence[bytes], context: int) -> int | None:
    """Tokens of all windows; None for a model that reads bytes."""
    if model.tokenizer is None:
        return None
    windows = [data[at : at + context] for data in documents for at in range(0, len(data), context)]
    return sum(map(len, model.tokenizer.encode(windows)))
