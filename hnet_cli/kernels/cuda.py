"""Adapters to fast code for CUDA: mamba-ssm's Triton kernels, variable-length attention, fused elementwise work.

No CUDA package is imported before a `load_*` is called; each raises whatever its package raises.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hnet_cli.kernels import reference, tuned
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import ScanInputs

INT32 = 2**31


@functools.cache
def load_mamba() -> Mamba:
    """Load mamba-ssm's two Triton kernels; raises ImportError, or whatever the package raises.

    The package's own `__init__` imports a compiled extension that these two do not need, so an empty parent module with
    the installed path takes its place: the pure-Python wheel suffices. Configurations known from `tuned.json` are not
    tuned again.
    """
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("mamba-ssm is not installed")
        parent = types.ModuleType("mamba_ssm")
        parent.__path__ = list(spec.submodule_search_locations)
        parent.__spec__ = spec
        sys.modules["mamba_ssm"] = parent
    scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    update = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    tuned.seed_from_package()
    return Mamba(scan, update, importlib.metadata.version("mamba-ssm"))


def load_varlen() -> tuple[str, Any]:
    """(version, torch's varlen_attn), if it knows windows."""
    function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    if "window_size" not in inspect.signature(function).parameters:
        raise ImportError(f"varlen_attn of torch {torch.__version__} has no window_size; torch 2.11 has")
    return torch.__version__, function


def load_flash() -> tuple[str, Any]:
    """(version, flash_attn_varlen_func)."""
    module = importlib.import_module("flash_attn")
    return module.__version__, module.flash_attn_varlen_func


def load_triton() -> str:
    """Version of triton, which torch.compile needs on CUDA.

    torch.compile moves the cache of all Triton kernels to a temporary folder, where mamba-ssm's compiled kernels would
    not be found. Here the cache stays in Triton's own place.
    """
    version = importlib.import_module("triton").__version__
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    if os.access(home, os.W_OK):
        os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(home, ".triton", "cache"))
    return version


def load_wide_products() -> str:
    """Version of torch, if it has products of bfloat16 whose result is float32."""
    if "dtype" not in torch.ops.aten.mm.overloads():
        raise ImportError(f"torch {torch.__version__} has no mm with an out_dtype; torch 2.8 has")
    return torch.__version__


