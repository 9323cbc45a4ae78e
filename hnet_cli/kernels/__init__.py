"""The seam to fast code: plain functions on packed tensors, chosen once per model, never by a global switch.

`choose` returns a record of functions, `report` lists every backend of this machine and why the others are missing, and
`check` compares each available one with the reference, forward and backward. Needs torch only.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hnet_cli.kernels import cpu, cpu_step, cuda, reference
from hnet_cli.kernels.packing import Packing as Packing
from hnet_cli.kernels.reference import ScanInputs, State

if TYPE_CHECKING:
    from hnet_cli.kernels.checking import Comparison

# oneDNN caches a compiled product, megabytes each, for every shape, 1,024 of them by default. The number of chunks
# differs from step to step, so a CPU run would grow to gigabytes. Read when the first product runs.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
# On an H100 torch prefers cuDNN's attention, which takes about half a second to plan each new shape, and generation has
# one per byte. Read when attention first runs; a value set by the user stays.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")


class Scan(Protocol):
    def __call__(self, inputs: ScanInputs, packing: Packing, chunk_size: int = ...) -> Tensor: ...


class ScanStates(Protocol):
    def __call__(self, inputs: ScanInputs, packing: Packing, chunk_size: int = ...) -> tuple[Tensor, Tensor]: ...


class ScanStep(Protocol):
    def __call__(
        self, state: Any, inputs: ScanInputs, rows: Tensor | None = ..., once: Tensor | None = ...
    ) -> Tensor: ...


class ConvStep(Protocol):
    def __call__(self, x: Tensor, state: Tensor, taps: Tensor, bias: Tensor, rows: Tensor | None = ...) -> Tensor: ...


class Rotary(Protocol):
    def __call__(self, qkv: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]: ...


class Attention(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int = ...) -> Tensor: ...


class AttentionStep(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, length: Tensor | None = ..., rows: Tensor | None = ...
    ) -> Tensor: ...


class WideLinear(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = ...) -> Tensor: ...


class StepLinear(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, row_by_row: bool = ...) -> Tensor: ...


@dataclass(frozen=True)
class Kernels:
    """One function per operation; `kernels.reference` defines each."""

    ssd_scan: Scan = reference.ssd_scan
    ssd_scan_states: ScanStates = reference.ssd_scan_states
    ssd_state: Callable[[Tensor, int, int, int, int], State] = reference.ssd_state
    ssd_step: ScanStep = reference.ssd_step
    causal_conv: Callable[[Tensor, Tensor, Tensor, Packing], Tensor] = reference.causal_conv
    causal_conv_step: ConvStep = reference.causal_conv_step
    rotary: Rotary = reference.rotary
    attention: Attention = reference.attention
    attention_step: AttentionStep = reference.attention_step
    ema_scan: Callable[[Tensor, Tensor, Packing], Tensor] = reference.ema_scan
    add_rms_norm: Callable[[Tensor, Tensor | None, Tensor, float], tuple[Tensor, Tensor]] = reference.add_rms_norm
    gated_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor] = reference.gated_rms_norm
    swiglu: Callable[[Tensor], Tensor] = reference.swiglu
    wide_linear: WideLinear = reference.wide_linear
    step_weight: Callable[[Tensor, int], Tensor] = reference.step_weight
    step_linear: StepLinear = reference.step_linear
    names: dict[str, str] = field(default_factory=dict)
    """Backend by operation."""

    def __post_init__(self) -> None:
        for operation in OPERATIONS:
            self.names.setdefault(operation, "reference")

    def replaced(self) -> dict[str, Callable[..., Any]]:
        """The functions that are not the reference's, by name."""
        functions = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "names"}
        return {name: function for name, function in functions.items() if function is not getattr(REFERENCE, name)}


OPERATIONS = [f.name for f in fields(Kernels) if f.name not in ("names", "ssd_scan_states", "ssd_state", "step_weight")]
"""The operations that are reported and checked; the other functions come with one of them."""
REFERENCE = Kernels()
ELEMENTWISE = ["rotary", "causal_conv", "add_rms_norm", "gated_rms_norm", "swiglu"]
HALF = (torch.bfloat16, torch.float16)
FLOATS = (*HALF, torch.float32)


@dataclass(frozen=True)
class Row:
    """One backend's implementation of one operation on one kind of device."""

    op: str
    backend: str
    device: str
    version: str
    available: bool
    reason: str
    """The exception that makes it unavailable; empty if it is available."""


@dataclass(frozen=True)
class Backend:
    """A set of operations, or the exception that makes them unavailable."""

    name: str
    dtypes: tuple[torch.dtype, ...]
    operations: list[str]
    version: str
    kernels: Kernels = REFERENCE
    reason: str = ""


HOST = Backend(
    "host",
    (*FLOATS, torch.float64),
    [
        *("ssd_scan", "ssd_step", "causal_conv", "causal_conv_step", "attention", "attention_step"),
        *("add_rms_norm", "gated_rms_norm", "step_linear"),
    ],
    torch.__version__,
    Kernels(
        ssd_scan=cpu.ssd_scan,
        ssd_scan_states=cpu.ssd_scan_states,
        ssd_state=cpu_step.ssd_state,
        ssd_step=cpu_step.ssd_step,
        causal_conv=cpu.causal_conv,
        causal_conv_step=cpu_step.causal_conv_step,
        attention=cpu.attention,
        attention_step=cpu_step.attention_step,
        add_rms_norm=cpu.add_rms_norm,
        gated_rms_norm=cpu.gated_rms_norm,
        step_weight=cpu_step.step_weight,
        step_linear=cpu_step.step_linear,
    ),
)


