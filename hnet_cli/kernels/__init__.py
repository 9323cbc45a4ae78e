"""The one seam to fast code: plain functions on packed tensors, chosen once, never by a global switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import cpu, host, reference
from .packing import Packing

Function = Callable[..., Any]


@dataclass(frozen=True)
class Kernels:
    """One function per operation; all have the signatures of `kernels.reference`."""

    ssd_scan: Function = reference.ssd_scan
    ssd_step: Function = reference.ssd_step
    causal_conv: Function = reference.causal_conv
    causal_conv_step: Function = reference.causal_conv_step
    attention: Function = reference.attention
    attention_step: Function = reference.attention_step
    ema_scan: Function = reference.ema_scan
    add_rms_norm: Function = reference.add_rms_norm
    gated_rms_norm: Function = reference.gated_rms_norm
    swiglu: Function = reference.swiglu


_REFERENCE = Kernels()
_HOST = Kernels(
    ssd_scan=cpu.ssd_scan,
    causal_conv=cpu.causal_conv,
    attention=cpu.attention,
    add_rms_norm=host.add_rms_norm,
    gated_rms_norm=host.gated_rms_norm,
    swiglu=host.swiglu,
)


def choose(device: torch.device | str, dtype: torch.dtype, backend: str = "auto") -> Kernels:
    return _REFERENCE if backend == "reference" else _HOST
