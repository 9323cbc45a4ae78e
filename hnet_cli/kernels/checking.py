"""Comparison of fast operations with the reference in float64, values and all gradients, on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hnet_cli.kernels import reference
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import Place, ScanInputs, SSMState, State

FLOOR = 1e-3
"""Results smaller than this share of the largest are compared with that share of it: some gradients are nothing but
rounding, since in a document of one position nothing depends on the query or the key."""
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 2e-2}
TF32 = 4e-3
"""Bound of the scan in float32 on a GPU: Triton rounds operands to 10 bits, in several successive products."""
FLOAT32 = {
    "ssd_scan": {2, 5, 6},
    "ssd_step": {0, 3, 6, 7},
    "add_rms_norm": {1, 2},
    "gated_rms_norm": {2},
    "wide_linear": {1, 2},
    "step_linear": {5},
    "mamba_in_step": {0, 2},
    "router_step": {1, 2},
    "ema_step": {2},
}
"""Arguments that stay float32 in lower precision: decay rates, skip weights, residual stream, norm weights."""
LENGTHS = [150, 1, 3, 300, 64, 122]


@dataclass(frozen=True)
class Comparison:
    """One operation of one backend in one dtype against the reference."""

    op: str
    backend: str
    dtype: str
    error: float
    """Largest relative error, in the 2-norm, of the results and of the gradient by each argument; see `FLOOR`."""
    bound: float
    where: str
    """The result with that error, "value" or "gradient of argument i", or the exception if the operation failed."""
    ok: bool


@dataclass(frozen=True)
class Sizes:
    """Sizes of a check. Kernels are tuned and compiled for each combination."""

    heads: int = 4
    width: int = 64
    """Size of a head."""
    state: int = 32
    chunk: int = 64
    """Block length of the scan."""
    rows: int = 32
    """Rows of a step."""


def inputs(operation: str, packing: Packing, generator: torch.Generator, sizes: Sizes = Sizes()) -> list[Any]:
    """Flat arguments in float64, see `flat`, at sizes that H-Nets have.

    A step has one row if there is one document.
    """

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    def scan(length: int, scale: float) -> list[Tensor]:
        x, dt, A = normal(length, heads, width), normal(length, heads), -normal(heads).exp()
        return [x, dt, A, *normal(2, length, size, scale=scale), 1 + normal(heads), normal(heads) - 2]

    total, rows = packing.total, sizes.rows if packing.batch_size > 1 else 1
    heads, width, size = sizes.heads, sizes.width, sizes.state
    match operation:
        case "ssd_scan":
            return [*scan(total, 0.5), packing, sizes.chunk]
        case "ssd_step":
            state = SSMState(normal(rows, heads, width, size))
            return [state, *scan(rows, 1.0), None, None, normal(rows, heads * width)]
        case "causal_conv":
            return [normal(total, 96), normal(96, 4), normal(96), packing]
        case "step_linear":
            return [normal(12, 512), normal(600, 512), True, 1 + normal(512), normal(600), normal(12, 300), True]
        case "mamba_in_step":
            split, weight = (256, 1024, heads), normal(1280 + heads, 96, scale=0.1)
            conv = [normal(rows, 3, 1024), normal(4, 1024), normal(1024)]
            return [normal(rows, 96), weight, 1 + normal(96, scale=0.1), *conv, split]
        case "router_step":
            return [normal(rows, 96), normal(192, 96), normal(rows, 96)]
        case "ema_step":
            return [normal(rows, 96), torch.sigmoid(normal(rows)), normal(rows, 96)]
        case "rotary":
            angle = normal(total, 1, 1, width // 4)
            return [normal(total, 3, heads, width), (angle.cos(), angle.sin())]
        case "attention":
            return [*normal(3, total, heads, width), packing, 100]
        case "attention_step":
            position, angle = torch.randint(0, 300, (rows,), generator=generator), normal(rows, 1, 1, width // 4)
            place = Place(position, -1, 300, torch.arange(1, rows + 1))
            caches = normal(2, rows + 1, 300, heads, width)
            return [normal(rows, 3, heads, width), (angle.cos(), angle.sin()), *caches, place]
        case "ema_scan":
            return [normal(total, 96), torch.sigmoid(normal(total)), packing]
        case "add_rms_norm" | "gated_rms_norm":
            return [*normal(2, total, 96), 1 + normal(96, scale=0.1), 1e-5]
        case "swiglu":
            return [normal(total, 96)]
        case "wide_linear":
            return [normal(total, 96), normal(80, 96), normal(80)]
    raise KeyError(operation)


def flat(operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the operands of a scan as arguments of their own."""
    if operation == "ssd_scan":
        return lambda *args: function(ScanInputs(*args[:7]), *args[7:])
    if operation == "ssd_step":
        return lambda state, *given: function(state, ScanInputs(*given[:7]), *given[7:])
    return function


