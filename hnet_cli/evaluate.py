"""How good a model is: bits per byte over held-out documents with exact byte counts."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from hnet_cli.corpus import Dataset
from hnet_cli.model import HNetForCausalLM

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
    from hnet_cli.train import stage_metrics, to_device

    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    nats, total, routings = 0.0, 0, []
    for batch in dataset.windows("val", length, max_bytes=max_bytes, batch_bytes=PIECE):
        inputs, targets, cu_seqlens, _ = to_device(batch, device)
        out = model(inputs, cu_seqlens=cu_seqlens)
        nats += float(F.cross_entropy(out.logits.float(), targets, reduction="sum"))
        total += len(batch.targets)
        routings.append(out.routing)
    model.train(was_training)
    return {"bpb": nats / total / math.log(2), "bytes": total} | stage_metrics(routings, total, target_ratios)