def _probe(
    name: str, dtypes: tuple[torch.dtype, ...], operations: list[str], load: Callable[[], tuple[str, Kernels]]
) -> Backend:
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        return Backend(name, dtypes, operations, *load())
    except Exception as error:  # a broken package may raise anything, and the user needs its message
        return Backend(name, dtypes, operations, "", reason=f"{type(error).__name__}: {error}")


def _mamba() -> tuple[str, Kernels]:
    mamba = cuda.load_mamba()
    kernels = Kernels(ssd_scan=mamba.ssd_scan, ssd_scan_states=mamba.ssd_scan_states, ssd_step=mamba.ssd_step)
    return mamba.version, kernels


def _varlen() -> tuple[str, Kernels]:
    version, function = cuda.load_varlen()
    return version, Kernels(attention=cuda.varlen_attention(function))


def _flash() -> tuple[str, Kernels]:
    version, function = cuda.load_flash()
    return version, Kernels(attention=cuda.flash_attention(function))


def _own() -> tuple[str, Kernels]:
    version = cuda.load_triton()
    own = importlib.import_module("hnet_cli.kernels.triton_elementwise")
    return version, Kernels(**{operation: getattr(own, operation) for operation in ELEMENTWISE})


def _fused() -> tuple[str, Kernels]:
    return cuda.load_triton(), Kernels(**cuda.compiled_elementwise())


def _split() -> tuple[str, Kernels]:
    return cuda.load_wide_products(), Kernels(wide_linear=cuda.wide_linear)


@functools.cache
def backends(device: str) -> tuple[Backend, ...]:
    """The optional backends for a kind of device, best first for each operation."""
    if device == "cpu":
        return (HOST,)
    if device != "cuda":
        return ()
    return (
        _probe("mamba-ssm", FLOATS, ["ssd_scan", "ssd_step"], _mamba),
        _probe("torch varlen_attn", HALF, ["attention"], _varlen),
        _probe("flash-attn", HALF, ["attention"], _flash),
        _probe("triton", FLOATS, ELEMENTWISE, _own),
        _probe("torch.compile", FLOATS, ELEMENTWISE[1:], _fused),
        _probe("split weights", (torch.bfloat16,), ["wide_linear"], _split),
    )


def choose(device: torch.device | str, dtype: torch.dtype, backend: str = "auto") -> Kernels:
    """The operations for tensors on `device` whose products run in `dtype`.

    `backend`: "reference" is plain PyTorch; "auto" the fastest on this machine; "fast" the same, but a missing package
    is an error. Raises ValueError for another word, RuntimeError with the package's own message for "fast".
    """
    return _choose(torch.device(device).type, dtype, backend)


@functools.cache
def _choose(device: str, dtype: torch.dtype, backend: str) -> Kernels:
    if backend not in ("auto", "reference", "fast"):
        raise ValueError(f"unknown kernels {backend!r}: auto, reference or fast")
    candidates = () if backend == "reference" else backends(device)
    if backend == "fast" and not candidates:
        raise RuntimeError(f"there are no fast kernels for {device}")
    functions: dict[str, Any] = {}
    names: dict[str, str] = {}
    failures: dict[str, list[str]] = {}
    for candidate in candidates:
        if candidate.reason:
            for operation in candidate.operations:
                failures.setdefault(operation, []).append(f"{candidate.name}: {candidate.reason}")
        elif dtype in candidate.dtypes:
            functions = candidate.kernels.replaced() | functions
            names = dict.fromkeys(candidate.operations, candidate.name) | names
    missing = {operation: reasons for operation, reasons in failures.items() if operation not in functions}
    if backend == "fast" and missing:
        lines = (f"no fast {operation} ({', '.join(reasons)})" for operation, reasons in missing.items())
        raise RuntimeError("; ".join(lines))
    return Kernels(**functions, names=names) if functions else REFERENCE


def report() -> list[Row]:
    """Every backend of every operation, available or not."""
    rows = [Row(operation, "reference", "any", torch.__version__, True, "") for operation in OPERATIONS]
    return rows + [
        Row(operation, backend.name, device, backend.version, not backend.reason, backend.reason)
        for device in ("cpu", "cuda")
        for backend in backends(device)
        for operation in backend.operations
    ]


def check(
    device: torch.device | str,
    operations: Sequence[str] = OPERATIONS,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    **options: Any,
) -> list[Comparison]:
    """Compare every available fast operation on `device` with the reference.

    `options`: `lengths`, `sizes` and `seed` of `kernels.checking.compare`.
    """
    from hnet_cli.kernels import checking

    device = torch.device(device)
    return [
        checking.compare(
            operation,
            backend.name,
            getattr(backend.kernels, operation),
            device,
            dtype,
            state=backend.kernels.ssd_state,
            **options,
        )
        for backend in backends(device.type)
        if not backend.reason
        for operation in backend.operations
        for dtype in dtypes
        if dtype in backend.dtypes and operation in operations
    ]
