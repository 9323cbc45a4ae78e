"""Pretrained Transformers over tokens, Llama-style folders as published and our own, under our parameter names.

Both become an isotropic `HNetConfig` whose vocabulary is the tokenizer's, and its state dict. Grouped
queries are written out to as many keys and values as there are queries, which is exactly the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hnet_cli import storage
from hnet_cli.checkpoints.convert import checked, read_weights, weight_files
from hnet_cli.checkpoints.find import find
from hnet_cli.checkpoints.model_folder import Weights
from hnet_cli.checkpoints.torch_file import Stored
from hnet_cli.errors import DamagedError, InputError, UsageError
from hnet_cli.model import HNetConfig
from hnet_cli.model.blocks import EPS
from hnet_cli.storage import shown

LAYERS = "backbone.main_network.layers."
NORM = "backbone.main_network.rmsnorm.weight"


@dataclass(frozen=True)
class TokenModel:
    """A Transformer over tokens."""

    config: HNetConfig
    weights: Weights
    """Its state dict, not yet read."""
    tokenizer: str
    """The content of its tokenizer.json."""


def read(source: str | Path) -> TokenModel:
    """The Transformer in a folder with config.json, model.safetensors (or its shards) and tokenizer.json.

    Raises InputError if there is none, UsageError for an architecture that is not Llama's, DamagedError.
    """
    folder = Path(source)
    if not (folder / "config.json").exists():
        folder = find(source)
    try:
        data = storage.read_json(folder / "config.json")
        tokenizer = storage.read_text(folder / "tokenizer.json", storage.TOKENIZER)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise InputError(f"{shown(folder)} has no {name}", "give the folder of a Transformer over tokens") from error
    ours = "arch_layout" in data
    try:
        config = HNetConfig.from_dict(data) if ours else _config(data)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        reason = "its config.json does not describe a Transformer"
        if isinstance(error, KeyError | ValueError):
            reason = f"its config.json lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{shown(folder)} cannot be retrofitted: {reason}", "give a Llama-style folder") from error
    if config.num_stages or set(config.levels[0].main_network) != {"T"} or config.attn_cfg.window_size[0] >= 0:
        raise UsageError(f"{shown(folder)} is no Transformer over tokens", "give one with global attention throughout")
    files = weight_files(folder)
    weights = {name: stored for file in files for name, stored in read_weights(file).items()}
    weights = checked(weights if ours else _renamed(weights, config, data), config, files[0], "config.json")
    return TokenModel(config, weights, tokenizer)


def _config(data: Mapping[str, Any]) -> HNetConfig:
    """The configuration from Llama's config.json. Raises ValueError or KeyError for what our layers do not compute."""
    if data.get("model_type") != "llama":
        raise ValueError(f"model_type is {data.get('model_type')!r}, not 'llama'")
    hidden, heads = data["hidden_size"], data["num_attention_heads"]
    head, groups = data.get("head_dim") or hidden // heads, data.get("num_key_value_heads") or heads
    if heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} keys and values")
    refused = {
        "hidden_act": (data.get("hidden_act", "silu"), "silu"),
        "rms_norm_eps": (data.get("rms_norm_eps", 1e-6), EPS),
        "attention_bias": (bool(data.get("attention_bias")), False),
        "mlp_bias": (bool(data.get("mlp_bias")), False),
        "head_dim": (head * heads, hidden),
        "quantization_config": (data.get("quantization_config"), None),
    }
    for name, (value, supported) in refused.items():
        if value != supported:
            raise ValueError(f"{name} is {value!r}, and only {supported!r} is supported")
    return HNetConfig.from_dict(
        {
            "arch_layout": [f"T{data['num_hidden_layers']}"],
            "d_model": [hidden],
            "d_intermediate": [data["intermediate_size"]],
            "vocab_size": data["vocab_size"],
            "attn_cfg": {"num_heads": [heads], "rotary_emb_dim": [head], "window_size": [-1]},
            "tie_embeddings": bool(data.get("tie_word_embeddings", False)),
            "hnet": {"rotary": [_rotary(data)]},
        }
    )


