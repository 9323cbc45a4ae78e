"""What a run needs and what this machine has: memory, FLOPs, time. Arithmetic only, so that the answer comes at once.

torch is asked only where the machine has a GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import resource
from dataclasses import dataclass, replace
from pathlib import Path

from hnet_cli.config.presets import shipped
from hnet_cli.config.run import RunConfig, resolve
from hnet_cli.errors import EnvironmentLimit, UsageError

GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """The device a run would use."""

    device: str
    """`cpu`, `cuda:N`, `mps`."""
    memory: int
    """Bytes a run could take now."""
    name: str = ""


def cpu_memory() -> int:
    """Bytes this process could still take: what the system, the container and `ulimit -v` leave, the least of these."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return 8 * GIB
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            available = min(available, allowed - taken)
    return max(0, available)


def mps_memory() -> int | None:
    """Bytes that the GPU of a Mac could take now, of the memory that it shares with the CPU; None: there is none."""
    import torch

    if not torch.backends.mps.is_available():
        return None
    return min(cpu_memory(), torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())


def machine(device: str | None = None, ranks: int = 1) -> Machine:
    """The machine a run would use: `device` if given, else a CUDA GPU if there is one, else the CPU, shared by
    `ranks`.

    Raises UsageError for a device of no known kind, EnvironmentLimit where it is not there.
    """
    gpu = re.fullmatch(r"cuda(?::(\d+))?", "cuda" if device is None else device)
    if not gpu and device not in ("cpu", "mps"):
        raise UsageError(f"--device {device!r} is not known", "use cpu, cuda or cuda:N, or mps on a Mac")
    if device == "mps":
        memory = mps_memory()
        if memory is None:
            raise EnvironmentLimit("there is no mps: it is the GPU of a Mac with Apple silicon", "use cpu")
        return Machine(device, memory, "Apple GPU")
    if gpu:
        if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():
            import torch

            if torch.cuda.is_available():
                index = int(gpu[1] or 0)
                if index >= torch.cuda.device_count():
                    raise EnvironmentLimit(
                        f"there is no {device}", f"this machine has {torch.cuda.device_count()} GPUs"
                    )
                free, _ = torch.cuda.mem_get_info(index)
                return Machine(f"cuda:{index}", free, torch.cuda.get_device_name(index))
        if device is not None:
            raise EnvironmentLimit(f"there is no {device}: no GPU can be used here", "`hnet doctor` says why")
    return Machine("cpu", cpu_memory() // ranks, f"{os.cpu_count()} CPU cores")


@dataclass(frozen=True)
class Needs:
    """What training a configuration takes. Memory in bytes."""

    parameters: int
    weights: int
    """Weights, and of what is not frozen gradients and AdamW's two moments, float32; of a rank, its share and what is
    gathered at a time."""
    activations: int
    """Of one micro-batch, an estimate from the layout; on a GPU with the weights in bfloat16 that it goes through."""
    worst_activations: int
    """The same where every byte is a boundary: in a run that collapses, or on bytes unlike all others."""
    flops_per_byte: float
    """Forward; a training step costs three times as much."""

    @property
    def memory(self) -> int:
        return self.weights + self.activations

    @property
    def worst_memory(self) -> int:
        return self.weights + self.worst_activations


# Of torch, Python and the data themselves.
BASE_MEMORY = 600 * 1024**2


BYTES_PER_TOKEN = 4.6
"""Of GPT-2's tokenizer on English (paper, Table 1): assumed where the data have not been asked."""


def positions_per_byte(config: RunConfig) -> float:
    """Positions of the outermost level per byte: 1, or of a model of tokens an assumption."""
    return 1 / BYTES_PER_TOKEN if config.tokenizer else 1.0


def chunk_fractions(config: RunConfig, share: float = 1.0, space_rule: float | None = None) -> list[float]:
    """Positions of each inner level per byte, if the target ratios are met.

    `share`: positions of level 0 per byte; `space_rule`: chunks per position of SpaceByte's rule, where measured.
    """
    fractions = []
    for chunker, ratio in zip(config.model.chunkers, config.train.ratios(), strict=True):
        measured = space_rule if chunker.kind == "space" else None
        share *= measured or 1 / (chunker.k or ratio)
        fractions.append(share)
    return fractions


def _kept_by_layer(config: RunConfig, level: int, letter: str, lean: bool) -> float:
    """Bytes per position that a layer keeps for the backward pass.

    `lean`: fused kernels of a GPU keep the residual stream in float32, and in the dtype of products what enters and
    leaves these, the convolution, the scan and attention. Elsewhere autograd keeps more, counted in float32.
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
    """Bytes kept for the backward pass of one micro-batch, from tensors per layer and position.

    `fractions`: positions of each inner level per byte. `copied`: whether autocast keeps the weights in bfloat16 too.
    """
    model, train = config.model, config.train
    kept = again = 0.0
    total = train.batch_bytes / train.pieces * positions_per_byte(config)
    for s, (share, level, width) in enumerate(zip([1.0, *fractions], model.levels, model.d_model, strict=True)):
        positions, chosen = total * share, train.activation_checkpointing
        recomputed = chosen == "all" or (chosen == "main" and level.is_innermost)
        for letter in level.letters:
            layer = positions * _kept_by_layer(config, s, letter, lean)
            if recomputed:  # its input and the residual stream stay; the rest is there for one layer at a time
                again = max(again, layer)
                layer = positions * (6 if lean else 8) * width
            kept += layer
        if lean and level.is_innermost:
            kept += positions * 4 * width
        elif lean:  # router, residual and smoothing are float32, the smoothing in blocks of 64 chunks
            kept += positions * 46 * width + total * fractions[s] * (16 * width + 1100)
        else:
            kept += positions * 32 * width
    kept += total * (12 if lean else 16) * model.vocab_size
    return int(kept + max(again, 2 * model.num_parameters * copied))


def is_lean(config: RunConfig, device: str) -> bool:
    """Whether training on `device` has the fused kernels of a GPU: unless the configuration forgoes them, or mamba-ssm,
    which has the scan, is not installed."""
    scans = any(letter in "mM" for level in config.model.levels for letter in level.letters)
    there = not scans or importlib.util.find_spec("mamba_ssm") is not None
    return device.startswith("cuda") and config.kernels != "reference" and there


def needs(config: RunConfig, ranks: int = 1, lean: bool = False) -> Needs:
    """What training `config` takes on one device, where the model is divided among `ranks`; `lean` as of `is_lean`."""
    parameters, share = config.model.num_parameters, positions_per_byte(config)
    flops = config.model.flops_per_byte(chunk_fractions(config), config.train.sequence_length * share)
    copied = lean and ranks == 1 and config.precision != "fp32"  # ranks gather bfloat16
    frozen = sum(number for part, number in config.model.count_parameters().items() if part in config.train.frozen)
    return Needs(
        parameters=parameters,
        weights=(16 * parameters - 12 * frozen) // ranks + (_gathered_bytes(config) if ranks > 1 else 0),
        activations=_activation_bytes(config, chunk_fractions(config), lean, copied) + BASE_MEMORY,
        worst_activations=_activation_bytes(config, [1.0] * config.model.num_stages, lean, copied) + BASE_MEMORY,
        flops_per_byte=share * flops,
    )


def _gathered_bytes(config: RunConfig) -> int:
    """Weights and gradients that are whole at a time on a rank: the ends, what each level has beside its layers, and
    the two largest matrices of a layer."""
    model = config.model
    ends = 2 * model.vocab_size * model.d_model[0]
    levels = sum(3 * width**2 for width in model.d_model[:-1])
    mlps = [3 * model.d_model[s] * model.mlp_width(s) for s in range(model.num_stages + 1)]
    mixers = [2 * model.ssm_cfg.expand * width**2 for width in model.d_model]
    return 8 * (ends + levels + 2 * max(mlps + mixers))


def is_sharded(config: RunConfig, here: Machine, ranks: int) -> bool:
    """Whether `ranks` ranks on machines like `here` divide the model among them, by `train.shard`."""
    choice = config.train.shard
    return ranks > 1 and (choice == "full" or (choice == "auto" and not fits(config, here)))


def fits(config: RunConfig, here: Machine, ranks: int = 1) -> bool:
    """Whether training `config`, the model divided among `ranks`, fits into the memory of `here`."""
    return needs(config, ranks, is_lean(config, here.device)).memory <= here.memory


ROOM = 0.9
"""Share of a GPU's free memory that a step may be planned to take: the allocator leaves gaps."""
CPU_PIECE = 16_384
"""Bytes of a micro-batch on a CPU, where larger ones gain nothing: `small` is as fast with 4,096 as with 32,768."""


def settled(config: RunConfig, here: Machine, ranks: int = 1) -> RunConfig:
    """`config` with as many micro-batches as `ranks` on machines like `here` compute, a number.

    Of `auto` these are the fewest of at most `CPU_PIECE` bytes on a CPU, and on a GPU the fewest that fit into memory
    even where every byte is a boundary; if none do, the most there can be. Raises UsageError where ranks cannot share a
    batch.
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
            fitting = worst <= ROOM * here.memory
        if fitting:
            break
    return chosen


def presets_that_fit(here: Machine) -> list[tuple[str, Needs]]:
    """The shipped presets outside the line-up that fit, the largest first."""
    named = [name for name, preset in shipped().items() if preset.group != "line-up"]
    fitting = {name: config for name in named if fits(config := resolve(name), here)}
    found = [(name, needs(config, lean=is_lean(config, here.device))) for name, config in fitting.items()]
    return sorted(found, key=lambda item: (-item[1].parameters, item[0]))
