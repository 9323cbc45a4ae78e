"""The configuration of a run that begins with a trained model, where no preset is named: fine-tuning.

Architecture, target ratios and sequence length are the model's own. The rest is as the model was trained: by the
configuration of its run, the preset that its folder names, or that of its modality. But no more steps are made than
read the data `EPOCHS` times. The learning rates are those of its training, which its folder names: lower ones were
worse (docs/fine-tuning.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnet_cli import modality
from hnet_cli.checkpoints.find import find
from hnet_cli.checkpoints.model_folder import read_config
from hnet_cli.config.presets import preset_names
from hnet_cli.config.run import RunConfig, model_data, resolve, resolve_data, to_data
from hnet_cli.data import tokens
from hnet_cli.data.mixture import Mixture
from hnet_cli.errors import HNetError

EPOCHS = 3
VALIDATIONS = 10
"""Validations of the run, so that its best checkpoint is found before it has learned little data by heart."""


def tuned(start: str, settings: Sequence[str], data: Mixture, device: str) -> tuple[RunConfig, str]:
    """The configuration of a run that begins with MODEL `start`, and how it was chosen, for people.

    Raises UsageError, InputError, DamagedError.
    """
    folder = find(start)
    model = read_config(folder)
    base, like = _like(folder, model.extra.get("preset"), data, device)
    sections, before = to_data(base), base.train
    ratios = list(model.target_ratios or before.target_ratios)
    length = model.extra.get("sequence_length")
    length = length if type(length) is int and length > 1 else before.sequence_length
    rows = max(1, round(before.batch_bytes / length))
    multipliers = model.extra.get("lr_multipliers") or before.lr_multipliers
    sections["train"] |= {
        "start": str(start),
        "frozen": [],
        "lr": model.extra.get("lr") or before.lr,
        "lr_multipliers": multipliers if len(multipliers) == model.num_stages + 1 else "auto",
        "sequence_length": length,
        "batch_bytes": rows * length,
        "micro_batches": before.micro_batches if before.micro_batches == "auto" else math.gcd(before.pieces, rows),
        "target_ratios": [ratio for ratio in ratios if len(ratios) == model.num_stages],
        "boundary_loss_weight": 0.0,
        "embedding_loss_weight": 0.0,
    }
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in _name(folder))
    sections |= {"name": f"from-{name}", "model": model_data(model), "description": "", "source": ""}
    sections.pop("data")
    sections["tokenizer"] = str(folder / tokens.FILE) if (folder / tokens.FILE).exists() else ""
    batch_bytes = resolve_data(sections, start, settings).train.batch_bytes
    sections["train"]["steps"] = min(before.steps, EPOCHS * math.ceil(data.nbytes("train") / batch_bytes))
    steps = resolve_data(sections, start, settings).train.steps
    sections["train"]["eval_every"] = math.ceil(steps / VALIDATIONS)
    config = resolve_data(sections, start, settings)
    train = config.train
    return config, f"the rest as in {like}; {train.steps:,} steps, learning rate {train.lr:g}"


def _name(folder: Path) -> str:
    """A word for a model folder: of a checkpoint, its run's."""
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name


def _like(folder: Path, name: Any, data: Mixture, device: str) -> tuple[RunConfig, str]:
    """The configuration that a model was trained with, as far as it is known, and what that is."""
    if (folder / "config.yaml").exists():
        return resolve(str(folder / "config.yaml")), "its run"
    if not isinstance(name, str) or name not in preset_names():
        try:
            name = modality.get(data.modality).presets["nano" if device == "cpu" else "small"]
        except HNetError:  # its plugin is not installed here
            name = "nano"
    return resolve(name), f"preset {name}"
