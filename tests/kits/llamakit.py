"""Folders of small Llama-style Transformers with random weights."""

import json
import math

import torch
from safetensors.torch import save_file

VOCABULARY = 320


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def tensors(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    d, mlp, head = config["hidden_size"], config["intermediate_size"], config["hidden_size"] // 4
    shapes = {"model.embed_tokens.weight": (VOCABULARY, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, d)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        shapes |= {layer + f"{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        for name, rows in (("q", d), ("k", 2 * head), ("v", 2 * head), ("o", d)):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (rows, d)
        shapes |= {layer + f"mlp.{name}_proj.weight": (mlp, d) for name in ("gate", "up")}
        shapes[layer + "mlp.down_proj.weight"] = (d, mlp)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
        if len(shape) > 1
        else 1 + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def llama(folder, tokenizer, shards=1, **changes):
    """A Llama-style folder with random weights; what `changes` makes None is left out of its configuration."""
    folder.mkdir(parents=True)
    config = {key: value for key, value in (LLAMA | changes).items() if value is not None}
    values = tensors(LLAMA | changes)
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({key: values[key] for key in sorted(values)[shard::shards]}, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer.text)
    return folder
