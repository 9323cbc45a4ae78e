"""Model folders: `config.json` (official fields) and `model.safetensors` (official names). Nothing is pickled.

A `manifest.json` with sizes and SHA-256 stands beside; a folder appears under its name in one rename.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hnet_cli import provenance, storage
from hnet_cli.checkpoints.safetensors_file import open_safetensors, write_safetensors
from hnet_cli.data import tokens
from hnet_cli.errors import DamagedError
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.init import skeleton, stays_float32
from hnet_cli.storage import HeldFile

STARTERS = Path(__file__).parents[1] / "starters"
MODEL_FILES = ("config.json", "model.safetensors")
MODEL_TYPE = "hnet"
"""In the config.json of a model folder, for the library `transformers`."""
WIDENED = 1 << 29
"""Bytes of half-precision weights up to which a model is computed in float32: there it is exact, and memory is no
concern."""
Read = Callable[[torch.Tensor], torch.Tensor]


class LoadedModel(HNetForCausalLM):
    """An `HNetForCausalLM` with the folder it was read from."""

    source: Path
    """The model folder."""

    @property
    def modality(self) -> str | None:
        """Name of the modality it was trained on; None if unknown, as in a converted official model."""
        return self.config.extra.get("modality")

    @property
    def label(self) -> str:
        """The model's name for people: starter:text, or a run and its step."""
        folder = self.source
        if folder.parent == STARTERS:
            return f"starter:{folder.name}"
        return f"{folder.parent.parent.name}, {folder.name}" if folder.parent.name == "checkpoints" else folder.name

    def segment(self, data: bytes, stage: int = 0) -> list[bytes]:
        """The learned chunks of `data` at a stage (0 = outermost); joined they are `data`."""
        from hnet_cli.inference.segment import segment_bytes

        return segment_bytes(self, data, stage)


def save_model(
    folder: Path,
    model: HNetForCausalLM,
    extra: Mapping[str, Any],
    target_ratios: list[float],
    read: Read = lambda tensor: tensor,
) -> dict[str, dict[str, Any]]:
    """Write `config.json` and `model.safetensors` into a folder being staged; returns the latter's manifest entry.

    `read` returns the whole of a tensor of the model's state when its turn comes.
    """
    config = model.config.to_dict() | {"model_type": MODEL_TYPE}
    made = provenance.after(provenance.made(), config.get("hnet"))
    config["hnet"] = config.get("hnet", {}) | {"target_ratios": target_ratios, "made": made} | dict(extra)
    if model.tokenizer is not None:
        config["hnet"]["tokenizer"] = tokens.FILE
        storage.write_text(folder / tokens.FILE, model.tokenizer.text)
    storage.write_json(folder / "config.json", config)
    return write_tensors(folder / "model.safetensors", weights_of(model), {"format": "pt"}, read)


def weights_of(model: HNetForCausalLM) -> dict[str, torch.Tensor]:
    tensors = model.state_dict()
    if model.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    read: Read = lambda tensor: tensor,
) -> dict[str, dict[str, Any]]:
    with storage.NewFile(path) as file:
        write_safetensors(file, tensors, read, metadata)
    return {path.name: file.entry}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in open_safetensors(HeldFile(path)).items()}


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise DamagedError(f"{path} does not hold a JSON object")
    return data


def load_folder(
    folder: Path, device: str | torch.device = "cpu", kernels: str = "auto", dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model in a model folder, in evaluation mode. Raises DamagedError naming the file and the fault.

    `dtype` of the weights: by default float32, and bfloat16 for what is larger than `WIDENED`; the residual projections
    and Mamba's D are float32, as in the release. Shapes are checked before anything is read.
    """
    weights = HeldFile(folder / "model.safetensors")
    if os.path.lexists(folder / storage.MANIFEST):
        entries = storage.verify_folder(folder, ("config.json", tokens.FILE))["files"]
        if weights.path.name in entries:
            weights.verify(entries[weights.path.name])
    try:
        config = HNetConfig.from_dict(read_json(folder / "config.json"))
    except ValueError as error:
        raise DamagedError(f"{folder / 'config.json'}: {error}") from error
    stored = open_safetensors(weights)
    model = skeleton(LoadedModel, config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_embeddings and "embeddings.weight" in stored:
        stored.setdefault("lm_head.weight", stored["embeddings.weight"])
    wrong = [
        name
        for name in sorted(wanted.keys() | stored.keys())
        if name not in stored or name not in wanted or stored[name].shape != wanted[name]
    ]
    if wrong:
        raise DamagedError(
            f"{folder / 'model.safetensors'} does not fit its config.json: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, first {wrong[0]}"
        )
    if dtype is None:
        halves = sum(2 * math.prod(each.shape) for each in stored.values() if each.dtype.itemsize == 2)
        dtype = torch.bfloat16 if halves > WIDENED else torch.float32
    model.load_state_dict(
        {
            name: each.read().to(device, torch.float32 if stays_float32(name) else dtype)
            for name, each in stored.items()
        },
        assign=True,
    )
    if config.tie_embeddings:
        model.lm_head.weight = model.embeddings.weight
    model.backend = kernels
    model.source = folder
    if config.extra.get("tokenizer"):
        model.tokenizer = tokens.of_model(folder, config.vocab_size)
    return model.eval()