def differentiated(function: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """Results, then gradients of a fixed random weighting of them by each tensor argument."""
    leaves = [a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in args]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outs]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [*outs, *torch.autograd.grad(outs, tensors, weights)]


@torch.no_grad()
def stepped(function: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """Results of two steps, the second of which reads the state that the first left in its arguments, and the tensors
    among these."""
    results = [out for _ in range(2) for out in tensors(function(*args))]
    return results + [tensor for arg in args for tensor in tensors(getattr(arg, "value", arg))]


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value that is one, several or none."""
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def placed(
    argument: Any, dtype: torch.dtype, device: torch.device | str, state: Callable[..., State] = reference.ssd_state
) -> Any:
    """A copy of the argument on `device`, floating-point tensors in `dtype`, a state in the form that `state` makes."""
    if isinstance(argument, Packing):
        return Packing.of_lengths(argument.lengths, device)
    if isinstance(argument, SSMState):
        value = argument.value.to(device, dtype)
        copy = state(value, *value.shape)
        copy.fill(value)
        return copy
    if isinstance(argument, Place):
        rows = None if argument.rows is None else argument.rows.to(device)
        return Place(argument.position.to(device), argument.window, argument.used, rows, argument.at)
    if isinstance(argument, tuple):
        return tuple(placed(part, dtype, device) for part in argument)
    if isinstance(argument, Tensor):
        return argument.to(device, dtype if argument.is_floating_point() else argument.dtype, copy=True)
    return argument


def relative(value: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Distance in the 2-norm over the norm of `expected`, which counts as at least `least` in root mean square."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    size = max(float(expected.norm()), least * expected.numel() ** 0.5, 1e-30)
    return float((value - expected).norm()) / size


def worst(errors: Sequence[float]) -> int:
    """Index of the largest error; of a NaN, if there is one."""
    return max(range(len(errors)), key=lambda i: (math.isnan(errors[i]), errors[i]))


def compare(
    operation: str,
    backend: str,
    function: Callable[..., Any],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    sizes: Sizes = Sizes(),
    state: Callable[..., State] = reference.ssd_state,
) -> Comparison:
    """Run `function` and the reference on the same inputs, rounded to `dtype`; a wrong operation never raises.

    `lengths`: of the documents. `state`: the `ssd_state` that belongs to an `ssd_step`.
    """
    args = inputs(operation, Packing.of_lengths(list(lengths)), torch.Generator().manual_seed(seed), sizes)
    wide, exceptions = torch.promote_types(dtype, torch.float32), FLOAT32.get(operation, set())
    rounded = [placed(a, wide if i in exceptions else dtype, "cpu") for i, a in enumerate(args)]
    run = stepped if "step" in operation else differentiated
    expected = run(flat(operation, getattr(reference, operation)), [placed(a, torch.float64, "cpu") for a in rounded])
    in_tf32 = operation == "ssd_scan" and dtype == torch.float32 and device.type == "cuda"
    name, bound = str(dtype).removeprefix("torch."), TF32 if in_tf32 else BOUNDS[dtype]
    own = [placed(a, wide if i in exceptions else dtype, device, state) for i, a in enumerate(rounded)]
    try:
        values = run(flat(operation, function), own)
    except Exception as error:  # reported as the result
        return Comparison(operation, backend, name, float("nan"), bound, f"{type(error).__name__}: {error}", False)
    results = len(values) if run is stepped else {"add_rms_norm": 2, "rotary": 3}.get(operation, 1)
    least = FLOOR * max(float(e.detach().square().mean().sqrt()) for e in expected)
    errors = [relative(v, e, least) for v, e in zip(values, expected, strict=True)]
    at = worst(errors)
    where = "value" if at < results else f"gradient of argument {at - results}"
    return Comparison(operation, backend, name, errors[at], bound, where, errors[at] <= bound)
