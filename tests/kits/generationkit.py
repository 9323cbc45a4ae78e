"""Small models of every kind, and the documents on which generation is compared with the full pass."""

from __future__ import annotations

import pytest
import torch
from modelkit import tiny_config, tiny_model

EXACT = 1e-10  # float64


CONFIGS = {
    "two stages": tiny_config(),
    "two stages, windows": tiny_config(window=3),
    "DNA layout": tiny_config(("M1T1", ("m2",), "m1"), window=5),
    "no stage": tiny_config(("T1m1M1",), window=4),
    "characters": tiny_config(chunker=[{"kind": "characters"}, {"kind": "learned"}]),
    "adapters": tiny_config(("m1", ("T1",), "m1"), adapter_width=24, rotary=[{}, {"base": 500.0}]),
    "smoothing of the input": tiny_config(("M1T1", ("m2",), "m1"), window=5, smoothing="input"),
    "space, fixed": tiny_config(chunker=[{"kind": "space"}, {"kind": "fixed", "k": 2}]),
    "hashed n-grams": tiny_config(("M1T1", ("m2",), "m1"), window=5, ngram_rows=40),
    "regex": tiny_config(chunker=[{"kind": "regex", "pattern": "[ \\x00-\\x7f]{2}p?H"}, {"kind": "learned"}]),
    "bpe": tiny_config(("M1T1", ("m2",), "m1"), chunker={"kind": "bpe", "tokens": "Hp HpĠ ä¸ ĠH ĠHp"}, window=5),
    "spacebyte": tiny_config(
        chunker=[{"kind": "space"}, {"kind": "learned"}], network_norms=False, residual="spacebyte"
    ),
}


THRESHOLDS = {
    "two stages, windows": [0.53, 0.45],
    "characters": 0.47,
    "adapters": 1.0,
}


def models(configs):
    """A model of each kind, and some that decide at other thresholds."""
    made = {name: tiny_model(config=config) for name, config in configs.items()}
    for name, thresholds in THRESHOLDS.items():
        other = made[f"{name}, above {thresholds}"] = tiny_model(config=configs[name])
        other.set_thresholds(thresholds)
    return made


SLOW = {"DNA layout", "regex", "spacebyte", "adapters", "characters, above 0.47"}
"""Models whose parts others have too."""


def parametrized(models):
    """A mark that gives a test each of the models, the `SLOW` ones with the slow tests."""
    params = [pytest.param(model, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, model in models.items()]
    return pytest.mark.parametrize("model", params)


MODELS = models(CONFIGS)
each_model = parametrized(MODELS)


def full(model, document):
    with torch.no_grad():
        return model(document[None])


def text(length, seed):
    """Letters, spaces, first and further bytes of characters, so that every chunker finds something."""
    kinds = torch.tensor([0x20, 0x48, 0x70, 0xE4, 0xB8])
    return kinds[torch.randint(0, 5, (length,), generator=torch.Generator().manual_seed(seed))]
