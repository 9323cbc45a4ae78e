"""Memory and FLOPs that a run needs, and whether a machine has the memory. Arithmetic only; torch is not imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

from hnet_cli.config.presets import shipped
from hnet_cli.config.run import RunConfig, resolve
from hnet_cli.distributed.device import Machine


@dataclass(frozen=True)
class Needs:
    """Memory, in bytes, and FLOPs of training a configuration."""

    parameters: int
    weights: int
    """Weights, and gradients and AdamW's two moments of those not frozen, float32; of a rank, its shard and the
    matrices gathered at a time."""
    activations: int
    """Bytes for one micro-batch, estimated from the layout; on a GPU with autocast's bfloat16 copy of the weights."""
    worst_activations: int
    """The same if every byte is a boundary, as in a collapsed run or on unusual bytes."""
    flops_per_byte: float
    """FLOPs per byte of a forward pass; a training step costs three times as much."""

    @property
    def memory(self) -> int:
        return self.weights + self.activations

    @property
    def worst_memory(self) -> int:
        return self.weights + self.worst_activations


BASE_MEMORY = 600 * 1024**2
"""Bytes of torch, Python and the data."""
BYTES_PER_TOKEN = 4.6
"""Bytes per token of GPT-2's tokenizer on English (paper, Table 1); assumed before it is measured on the data."""


def positions_per_byte(config: RunConfig) -> float:
    """Positions of the outermost level per byte: 1, or `1 / BYTES_PER_TOKEN` for a model of tokens."""
    return 1 / BYTES_PER_TOKEN if config.tokenizer else 1.0


def chunk_fractions(config: RunConfig, share: float = 1.0, rule: float | None = None) -> list[float]:
    """Positions of each inner level per byte, if the target ratios are met; of several budgets the mean.

    `share`: positions of level 0 per byte. `rule`: measured chunks per position of a rule that reads bytes.
    """
    fractions, budgets = [], config.train.budgets or [1]
    learned = sum(chunker.learned for chunker in config.model.chunkers)
    shares = [share] * len(budgets)
    for chunker, ratio in zip(config.model.chunkers, config.train.ratios(), strict=True):
        measured = rule if chunker.rule else None
        factor = measured or 1 / (chunker.k or ratio)
        longer = [budget ** (1 / learned) if chunker.learned else 1 for budget in budgets]
        shares = [share * factor / times for share, times in zip(shares, longer, strict=True)]
        fractions.append(sum(shares) / len(shares))
    return fractions


def _saved_by_layer(config: RunConfig, level: int, letter: str, lean: bool) -> float:
    """Bytes per position that a layer saves for the backward pass.

    `lean`: fused GPU kernels save the residual stream in float32, and in the dtype of products the inputs and outputs
    of products, convolution, scan and attention. Without them autograd saves more, counted in float32.
    """
    model = config.model
    width, mlp = model.d_model[level], model.mlp_width(level)
    inner, state = model.ssm_cfg.expand * width, model.ssm_cfg.d_state
    if not lean:
        mixer = 9 * inner + 4 * state + 3 * width if letter in "mM" else 10 * width
        return 4 * (mixer + (4 * mlp + 3 * width if letter.isupper() else 0))
    size = 4 if config.precision == "fp32" else 2
    normed, heads = (4 + size) * width, inner // model.ssm_cfg.headdim
    mixer = size * (5 * inner + 4 * state + heads) + 4 * heads if letter in "mM" else size * 6 * width
    return normed + mixer + (normed + size * 3 * mlp if letter.isupper() else 0)


def _activation_bytes(config: RunConfig, fractions: list[float], lean: bool, copied: bool) -> int:
    """Bytes saved for the backward pass of one micro-batch, from tensors per layer and position.

    `fractions`: positions of each inner level per byte. `copied`: autocast keeps a bfloat16 copy of the weights.
    """
    model, train = config.model, config.train
    saved = recomputed = 0.0
    total = train.batch_bytes / train.pieces * positions_per_byte(config)
    for s, (share, level, width) in enumerate(zip([1.0, *fractions], model.levels, model.d_model, strict=True)):
        positions, choice = total * share, train.activation_checkpointing
        checkpointed = choice == "all" or (choice == "main" and level.is_innermost)
        for letter in level.letters:
            layer = positions * _saved_by_layer(config, s, letter, lean)
            if checkpointed:  # saves its input and the residual stream; the rest exists for one layer at a time
                recomputed = max(recomputed, layer)
                layer = positions * (6 if lean else 8) * width
            saved += layer
        if lean and level.is_innermost:
            saved += positions * 4 * width
        elif lean:  # router, residual and smoothing are float32, the smoothing in blocks of 64 chunks
            saved += positions * 46 * width + total * fractions[s] * (16 * width + 1100)
        else:
            saved += positions * 32 * width
    saved += total * (12 if lean else 16) * model.vocab_size
    return int(saved + max(recomputed, 2 * model.num_parameters * copied))


