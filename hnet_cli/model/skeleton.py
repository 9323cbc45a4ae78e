"""A model without values: names and shapes at once, whatever its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .config import HNetConfig

Model = TypeVar("Model", bound=nn.Module)


class _WithoutValues(TorchFunctionMode):
    """Skips filling tensors: on the meta device there is nothing to fill, yet `normal_` there imports all of
    torch._dynamo, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, torch.Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def skeleton(kind: Callable[[HNetConfig], Model], config: HNetConfig) -> Model:
    """`kind(config)` on the meta device. `.to_empty(device=...)` and `load_state_dict` make a model of it."""
    with torch.device("meta"), _WithoutValues():
        return kind(config)
