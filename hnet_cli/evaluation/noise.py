"""Cost of distorted documents relative to the clean ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from hnet_cli.evaluation.resampling import ratio, with_interval
from hnet_cli.inference.scoring import Scores
from hnet_cli.modality import Perturbation
from hnet_cli.terminal.console import progress


def distorted(documents: Sequence[bytes], name: str, perturb: Perturbation) -> list[bytes]:
    """The documents distorted; the random numbers depend only on the name and the index of a document."""
    return [perturb(data, Random(f"0 {name} {number}")) for number, data in enumerate(documents)]


def robustness(
    score: Callable[[Sequence[bytes]], Scores],
    documents: Sequence[bytes],
    perturbations: Mapping[str, Perturbation],
    owners: Sequence[int] | np.ndarray | None = None,
) -> dict[str, Any]:
    """Figures of "clean" and of every perturbation of the documents, which are as stored; `score` reads such.
    `owners`: where these are stretches, the documents that they are of, ascending.

    `bpb`: bits per distorted byte. `bits_per_clean_byte`: the same bits over the bytes before the distortion (one that
    doubles the bytes would otherwise look cheap). `ratio`: that over the clean bpb. Intervals are paired over documents
    or, where these are too few, over windows: a distorted one with the clean one at the same part of its document.
    """

    def relative(sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., [0, 2]])

    if owners is not None:
        filled = [owner for owner, data in zip(owners, documents, strict=True) if data]
        owners = np.unique(filled, return_inverse=True)[1]
    documents = [data for data in documents if data]
    with progress("noise", 1 + len(perturbations)) as bar:
        bar.update(0, note="clean")
        clean = score(documents)
        grouped = clean.grouped(owners)
        units = grouped.units(grouped.bits, grouped.bytes)
        result: dict[str, Any] = {"clean": with_interval("bpb", units) | {"bytes": int(units[:, 1].sum())}}
        for done, (name, perturb) in enumerate(perturbations.items(), 1):
            bar.update(done, note=name)
            noisy = distorted(documents, name, perturb)
            rows = _paired(clean, score(noisy), np.flatnonzero([len(data) > 0 for data in noisy]), owners)
            result[name] = {
                **with_interval("bpb", rows[:, :2]),
                **with_interval("bits_per_clean_byte", rows[:, [0, 3]]),
                **with_interval("ratio", rows, relative),
            }
    return result


def _paired(
    clean: Scores, noisy: Scores, origin: np.ndarray, owners: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """(U, 4) float64: bits and bytes of the distorted documents, then of the clean ones. `origin`: index of the clean
    document of each distorted one, since a distortion may leave nothing. `owners`: where these are stretches, the
    documents that they are of."""
    by_window = clean.grouped(owners).unit == "window"
    parts = np.ones(clean.documents, np.int64)  # of each document
    windows = np.bincount(clean.owner, minlength=clean.documents)
    if by_window:
        parts[origin] = np.minimum(windows[origin], np.bincount(noisy.owner, minlength=len(origin)))
    first = np.cumsum(parts) - parts
    rows = np.zeros((int(parts.sum()), 4))
    for scores, owner, column in ((noisy, origin[noisy.owner], 0), (clean, clean.owner, 2)):
        counts = np.bincount(owner, minlength=clean.documents)
        index = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]  # of the window in its document
        unit = first[owner] + index * parts[owner] // counts[owner]
        np.add.at(rows, (unit, column), scores.bits)
        np.add.at(rows, (unit, column + 1), scores.bytes)
    if by_window or owners is None:
        return rows
    of_documents = np.zeros((int(max(owners)) + 1, 4))
    np.add.at(of_documents, np.asarray(owners), rows)
    return of_documents
