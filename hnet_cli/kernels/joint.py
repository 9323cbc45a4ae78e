"""Parts of a product whose gradients are written into one tensor, by the kernels that compute them.

After `Tensor.split` autograd copies the gradients of the parts together: of a Mamba-2 layer all that its input
projection gives, read and written once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Joint:
    """Gradient of a product that was split along its last axis. Each part's place is given away once: a part that is
    read twice has two gradients, whose sum is copied."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.gradient: Tensor | None = None
        self.given: set[int] = set()

    def place(self, part: int, like: Tensor) -> Tensor:
        """Memory for the gradient of a part, which `like` is, not written yet."""
        if part in self.given:
            return like.new_empty(like.shape)
        self.given.add(part)
        if self.gradient is None:
            self.gradient = like.new_empty(*like.shape[:-1], sum(self.sizes))
        return self.gradient.split(self.sizes, -1)[part]

    def join(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of the product. From here on there is none again."""
        gradient, self.gradient = self.gradient, None
        self.given.clear()
        if gradient is None:
            return torch.cat(tuple(grads), -1)
        for place, grad in zip(gradient.split(self.sizes, -1), grads, strict=True):
            if grad.data_ptr() != place.data_ptr() or grad.stride() != place.stride():
                place.copy_(grad)
        return gradient


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, joint: _Joint) -> tuple[Tensor, ...]:
        ctx.joint = joint
        return x.split(joint.sizes, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.joint.join(grads), None


def split(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Views of x (..., D) of `sizes` columns each; kernels write their gradients where `room` says."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.split(list(sizes), -1)
    joint = _Joint(sizes)
    parts: tuple[Tensor, ...] = _Split.apply(x, joint)
    for number, part in enumerate(parts):
        part.room = functools.partial(joint.place, number)  # type: ignore[attr-defined]
    return parts


def room(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Function that gives, in the backward pass, memory for the gradient of x from x as it was saved: its columns in
    the gradient of the product that it is a part of, or a tensor of its own."""
    return getattr(x, "room", _own)


def _own(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)
