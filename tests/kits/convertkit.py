"""Small official checkpoints for the tests of converting and of reading torch's files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hnet_cli.checkpoints.convert import expected_shapes
from hnet_cli.model import HNetConfig

CONFIG = {
    "arch_layout": ["m1", ["T1"], "m1"],
    "d_model": [32, 64],
    "d_intermediate": [0, 64],
    "vocab_size": 256,
    "ssm_cfg": {"d_state": 8, "d_conv": 4, "expand": 2, "chunk_size": 16},
    "attn_cfg": {"num_heads": [2, 2], "rotary_emb_dim": [8, 8], "window_size": [15, -1]},
    "tie_embeddings": False,
}


def weights(seed: int = 0, **changes: object) -> dict[str, torch.Tensor]:
    """A state dict with values that no initialisation gives, so that a tensor out of place shows."""
    generator = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(HNetConfig.from_dict(CONFIG | changes))
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit, dtypes and NaNs included."""
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and left[k].contiguous().view(torch.uint8).equal(right[k].contiguous().view(torch.uint8))
        for k in left
    )


def written_config(folder: Path) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps(CONFIG))
    return path
