"""The one seam to fast code: plain functions on packed tensors, chosen once, never by a global switch.

`choose` returns a record of functions; `report` says what this machine has and why not the rest; `check` compares
whatever it has with the reference, forward and backward. Needs torch only.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from hnet_cli.kernels import cpu as host
from hnet_cli.kernels import cpu_step as host_step
from hnet_cli.kernels import cuda as external
from hnet_cli.kernels import operations, reference
from hnet_cli.kernels.packing import Packing

__all__ = ["Kernels", "Packing", "Row", "check", "choose", "report"]

# oneDNN keeps a compiled product for each shape it has met, megabytes each, 1,024 of them by default. The number of
# chunks differs from step to step, so a CPU run would grow to gigabytes. Read when the first product runs.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
# On an H100 torch asks cuDNN for attention first, which builds a plan, about half a second, for every new shape: in
# generation each byte has one. Read when attention first runs; what the user has set stays.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")

Function = Callable[..., Any]


@dataclass(frozen=True)
class Kernels:
    """One function per operation, with the meaning of those in `kernels.reference`."""

    ssd_scan: operations.SSDScan = reference.ssd_scan
    ssd_state: operations.SSDState = reference.ssd_state
    ssd_step: operations.SSDStep = reference.ssd_step
    causal_conv: operations.CausalConv = reference.causal_conv
    causal_conv_step: operations.CausalConvStep = reference.causal_conv_step
    attention: operations.Attention = reference.attention
    attention_step: operations.AttentionStep = reference.attention_step
    ema_scan: operations.EMAScan = reference.ema_scan
    add_rms_norm: operations.AddRMSNorm = reference.add_rms_norm
    gated_rms_norm: operations.GatedRMSNorm = reference.gated_rms_norm
    swiglu: operations.SwiGLU = reference.swiglu
    wide_linear: operations.WideLinear = reference.wide_linear
    step_weight: operations.StepWeight = reference.step_weight
    step_linear: operations.StepLinear = reference.step_linear
    names: dict[str, str] = field(default_factory=dict)
    """Backend by operation."""

    def __post_init__(self) -> None:
        for operation in OPERATIONS:
            self.names.setdefault(operation, "reference")


OPERATIONS = [f.name for f in fields(Kernels) if f.name not in ("names", "ssd_state", "step_weight")]
REFERENCE = Kernels()
HALF = (torch.bfloat16, torch.float16)
HOST: dict[str, Function] = {
    "ssd_scan": host.ssd_scan,
    "ssd_step": host_step.ssd_step,
    "causal_conv": host.causal_conv,
    "causal_conv_step": host_step.causal_conv_step,
    "attention": host.attention,
    "attention_step": host_step.attention_step,
    "add_rms_norm": host.add_rms_norm,
    "gated_rms_norm": host.gated_rms_norm,
    "step_linear": host_step.step_linear,
}


@dataclass(frozen=True)
class Row:
    """What one backend offers for one operation on one kind of device."""

    op: str
    backend: str
    device: str
    version: str
    available: bool
    reason: str
    """Why it is not available, in the words of the exception; else empty."""


@dataclass(frozen=True)
class _Probe:
    """One optional package: the operations it gives, and the exception where it gives none."""

    backend: str
    version: str
    functions: dict[str, Function]
    reason: str
    dtypes: tuple[torch.dtype, ...]


def _try(backend: str, dtypes: tuple[torch.dtype, ...], operations: list[str], load: Function) -> _Probe:
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        version, functions = load()
    except Exception as error:  # a broken package may raise anything: the text is what the user needs
        return _Probe(backend, "", dict.fromkeys(operations, _missing), f"{type(error).__name__}: {error}", dtypes)
    return _Probe(backend, version, functions, "", dtypes)


def _missing(*args: Any) -> Any:
    raise RuntimeError("this kernel is not available")


def _mamba() -> tuple[str, dict[str, Function]]:
    version, scan, update = external.load_mamba()
    return version, {"ssd_scan": external.mamba_scan(scan), "ssd_step": external.mamba_step(update)}


def _varlen() -> tuple[str, dict[str, Function]]:
    version, function = external.load_varlen()
    return version, {"attention": external.varlen_attention(function)}


def _flash() -> tuple[str, dict[str, Function]]:
    version, function = external.load_flash()
    return version, {"attention": external.flash_attention(function)}


def _fused() -> tuple[str, dict[str, Function]]:
    return external.load_triton(), external.compiled_elementwise()


def _split() -> tuple[str, dict[str, Function]]:
    return external.load_wide_products(), {"wide_linear": external.wide_linear}


@functools.cache
def _probes() -> tuple[_Probe, ...]:
    """Everything optional, best first for each operation."""
    floats = (*HALF, torch.float32)
    elementwise = ["causal_conv", "add_rms_norm", "gated_rms_norm", "swiglu"]
    return (
        _try("mamba-ssm", floats, ["ssd_scan", "ssd_step"], _mamba),
        _try("torch varlen_attn", HALF, ["attention"], _varlen),
        _try("flash-attn", HALF, ["attention"], _flash),
        _try("torch.compile", floats, elementwise, _fused),
        _try("split weights", (torch.bfloat16,), ["wide_linear"], _split),
    )


def choose(device: torch.device | str, dtype: torch.dtype, backend: str = "auto") -> Kernels:
    """The operations for tensors on `device` whose products run in `dtype`.

    `backend`: "reference", plain PyTorch; "auto", the fastest that this machine has; "fast", the same, but a missing
    package is an error. Raises ValueError for another word, RuntimeError with the package's own message for "fast".
    """
    return _choose(torch.device(device).type, dtype, backend)


@functools.cache
def _choose(device: str, dtype: torch.dtype, backend: str) -> Kernels:
    if backend not in ("auto", "reference", "fast"):
        raise ValueError(f"unknown kernels {backend!r}: auto, reference or fast")
    if backend == "reference" or device not in ("cpu", "cuda"):
        if backend == "fast":
            raise RuntimeError(f"there are no fast kernels for {device}")
        return REFERENCE
    if device == "cpu":
        names = dict.fromkeys(HOST, "host")
        return Kernels(**HOST, ssd_state=host_step.ssd_state, step_weight=host_step.step_weight, names=names)
    functions: dict[str, Function] = {}
    names = {}
    failures: dict[str, list[str]] = {}
    for probe in _probes():
        for operation, function in probe.functions.items():
            if probe.reason:
                failures.setdefault(operation, []).append(f"{probe.backend}: {probe.reason}")
            elif dtype in probe.dtypes and operation not in functions:
                functions[operation], names[operation] = function, probe.backend
    lacking = {operation: why for operation, why in failures.items() if operation not in functions}
    if backend == "fast" and lacking:
        raise RuntimeError("; ".join(f"no fast {operation} ({', '.join(why)})" for operation, why in lacking.items()))
    return Kernels(**functions, names=names)


def report() -> list[Row]:
    """Every backend of every operation, available or not."""
    version = torch.__version__
    rows = [Row(operation, "reference", "any", version, True, "") for operation in OPERATIONS]
    rows += [Row(operation, "host", "cpu", version, True, "") for operation in HOST]
    for probe in _probes():
        rows += [
            Row(operation, probe.backend, "cuda", probe.version, not probe.reason, probe.reason)
            for operation in probe.functions
        ]
    return rows


def check(
    device: torch.device | str,
    operations: Sequence[str] = OPERATIONS,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    **options: Any,
) -> list[Any]:
    """Compares every available fast operation on `device` with the reference: see `kernels.checking.Comparison`.

    `options`: `lengths`, `sizes` and `seed` of `kernels.checking.compare`.
    """
    from hnet_cli.kernels import checking

    kind = torch.device(device).type
    found: list[tuple[str, dict[str, Function], tuple[torch.dtype, ...]]] = []
    if kind == "cpu":
        found = [("host", HOST, (torch.float32, torch.bfloat16))]
        options = {"state": host_step.ssd_state} | options
    if kind == "cuda":
        found = [(p.backend, p.functions, p.dtypes) for p in _probes() if not p.reason]
    return [
        checking.compare(operation, backend, function, torch.device(device), dtype, **options)
        for backend, functions, known in found
        for operation, function in functions.items()
        for dtype in known
        if dtype in dtypes and operation in operations
    ]
