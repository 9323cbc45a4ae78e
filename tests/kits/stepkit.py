"""Random micro-batches, and the gradient of a step over them."""

from __future__ import annotations

import numpy as np
import torch

from hnet_cli.data.loader import Batch
from hnet_cli.distributed.world import ALONE
from hnet_cli.training.build import build_model, precision_context
from hnet_cli.training.step import accumulate


def batch(lengths, seed=0, weighted=True):
    rng = np.random.default_rng(seed)
    total, ends = sum(lengths), np.cumsum([0, *lengths]).astype(np.int32)
    weights = rng.random(total, dtype=np.float32) if weighted else None
    some = rng.integers(97, 123, total + 1, dtype=np.uint8)
    index = np.arange(len(lengths), dtype=np.int64)
    return Batch(some[:-1], some[1:], weights, ends, index, index)


def gradient(config, batches):
    """Gradients by name, the number of splits, and the ratio losses."""
    torch.manual_seed(0)
    model = build_model(config)
    autocast = precision_context(config, torch.device("cpu"))
    weight_sum = sum(len(b.targets) if b.weights is None else float(b.weights.sum()) for b in batches)
    parts, _, splits = accumulate(model, batches, weight_sum, 0, config, autocast, False, ALONE)
    return {name: p.grad for name, p in model.named_parameters()}, splits, [float(part.ratio) for part in parts]
