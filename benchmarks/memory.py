"""The memory that a training step takes on a GPU, without one, beside what `hnet train` announces.

    python benchmarks/memory.py [--presets small 1stage-l ...] [--checkpointing none main all] [--rows 4]
    python benchmarks/memory.py --check nano

The step runs on tensors that have a size but no values (FakeTensorMode), with bfloat16 products, AdamW's moments and
two micro-batches of `--rows` rows each, with chunks at the target ratios. Counted is every storage from the operation
that makes it until nothing refers to it, rounded as CUDA's allocator rounds; what it loses to fragments is not known.
Kernels that need a GPU are stand-ins that take their memory. `peak` is the most at any time, `fixed` what of it are
weights, gradients and moments, `announced` what `hnet_cli.training.budget` says of both.

`--check`: the same step of a small preset on a CPU, with the reference's kernels, counted on tensors without values, on
real ones, and as the process grows. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from fake_gpu import Offsets, faked, without_values
from gpu_tools import documents
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from hnet_cli import kernels as seam
from hnet_cli.config.run import RunConfig, resolve
from hnet_cli.kernels import Kernels, packing, reference
from hnet_cli.kernels import cuda as external
from hnet_cli.model import chunking
from hnet_cli.training.budget import BASE_MEMORY, chunk_fractions, needs

PRESETS = ["small", "1stage-l", "1stage-xl", "2stage-l", "2stage-xl"]
CPU = torch.device("cpu")


class Live(TorchDispatchMode):
    """Bytes of all storages that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            size = -(-storage.nbytes() // 512) * 512
            self.known[storage] = size
            weakref.finalize(storage, self.drop, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def drop(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self.add(each)
        return out


class Standin(torch.autograd.Function):
    """An operation that gives, keeps and takes the memory of another: `outputs`, tensors to `keep` for the backward
    pass, and `scratch` bytes that only last as long as either pass."""

    @staticmethod
    def forward(ctx: Any, outputs: Any, keep: Any, scratch: tuple[int, int], *args: Any) -> Any:
        torch.empty(scratch[0], dtype=torch.uint8)
        made = outputs()
        ctx.save_for_backward(*keep(made))
        ctx.scratch = scratch[1]
        ctx.given = [(a.shape, a.dtype) if isinstance(a, Tensor) else None for a in args]
        return made if len(made) > 1 else made[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        _ = ctx.saved_tensors
        given = [torch.empty(each[0], dtype=each[1]) if each else None for each in ctx.given]
        torch.empty(ctx.scratch, dtype=torch.uint8)
        return None, None, None, *given


def fast() -> Kernels:
    """Those of a GPU with mamba-ssm and torch.compile; attention is torch's own and needs no stand-in."""

    def per_row(x: Tensor) -> Tensor:
        return x.new_empty(len(x), 1, dtype=torch.float32)

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, packing: Any,
             chunk_size: int) -> Tensor:  # fmt: skip
        total, heads, width = x.shape
        blocks = -(-total // chunk_size)
        states, scores = 4 * blocks * heads * width * B.shape[1], 4 * blocks * chunk_size**2
        decay = torch.empty(heads, blocks, chunk_size)
        scratch = (int(1.5 * states) + scores, 3 * states + 3 * scores + 8 * decay.nbytes)
        return Standin.apply(lambda: (x.new_empty(x.shape),), lambda made: (*made, x, dt, decay, B, C), scratch,
                             x, dt, A, B, C, D, bias)  # fmt: skip

    def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, packing: Any) -> Tensor:
        return Standin.apply(lambda: (x.new_empty(x.shape),), lambda made: (x, weight), (0, 0), x, weight, bias)

    def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        dtype = reference.product_dtype(weight)

        def outputs() -> tuple[Tensor, Tensor]:
            return hidden.new_empty(hidden.shape, dtype=dtype), hidden.new_empty(hidden.shape, dtype=torch.float32)

        return Standin.apply(outputs, lambda made: (made[1], weight, per_row(hidden)), (0, 0), hidden, residual, weight)

    def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        return Standin.apply(lambda: (y.new_empty(y.shape),), lambda made: (y, gate, weight, per_row(y)), (0, 0),
                             y, gate, weight)  # fmt: skip

    def swiglu(x: Tensor) -> Tensor:
        return Standin.apply(lambda: (x.new_empty(len(x), x.shape[1] // 2),), lambda made: (x,), (0, 0), x)

    return Kernels(
        ssd_scan=scan, causal_conv=causal_conv, add_rms_norm=add_rms_norm, gated_rms_norm=gated_rms_norm,
        swiglu=swiglu, attention=external.varlen_attention(external.load_varlen()[1]),
    )  # fmt: skip


@contextlib.contextmanager
def sized(config: RunConfig, rows: int, kernels: Kernels, shares: list[float]) -> Iterator[None]:
    """Tensors without values, and these kernels. They are said to be on a CPU: a backward pass asks the driver of any
    other device."""
    offsets = Offsets(rows * config.train.sequence_length, shares)
    with contextlib.ExitStack() as stack:
        stack.enter_context(faked(offsets, lambda _: None))
        stack.enter_context(mock.patch.object(seam, "_choose", return_value=kernels))
        for module in (packing, chunking):
            stack.enter_context(mock.patch.object(module, "true_positions", packing.scattered_positions))
        yield


def counted(config: RunConfig, rows: int, make: Callable[[], Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """`fixed` and `peak` bytes of the second of two steps, and its record."""
    from hnet_cli.training.optim import build_optimizer
    from hnet_cli.training.step import precision_context, train_step

    live, model = Live(), make()
    optimizer = build_optimizer(model, config)
    batches = [documents(rows, config.train.sequence_length)] * config.train.micro_batches
    given = (model, optimizer, batches, 1, config, precision_context(config, CPU))
    train_step(*given)
    for tensor in (*model.parameters(), *(value for each in optimizer.state.values() for value in each.values())):
        live.add(tensor)
    model.zero_grad(set_to_none=True)
    with live:
        record = train_step(*given)
    return {"fixed": live.now, "peak": live.peak}, record


def measured(name: str, checkpointing: str, rows: int, settings: list[str]) -> dict[str, Any]:
    """Of a preset, beside what is announced."""
    length = resolve(name, settings).train.sequence_length
    config = resolve(name, [*settings, f"train.batch_bytes={2 * rows * length}", "train.micro_batches=2",
                            "precision=bf16", f"train.activation_checkpointing={checkpointing}"])  # fmt: skip
    with sized(config, rows, fast(), chunk_fractions(config)):
        found, _ = counted(config, rows, lambda: without_values(config, CPU))
    announced = needs(config, lean=True).memory - BASE_MEMORY
    return {"preset": name, "checkpointing": checkpointing, "rows": rows, "length": length} | found | {
        "announced": announced, "ratio": announced / found["peak"]
    }  # fmt: skip


def check(name: str, rows: int) -> dict[str, Any]:
    """The three counts of a step on a CPU."""
    import resource

    from hnet_cli.training.step import build_model

    config = resolve(name)
    train = dataclasses.replace(config.train, micro_batches=2, batch_bytes=2 * rows * config.train.sequence_length)
    config = dataclasses.replace(config, train=train, precision="fp32", kernels="reference")
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    real, record = counted(config, rows, lambda: build_model(config))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    shares = [1 / record[f"stage{s}_bytes_per_chunk"] for s in range(config.model.num_stages)]
    with sized(config, rows, seam.REFERENCE, shares):
        without, _ = counted(config, rows, lambda: without_values(config, CPU))
    return {"preset": name, "rows": rows, "without_values": without["peak"], "real": real["peak"], "grown": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--checkpointing", nargs="+", default=["none", "main", "all"])
    parser.add_argument("--rows", type=int, default=4, help="of a micro-batch")
    parser.add_argument("--set", nargs="*", default=[], dest="settings")
    parser.add_argument("--check", metavar="PRESET")
    given = parser.parse_args()
    if given.check:
        print(json.dumps(check(given.check, given.rows)))
        return
    found = []
    print(
        f"{'preset':12} {'checkpointing':14} {'rows':>9} {'fixed GiB':>9} {'peak GiB':>9} {'announced':>9} {'ratio':>6}"
    )
    for name in given.presets:
        for checkpointing in given.checkpointing:
            each = measured(name, checkpointing, given.rows, given.settings)
            found.append(each)
            gib = [each[key] / 2**30 for key in ("fixed", "peak", "announced")]
            print(f"{name:12} {checkpointing:14} {each['rows']:>2} x {each['length']:<4} {gib[0]:9.2f} {gib[1]:9.2f} "
                  f"{gib[2]:9.2f} {each['ratio']:6.2f}", flush=True)  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
