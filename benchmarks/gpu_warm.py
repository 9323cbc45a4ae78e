"""Triton kernels compiled before benchmarks/gpu.py measures: on all its cores, or ahead on a machine without GPU.

    python benchmarks/gpu_warm.py kernels.tar.xz [--capability 90]

compiles every variant that tuning may try and packs Triton's cache, for `gpu.py --kernels kernels.tar.xz`. The
build of triton must be the same on both machines (3.6 for cp312, say); where it is not, kernels are compiled there as
ever. The cache holds absolute paths, so it is always in `CACHE`.

A training step launches 14 kernels of mamba-ssm, each in 6 to 11 configurations, which Triton compiles one after the
other in 2 to 3 seconds each, and ten of our own; a byte of generation five of ours in several forms. Here every process
compiles a share of them and launches nothing. A kernel is compiled anew for integers that are a multiple of 16 and for
those that are not, and for 1: so lengths, heads and strides are those of the presets.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
CACHE = Path(tempfile.gettempdir(), "hnet-gpu", "triton")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from hnet_cli import kernels as seam  # noqa: E402
from hnet_cli.config.presets import preset_data  # noqa: E402
from hnet_cli.inference.graphs import GraphSteps  # noqa: E402
from hnet_cli.kernels import cuda, reference, tuned  # noqa: E402
from hnet_cli.kernels.packing import Packing  # noqa: E402
from hnet_cli.kernels.reference import ScanInputs  # noqa: E402
from hnet_cli.model import HNetConfig, HNetForCausalLM  # noqa: E402
from hnet_cli.model.blocks import Isotropic  # noqa: E402
from hnet_cli.model.init import skeleton  # noqa: E402


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


PRESETS = ("2stage-xl", "small")
"""Whose layers and bytes our own kernels are compiled for."""
BATCHES = (1, 8, 64)
CAPACITIES = (64, 128, 256, 512, 1024)
"""Rows that generate together, and positions that the caches of a level have room for."""


def scan_launches(lengths: Callable[[Scan], int], device: Any) -> Iterator[Callable[[], Any]]:
    """Training at all sizes first, then prompts, then steps."""
    return itertools.chain.from_iterable(zip(*(launches(scan, lengths(scan), device) for scan in SCANS), strict=True))


def launches(scan: Scan, total: int, device: Any) -> Iterator[Callable[[], Any]]:
    """Everything that a level does with `total` positions of three documents in bfloat16: training, a prompt, a step.
    Inputs are random on a GPU, without values on "meta"; those split off one product keep its strides."""
    mamba = cuda.load_mamba()
    packing = Packing.of_lengths([total - total // 3, total // 3 - 5, 5], device)
    heads, inner = scan.heads, scan.heads * scan.width

    def inputs(positions: int, gradient: bool) -> ScanInputs:
        def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(*shape, dtype=dtype, device=device).requires_grad_(gradient)

        dt = normal(positions, 2 * inner + 2 * scan.state + heads)[:, -heads:]
        x, B, C = normal(positions, inner + 2 * scan.state).split((inner, scan.state, scan.state), -1)
        A, D, bias = (normal(heads, dtype=torch.float32) for _ in range(3))
        return ScanInputs(x.unflatten(-1, (heads, scan.width)), dt, -A.exp(), B, C, D, bias)

    def training() -> None:
        y = mamba.ssd_scan(inputs(total, True), packing, scan.chunk)
        y.backward(torch.ones_like(y))

    @torch.no_grad()
    def prompt() -> None:
        mamba.ssd_scan_states(inputs(total, False), packing, scan.chunk)

    @torch.no_grad()
    def step() -> None:
        row = inputs(1, False)
        state = reference.ssd_state(row.x, 1, heads, scan.width, scan.state)
        mamba.ssd_step(state, row._replace(dt_bias=row.dt_bias.bfloat16()))

    yield from (training, prompt, step)


def thin(config: HNetConfig) -> HNetConfig:
    """The configuration with two layers of each kind that follow each other in a stack."""

    def of(layout: Any) -> Any:
        if isinstance(layout, str):
            return "".join(f"{letter}2" for letter in dict.fromkeys(layout) if letter.isalpha())
        return [of(part) for part in layout]

    given = config.to_dict()
    return HNetConfig.from_dict(given | {"arch_layout": of(given["arch_layout"])})


def own_launches(name: str) -> Iterator[Callable[[], Any]]:
    """Everything that a preset does on our own kernels, on tensors without values: training, stack by stack, then
    prompts and bytes of generation."""
    from hnet_cli.kernels import triton_elementwise, triton_step

    given = preset_data(name)["model"]
    given.pop("chunker", None)
    model = skeleton(HNetForCausalLM, thin(HNetConfig.from_dict(given)))
    stacks = [module for module in model.modules() if isinstance(module, Isotropic)]
    for parameter in itertools.chain.from_iterable(stack.parameters() for stack in stacks):
        if parameter.ndim == 2:  # as autocast does
            parameter.data = parameter.data.bfloat16()
    elementwise: dict[str, Any] = {operation: getattr(triton_elementwise, operation) for operation in seam.ELEMENTWISE}
    kernels = seam.Kernels(
        **elementwise,
        ssd_scan=lambda scan, *_: scan.x * scan.dt[:, :, None],  # which is compiled elsewhere, like attention
        attention=lambda q, k, v, *_: q + k + v,
    )
    for stack, total in itertools.product(stacks, (4096, 4097)):
        dtype = torch.float32 if stack is model.backbone.encoder else torch.bfloat16  # embeddings are not a product
        yield functools.partial(_forward, stack, total, dtype, kernels)
    model.cast(torch.bfloat16).requires_grad_(False)
    for stack, total in itertools.product(stacks, (256, 257)):
        yield functools.partial(_forward, stack, total, torch.bfloat16, kernels)
    steps: dict[str, Any] = {operation: getattr(triton_step, operation) for operation in seam.STEPS}
    kernels = seam.Kernels(add_rms_norm=triton_elementwise.add_rms_norm, **steps)
    for batch, capacity in itertools.product(BATCHES, CAPACITIES):
        yield functools.partial(_generate, model, batch, capacity, kernels)


def _autocast(_: Tensor) -> torch.dtype:
    """`reference.product_dtype` under autocast, which does not know the device "meta"."""
    return torch.bfloat16


@mock.patch.object(reference, "product_dtype", _autocast)
def _forward(stack: Isotropic, total: int, dtype: torch.dtype, kernels: seam.Kernels) -> None:
    """And backward, where weights have gradients."""
    assert stack.rmsnorm is not None
    trained = stack.rmsnorm.weight.requires_grad
    hidden = torch.empty(total, len(stack.rmsnorm.weight), dtype=dtype, device="meta", requires_grad=trained)
    y = stack(hidden, Packing.of_lengths([total - 5, 5], "meta"), kernels)
    if trained:
        y.backward(torch.ones_like(y))


@mock.patch.object(reference, "product_dtype", _autocast)
@torch.inference_mode()
def _generate(model: HNetForCausalLM, batch: int, capacity: int, kernels: seam.Kernels) -> None:
    """Each part of a byte, of all rows and, on inner levels, of some."""
    state = model.allocate_state(batch, capacity)
    state.kernels = kernels
    stepper = GraphSteps(model, state)
    for level in stepper.levels:
        level.prob = torch.empty(batch, dtype=torch.bfloat16, device="meta")  # the host's has no values to copy
        stepper._reserve(level, capacity)
    inner = range(len(stepper.levels) - 1)
    parts = [*((n, "in") for n in inner), (len(inner), "main"), *((n, "out") for n in reversed(inner))]
    for count in (0, *itertools.takewhile(lambda count: count < batch, (1 << n for n in itertools.count()))):
        for number, part in parts:
            if count == 0:
                stepper._in_place(number, part, None)
            elif number > 0:
                stepper._in_place(number, part, stepper._index(stepper.levels[number], list(range(count)), count))


def compile_share(share: str, capability: int) -> Iterator[list[str]]:
    """Compile the variants of a share, "3/16" the fourth of each 16. Yields after each launch what was made of every
    variant so far: "", or why it cannot be compiled. From here on this process launches no kernel of Triton, and it
    uses no memory of a GPU: arguments are tensors without values."""
    from triton.runtime import autotuner, jit

    without_gpu(capability)
    launch, numbers = jit.JITFunction.run, itertools.count()
    index, shares = map(int, share.split("/"))
    made: list[str] = []
    seen: set[Any] = set()

    def compile_one(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        key = variant(self, args, options)
        if key not in seen and next(numbers) % shares == index:
            try:
                launch(self, *args, grid=grid, warmup=True, **options)
                made.append("")
            except Exception as error:  # a configuration that does not fit is passed over in tuning too
                made.append(f"{self.fn.__name__}: {type(error).__name__}: {error}"[:300])
        seen.add(key)

    def try_all(self: Any, *args: Any, **options: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(options):
            self.best_config = config  # which mamba-ssm reads
            self.fn.run(*args, **options, **config.all_kwargs())

    jit.JITFunction.run, autotuner.Autotuner.run = compile_one, try_all
    own = itertools.chain.from_iterable(map(own_launches, PRESETS))
    for run in itertools.chain(own, scan_launches(lambda scan: scan.least, "meta")):
        run()
        yield made


def variant(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The most that a kernel is compiled for: constants; dtypes of tensors, if they begin at a multiple of 16 bytes;
    numbers by whether they are 1 or multiples of 16."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | options
    kept = {parameter.name: parameter for parameter in kernel.params if not parameter.is_constexpr}

    def kind(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.storage_offset() * value.element_size() % 16 == 0
        if name not in kept or not isinstance(value, int):
            return str(value)
        return value >= 2**31, not kept[name].do_not_specialize and (value == 1, value % 16 == 0)

    return kernel.fn.__name__, *((name, kind(name, value)) for name, value in sorted(given.items()))


def without_gpu(capability: int) -> None:
    """From here on Triton takes this machine for one with such a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    fake = types.SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device=None: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_benchmarker=lambda: lambda call, **_: (call(), (0.0, 0.0, 0.0))[1],
        get_active_torch_device=lambda: torch.device("meta"),
        get_device_interface=lambda: torch.cuda,
    )
    driver.set_active(fake)
    torch.cuda.device = lambda *_: contextlib.nullcontext()  # type: ignore[assignment, misc]
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=132)  # type: ignore


