"""Adapters to fast code for CUDA: mamba-ssm's Triton kernels, variable-length attention, fused elementwise work.

Nothing here imports a CUDA package before it is asked to: each `load_*` does, and raises whatever the package raises.
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
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hnet_cli.kernels import reference, tuned
from hnet_cli.kernels.packing import Packing

INT32 = 2**31


@functools.cache
def load_mamba() -> tuple[str, Any, Any]:
    """(version, mamba_chunk_scan_combined, selective_state_update).

    The package's own `__init__` imports a compiled extension that these two do not need, so an empty parent module with
    the installed path takes its place: the pure-Python wheel suffices. Configurations known from `tuned.json` are not
    tuned again.
    """
    spec = importlib.util.find_spec("mamba_ssm") if "mamba_ssm" not in sys.modules else None
    if "mamba_ssm" not in sys.modules:
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("mamba-ssm is not installed")
        parent = types.ModuleType("mamba_ssm")
        parent.__path__ = list(spec.submodule_search_locations)
        parent.__spec__ = spec
        sys.modules["mamba_ssm"] = parent
    scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    update = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    tuned.seed_from_package()
    return importlib.metadata.version("mamba-ssm"), scan, update


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

    torch.compile moves the cache of all Triton kernels to a temporary folder, from its first one on: what mamba-ssm has
    had compiled before, or elsewhere, would not be found. Here it stays where Triton has it.
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


def mamba_scan(scan: Any) -> Callable[..., Any]:
    """`reference.ssd_scan` on mamba-ssm's kernel."""

    def run(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        packing: Packing,
        return_states: bool,
        chunk_size: int,
    ) -> Any:
        documents = packing.document.int()[None]
        more: dict[str, Any] = {}
        if return_states:
            more = {"cu_seqlens": packing.cu_seqlens.int(), "return_varlen_states": True}
        y = scan(
            x[None],
            dt[None],
            A,
            B[None, :, None],
            C[None, :, None],
            chunk_size=chunk_size,
            D=D.float(),
            dt_bias=dt_bias.float(),
            dt_softplus=True,
            seq_idx=documents,
            **more,
        )
        return (y[0][0], y[1].float()) if return_states else y[0]

    def ssd_scan(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        packing: Packing,
        chunk_size: int = 256,
        return_states: bool = False,
    ) -> Any:
        heads_first = (x, dt, A, B, C, D, dt_bias)
        if x.dtype == torch.float64 or x.shape[-1] < 16 or B.shape[-1] < 16 or chunk_size < 16:
            return reference.ssd_scan(*heads_first, packing, chunk_size, return_states)  # below the kernels' least tile
        limit = (INT32 - 1) // max(t.stride(0) for t in (x, dt, B, C))
        if packing.total <= limit:
            return run(*heads_first, packing, return_states, chunk_size)
        # the kernels compute offsets in 32 bits and would silently read elsewhere: fewer documents at a time
        parts = []
        for start, group in packing.groups(limit):
            rows = slice(start, start + group.total)
            part = (x[rows], dt[rows], A, B[rows], C[rows], D, dt_bias)
            too_long = group.total > limit
            parts.append(
                reference.ssd_scan(*part, group, chunk_size, return_states)
                if too_long
                else run(*part, group, return_states, chunk_size)
            )
        if return_states:
            return torch.cat([y for y, _ in parts]), torch.cat([state for _, state in parts])
        return torch.cat(parts)

    return ssd_scan