# -- mamba-ssm ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mamba:
    """The scan and the step of the reference on mamba-ssm's kernels."""

    scan: Callable[..., Any]
    """mamba_chunk_scan_combined."""
    update: Callable[..., Any]
    """selective_state_update."""
    version: str = ""

    def ssd_scan(self, inputs: ScanInputs, packing: Packing, chunk_size: int = 256) -> Tensor:
        parts = [
            self._run(part, group, chunk_size) if fits else reference.ssd_scan(part, group)
            for part, group, fits in _parts(inputs, packing, chunk_size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def ssd_scan_states(self, inputs: ScanInputs, packing: Packing, chunk_size: int = 256) -> tuple[Tensor, Tensor]:
        parts = []
        for part, group, fits in _parts(inputs, packing, chunk_size):
            if fits:
                y, state = self._run(
                    part, group, chunk_size, cu_seqlens=group.cu_seqlens.int(), return_varlen_states=True
                )
                parts.append((y, state.float()))
            else:
                parts.append(reference.ssd_scan_states(part, group))
        ys, states = zip(*parts, strict=True)
        return parts[0] if len(parts) == 1 else (torch.cat(ys), torch.cat(states))

    def _run(self, inputs: ScanInputs, packing: Packing, chunk_size: int, **more: Any) -> Any:
        x, dt, A, B, C, D, dt_bias = inputs
        out = self.scan(
            x[None],
            dt[None],
            A,
            B[None, :, None],
            C[None, :, None],
            chunk_size=chunk_size,
            D=D.float(),
            dt_bias=dt_bias.float(),
            dt_softplus=True,
            seq_idx=packing.document.int()[None],
            **more,
        )
        return (out[0][0], out[1]) if more else out[0]

    def ssd_step(
        self,
        state: reference.SSMState,
        inputs: ScanInputs,
        rows: Tensor | None = None,
        once: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Tensor:
        x, dt, A, B, C, D, dt_bias = inputs
        width, size = state.value.shape[2:]
        y: Tensor = self.update(  # expanded, not repeated: strides of 0 tell the kernel that a head shares them
            state.value,
            x.contiguous(),
            dt[:, :, None].expand(-1, -1, width),
            A.float()[:, None, None].expand(-1, width, size),
            B[:, None],
            C[:, None],
            D.float()[:, None].expand(-1, width),
            dt_bias=dt_bias[:, None].expand(-1, width),
            dt_softplus=True,
            state_batch_indices=rows if once is None else once,  # the kernel skips -1 and returns 0 for it
        )
        # two programs that update one row would read each other's results
        return reference.gated(y if once is None else torch.where(once[:, None, None] < 0, y[:1], y), gate)


def _parts(inputs: ScanInputs, packing: Packing, chunk_size: int) -> Iterator[tuple[ScanInputs, Packing, bool]]:
    """The scan in groups of documents, and whether mamba-ssm's kernel can do each.

    The kernel computes offsets in 32 bits and would silently read elsewhere beyond them, and its least tile is 16.
    """
    x, dt, A, B, C, D, dt_bias = inputs
    if x.dtype == torch.float64 or min(x.shape[-1], B.shape[-1], chunk_size) < 16:
        yield inputs, packing, False
        return
    limit = (INT32 - 1) // max(t.stride(0) for t in (x, dt, B, C))
    if packing.total <= limit:
        yield inputs, packing, True
        return
    for start, group in packing.groups(limit):
        rows = slice(start, start + group.total)
        yield ScanInputs(x[rows], dt[rows], A, B[rows], C[rows], D, dt_bias), group, group.total <= limit


# -- attention ---------------------------------------------------------------------------------------------------------


def varlen_attention(varlen: Any) -> Callable[..., Tensor]:
    """`reference.attention` on torch's varlen_attn (FlashAttention inside torch)."""

    def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int = -1) -> Tensor:
        cu_seqlens, longest = packing.cu_seqlens.int(), packing.max_length
        return varlen(q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=(window, 0))

    return attention


def flash_attention(flash: Any) -> Callable[..., Tensor]:
    """`reference.attention` on flash-attn."""

    def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int = -1) -> Tensor:
        cu_seqlens, longest = packing.cu_seqlens.int(), packing.max_length
        return flash(q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True, window_size=(window, 0))

    return attention


# -- products whose result is float32 ----------------------------------------------------------------------------------

FEW = 256
"""Rows below which splitting the weight costs more than a float32 product: both read it once."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """bfloat16 a (M, K) @ b (K, N), accumulated and returned in float32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is the float32 x to a relative 2^-17 per element."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


class _WideLinear(torch.autograd.Function):
    """A linear map in float32. The gradient of the weight is as exact as the result, since it sums over all positions
    and much cancels; that of x is one bfloat16 product, as for every other linear map under autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        high, low = halves(weight)
        y = product(x, high.T).add_(product(x, low.T))
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        high, low = halves(grad)
        return (
            torch.mm(high, weight.bfloat16()) if of_x else None,
            product(high.T, x).add_(product(low.T, x)) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.wide_linear` on tensor cores: x is bfloat16 and used exactly, the weight is split into two parts.

    The same time as one product in tf32, which would round the weight to 11 bits instead of 16.
    """
    if x.dtype != torch.bfloat16 or weight.dtype != torch.float32 or len(x) < FEW:
        return reference.wide_linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _WideLinear.apply(x, weight, bias)
        return y


# -- elementwise work, fused by torch.compile --------------------------------------------------------------------------


class Fallback:
    """A function that a compiler may refuse, and the plain one that does the same; if the first fails, warn once and
    run the second from then on."""

    def __init__(self, function: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.function, self.plain = function, plain
        self.failure: str | None = None

    def __call__(self, *args: Any, **named: Any) -> Any:
        if self.failure is None:
            try:
                return self.function(*args, **named)
            except torch.OutOfMemoryError:
                raise  # caused by the data, not the compiler: the step is retried in smaller pieces
            except Exception as error:  # whatever the compiler raises, the plain function is right
                self.failure = f"{type(error).__name__}: {error}"
                first = self.failure.splitlines()[0]
                name = getattr(self.plain, "__name__", "a kernel")
                warnings.warn(f"compilation of {name} failed, running it plain: {first}", stacklevel=2)
        return self.plain(*args, **named)


def without_fallback(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a check compares: the function itself, whose failure it reports."""
    return function.function if isinstance(function, Fallback) else function


class Compiled(Fallback):
    """A pure tensor function, compiled by torch on first use.

    One program serves any number of rows, but each width gets its own: of a symbolic width no alignment is known, and
    memory would be read two bytes at a time.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(self._run, function)

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        dynamo = importlib.import_module("torch._dynamo")
        # one program per combination of dtypes and of tensors that need a gradient: more than the default limit of 8
        dynamo.config.recompile_limit = max(64, dynamo.config.recompile_limit)
        triton = importlib.import_module("torch._inductor.config").triton
        if hasattr(triton, "mix_order_reduction_non_strict_mode"):  # else compiled anew for fewer than 4,096 rows
            triton.mix_order_reduction_non_strict_mode = True
        return torch.compile(self.plain, dynamic=True)

    def _run(self, *args: Any) -> Any:
        for arg in args:
            if isinstance(arg, Tensor) and arg.ndim == 2:
                torch._dynamo.mark_static(arg, 1)
        return self.compiled(*args)


def _conv_sum(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    taps = reference.wide(weight)
    y = x * taps[:, -1] + bias
    for shift in range(1, taps.shape[1]):
        earlier = F.pad(x, (0, 0, shift, 0))[: x.shape[0]]
        y = y + torch.where((position >= shift)[:, None], earlier, 0) * taps[:, -1 - shift]
    return y


def conv(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    """`reference.causal_conv` by position, summed in float32; one pass once fused."""
    return F.silu(_conv_sum(x, weight, bias, position)).to(x.dtype)


def conv_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `conv` by x, weight and bias, recomputed from its inputs: autograd would save x once more per tap,
    half as much again as a Mamba-2 layer saves."""
    taps, y = reference.wide(weight), _conv_sum(x, weight, bias, position)
    gate = torch.sigmoid(y)
    total = grad * gate * (1 + y * (1 - gate))
    x_grad, taps_grad = total * taps[:, -1], [(total * x).sum(0)]
    for shift in range(1, taps.shape[1]):
        inside = torch.where((position >= shift)[:, None], total, 0)
        x_grad = x_grad + F.pad(inside, (0, 0, 0, shift))[shift:] * taps[:, -1 - shift]
        taps_grad.append((inside * F.pad(x, (0, 0, shift, 0))[: x.shape[0]]).sum(0))
    return x_grad.to(x.dtype), torch.stack(taps_grad[::-1], 1).to(weight.dtype), total.sum(0).to(bias.dtype)


def causal_conv_of(forward: Callable[..., Any], gradient: Callable[..., Any]) -> Callable[..., Tensor]:
    """`reference.causal_conv` from `conv` and `conv_gradient`, compiled or not."""

    class Conv(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> Tensor:
            ctx.save_for_backward(*given)
            y: Tensor = forward(*given)
            return y

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return (*gradient(grad, *ctx.saved_tensors), None)

    def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return Conv.apply(x, weight, bias, packing.position)

    return causal_conv


@functools.cache
def compiled_elementwise() -> dict[str, Any]:
    """The reference's causal_conv, add_rms_norm, gated_rms_norm and swiglu, each as one fused kernel."""
    pieces: list[Callable[..., Any]] = [reference.add_rms_norm_to, reference.gated_rms_norm, reference.swiglu]
    add_norm, gated, gate = (Compiled(piece) for piece in pieces)

    def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, residual, weight, eps, reference.product_dtype(weight))

    causal_conv = causal_conv_of(Compiled(conv), Compiled(conv_gradient))
    return {"causal_conv": causal_conv, "add_rms_norm": add_rms_norm, "gated_rms_norm": gated, "swiglu": gate}
