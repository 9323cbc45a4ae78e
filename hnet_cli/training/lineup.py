"""The line-up of the paper's comparison (sections 3 and 4), sized to equal FLOPs per byte on given data.

A member is the preset `NAME-SIZE`, such as `llamabyte-nano`: `presets/lineup.yaml`. torch is not imported: the
cost of a member on given data is measured with the rules themselves.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from hnet_cli.config.presets import SIZES, line_up, nearest, shipped
from hnet_cli.config.run import RunConfig, resolve
from hnet_cli.config.sources import Sources
from hnet_cli.data import tokens
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.mixture import MixedBatches, Mixture
from hnet_cli.errors import UsageError
from hnet_cli.modality import get
from hnet_cli.model.settings import Chunker, compact_stack, space_like
from hnet_cli.training import budget

MEASURED_BYTES = 1 << 18
"""Approximate bytes of the training split on which a rule or a tokenizer is measured."""
MAX_LAYERS = 1024


def members(modality: str) -> tuple[str, ...]:
    """The default line-up for a dataset of this modality: the modality's own, else the rows of the paper's Table 2."""
    return get(modality).line_up or tuple(line_up()["paper"])


def member(name: str, size: str, settings: Sequence[str] = ()) -> RunConfig:
    """The preset `NAME-SIZE`, with settings ("train.lr=3e-4") on top. Raises UsageError with the nearest name."""
    known = line_up()["members"]
    if name not in known:
        raise UsageError(f"no model of the line-up is called {name!r}", nearest(name, known))
    sizes = [size for size in SIZES if f"{name}-{size}" in shipped()]
    if size not in sizes:
        raise UsageError(f"{name} has no size {size!r}", f"there are {', '.join(sizes)}")
    return resolve(f"{name}-{size}", settings)


def share_of_budget(name: str) -> float:
    """Intended FLOPs per byte of a member, as a multiple of the others'."""
    return float(line_up()["members"].get(name, {}).get("flops", 1))


def tokens_per_byte(config: RunConfig, data: Mixture | Dataset) -> float:
    """Positions of the outermost level per byte: below 1 for a model of tokens, measured on the training windows."""
    if not config.tokenizer:
        return 1.0
    mixture = Mixture.of(data)
    return _tokens_per_byte(config.tokenizer, mixture.sources, mixture.key, config.train.sequence_length)


def fractions(config: RunConfig, data: Mixture | Dataset) -> list[float]:
    """Positions of each inner level per byte on this data, before training: measured for rules that read bytes, 1/k for
    fixed chunks, and the target 1/N if learned. One per stage; the outermost level has `tokens_per_byte`."""
    rule, mixture = None, Mixture.of(data)
    if config.model.chunkers and config.model.chunkers[0].rule:
        place = mixture.sources, mixture.key, config.train.sequence_length
        rule = _rule_fraction(config.model.chunkers[0], *place)
    return budget.chunk_fractions(config, tokens_per_byte(config, mixture), rule)


def flops_per_byte(config: RunConfig, data: Mixture | Dataset) -> float:
    """Forward FLOPs per byte of the data, by `HNetConfig.flops_per_byte`; those of a token are shared by its bytes."""
    share = tokens_per_byte(config, data)
    inner = [fraction / share for fraction in fractions(config, data)]
    return share * config.model.flops_per_byte(inner, config.train.sequence_length * share)


def sized(config: RunConfig, dataset: Dataset, target_flops_per_byte: float) -> RunConfig:
    """`config` with the number of layers of its innermost network, at least 1, that comes nearest to the target.

    A pattern of several kinds of layers is repeated. The description gives the layers and the deviation.
    """
    pattern = config.model.levels[-1].main_network

    def of(count: int) -> tuple[RunConfig, float]:
        letters = "".join(itertools.islice(itertools.cycle(pattern), count))
        changed = dataclasses.replace(config.model, arch_layout=_with_main(config.model.arch_layout, letters))
        candidate = dataclasses.replace(config, model=changed)
        return candidate, flops_per_byte(candidate, dataset)

    best = of(1)
    for count in range(2, MAX_LAYERS):
        candidate = of(count)
        if abs(candidate[1] - target_flops_per_byte) >= abs(best[1] - target_flops_per_byte):
            break
        best = candidate
    chosen, flops = best
    layers = compact_stack(chosen.model.levels[-1].main_network)
    deviation = 100 * (flops / target_flops_per_byte - 1)
    description = (
        f"{config.description} Sized to {layers}: {flops / 1e6:.4g} MFLOPs per byte, {deviation:+.1f}% from the target."
    )
    return dataclasses.replace(chosen, description=description)


def _with_main(layout: Sequence[object], letters: str) -> tuple[object, ...]:
    if len(layout) == 1:
        return (compact_stack(letters),)
    outer, inner, last = layout
    assert isinstance(inner, list | tuple)
    return (outer, _with_main(inner, letters), last)


# -- measured once per dataset -----------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _tokens_per_byte(setting: str, sources: Sources, key: str, length: int) -> float:
    mixture = Mixture.open(sources)
    tokenizer = tokens.of_setting(setting, mixture)
    batch = tokens.tokenised(_batches(mixture, length).batch(0), tokenizer)
    return len(batch.targets) / batch.nbytes


@lru_cache(maxsize=32)
def _rule_fraction(chunker: Chunker, sources: Sources, key: str, length: int) -> float:
    """Chunks per byte of a rule that reads bytes; the first of a sequence begins one."""
    batch = _batches(Mixture.open(sources), length).batch(0)
    automaton = chunker.automaton()
    if automaton is None:
        space = space_like(batch.inputs)
        begins = space & ~np.concatenate([[False], space[:-1]])
    else:
        begins, _ = automaton.run(batch.inputs.tobytes())
    begins[batch.cu_seqlens[:-1]] = True
    return float(begins.mean())


def _batches(mixture: Mixture, length: int) -> MixedBatches:
    rows = max(1, min(MEASURED_BYTES, mixture.nbytes("train")) // length)
    return MixedBatches(mixture, sequence_length=length, rows=rows)
