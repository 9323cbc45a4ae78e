"""The optimizer and its schedule: AdamW in the paper's parameter groups, rates per level, warm-up-stable-decay."""

from __future__ import annotations

import math
from typing import Any

import torch

from hnet_cli.config import RunConfig, TrainConfig
from hnet_cli.model import HNetForCausalLM, lr_multipliers, parameter_groups


def build_optimizer(model: HNetForCausalLM, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with one group per (learning-rate multiplier, weight decay); `group["lr_multiplier"]` stays in the group.

    The multipliers are those of `rate_multipliers`.
    """
    train = config.train
    groups: list[dict[str, Any]] = parameter_groups(
        model,
        lr_multipliers=rate_multipliers(config),
        weight_decay=train.weight_decay,
        norm_weight_decay=train.norm_weight_decay,
    )
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)


def rate_multipliers(config: RunConfig) -> list[float]:
    """Learning-rate multipliers per level, outermost first: paper equation 11 unless the configuration gives them."""
    train = config.train
    if train.lr_multipliers == "auto":
        return lr_multipliers(config.model, train.ratios(), n_gpt=train.lr_bytes_per_token)
    return train.lr_multipliers


def schedule(step: int, train: TrainConfig) -> float:
    """The learning rate at `step` (0-based) as a share of its peak.

    Linear warm-up, a constant stretch, then a decay to `min_lr_ratio` over the last share of the steps (paper, section
    3); "inverse-sqrt" falls as 1 - sqrt(progress), which is what that decay is usually taken to mean.
    """
    if train.schedule == "constant":
        return 1.0
    warmup, decay = round(train.warmup * train.steps), round(train.decay * train.steps)
    if step < warmup:
        return (step + 1) / warmup
    into = step - (train.steps - decay) + 1
    if decay == 0 or into <= 0:
        return 1.0
    progress = min(1.0, into / decay)
    fall = math.sqrt(progress) if train.decay_shape == "inverse-sqrt" else progress
    return 1.0 - (1.0 - train.min_lr_ratio) * fall


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, train: TrainConfig) -> float:
    """Set every group's rate for `step`; returns the rate before multipliers."""
    rate = train.lr * schedule(step, train)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_multiplier"]
    return rate
