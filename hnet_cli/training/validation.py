"""Validation: bits per byte over held-out documents with exact byte counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.data.loader import Batch, Windows
from hnet_cli.data.tokens import tokenised
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.kernels.packing import send
from hnet_cli.kernels.reference import exact
from hnet_cli.model import HNetForCausalLM
from hnet_cli.training.elastic import shares_of
from hnet_cli.training.health import read, routing_counts, stage_metrics

PIECE = 32_768
"""Bytes per forward pass where the caller asks for no smaller size."""


@torch.no_grad()
def validation(
    model: HNetForCausalLM,
    held_out: Windows,
    target_ratios: list[float],
    piece: int | None = None,
    world: World = ALONE,
    progress: Callable[[int], None] = lambda done: None,
    budget: float = 1,
) -> dict[str, Any]:
    """Score windows of the validation split.

    `piece`: bytes per forward pass; that of training takes no more memory than training. Every byte counts exactly
    once, the first of a document too (it is predicted from the document mark); a window that does not begin a document
    begins with the byte before it and knows nothing older. `progress` gets the bytes begun. Returns `bpb` (bits per
    byte, unweighted), `bytes`, and the figures of `stage_metrics`. The ranks of a `world` take the passes in turn; the
    result is that of one rank. `budget`: of all windows, as in training for several; the stages' figures are not of it.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    learned = [router.learned for router in model.routers]
    nats, counts, passes, total = list[Tensor](), list[Tensor](), 0, 0

    def score(batch: Batch) -> None:
        batch = batch if model.tokenizer is None else tokenised(batch, model.tokenizer)
        inputs, targets, cu_seqlens, _ = to_device(batch, device)
        shares = None if budget == 1 else shares_of([budget] * len(batch.documents), target_ratios, learned)
        out = model(inputs, cu_seqlens=cu_seqlens, shares=shares)
        nats.append(F.cross_entropy(out.logits.float(), targets, reduction="sum").to(exact(device)))
        counts.append(routing_counts(out.routing))

    for batch in held_out.batches(piece or PIECE):
        if passes % world.size == world.rank:
            score(batch)
        passes, total = passes + 1, total + batch.nbytes
        progress(total)
    if len(nats) * world.size < passes:  # every rank gathers as many; this one is not counted
        score(batch)
    model.train(was_training)

    def total_of(values: list[Tensor]) -> Tensor:
        """The sum over the passes of all ranks, in their order."""
        return world.gather(torch.stack(values)).transpose(0, 1).flatten(0, 1)[:passes].sum(0)

    numbers = read({"nats": total_of(nats), "counts": total_of(counts)})
    bpb = numbers["nats"][0] / total / math.log(2)
    return {"bpb": bpb, "bytes": total} | stage_metrics(numbers["counts"], total, target_ratios)


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """inputs (T,) int64, targets (T,) int64, cu_seqlens (B+1,) int32, weights (T,) float32 or None.

    The offsets stay on the host, where the model reads them; the rest is copied asynchronously.
    """
    weights = None if batch.weights is None else send(torch.from_numpy(batch.weights), device)
    inputs, targets = (send(torch.from_numpy(array), device).long() for array in (batch.inputs, batch.targets))
    return inputs, targets, torch.from_numpy(batch.cu_seqlens), weights


def pinned(batch: Batch) -> Batch:
    """The same in pinned memory, out of which a GPU copies while the host goes on."""

    def pin(array: np.ndarray) -> np.ndarray:
        return torch.from_numpy(array).pin_memory().numpy()

    weights = None if batch.weights is None else pin(batch.weights)
    return replace(batch, inputs=pin(batch.inputs), targets=pin(batch.targets), weights=weights)
