"""What has to be compiled and tuned before benchmarks/gpu.py measures, on all cores.

A training step launches 14 kernels of mamba-ssm, each in 6 to 11 configurations, and Triton compiles them one after the
other, 2 to 3 seconds each: five minutes for one combination of sizes. Here as many processes as there are cores compile
a share of them each, into the cache that all of them have in common, and launch nothing; then one process, which has
the GPU to itself, tunes what is compiled. A kernel is compiled anew for integers that are a multiple of 16 and for
those that are not, and for 1: so lengths, heads and strides are those of the presets.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_tools import Found, on_gpu, preset, wait
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Scan:
    """Sizes that the kernels of a level are compiled for."""

    chunk: int
    state: int
    heads: int
    total: int
    """Positions where they are tuned."""
    least: int
    """Positions for which they are compiled alike."""
    width: int = 64


SCANS = (
    Scan(256, 128, 32, 65536, 4096),  # bytes, in the presets of the paper
    Scan(256, 128, 48, 23399, 4097),  # chunks, in 2stage-xl
    Scan(128, 64, 8, 131072, 4096),  # bytes, in `small`
)


def scan_inputs(
    heads: int, width: int, state: int, total: int, device: Any, gradient: bool, dtype: torch.dtype = torch.bfloat16
) -> list[Any]:
    """What a Mamba-2 mixer hands to the scan, as far as the packing: what is split off one product keeps its strides.
    On a GPU random, on "meta" without values."""
    inner = heads * width

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device).requires_grad_(gradient)

    dt = normal(total, 2 * inner + 2 * state + heads)[:, -heads:]
    x, B, C = normal(total, inner + 2 * state).split((inner, state, state), -1)
    A, D, bias = (normal(heads, dtype=torch.float32) for _ in range(3))
    return [x.unflatten(-1, (heads, width)), dt, -A.exp(), B, C, D, bias]


def launches(scan: Scan, total: int, device: Any) -> dict[str, Callable[[], Any]]:
    """Everything that a level does with `total` positions of three documents, in bfloat16, and with one more."""
    from hnet_cli.kernels import cuda as external
    from hnet_cli.kernels import reference
    from hnet_cli.kernels.packing import Packing

    _, kernel, update = external.load_mamba()
    packing = Packing.of_lengths([total - total // 3, total // 3 - 5, 5], device)

    def inputs(positions: int, gradient: bool) -> list[Any]:
        return scan_inputs(scan.heads, scan.width, scan.state, positions, device, gradient)

    def training() -> None:
        y = external.mamba_scan(kernel)(*inputs(total, True), packing, scan.chunk)
        y.backward(torch.ones_like(y))

    def prompt() -> None:
        with torch.no_grad():
            external.mamba_scan(kernel)(*inputs(total, False), packing, scan.chunk, True)

    def step() -> None:
        x, *others, bias = inputs(1, False)
        kept = reference.ssd_state(x, 1, scan.heads, scan.width, scan.state)
        with torch.no_grad():
            external.mamba_step(update)(kept, x, *others, bias.bfloat16())

    return {"training": training, "prompt": prompt, "step": step}


def have_mamba(o: argparse.Namespace) -> bool:
    return on_gpu(o) and importlib.util.find_spec("mamba_ssm") is not None


def compiled(o: argparse.Namespace) -> Found:
    """Compiles every so many-th variant, part "3/16" the fourth of each 16."""
    if not have_mamba(o):
        return
    own, of = map(int, o.part.split("/"))
    made: list[str] = []
    compile_only(lambda number: number % of == own, made)
    for scan in SCANS:
        for run in launches(scan, scan.least, o.device).values():
            run()
            yield {"compiled": {o.part: {"variants": len(made), "failed": [each for each in made if each]}}}


def compile_only(wanted: Callable[[int], bool], made: list[str]) -> None:
    """From here on Triton compiles, of what it is told to launch, the variants with a wanted number, and launches none.
    `made`: for each of them "", or why it cannot be compiled."""
    from triton.runtime import autotuner, jit

    launch, numbers = jit.JITFunction.run, itertools.count()

    def compile_one(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if wanted(next(numbers)):
            try:
                launch(self, *args, grid=grid, warmup=True, **options)
                made.append("")
            except Exception as error:  # a configuration that does not fit is passed over in tuning too
                made.append(f"{self.fn.__name__}: {type(error).__name__}: {error}"[:300])

    def try_all(self: Any, *args: Any, **options: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(options):
            self.best_config = config
            self.fn.run(*args, **options, **config.all_kwargs())

    jit.JITFunction.run, autotuner.Autotuner.run = compile_one, try_all


def tuned(o: argparse.Namespace) -> Found:
    """Tunes every kernel at the lengths that training has."""
    for scan in SCANS if have_mamba(o) else ():
        for run in launches(scan, scan.total, o.device).values():
            run()
            wait(o)
            yield {}


def tuners() -> Iterator[Any]:
    """The kernels of mamba-ssm that have several configurations."""
    from hnet_cli.kernels import cuda as external

    with contextlib.suppress(Exception):  # it is not there, or is broken: the report on kernels says so
        external.load_mamba()
    for name, module in list(sys.modules.items()):
        if name.startswith("mamba_ssm.ops.triton."):
            yield from (each for each in vars(module).values() if len(getattr(each, "configs", ())) > 1)


def one_configuration() -> None:
    """Of each kernel the configuration with the smallest blocks, which compiles fast: nothing is tuned."""
    for tuner in tuners():
        tuner.configs = [min(tuner.configs, key=block_size)]


def block_size(config: Any) -> int:
    product = config.num_stages
    for name, value in config.kwargs.items():
        product *= value if name.startswith("BLOCK_SIZE") else 1
    return product


def pieces(o: argparse.Namespace) -> Found:
    """All that torch.compile has to do for the widths of a preset: some steps of it with one layer of each kind, of a
    block length with which the scan is the reference's."""
    from gpu_training import training

    from hnet_cli.model import HNetConfig

    config, train = preset(o.part, o.quick)
    given = config.to_dict()

    def thin(layout: Any) -> Any:
        if isinstance(layout, str):
            return "".join(f"{letter}1" for letter in dict.fromkeys(layout) if letter.isalpha())
        return [thin(each) for each in layout]

    given["arch_layout"] = thin(given["arch_layout"])
    given["ssm_cfg"]["chunk_size"] = 8
    o = argparse.Namespace(**vars(o) | {"quick": True, "tflops": None, "measure": 0.1})
    for length in (96, 128, 256):
        yield from ({} for _ in training(o, HNetConfig.from_dict(given), length, train["target_ratios"], False))
