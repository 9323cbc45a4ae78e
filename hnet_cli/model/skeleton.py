"""A model without values: names and shapes at once, whatever its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hnet_cli.model.config import HNetConfig

Model = TypeVar("Model", bound=nn.Module)


_FILLING = {"normal", "uniform", "eye", "fill"}
_ELEMENTWISE = {"exp", "expm1", "log", "log1p", "clamp", "mul", "div", "add", "sub", "neg"}


class _WithoutValues(TorchFunctionMode):
    """Skips the arithmetic of initialisation. On the meta device there is nothing to compute, yet `exp` or `normal_`
    there imports all of torch._dynamo, which takes seconds. What is not listed is merely computed."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("out", kwargs.get("tensor", args[0] if args else None))
        skipped = getattr(func, "__name__", "").strip("_") in _FILLING | _ELEMENTWISE
        return target if skipped and isinstance(target, torch.Tensor) else func(*args, **kwargs)


def skeleton(kind: Callable[[HNetConfig], Model], config: HNetConfig) -> Model:
    """`kind(config)` on the meta device. `.to_empty(device=...)` and `load_state_dict` make a model of it."""
    with torch.device("meta"), _WithoutValues():
        return kind(config)
