"""How much dearer distorted documents are to a model than the documents themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from hnet_cli.evaluation.resampling import ratio, with_interval
from hnet_cli.evaluation.scoring import Scores, score
from hnet_cli.modality import Perturbation
from hnet_cli.model import HNetForCausalLM


def robustness(
    model: HNetForCausalLM,
    documents: Sequence[bytes],
    perturbations: Mapping[str, Perturbation],
    context: int | None,
    stride: int | None,
    table: bytes | None = None,
    seed: int = 0,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> dict[str, Any]:
    """Per perturbation of the documents (as stored): `bpb` of the distorted bytes; `bits_per_clean_byte`, their bits
    over the number of bytes before (a distortion that doubles the bytes would else look cheap); `ratio`, this over the
    clean bpb. A document's chance depends on (seed, name, number) only. Intervals are paired over documents, or where
    these are too few over windows, the distorted ones taken with the clean ones at the same part of their document.
    `progress` is told how many are done, of the clean documents and the perturbations."""

    def scored(data: Sequence[bytes]) -> Scores:
        return score(model, [each.translate(table) for each in data], context, stride)

    documents = [each for each in documents if each]
    progress(0, "clean")
    before = scored(documents)
    first = before.units(before.nats / math.log(2), before.bytes)
    result: dict[str, Any] = {"clean": with_interval("bpb", first) | {"bytes": int(first[:, 1].sum())}}
    for done, (name, perturb) in enumerate(perturbations.items(), 1):
        progress(done, name)
        distorted = [perturb(data, Random(f"{seed} {name} {number}")) for number, data in enumerate(documents)]
        rows = _paired(before, scored(distorted), np.flatnonzero([len(each) > 0 for each in distorted]))

        def dearer(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[..., [0, 2]])

        result[name] = {
            **with_interval("bpb", rows[:, :2]),
            **with_interval("bits_per_clean_byte", rows[:, [0, 3]]),
            **with_interval("ratio", rows, dearer),
        }
    return result


def _paired(clean: Scores, noisy: Scores, kept: np.ndarray) -> np.ndarray:
    """(U, 4) float64: bits and bytes of the distorted documents, then of the clean ones. `kept`: the clean document of
    each distorted one, for a distortion may leave nothing."""
    parts = np.ones(clean.documents, np.int64)  # of each document
    windows = np.bincount(clean.owner, minlength=clean.documents)
    if clean.unit == "window":
        parts[kept] = np.minimum(windows[kept], np.bincount(noisy.owner, minlength=len(kept)))
    first = np.cumsum(parts) - parts
    rows = np.zeros((int(parts.sum()), 4))
    for scores, owner, column in ((noisy, kept[noisy.owner], 0), (clean, clean.owner, 2)):
        counts = np.bincount(owner, minlength=clean.documents)
        index = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]  # of the window in its document
        unit = first[owner] + index * parts[owner] // counts[owner]
        np.add.at(rows, (unit, column), scores.nats / math.log(2))
        np.add.at(rows, (unit, column + 1), scores.bytes)
    return rows
