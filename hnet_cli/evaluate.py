"""How good a model is: bits per byte over held-out documents with exact byte counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.corpus.dataset import Dataset
from hnet_cli.corpus.loader import Batch, windows
from hnet_cli.model import HNetForCausalLM, RoutingOutput

PIECE = 32_768
"""Bytes per forward pass."""


@torch.inference_mode()
def validation(model: HNetForCausalLM, dataset: Dataset, length: int, max_bytes: int,
               target_ratios: list[float]) -> dict[str, Any]:  # fmt: skip
    """Score the validation split, at most `max_bytes` of it, in windows of `length` bytes.

    Every byte counts exactly once, the first of a document too (it is predicted from the document mark); a window that
    does not begin a document begins with the byte before it and knows nothing older. Returns `bpb` (bits per byte,
    unweighted), `bytes`, and per stage the bytes per chunk and the boundary fraction F and mean probability G.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    nats, total, routings = 0.0, 0, []
    for batch in windows(dataset, "val", length, batch_bytes=PIECE, max_bytes=max_bytes):
        inputs, targets, cu_seqlens, _ = to_device(batch, device)
        out = model(inputs, cu_seqlens=cu_seqlens)
        nats += float(F.cross_entropy(out.logits.float(), targets, reduction="sum"))
        total += len(batch.targets)
        routings.append(out.routing)
    model.train(was_training)
    return {"bpb": nats / total / math.log(2), "bytes": total} | stage_metrics(routings, total, target_ratios)


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """inputs (T,) int64, targets (T,) int64, cu_seqlens (B+1,) int32, weights (T,) float32 or None."""

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    weights = None if batch.weights is None else move(batch.weights)
    return move(batch.inputs).long(), move(batch.targets).long(), move(batch.cu_seqlens), weights


@torch.no_grad()
def stage_metrics(routings: list[list[RoutingOutput]], total_bytes: int, targets: list[float]) -> dict[str, float]:
    """Per stage: boundary fraction F against 1/N, mean probability G, bytes per chunk against the product of the N."""
    record: dict[str, float] = {}
    wanted = 1.0
    for s, target in enumerate(targets):
        each = [routing[s] for routing in routings]
        positions = sum(len(r.boundary_prob) for r in each)
        chunks = sum(int(r.boundary_mask.sum()) for r in each)
        wanted *= target
        record[f"stage{s}_boundary_fraction"] = chunks / positions
        record[f"stage{s}_target_fraction"] = 1 / target
        record[f"stage{s}_mean_boundary_prob"] = sum(float(r.boundary_prob.sum()) for r in each) / positions
        record[f"stage{s}_bytes_per_chunk"] = total_bytes / chunks
        record[f"stage{s}_target_bytes_per_chunk"] = wanted
    return record