def _rotary(data: Mapping[str, Any]) -> dict[str, float]:
    """Rotary settings of the one level. transformers 5 has `rope_parameters` for `rope_theta` and `rope_scaling`."""
    given = data.get("rope_parameters") or data.get("rope_scaling") or {}
    base = {"base": float(given.get("rope_theta") or data.get("rope_theta") or 10000.0)}
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return base
    if kind != "llama3":
        raise ValueError(f"rotary positions are scaled by {kind!r}, and only 'llama3' is supported")
    return base | {
        "factor": float(given["factor"]),
        "low_freq_factor": float(given["low_freq_factor"]),
        "high_freq_factor": float(given["high_freq_factor"]),
        "original_length": given["original_max_position_embeddings"],
    }


def _renamed(weights: Weights, config: HNetConfig, data: Mapping[str, Any]) -> Weights:
    """Llama's tensors under our names: queries, keys and values joined, the MLP padded to our multiple of 128."""
    heads, hidden = config.attn_cfg.num_heads[0], config.d_model[0]
    groups = data.get("num_key_value_heads") or heads
    head, width = hidden // heads, config.mlp_width(0)

    def take(name: str, rows: int, *columns: int) -> Stored:
        stored = weights.get(name)
        if stored is None or stored.shape != (rows, *columns):
            found = "missing" if stored is None else f"{list(stored.shape)}, not {[rows, *columns]}"
            raise DamagedError(f"the weights do not fit config.json: {name} is {found}")
        return stored

    def qkv(prefix: str) -> Stored:
        parts = [
            take(f"{prefix}{x}_proj.weight", head * n, hidden) for x, n in (("q", heads), ("k", groups), ("v", groups))
        ]

        def joined() -> torch.Tensor:
            q, *kv = (part.read() for part in parts)
            spread = [x.view(groups, head, hidden).repeat_interleave(heads // groups, 0).flatten(0, 1) for x in kv]
            return torch.cat([q, *spread])

        return Stored((3 * hidden, hidden), parts[0].dtype, joined)

    def mlp(prefix: str) -> tuple[Stored, Stored]:
        inner = data["intermediate_size"]
        up, gate = (take(f"{prefix}{x}_proj.weight", inner, hidden) for x in ("up", "gate"))
        down = take(f"{prefix}down_proj.weight", hidden, inner)

        def fill(x: torch.Tensor, *padding: int) -> torch.Tensor:
            return torch.nn.functional.pad(x, padding)

        def fc1() -> torch.Tensor:  # value, then gate
            return torch.cat([fill(x.read(), 0, 0, 0, width - inner) for x in (up, gate)])

        return (
            Stored((2 * width, hidden), up.dtype, fc1),
            Stored((hidden, width), down.dtype, lambda: fill(down.read(), 0, width - inner)),
        )

    renamed = {"embeddings.weight": take("model.embed_tokens.weight", config.vocab_size, hidden)}
    for n in range(len(config.levels[0].main_network)):
        own, theirs = f"{LAYERS}{n}.", f"model.layers.{n}."
        renamed[own + "norm1.weight"] = take(theirs + "input_layernorm.weight", hidden)
        renamed[own + "mixer.Wqkv.weight"] = qkv(theirs + "self_attn.")
        renamed[own + "mixer.out_proj.weight"] = take(theirs + "self_attn.o_proj.weight", hidden, hidden)
        renamed[own + "norm2.weight"] = take(theirs + "post_attention_layernorm.weight", hidden)
        renamed[own + "mlp.fc1.weight"], renamed[own + "mlp.fc2.weight"] = mlp(theirs + "mlp.")
    renamed[NORM] = take("model.norm.weight", hidden)
    if not config.tie_embeddings:
        renamed["lm_head.weight"] = take("lm_head.weight", config.vocab_size, hidden)
    return renamed