def tune() -> Iterator[tuned.Table]:
    """Tune at the lengths that training has, launch by launch; yields all winners so far."""
    cuda.load_mamba()
    for tuner in tuned.tuners().values():
        tuner.cache.clear()  # what the package ships is measured anew
    for run in scan_launches(lambda scan: scan.total, "cuda"):
        run()
        torch.cuda.synchronize()
        yield tuned.winners()


def tune_briefly() -> None:
    """Triton times a configuration for 18 ms instead of 125."""
    from triton.testing import do_bench

    for tuner in tuned.tuners().values():
        tuner.do_bench = lambda call, quantiles: do_bench(call, warmup=3, rep=15, quantiles=quantiles)


def one_configuration() -> None:
    """Configuration of each kernel with the smallest blocks, which compiles fast: nothing is tuned."""

    def size(config: Any) -> int:
        product = config.num_stages
        for name, value in config.kwargs.items():
            product *= value if name.startswith("BLOCK_SIZE") else 1
        return product

    for tuner in tuned.tuners().values():
        tuner.configs = [min(tuner.configs, key=size)]


def pack(archive: Path) -> None:
    with tarfile.open(archive, "w:xz", preset=1) as tar:
        tar.add(CACHE, ".")


def unpack(archive: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(CACHE, filter="data")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.share:
        *_, made = compile_share(given.share, given.capability)
        print(f"share {given.share}: {len(made)} variants", *filter(None, made), sep="\n", flush=True)
        return 0
    environment = os.environ | {"TRITON_CACHE_DIR": str(CACHE)}
    shares = [f"{index}/{given.processes}" for index in range(given.processes)]
    commands = [[sys.executable, __file__, *sys.argv[1:], "--share", share] for share in shares]
    running = [subprocess.Popen(command, env=environment) for command in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        return 1
    pack(given.archive)
    print(f"{given.archive}: {given.archive.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
