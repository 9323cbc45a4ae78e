"""The H-Net model. `config` imports without torch; the rest loads on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnet_cli.model.chunking import RoutingOutput, ratio_loss
    from hnet_cli.model.config import HNetConfig
    from hnet_cli.model.hnet import HNetForCausalLM, HNetOutput
    from hnet_cli.model.optimization import lr_multipliers, parameter_groups
    from hnet_cli.model.state import GenerationState, StepRouting

_HOME = {
    "HNetConfig": "config",
    "RoutingOutput": "chunking",
    "ratio_loss": "chunking",
    "HNetForCausalLM": "hnet",
    "HNetOutput": "hnet",
    "lr_multipliers": "optimization",
    "parameter_groups": "optimization",
    "GenerationState": "state",
    "StepRouting": "state",
}
__all__ = [
    "GenerationState",
    "HNetConfig",
    "HNetForCausalLM",
    "HNetOutput",
    "RoutingOutput",
    "StepRouting",
    "lr_multipliers",
    "parameter_groups",
    "ratio_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
