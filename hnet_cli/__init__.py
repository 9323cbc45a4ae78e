"""hnet: train, sample and look inside H-Nets (arXiv 2507.07955) on your own files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# A wheel carries modalities/ and presets/ inside this package; a source checkout keeps them beside it.
if not (Path(__file__).parent / "modalities").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from hnet_cli.distributed import threads

threads.prepare_environment()  # every entry passes here, workers too, before torch is imported

if TYPE_CHECKING:
    from hnet_cli.api import evaluate, metrics, prepare, train
    from hnet_cli.checkpoints.find import load
    from hnet_cli.model import HNetConfig, HNetForCausalLM, parameter_groups, ratio_loss

# Resolved on first use, so that `hnet --help` never pays for importing torch.
_EXPORTS = {
    "HNetConfig": "hnet_cli.model.config",
    "HNetForCausalLM": "hnet_cli.model",
    "ratio_loss": "hnet_cli.model",
    "parameter_groups": "hnet_cli.model",
    "load": "hnet_cli.checkpoints.find",
    "prepare": "hnet_cli.api",
    "train": "hnet_cli.api",
    "evaluate": "hnet_cli.api",
    "metrics": "hnet_cli.api",
}
__all__ = [
    "HNetConfig",
    "HNetForCausalLM",
    "__version__",
    "evaluate",
    "load",
    "metrics",
    "parameter_groups",
    "prepare",
    "ratio_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hnet_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