def mamba_step(update: Any) -> Callable[..., Tensor]:
    """`reference.ssd_step` on mamba-ssm's kernel."""

    def ssd_step(
        state: reference.SSMState,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        rows: Tensor | None = None,
        once: Tensor | None = None,
    ) -> Tensor:
        width, size = state.value.shape[2:]
        y: Tensor = update(  # expanded, not repeated: strides of 0 tell the kernel that a head shares them
            state.value,
            x.contiguous(),
            dt[:, :, None].expand(-1, -1, width),
            A.float()[:, None, None].expand(-1, width, size),
            B[:, None],
            C[:, None],
            D.float()[:, None].expand(-1, width),
            dt_bias=dt_bias[:, None].expand(-1, width),
            dt_softplus=True,
            state_batch_indices=rows if once is None else once,  # it skips -1 and gives 0
        )
        # two programs that update one row would read what the other has written
        return y if once is None else torch.where(once[:, None, None] < 0, y[:1], y)

    return ssd_step


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
"""Rows below which splitting the weight costs more than a product in float32: both read it once."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (K, N), bfloat16, summed and given as float32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is the float32 x but for 2^-17 of each element."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


class _WideLinear(torch.autograd.Function):
    """The gradient of the weight is as exact as the result: it is a sum over all positions, of which much cancels. That
    of x is one product in bfloat16, in which it is given, like that of every other linear map under autocast."""

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
    """`reference.wide_linear` on tensor cores: x is bfloat16, exact in them, and the weight is split into two parts.

    The same time as one product in tf32, which would round the weight to 11 bits instead of 16.
    """
    if x.dtype != torch.bfloat16 or weight.dtype != torch.float32 or len(x) < FEW:
        return reference.wide_linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _WideLinear.apply(x, weight, bias)
        return y


# -- elementwise work, fused by torch.compile --------------------------------------------------------------------------


class Compiled:
    """A pure tensor function, compiled on first use; if that fails, said once and run as it is.

    Any number of rows is one program, each width of a matrix another: a width that is a symbol is not known to be a
    multiple of anything, so that memory is read two bytes at a time.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.failure: str | None = None

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        dynamo = importlib.import_module("torch._dynamo")
        # once for each combination of dtypes and of what needs a gradient: more than the 8 that are allowed otherwise
        dynamo.config.recompile_limit = max(64, dynamo.config.recompile_limit)
        return torch.compile(self.function, dynamic=True)

    def __call__(self, *args: Any) -> Any:
        if self.failure is None:
            try:
                for arg in args:
                    if isinstance(arg, Tensor) and arg.ndim == 2:
                        torch._dynamo.mark_static(arg, 1)
                return self.compiled(*args)
            except torch.OutOfMemoryError:
                raise  # of the data, not of the compiler: the step is tried again in smaller pieces
            except Exception as error:  # whatever the compiler raises: the plain function gives the same numbers
                self.failure = f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"torch.compile of {self.function.__name__} failed, running it plain: {error}", stacklevel=2
                )
        return self.function(*args)


def _conv_sum(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    taps = reference.wide(weight)
    y = x * taps[:, -1] + bias
    for shift in range(1, taps.shape[1]):
        earlier = F.pad(x, (0, 0, shift, 0))[: x.shape[0]]
        y = y + torch.where((position >= shift)[:, None], earlier, 0) * taps[:, -1 - shift]
    return y


def conv(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    """`reference.causal_conv` by position: sums in float32, one pass once fused."""
    return F.silu(_conv_sum(x, weight, bias, position)).to(x.dtype)


def conv_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of `conv` by x, weight and bias, from its inputs: automatic differentiation would keep x once more for every
    tap, half as much again as a layer of Mamba-2 keeps."""
    taps, y = reference.wide(weight), _conv_sum(x, weight, bias, position)
    gate = torch.sigmoid(y)
    total = grad * gate * (1 + y * (1 - gate))
    x_grad, taps_grad = total * taps[:, -1], [(total * x).sum(0)]
    for shift in range(1, taps.shape[1]):
        own = torch.where((position >= shift)[:, None], total, 0)
        x_grad = x_grad + F.pad(own, (0, 0, 0, shift))[shift:] * taps[:, -1 - shift]
        taps_grad.append((own * F.pad(x, (0, 0, shift, 0))[: x.shape[0]]).sum(0))
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
def compiled_elementwise() -> dict[str, Callable[..., Any]]:
    """causal_conv, add_rms_norm, gated_rms_norm and swiglu of the reference, each one fused kernel."""
    pieces: list[Callable[..., Any]] = [reference.add_rms_norm_to, reference.gated_rms_norm, reference.swiglu]
    add_norm, gated, gate = (Compiled(piece) for piece in pieces)

    def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, residual, weight, eps, reference.product_dtype(weight))

    causal_conv = causal_conv_of(Compiled(conv), Compiled(conv_gradient))
    return {"causal_conv": causal_conv, "add_rms_norm": add_rms_norm, "gated_rms_norm": gated, "swiglu": gate}
