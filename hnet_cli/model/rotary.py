"""Rotary position embedding (arXiv 2104.09864), with the stretching of Llama 3.1 where a configuration asks for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hnet_cli.kernels.packing import Packing
from hnet_cli.model.settings import Rotary

Tables = dict[int, tuple[Tensor, Tensor]]
"""cos and sin by dimension, for positions 0, 1, ..."""


def frequencies(dim: int, rotary: Rotary, device: torch.device | None = None) -> Tensor:
    """Angles per position (dim/2,), in float32."""
    inverse = rotary.base ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    if rotary.factor != 1:
        low, high = rotary.low_freq_factor, rotary.high_freq_factor
        turns = inverse * rotary.original_length / (2 * math.pi)
        unchanged = ((turns - low) / (high - low)).clamp(0, 1)
        inverse = inverse * (unchanged + (1 - unchanged) / rotary.factor)
    return inverse


def table(position: Tensor, dim: int, dtype: torch.dtype, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, 1, dim/2) of positions (T,); angles in float32 whatever `dtype`, as in the release."""
    inverse = frequencies(dim, rotary, position.device)
    angle = position.float()[:, None, None, None] * inverse
    return angle.cos().to(dtype), angle.sin().to(dtype)


def of_packing(packing: Packing, dim: int, dtype: torch.dtype, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """cos and sin of every packed position, (T, 1, 1, dim/2) each: for queries and keys at once, (T, 2, H, P)."""
    return packing.cached(("rotary", dim, dtype, rotary), lambda: table(packing.absolute, dim, dtype, rotary))
