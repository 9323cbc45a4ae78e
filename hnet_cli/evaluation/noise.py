"""How much dearer distorted documents are to a model than the documents themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from hnet_cli.evaluation.resampling import ratio, with_interval
from hnet_cli.evaluation.scoring import score
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
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Per perturbation of the documents (as stored): `bpb` of the distorted bytes; `bits_per_clean_byte`, their bits
    over the number of bytes before (a distortion that doubles the bytes would else look cheap); `ratio`, this over the
    clean bpb. A document's chance depends on (seed, name, number) only. Intervals are paired over documents."""

    def per_document(data: Sequence[bytes]) -> np.ndarray:
        scored = score(model, [each.translate(table) for each in data], context, stride)
        return scored.per_document(np.stack([scored.nats / math.log(2), scored.bytes], 1))

    documents = [each for each in documents if each]
    progress("clean")
    clean = per_document(documents)
    result: dict[str, Any] = {"clean": with_interval("bpb", clean) | {"bytes": int(clean[:, 1].sum())}}
    for name, perturb in perturbations.items():
        progress(name)
        distorted = [perturb(data, Random(f"{seed} {name} {number}")) for number, data in enumerate(documents)]
        kept = np.array([len(each) > 0 for each in distorted])
        noisy = np.zeros_like(clean)
        noisy[kept] = per_document(distorted)
        rows = np.concatenate([noisy, clean], 1)

        def dearer(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[..., [0, 2]])

        result[name] = {
            **with_interval("bpb", noisy),
            **with_interval("bits_per_clean_byte", rows[:, [0, 3]]),
            **with_interval("ratio", rows, dearer),
        }
    return result
