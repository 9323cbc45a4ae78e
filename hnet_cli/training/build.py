"""The model that a run trains, and the precision of its products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from hnet_cli.config.run import RunConfig
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.blocks import recompute
from hnet_cli.model.optimization import part_of


def build_model(config: RunConfig) -> HNetForCausalLM:
    """A fresh model, initialised by `train.init` from torch's random state; the parts in `train.frozen` are frozen."""
    model = HNetForCausalLM(config.model, backend=config.kernels)
    if config.train.init == "torch":
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "routing_module" not in name and "residual_proj" not in name:
                module.reset_parameters()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name, config.model.num_stages) not in config.train.frozen)
    recompute(model, config.train.activation_checkpointing)
    return model


def precision_context(config: RunConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of autocast contexts: to bfloat16 if `multiplies_in_bf16`, else disabled."""
    bf16 = multiplies_in_bf16(config, device)
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def multiplies_in_bf16(config: RunConfig, device: torch.device) -> bool:
    """True if matrix products are in bfloat16: as configured, and for `auto` if the hardware does this natively."""
    if config.precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return device.type == "cpu" and has_amx()
    return config.precision == "bf16"


def has_amx() -> bool:
    """True if this CPU has bfloat16 matrix units; without them bfloat16 is slower than float32."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())
