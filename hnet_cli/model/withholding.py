"""The model without what the chunks of a stage carry: each position is handed one constant vector instead.

The constant is the mean of what the stage hands out, so that the decoder meets nothing far from what it was trained on
and learns nothing about its place (mean ablation). All that lies inside the stage is withheld with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hnet_cli.kernels.reference import exact
from hnet_cli.model.chunking import RoutingOutput
from hnet_cli.model.hnet import HNet, HNetForCausalLM


def _levels(model: HNetForCausalLM) -> list[HNet]:
    """The levels with chunks, outermost first."""
    found: list[HNet] = []
    level = model.backbone
    while not level.is_innermost:
        found.append(level)
        assert isinstance(level.main_network, HNet)
        level = level.main_network
    return found


@contextlib.contextmanager
def observed(model: HNetForCausalLM) -> Iterator[list[Tensor]]:
    """Sum up what the chunks hand to positions in the passes of the block: for every stage (D + 1,) in `exact`, the sum
    of the vectors and their number. Where a decoder reads them at boundaries only, those are counted."""
    device = model.embeddings.weight.device
    found = list(enumerate(_levels(model)))
    sums = [torch.zeros(model.config.d_model[stage] + 1, dtype=exact(device), device=device) for stage, _ in found]

    def add(stage: int, level: HNet) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Any, RoutingOutput, Any, Any], handed: Tensor) -> None:
            read = handed if level.residual_proj is not None else handed[arguments[1].boundary_mask]
            sums[stage][:-1] += read.sum(0, dtype=sums[stage].dtype)
            sums[stage][-1] += len(read)

        return hook

    with contextlib.ExitStack() as hooks:
        for stage, level in found:
            handle = level.dechunk_layer.register_forward_hook(add(stage, level))
            hooks.callback(handle.remove)
        yield sums


@contextlib.contextmanager
def withheld(model: HNetForCausalLM, stage: int, sums: Tensor) -> Iterator[None]:
    """Run the passes of the block without what the chunks of `stage` carry. `sums` (D + 1,) as `observed` has them."""

    def constant(module: Any, arguments: Any, handed: Tensor) -> Tensor:
        return (sums[:-1] / sums[-1].clamp_min(1)).to(handed.dtype).expand_as(handed)

    handle = _levels(model)[stage].dechunk_layer.register_forward_hook(constant)
    try:
        yield
    finally:
        handle.remove()
