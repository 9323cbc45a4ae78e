"""Learning-rate multipliers per level (paper, appendix C) and parameter groups for an optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from hnet_cli.model.config import HNetConfig

NGRAM_RATE = 5.0
"""Factor of the learning rate of hashed n-grams: a row is read seldom."""
_NO_DECAY = ("A_log", "D", "dt_bias", "norm1.weight", "norm2.weight", "rmsnorm.weight")


def lr_multipliers(config: HNetConfig, target_ratios: Sequence[float] | None = None, n_gpt: float = 4.6) -> list[float]:
    """One learning-rate multiplier per level, outermost first (paper eq 11).

    lambda^s = sqrt(n_gpt * prod(N^s..N^S) / prod(N^0..N^S) * D^S / D^s), with N^S = 1. `target_ratios` N per stage,
    default those of the configuration; `n_gpt`: bytes per token of the Transformer whose learning rate is being
    adapted. Raises ValueError without one ratio per stage.
    """
    ratios = config.target_ratios if target_ratios is None else tuple(target_ratios)
    if ratios is None and config.num_stages == 0:
        ratios = ()
    if ratios is None or len(ratios) != config.num_stages:
        raise ValueError(f"lr_multipliers needs {config.num_stages} target ratios, got {ratios}")
    outer = [math.prod(ratios[:s]) for s in range(len(ratios) + 1)]  # bytes per position of level s
    return [math.sqrt(n_gpt / n * config.d_model[-1] / d) for n, d in zip(outer, config.d_model, strict=True)]


def level_of(name: str, num_stages: int) -> int:
    """The level whose learning rate a parameter takes: embeddings and head 0, `pad_dimension` that of its owner."""
    parts = name.split(".")[1:]
    nested = next((i for i, part in enumerate(parts) if part != "main_network"), 0)
    return min(nested, num_stages)  # the innermost stack is called main_network too


def part_of(name: str, num_stages: int) -> str:
    """The part of `HNetConfig.count_parameters` that a parameter belongs to, such as "level0.encoder"."""
    top, *path = name.split(".")
    level = level_of(name, num_stages)
    return f"level{level}.{path[level]}" if top == "backbone" else top


def _decays(name: str, norm_weight_decay: bool) -> bool:
    if name.endswith(".bias") or ".norm." in name:
        return False
    return norm_weight_decay or not name.endswith(_NO_DECAY)


def parameter_groups(
    model: nn.Module,
    lr_multipliers: Sequence[float] | None = None,
    weight_decay: float | None = 0.1,
    *,
    lr: float | None = None,
    norm_weight_decay: bool = True,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, by level and weight decay; each trainable parameter is in exactly one.

    `lr_multipliers`: one per level, outermost first (default 1). Each group has `params`, `names`, `lr_multiplier` and
    `weight_decay`, and `lr` = lr * multiplier if `lr` is given. By default decay spares what the official code spares:
    biases and Mamba's gated norm. `norm_weight_decay=False` also spares every norm weight, A_log, D and dt_bias.
    `weight_decay=None` leaves the key out of the decayed groups. Raises ValueError for a wrong number of multipliers.
    """
    config: HNetConfig = model.config  # type: ignore[assignment]
    multipliers = [1.0] * len(config.levels) if lr_multipliers is None else [float(m) for m in lr_multipliers]
    if len(multipliers) != len(config.levels):
        raise ValueError(f"{len(multipliers)} learning-rate multipliers for {len(config.levels)} levels")
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        multiplier, decays = multipliers[level_of(name, config.num_stages)], _decays(name, norm_weight_decay)
        if name == "embeddings.ngrams":
            multiplier, decays = multiplier * NGRAM_RATE, False
        group = groups.setdefault((multiplier, decays), {"params": [], "names": [], "lr_multiplier": multiplier})
        group["params"].append(parameter)
        group["names"].append(name)
        if not decays:
            group["weight_decay"] = 0.0
        elif weight_decay is not None:
            group["weight_decay"] = weight_decay
        if lr is not None:
            group["lr"] = lr * multiplier
    return list(groups.values())
