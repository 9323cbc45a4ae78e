"""Is a fast operation right? Values and all gradients against the reference in float64, on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hnet_cli.kernels import reference
from hnet_cli.kernels.packing import Packing

FLOOR = 1e-3
"""What is smaller than the largest of the results by this factor is compared with that. Gradients that are nothing but
rounding are: of a document of one position nothing depends on its query or its key."""
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 2e-2}
TF32 = 4e-3
"""The bound of the scan in float32 on a GPU: Triton cuts operands of a product to 10 bits, and there are several in a
row."""
LENGTHS = [150, 1, 3, 300, 64, 122]


@dataclass(frozen=True)
class Comparison:
    """One operation of one backend in one dtype against the reference."""

    op: str
    backend: str
    dtype: str
    error: float
    """The largest relative error, in the 2-norm, of the results and of the gradient by each argument; see `FLOOR`."""
    bound: float
    where: str
    """What had that error: "value" or "gradient of argument i", or the exception if the operation failed."""
    ok: bool


@dataclass(frozen=True)
class Sizes:
    """What a check runs at. Kernels are tuned, and compiled, for each combination anew."""

    heads: int = 4
    width: int = 64
    """Of a head."""
    state: int = 32
    chunk: int = 64
    """Block length of the scan."""


def inputs(operation: str, packing: Packing, generator: torch.Generator, sizes: Sizes = Sizes()) -> list[Any]:
    """Arguments in float64 of sizes that H-Nets have, several documents among them; tensors first.

    A step has 32 rows, or one where there is one document: a CPU does a few small rows as the reference does.
    """

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    total, rows = packing.total, 32 if packing.batch_size > 1 else 1
    heads, width, size = sizes.heads, sizes.width, sizes.state
    if operation == "ssd_scan":
        x, dt = normal(total, heads, width), normal(total, heads)
        return [
            x,
            dt,
            -normal(heads).exp(),
            *normal(2, total, size, scale=0.5),
            1 + normal(heads),
            normal(heads) - 2,
            packing,
            sizes.chunk,
        ]
    if operation == "ssd_step":
        state, x, dt = normal(rows, heads, width, size), normal(rows, heads, width), normal(rows, heads)
        rates = [-normal(heads).exp(), *normal(2, rows, size), 1 + normal(heads), normal(heads) - 2]
        return [reference.SSMState(state), x, dt, *rates]
    if operation == "causal_conv":
        return [normal(total, 96), normal(96, 4), normal(96), packing]
    if operation == "causal_conv_step":
        return [normal(rows, 1024), normal(rows, 3, 1024), normal(4, 1024), normal(1024)]
    if operation == "step_linear":
        return [normal(12, 512), normal(600, 512)]
    if operation == "attention":
        return [*normal(3, total, heads, width), packing, 100]
    if operation == "attention_step":
        length, cache = torch.randint(1, 301, (rows,), generator=generator), normal(2, rows + 1, 300, heads, width)
        return [normal(rows, heads, width), *cache, length, torch.arange(1, rows + 1)]
    if operation == "ema_scan":
        return [normal(total, 96), torch.sigmoid(normal(total)), packing]
    if operation == "add_rms_norm":
        return [*normal(2, total, 96), 1 + normal(96, scale=0.1), 1e-5]
    if operation == "gated_rms_norm":
        return [*normal(2, total, 96), 1 + normal(96, scale=0.1), 1e-5]
    if operation == "swiglu":
        return [normal(total, 96)]
    if operation == "wide_linear":
        return [normal(total, 96), normal(80, 96), normal(80)]
    raise KeyError(operation)


# what stays float32 when products run in less: decay rates, skip weights, the residual stream, norm weights
FLOAT32 = {
    "ssd_scan": {2, 5, 6},
    "ssd_step": {0, 3, 6, 7},
    "add_rms_norm": {1, 2},
    "gated_rms_norm": {2},
    "wide_linear": {1, 2},
}


def differentiated(function: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """Results, then gradients of a fixed random weighting of them by each tensor argument."""
    leaves = [a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in args]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outs]
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [*outs, *torch.autograd.grad(outs, wanted, weights)]


def stepped(function: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """Results of two steps, of which the second reads what the first left in its arguments."""
    with torch.no_grad():
        own = [_each(a, Tensor.clone) for a in args]
        return [function(*own) for _ in range(2)]


def _each(argument: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(argument, reference.SSMState):
        return reference.SSMState(change(argument.value))
    return change(argument) if isinstance(argument, Tensor) else argument


def _own(argument: Any, device: torch.device, state: Callable[..., Any]) -> Any:
    """The argument as the operation takes it."""
    if isinstance(argument, Packing):
        return Packing.of_lengths(argument.lengths, device)
    if isinstance(argument, reference.SSMState):
        own = state(argument.value.to(device), *argument.value.shape)
        own.fill(argument.value)
        return own
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def relative(value: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Distance in the 2-norm as a share of the norm of `expected`, whose elements count as `least` on average if they
    are smaller."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    size = max(float(expected.norm()), least * expected.numel() ** 0.5, 1e-30)
    return float((value - expected).norm()) / size


def worst(errors: Sequence[float]) -> int:
    """Which is the largest: what is not a number, if any is."""
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
    state: Callable[..., Any] = reference.ssd_state,
) -> Comparison:
    """Runs both on the same inputs, rounded to what the operation is given; never raises for a wrong operation.

    `lengths`: of the documents. `state`: the `ssd_state` that goes with an `ssd_step`.
    """
    generator = torch.Generator().manual_seed(seed)
    args = inputs(operation, Packing.of_lengths(list(lengths)), generator, sizes)
    kept = FLOAT32.get(operation, set())
    given = [
        _each(a, partial(_cast, dtype=torch.promote_types(dtype, torch.float32) if i in kept else dtype))
        for i, a in enumerate(args)
    ]
    truth = [_each(a, partial(_cast, dtype=torch.float64)) for a in given]
    there = [_own(a, device, state) for a in given]
    run = stepped if operation.endswith("_step") else differentiated
    expected = run(getattr(reference, operation), truth)
    in_tf32 = operation == "ssd_scan" and dtype == torch.float32 and device.type == "cuda"
    name, bound = str(dtype).removeprefix("torch."), TF32 if in_tf32 else BOUNDS[dtype]
    try:
        values = run(function, there)
    except Exception as error:  # the report of a failure is the answer
        return Comparison(operation, backend, name, float("nan"), bound, f"{type(error).__name__}: {error}", False)
    results = 2 if operation == "add_rms_norm" or run is stepped else 1
    least = FLOOR * max(float(e.detach().square().mean().sqrt()) for e in expected)
    errors = [relative(v, e, least) for v, e in zip(values, expected, strict=True)]
    at = worst(errors)
    where = "value" if at < results else f"gradient of argument {at - results}"
    return Comparison(operation, backend, name, errors[at], bound, where, errors[at] <= bound)
