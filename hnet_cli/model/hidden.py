"""Hidden states: the outputs of the stacks inside a model, caught while it runs.

Every stage has an encoder, a main network and a decoder. Encoder and decoder give a vector per position of their
level: at stage 0 per byte, at stage s per chunk of stage s - 1. The main network gives one per chunk of its stage; it
is the next level, whose own output is that of its decoder, or the innermost stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from hnet_cli.model.blocks import Isotropic
from hnet_cli.model.hnet import HNet, HNetForCausalLM

LAYERS = ("encoder", "main", "decoder")


class Layer(NamedTuple):
    """A stack whose output is wanted."""

    stage: int
    """0 is the outermost. -1, with "main", for a model without stages."""
    name: str
    """One of `LAYERS`."""

    @property
    def level(self) -> int:
        """The level of its positions: 0 for bytes, l for chunks of stage l - 1."""
        return self.stage + (self.name == "main")


def stack_of(model: HNetForCausalLM, layer: Layer) -> Isotropic:
    """The stack whose output, (T, D) over the positions of its level, is that of a layer."""
    net: HNet | Isotropic = model.backbone
    for _ in range(layer.level):
        assert isinstance(net, HNet)
        net = net.main_network
    assert isinstance(net, HNet)
    stack = net.encoder if layer.name == "encoder" else net.main_network if net.is_innermost else net.decoder
    assert isinstance(stack, Isotropic)
    return stack


@contextmanager
def caught(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """The output of each module's last call, as it will be; a module that was not called has none.

    Of a pair, as a layer returns it, the sum: the residual stream after it.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def catch(module: nn.Module, _: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
        outputs[module] = output if isinstance(output, Tensor) else output[0] + output[1]

    hooks = [module.register_forward_hook(catch) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
