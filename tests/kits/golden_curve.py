"""Resume a run of tests/golden, and name the build of torch it was computed with."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from runkit import metrics

from hnet_cli.config.run import resolve
from hnet_cli.training.loop import train

STEPS = 12
KEYS = ("loss", "bpb", "ratio_loss", "grad_norm")


def of(folder: Path) -> list[list[float]]:
    """Loss, bits per byte, ratio loss and gradient norm of each step when the run in `folder` goes on to step 12."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "golden")
        shutil.copytree(folder, copy)
        run = copy / "run"
        stopped = next((run / "checkpoints").glob("step-*"))
        config = resolve(str(stopped / "config.yaml"), [f"train.steps={STEPS}"])
        train(config, copy / "dataset", run, resume=True, strict=True)
        return [[record[key] for key in KEYS] for record in metrics(run) if "loss" in record]


def build() -> dict[str, Any]:
    """The versions on which the same bits may be expected."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
