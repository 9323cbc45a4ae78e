"""Validation: bits per byte over held-out documents with exact byte counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.data.loader import Batch, Windows
from hnet_cli.data.mixture import HeldOut
from hnet_cli.data.tokens import tokenised
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.kernels.packing import send
from hnet_cli.kernels.reference import exact
from hnet_cli.model import HNetForCausalLM
from hnet_cli.report.sources import source_key
from hnet_cli.report.stages import stage_key
from hnet_cli.training.health import read, routing_counts, stage_metrics

PIECE = 32_768
"""Bytes per forward pass where the caller asks for no smaller size."""


@torch.no_grad()
def validation(
    model: HNetForCausalLM,
    held_out: Windows | HeldOut,
    target_ratios: list[float],
    piece: int | None = None,
    world: World = ALONE,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Score windows of the validation split, or those of each source of a mixture.

    A mixture's figures are those of a text that consists of its sources in their shares, `bpb` being the mean of the
    sources' in these weights; beside them stand `bpb`, `bytes` and bytes per chunk of each source, by `source_key`.

    `piece`: bytes per forward pass; that of training takes no more memory than training. Every byte counts exactly
    once, the first of a document too (it is predicted from the document mark); a window that does not begin a document
    begins with the byte before it and knows nothing older. `progress` gets the bytes begun. Returns `bpb` (bits per
    byte, unweighted), `bytes`, and the figures of `stage_metrics`. The ranks of a `world` take the passes in turn; the
    result is that of one rank.
    """
    was_training, before = model.training, 0
    model.eval()
    held_out, sums = HeldOut.of(held_out), list[tuple[float, np.ndarray, int]]()
    for part in held_out.parts:
        sums.append(_scored(model, part, piece or PIECE, world, partial(_add, progress, before)))
        before += part.bytes
    model.train(was_training)
    total = sum(size for _, _, size in sums)
    weights = [share * total / size for share, (_, _, size) in zip(held_out.shares, sums, strict=True)]
    nats = math.fsum(weight * part for weight, (part, _, _) in zip(weights, sums, strict=True))
    counts = sum(weight * part for weight, (_, part, _) in zip(weights, sums, strict=True))
    record = {"bpb": nats / total / math.log(2), "bytes": total}
    record |= stage_metrics(np.asarray(counts).tolist(), total, target_ratios)
    for name, (own, routed, size) in zip(held_out.names, sums, strict=True) if len(sums) > 1 else ():
        figures = {"bpb": own / size / math.log(2), "bytes": size}
        stages, key = stage_metrics(routed.tolist(), size, target_ratios), stage_key(0, "bytes_per_chunk")
        figures |= {key: stages[key]} if stages else {}
        record |= {source_key(key, name): value for key, value in figures.items()}
    return record


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _scored(
    model: HNetForCausalLM, held_out: Windows, piece: int, world: World, progress: Callable[[int], None]
) -> tuple[float, np.ndarray, int]:
    """Nats, `routing_counts` read row after row, and bytes of some windows, summed over the passes of all ranks."""
    device = next(model.parameters()).device
    nats, counts, passes, total = list[Tensor](), list[Tensor](), 0, 0

    def score(batch: Batch) -> None:
        batch = batch if model.tokenizer is None else tokenised(batch, model.tokenizer)
        inputs, targets, cu_seqlens, _ = to_device(batch, device)
        out = model(inputs, cu_seqlens=cu_seqlens)
        nats.append(F.cross_entropy(out.logits.float(), targets, reduction="sum").to(exact(device)))
        counts.append(routing_counts(out.routing))

    for batch in held_out.batches(piece):
        if passes % world.size == world.rank:
            score(batch)
        passes, total = passes + 1, total + batch.nbytes
        progress(total)
    if len(nats) * world.size < passes:  # every rank gathers as many; this one is not counted
        score(batch)

    def total_of(values: list[Tensor]) -> Tensor:
        """The sum over the passes of all ranks, in their order."""
        return world.gather(torch.stack(values)).transpose(0, 1).flatten(0, 1)[:passes].sum(0)

    numbers = read({"nats": total_of(nats), "counts": total_of(counts)})
    return numbers["nats"][0], np.array(numbers["counts"]), total


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
