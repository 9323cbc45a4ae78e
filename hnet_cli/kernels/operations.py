"""The signature of every operation of the seam, for type checkers; `reference` says what they do."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from hnet_cli.kernels.packing import Packing


class Scan(NamedTuple):
    """The operands of Mamba-2's recurrence, in the order in which `SSDScan` and `SSDStep` take them."""

    x: Tensor
    """(T, H, P)."""
    dt: Tensor
    """(T, H), before softplus(dt + dt_bias)."""
    A: Tensor
    """(H,), negative."""
    B: Tensor
    """(T, N)."""
    C: Tensor
    """(T, N)."""
    D: Tensor
    """(H,)."""
    dt_bias: Tensor
    """(H,)."""


class SSDScan(Protocol):
    def __call__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        packing: Packing,
        chunk_size: int = ...,
        return_states: bool = ...,
    ) -> Any: ...


class State(Protocol):
    """The memory of `SSDStep` for B documents."""

    @property
    def value(self) -> Tensor:
        """(B, H, P, N), float32 or wider."""

    def fill(self, value: Tensor, rows: Tensor | None = None) -> None:
        """Take the states (R, H, P, N) that documents end with, of the given rows (R,) int64 or of all."""

    def select(self, rows: Tensor) -> None:
        """Keep the given rows (R,) int64, in that order."""


class SSDState(Protocol):
    def __call__(self, like: Tensor, batch_size: int, heads: int, width: int, size: int) -> State: ...


class SSDStep(Protocol):
    def __call__(
        self,
        state: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        rows: Tensor | None = ...,
        once: Tensor | None = ...,
    ) -> Tensor: ...


class CausalConv(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor, packing: Packing) -> Tensor: ...


class CausalConvStep(Protocol):
    def __call__(self, x: Tensor, state: Tensor, taps: Tensor, bias: Tensor, rows: Tensor | None = ...) -> Tensor: ...


class Attention(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int = ...) -> Tensor: ...


class AttentionStep(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, length: Tensor | None = ..., rows: Tensor | None = ...
    ) -> Tensor: ...


class EMAScan(Protocol):
    def __call__(self, x: Tensor, p: Tensor, packing: Packing) -> Tensor: ...


class AddRMSNorm(Protocol):
    def __call__(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]: ...


class GatedRMSNorm(Protocol):
    def __call__(self, y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor: ...


class SwiGLU(Protocol):
    def __call__(self, x: Tensor) -> Tensor: ...


class WideLinear(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = ...) -> Tensor: ...


class StepWeight(Protocol):
    def __call__(self, weight: Tensor, batch_size: int) -> Tensor: ...


class StepLinear(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, row_by_row: bool = ...) -> Tensor: ...
