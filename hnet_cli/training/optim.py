"""The optimizer and its schedule: AdamW (and Muon) in the paper's parameter groups, warm-up-stable-decay."""

from __future__ import annotations

import math
from typing import Any

import torch

from hnet_cli.config.run import RunConfig, TrainConfig
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.model import HNetForCausalLM, lr_multipliers, parameter_groups


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers, each with parameters of its own, as one: their groups in a row, one state."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self.state = optimizers[0].state
        for optimizer in optimizers:
            optimizer.state = self.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()


def build_optimizer(model: HNetForCausalLM, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW with one group per (learning-rate multiplier, weight decay); `group["lr_multiplier"]` stays in the group.

    With `train.optimizer: muon` the matrices of the main network's layers are updated by Muon (Jordan 2024), scaled to
    the size of AdamW's updates (arXiv 2502.16982), so that one learning rate serves both. The multipliers are those of
    `rate_multipliers`. Raises EnvironmentLimit if this torch has no Muon.
    """
    train = config.train
    groups: list[dict[str, Any]] = parameter_groups(
        model,
        lr_multipliers=rate_multipliers(config),
        weight_decay=train.weight_decay,
        norm_weight_decay=train.norm_weight_decay,
    )
    matrices: list[dict[str, Any]] = []
    if train.optimizer == "muon":
        groups, matrices = _divided(groups)
    adamw = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)
    if not matrices:
        return adamw
    if not hasattr(torch.optim, "Muon"):
        raise EnvironmentLimit(
            f"torch {torch.__version__} has no Muon", "torch 2.9 has; or leave train.optimizer=adamw"
        )
    return CombinedOptimizer(adamw, torch.optim.Muon(matrices, lr=train.lr, adjust_lr_fn="match_rms_adamw"))


def _divided(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups without the matrices of the main network's layers, and the groups of those matrices."""
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        split: tuple[list[Any], list[Any]] = ([], [])
        for parameter, name in zip(group["params"], group["names"], strict=True):
            split[parameter.dim() == 2 and "main_network.layers." in name].append((parameter, name))
        for part, pairs in zip(parts, split, strict=True):
            if pairs:
                part.append(group | {"params": [p for p, _ in pairs], "names": [name for _, name in pairs]})
    return parts


def rate_multipliers(config: RunConfig) -> list[float]:
    """Learning-rate multipliers per level, outermost first: as configured, else by paper equation 11."""
    train = config.train
    if train.lr_multipliers == "auto":
        return lr_multipliers(config.model, train.ratios(), n_gpt=train.lr_bytes_per_token)
    return train.lr_multipliers


def schedule(step: int, train: TrainConfig) -> float:
    """The learning rate at `step` (0-based) as a share of its peak.

    Linear warm-up, a constant stretch, then a decay to `min_lr_ratio` over the last share of the steps (paper, section
    3); "inverse-sqrt" falls as 1 - sqrt(progress), the usual reading of the paper's decay.
    """
    if train.schedule == "constant":
        return 1.0
    warmup, decay = round(train.warmup * train.steps), round(train.decay * train.steps)
    if step < warmup:
        return (step + 1) / warmup
    decayed = step - (train.steps - decay) + 1
    if decay == 0 or decayed <= 0:
        return 1.0
    progress = min(1.0, decayed / decay)
    fall = math.sqrt(progress) if train.decay_shape == "inverse-sqrt" else progress
    return 1.0 - (1.0 - train.min_lr_ratio) * fall


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, train: TrainConfig) -> float:
    """Set every group's rate for `step`; returns the rate before multipliers."""
    rate = train.lr * schedule(step, train)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_multiplier"]
    return rate
