"""`hnet retrofit`: make a Transformer over tokens the main network of a one-stage H-Net (paper, appendix F).

The result is a model folder from which `hnet train` starts: the Transformer's layers and final norm, to be frozen; a
new encoder, decoder and adapters; its tokenizer and embeddings, the targets for boundaries and the main network's
inputs; and the training configuration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hnet_cli import provenance, storage
from hnet_cli.checkpoints import llama
from hnet_cli.checkpoints.llama import TokenModel
from hnet_cli.checkpoints.model_folder import MODEL_TYPE, Weights
from hnet_cli.checkpoints.safetensors_file import write_safetensors
from hnet_cli.checkpoints.torch_file import Stored
from hnet_cli.checkpoints.training_state import SETTINGS
from hnet_cli.config.run import RunConfig, resolve, to_yaml
from hnet_cli.data.tokens import Tokenizer
from hnet_cli.errors import BusyError, InputError, UsageError
from hnet_cli.model import HNetConfig
from hnet_cli.model.settings import Rotary
from hnet_cli.storage import shown
from hnet_cli.training.build import build_model
from hnet_cli.training.teacher import TABLE, TOKENIZER

FROZEN = "level1.main_network"
MAIN = "backbone.main_network.main_network."


@dataclass(frozen=True)
class Retrofitted:
    """The result of `retrofit`."""

    target: str
    preset: str
    """Configuration file to train it with."""
    layers: int
    """Layers of the Transformer."""
    parameters: int
    frozen: int


def retrofit(
    source: str | Path,
    target: Path,
    preset: str = "retrofit-nano",
    settings: list[str] | None = None,
    overwrite: bool = False,
) -> Retrofitted:
    """Write an H-Net around the Transformer in `source` to the model folder `target`.

    `preset` gives encoder, decoder, adapters and training. Raises InputError,
    DamagedError, UsageError (another architecture, or a preset that does not fit it), BusyError, StorageError.
    """
    given = resolve(preset, settings or [])
    if target.resolve() == Path(source).resolve():
        raise UsageError(f"{shown(target)} cannot be made of itself", "choose another folder for the H-Net")
    if target.exists() and not overwrite:
        raise BusyError(f"{shown(target)} exists already", "choose another name, or give --overwrite to replace it")
    teacher = llama.read(source)
    tokenizer = Tokenizer(teacher.tokenizer, "tokenizer.json")
    if tokenizer.size > teacher.config.vocab_size:
        raise InputError(
            f"the tokenizer of {shown(source)} has {tokenizer.size:,} ids, the model {teacher.config.vocab_size:,}",
            "the mark before a text needs an embedding too",
        )
    config = _config(given, teacher.config, target)
    weights = _weights(config, teacher)
    with storage.staged_folder(target, overwrite=overwrite, manifest={"kind": "model"}) as folder:
        about = config.model.to_dict()
        about["hnet"] |= {"target_ratios": config.train.ratios(), "sequence_length": config.train.sequence_length}
        about["hnet"]["made"] = provenance.made()
        storage.write_json(folder / "config.json", about | {"model_type": MODEL_TYPE})
        storage.write_text(folder / SETTINGS, to_yaml(config))
        storage.write_text(folder / TOKENIZER, teacher.tokenizer)
        with storage.NewFile(folder / "model.safetensors") as file:
            write_safetensors(file, weights, lambda stored: stored.read(), metadata={"format": "pt"})
        with storage.NewFile(folder / TABLE) as file:
            write_safetensors(file, {"embeddings": teacher.weights["embeddings.weight"]}, lambda stored: stored.read())
    parts = config.model.count_parameters()
    return Retrofitted(
        str(target),
        str(target / SETTINGS),
        len(teacher.config.levels[0].main_network),
        sum(parts.values()),
        sum(parts[part] for part in config.train.frozen),
    )


def _config(given: RunConfig, teacher: HNetConfig, target: Path) -> RunConfig:
    """The preset with the teacher's layers as its main network. Raises UsageError if they do not fit together."""
    model = given.model
    if model.num_stages != 1 or not model.adapter_width or FROZEN not in given.train.frozen:
        raise UsageError(
            f"preset {given.name} is not one to retrofit with",
            f"it needs one stage, model.adapter_width, and {FROZEN} in train.frozen",
        )
    encoder, _, decoder = model.arch_layout

    def levels(outer: tuple[Any, ...], inner: tuple[Any, ...]) -> tuple[Any, ...]:
        return outer[0], inner[0]

    attention = {name: levels(value, getattr(teacher.attn_cfg, name)) for name, value in vars(model.attn_cfg).items()}
    official = (Rotary(), Rotary())
    try:
        whole = dataclasses.replace(
            model,
            arch_layout=(encoder, teacher.arch_layout, decoder),
            d_model=levels(model.d_model, teacher.d_model),
            d_intermediate=levels(model.d_intermediate, (teacher.mlp_width(0),)),
            attn_cfg=type(model.attn_cfg)(**attention),
            rotary=levels(model.rotary or official, teacher.rotary or official),
        )
    except ValueError as error:
        raise UsageError(
            f"preset {given.name} does not fit the Transformer: {error}",
            f"--set 'model.d_model=[{teacher.d_model[0]}, {teacher.d_model[0]}]' or less",
        ) from error
    name = target.resolve().name
    train = dataclasses.replace(given.train, start=str(target.resolve()))
    return dataclasses.replace(given, model=whole, train=train, name=name, description="A retrofitted Transformer.")


def _weights(config: RunConfig, teacher: TokenModel) -> Weights:
    """The H-Net's weights: the teacher's main network, and a fresh model's for the rest."""
    encoder, _, decoder = config.model.arch_layout
    shallow = dataclasses.replace(config.model, arch_layout=(encoder, ("T1",), decoder))  # its main network is not used
    torch.manual_seed(config.train.seed)
    fresh = build_model(dataclasses.replace(config, model=shallow)).state_dict()
    outer: Weights = {
        name: Stored(tuple(value.shape), value.dtype, value.contiguous)
        for name, value in fresh.items()
        if not name.startswith((f"{MAIN}layers.", f"{MAIN}rmsnorm."))
        and not (name == "lm_head.weight" and config.model.tie_embeddings)
    }
    main = {
        name.replace("backbone.main_network.", MAIN): stored
        for name, stored in teacher.weights.items()
        if name.startswith("backbone.")
    }
    return outer | main
