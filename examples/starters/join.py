"""A model of the byte level of one and the inner network of another.

    python join.py OUTER INNER OUT

Writes the model folder OUT: encoder, routing module, decoder and embeddings of OUTER, and everything inside its first
stage from INNER. The two have learned different chunks, so OUT is nothing until `hnet train --start OUT` has gone on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import hnet_cli
from hnet_cli.checkpoints.model_folder import save_model
from hnet_cli.errors import HNetError
from hnet_cli.model import HNetConfig, HNetForCausalLM

INSIDE = "backbone.main_network."


def join(outer: HNetForCausalLM, inner: HNetForCausalLM) -> HNetForCausalLM:
    """Raises ValueError unless both have stages, equal widths inside and out, and equal settings else."""
    if not (outer.config.num_stages and inner.config.num_stages):
        raise ValueError("both models need a stage")
    settings, around = inner.config.to_dict(), outer.config.to_dict()
    settings["arch_layout"][0], settings["arch_layout"][2] = around["arch_layout"][0], around["arch_layout"][2]
    for lists, others in ((settings, around), (settings["attn_cfg"], around["attn_cfg"])):
        for name in {"d_model", "d_intermediate", "num_heads", "rotary_emb_dim", "window_size"} & lists.keys():
            lists[name][0] = others[name][0]
    model = HNetForCausalLM(HNetConfig.from_dict(settings))
    weights = {name: value for name, value in outer.state_dict().items() if not name.startswith(INSIDE)}
    weights |= {name: value for name, value in inner.state_dict().items() if name.startswith(INSIDE)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the two do not fit: {error}") from error
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outer")
    parser.add_argument("inner")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    try:
        model = join(*(hnet_cli.load(name).float() for name in (given.outer, given.inner)))
        given.out.mkdir(parents=True)
    except (HNetError, OSError, ValueError) as error:
        parser.error(str(error))
    extra = {key: value for key, value in model.config.extra.items() if key in ("modality", "sequence_length")}
    save_model(given.out, model, extra, list(model.config.target_ratios or ()))


if __name__ == "__main__":
    main()