def is_lean(config: RunConfig, device: str) -> bool:
    """True if training on `device` uses fused GPU kernels: CUDA, unless configured otherwise or a model with Mamba
    layers lacks mamba-ssm."""
    scans = any(letter in "mM" for level in config.model.levels for letter in level.letters)
    installed = not scans or importlib.util.find_spec("mamba_ssm") is not None
    return device.startswith("cuda") and config.kernels != "reference" and installed


def needs(config: RunConfig, ranks: int = 1, lean: bool = False) -> Needs:
    """Memory and FLOPs of training `config` on one device, the model sharded over `ranks`; `lean`: see `is_lean`."""
    parameters, share = config.model.num_parameters, positions_per_byte(config)
    flops = config.model.flops_per_byte(chunk_fractions(config), config.train.sequence_length * share)
    copied = lean and ranks == 1 and config.precision != "fp32"  # shards are gathered in bfloat16
    frozen = sum(number for part, number in config.model.count_parameters().items() if part in config.train.frozen)
    return Needs(
        parameters=parameters,
        weights=(16 * parameters - 12 * frozen) // ranks + (_gathered_bytes(config) if ranks > 1 else 0),
        activations=_activation_bytes(config, chunk_fractions(config), lean, copied) + BASE_MEMORY,
        worst_activations=_activation_bytes(config, [1.0] * config.model.num_stages, lean, copied) + BASE_MEMORY,
        flops_per_byte=share * flops,
    )


def _gathered_bytes(config: RunConfig) -> int:
    """Bytes of weights and gradients that are unsharded on a rank at a time: embeddings and head, each level's weights
    beside its layers, and the two largest matrices of a layer."""
    model = config.model
    ends = 2 * model.vocab_size * model.d_model[0]
    levels = sum(3 * width**2 for width in model.d_model[:-1])
    mlps = [3 * model.d_model[s] * model.mlp_width(s) for s in range(model.num_stages + 1)]
    mixers = [2 * model.ssm_cfg.expand * width**2 for width in model.d_model]
    return 8 * (ends + levels + 2 * max(mlps + mixers))


def is_sharded(config: RunConfig, here: Machine, ranks: int) -> bool:
    """True if `ranks` ranks on machines like `here` shard the model, by `train.shard`."""
    choice = config.train.shard
    return ranks > 1 and (choice == "full" or (choice == "auto" and not fits(config, here)))


def fits(config: RunConfig, here: Machine, ranks: int = 1) -> bool:
    """True if training `config`, the model sharded over `ranks`, fits into the memory of `here`."""
    return needs(config, ranks, is_lean(config, here.device)).memory <= here.memory


USABLE = 0.9
"""Share of a GPU's free memory that a plan may use; fragmentation takes the rest."""
CPU_PIECE = 16_384
"""Bytes of a micro-batch on a CPU, where larger ones gain nothing: `small` is as fast with 4,096 as with 32,768."""


def settled(config: RunConfig, here: Machine, ranks: int = 1) -> RunConfig:
    """`config` with its number of micro-batches on `ranks` machines like `here`, in place of `auto`.

    `auto` is the fewest of at most `CPU_PIECE` bytes on a CPU, and on a GPU the fewest that fit into memory even if
    every byte is a boundary; if none do, one row each. Raises UsageError if ranks cannot share a batch.
    """
    train = config.train
    if train.micro_batches != "auto":
        return replace(config, train=train.shared_by(ranks))
    least = replace(train, micro_batches=1).shared_by(ranks).pieces
    shares = ranks if is_sharded(config, here, ranks) else 1
    choices = [n for n in range(least, train.rows + 1, ranks) if train.rows % n == 0]
    for choice in choices:
        chosen = replace(config, train=replace(train, micro_batches=choice))
        if here.device == "cpu":
            fitting = train.batch_bytes <= CPU_PIECE * choice and fits(chosen, here, shares)
        else:
            worst = needs(chosen, shares, is_lean(chosen, here.device)).worst_memory
            fitting = worst <= USABLE * here.memory
        if fitting:
            break
    return chosen


def presets_that_fit(here: Machine) -> list[tuple[str, Needs]]:
    """The shipped presets outside the line-up that fit, the largest first."""
    configs = {name: resolve(name) for name, preset in shipped().items() if preset.group != "line-up"}
    all_needs = ((name, needs(config, lean=is_lean(config, here.device))) for name, config in configs.items())
    fitting = [(name, needed) for name, needed in all_needs if needed.memory <= here.memory]
    return sorted(fitting, key=lambda item: (-item[1].parameters, item[0]))
