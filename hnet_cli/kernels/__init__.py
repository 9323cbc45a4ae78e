"""The one seam to fast code: plain functions on packed tensors, chosen once, never by a global switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import reference
from .packing import Packing

Function = Callable[..., Any]


@dataclass(frozen=True)
class Kernels:
    """One function per operation; all have the signatures of `kernels.reference`."""

    ssd_scan: Function
    causal_conv: Function
    attention: Function
    ema_scan: Function
    add_rms_norm: Function
    gated_rms_norm: Function


def choose(device: torch.device | str, dtype: torch.dtype, backend: str = "auto") -> Kernels:
    return Kernels(reference.ssd_scan, reference.causal_conv, reference.attention, reference.ema_scan, reference.add_rms_norm, reference.gated_rms_norm)
