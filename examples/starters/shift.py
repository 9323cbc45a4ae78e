"""A model whose encoder ends earlier: its last layers begin the decoder.

    python shift.py MODEL LAYERS OUT

Writes the model folder OUT: of the outermost encoder of MODEL only the first LAYERS stay before the routing module, so
that chunks are found sooner; the others stand before the layers of the decoder, and the residual around the inner
network passes on what it is given. All weights are those of MODEL, at another place for some, so that OUT is a
beginning: `hnet train --start OUT` goes on from there.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

import hnet_cli
from hnet_cli.checkpoints.model_folder import save_model
from hnet_cli.errors import HNetError
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.settings import compact_stack

LAYER = re.compile(r"backbone\.decoder\.layers\.(\d+)\.")


@torch.no_grad()
def shift(old: HNetForCausalLM, kept: int) -> HNetForCausalLM:
    """`old` with an encoder of its first `kept` layers. Raises ValueError for a model without stages or residual
    projections, and unless 1 or more layers stay and are moved."""
    config = old.config
    if not config.num_stages or config.residual != "projection":
        raise ValueError("this model has no main network beside a residual projection")
    letters = config.levels[0]
    moved = len(letters.encoder) - kept
    if kept < 1 or moved < 1:
        raise ValueError(f"the encoder has {len(letters.encoder)} layers: keep at least 1 of them, not all")
    settings = config.to_dict()
    settings["arch_layout"][0] = compact_stack(letters.encoder[:kept])
    settings["arch_layout"][2] = compact_stack(letters.encoder[kept:] + letters.decoder)
    new = HNetForCausalLM(HNetConfig.from_dict(settings)).to(old.embeddings.weight.dtype)
    weights = old.state_dict()
    for name in new.state_dict():
        if found := LAYER.match(name):
            number = int(found[1])
            stack, at = ("encoder", number + kept) if number < moved else ("decoder", number - moved)
            weights[name] = old.state_dict()[LAYER.sub(f"backbone.{stack}.layers.{at}.", name)]
    weights = {name: weights[name] for name in new.state_dict()}
    weights["backbone.residual_proj.weight"] = torch.eye(config.d_model[0])
    weights["backbone.residual_proj.bias"] = torch.zeros(config.d_model[0])
    new.load_state_dict(weights)
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("layers", type=int)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    try:
        new = shift(hnet_cli.load(given.model).float(), given.layers)
        given.out.mkdir(parents=True)
        names = ("modality", "sequence_length", "preset")
        extra = {name: each for name, each in new.config.extra.items() if name in names}
        save_model(given.out, new, extra, list(new.config.target_ratios or ()))
    except (HNetError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
