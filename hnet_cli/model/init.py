"""Initialisation: the official one, and models without values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hnet_cli.model.blocks import Isotropic
from hnet_cli.model.config import HNetConfig

if TYPE_CHECKING:
    from hnet_cli.model.hnet import HNet, HNetForCausalLM

Model = TypeVar("Model", bound=nn.Module)
_FILLING = {"normal", "uniform", "eye", "fill"}
_ELEMENTWISE = {"exp", "expm1", "log", "log1p", "clamp", "mul", "div", "add", "sub", "neg"}


def stays_float32(name: str) -> bool:
    """Tell whether a parameter is float32 whatever the dtype of the rest: residual projections and Mamba's D are."""
    return "residual_proj" in name or name.endswith(".D")


@torch.no_grad()
def init_weights(model: HNetForCausalLM, std: float = 0.02) -> None:
    """The official initialisation: N(0, std) for linear maps, less for those that write to the residual stream, N(0, 1)
    for embeddings. The rest keeps the values of its constructor."""
    nn.init.normal_(model.embeddings.weight, std=1.0)
    # after the embeddings: a tied pair is an output layer first, as in the release
    nn.init.normal_(model.lm_head.weight, std=std)
    _init_level(model.backbone, std, 0)


def _init_level(net: HNet, std: float, residuals: int) -> None:
    """`residuals`: additions to the residual stream in the levels outside of this one."""
    stacks = [net.main_network] if net.is_innermost else [net.encoder, net.decoder]
    residuals += sum(stack.height for stack in stacks if isinstance(stack, Isotropic))
    for stack in stacks:
        for name, parameter in stack.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                # the stream is summed over all levels, the outer ones included: its variance must not grow with depth
                nn.init.normal_(parameter, std=std / math.sqrt(residuals))
            elif name.endswith(("in_proj.weight", "Wqkv.weight", "fc1.weight")):
                nn.init.normal_(parameter, std=std)
    if not isinstance(net.main_network, Isotropic):
        _init_level(net.main_network, std, residuals)


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
