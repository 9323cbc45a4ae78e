"""A model with a new main network, for one whose main network has come to put out one constant.

    python graft.py MODEL LAYERS OUT FILE...

Writes the model folder OUT: MODEL with LAYERS (such as m4) as its innermost main network, of the same width, not
trained yet. What the old one put out on the files, on average, moves into the bias of the projection beside it, so
that the decoder around misses nothing but what varied. `hnet train --start OUT` goes on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import hnet_cli
from hnet_cli.checkpoints.model_folder import save_model
from hnet_cli.errors import HNetError
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.withholding import observed

LENGTH, PART, SKIPPED = 1024, 4096, 3000
"""Bytes of a window, of a file, and those before them: licences and tables of contents."""


@torch.no_grad()
def graft(old: HNetForCausalLM, layers: str, data: bytes, seed: int = 0) -> HNetForCausalLM:
    """`old` with a new main network; `data`: some of what it was trained on.

    Raises ValueError for less than `LENGTH` bytes, and for a model without stages or residual projections.
    """
    stages = old.config.num_stages
    if not stages or old.config.residual != "projection":
        raise ValueError("this model has no main network beside a residual projection")
    if len(data) < LENGTH:
        raise ValueError(f"{len(data)} bytes of text are too few, {LENGTH:,} are needed")
    with observed(old) as sums:
        for at in range(0, len(data) - LENGTH + 1, 8 * LENGTH):
            rows = data[at : at + 8 * LENGTH]
            old(torch.tensor(list(rows[: len(rows) // LENGTH * LENGTH])).view(-1, LENGTH))
    settings = old.config.to_dict()
    innermost = settings["arch_layout"]
    for _ in range(stages):
        innermost = innermost[1]
    innermost[0] = layers
    if not any(letter.isupper() for letter in layers):
        settings["d_intermediate"][stages] = 0
    torch.manual_seed(seed)
    new = HNetForCausalLM(HNetConfig.from_dict(settings)).to(old.embeddings.weight.dtype)
    level = "backbone." + "main_network." * stages
    kept = {name: value for name, value in old.state_dict().items() if not name.startswith(f"{level}main_network.")}
    bias = "backbone." + "main_network." * (stages - 1) + "residual_proj.bias"
    kept[bias] = kept[bias] + sums[-1][:-1] / sums[-1][-1]
    new.load_state_dict(new.state_dict() | kept)
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("layers")
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args()
    try:
        old = hnet_cli.load(given.model).float().eval()
        data = b"".join(file.read_bytes()[SKIPPED : SKIPPED + PART] for file in given.files)
        new = graft(old, given.layers, data)
        given.out.mkdir(parents=True)
        extra = {
            name: each for name, each in new.config.extra.items() if name in ("modality", "sequence_length", "preset")
        }
        save_model(given.out, new, extra, list(new.config.target_ratios or ()))
    except (HNetError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
