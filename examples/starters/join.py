"""A model of the byte level of one and the inner network of another.

    python join.py OUTER INNER OUT

Writes the model folder OUT: encoder, routing module, decoder and embeddings of OUTER, and everything inside its first
stage from INNER. The two have learned different chunks, so OUT is nothing until `hnet train --start OUT` has gone on.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import hnet_cli
from hnet_cli.checkpoints.model_folder import save_model
from hnet_cli.errors import HNetError
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.settings import AttnConfig, Rotary

INSIDE = "backbone.main_network."
SAME = ("vocab_size", "tie_embeddings", "ssm_cfg", "network_norms", "residual", "smoothing", "ngram_rows")


def join(outer: HNetForCausalLM, inner: HNetForCausalLM) -> HNetForCausalLM:
    """Raises ValueError unless both have stages, fit each other, and agree in all settings that no level has alone."""
    a, b = outer.config, inner.config
    if not (a.num_stages and b.num_stages):
        raise ValueError("both models need a stage")
    if unlike := [name for name in SAME if getattr(a, name) != getattr(b, name)]:
        raise ValueError(f"the two differ in {', '.join(unlike)}")
    attention = {field.name: _first(a.attn_cfg, b.attn_cfg, field.name) for field in fields(AttnConfig)}
    rotary = [config.rotary or (Rotary(),) * len(config.levels) for config in (a, b)]
    config = replace(
        b,
        arch_layout=(a.arch_layout[0], b.arch_layout[1], a.arch_layout[2]),
        attn_cfg=AttnConfig(**attention),
        rotary=rotary[0][:1] + rotary[1][1:],
        target_ratios=_first(a, b, "target_ratios") if a.target_ratios and b.target_ratios else None,
        extra={key: value for key, value in a.extra.items() if key in ("modality", "sequence_length")},
        **{name: _first(a, b, name) for name in ("d_model", "d_intermediate", "chunkers")},
    )
    model = HNetForCausalLM(config)
    weights = {name: value for name, value in outer.state_dict().items() if not name.startswith(INSIDE)}
    weights |= {name: value for name, value in inner.state_dict().items() if name.startswith(INSIDE)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the two do not fit: {error}") from error
    return model


def _first(outer: Any, inner: Any, name: str) -> tuple[Any, ...]:
    """A setting that has an entry for each level or stage: the first of `outer`, the others of `inner`."""
    return getattr(outer, name)[:1] + getattr(inner, name)[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outer")
    parser.add_argument("inner")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    try:
        model = join(*(hnet_cli.load(name).float() for name in (given.outer, given.inner)))
        given.out.mkdir(parents=True)
        save_model(given.out, model, model.config.extra, list(model.config.target_ratios or ()))
    except (HNetError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
