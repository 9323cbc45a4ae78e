"""Measured configurations of mamba-ssm's kernels: a first step compiles one variant of a kernel instead of all.

`tuned.json` maps a machine ("sm_90, triton 3.6") to kernels, and these to pairs of a tuning key (Triton's: sizes, then
dtypes of the arguments) and the configuration that was fastest for it. `benchmarks/gpu.py` writes such tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tuned.json")
Table = dict[str, list[list[Any]]]
"""Kernel -> [[key, configuration], ...]."""


def machine() -> str:
    """GPU architecture and compiler version, on which the shared memory and speed of a configuration depend."""
    import triton

    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}, triton {'.'.join(triton.__version__.split('.')[:2])}"


def tuners() -> dict[str, Any]:
    """Triton's autotuners in the modules of mamba-ssm that are loaded, by the name of the kernel."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("mamba_ssm.ops.triton.")]
    members = [member for module in modules for member in vars(module).values()]
    return {member.base_fn.__name__: member for member in members if len(getattr(member, "configs", ())) > 1}


def winners() -> Table:
    """The configurations chosen so far in this process."""
    return {
        name: [[list(key), config.all_kwargs()] for key, config in tuner.cache.items()]
        for name, tuner in tuners().items()
        if tuner.cache
    }


def seed(table: Table) -> int:
    """Seed the autotuners with the table's choices and return how many. Unknown kernels, keys and configurations are
    skipped, and tuned on first use as without a table."""
    seeded = 0
    for name, tuner in tuners().items():
        for key, chosen in table.get(name, ()):
            config = next((config for config in tuner.configs if config.all_kwargs() == chosen), None)
            if config is not None:
                tuner.cache[tuple(key)] = config
                seeded += 1
    return seeded


def seed_from_package() -> int:
    """`seed` with this GPU's table from the package; returns 0 without a GPU or table."""
    if not torch.cuda.is_available():
        return 0
    try:
        return seed(json.loads(TABLE.read_text(encoding="utf-8")).get(machine(), {}))
    except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged table: kernels are tuned on first use
        return 0
