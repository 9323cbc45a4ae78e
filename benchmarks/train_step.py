"""Speed of a training step on the CPU, beside the matrix-product rate of the same machine in the same run.

    python benchmarks/train_step.py [--preset nano] [--rows N] [--threads 1 2] [--repeats N]

For each number of threads, precision and kernels: milliseconds of forward + backward + AdamW by the clock and of
processor time, bytes per second of both, and `of_ceiling`: the FLOP/s of the step (three times the forward pass as
the paper counts it, with the chunk rate seen) over those of the faster of bf16 and fp32 products, both per second of
processor time. `own_products` is what of_ceiling would be if the step were nothing but its own matrix products, each
in its own shape, one after the other: what no implementation with these products can exceed. Variants take turns and
the fastest of the repeats counts, because machines are shared; processor time suffers less from neighbours than the
clock does. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from segment import text
from torch.utils._python_dispatch import TorchDispatchMode

from hnet_cli.config.run import RunConfig, resolve
from hnet_cli.data.loader import Batch
from hnet_cli.training.build import build_model, precision_context
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import train_step

WARM_UP = 12
"""Steps before measuring: the ratio loss brings the chunk rate near its target."""


def batch(rows: int, length: int, seed: int) -> Batch:
    """Rows of words in random order: what matters for speed is that boundaries can be learned."""
    data = np.frombuffer(text(rows * length + 1, seed), dtype=np.uint8).copy()
    offsets = np.arange(rows, dtype=np.int64) * length
    cu_seqlens = np.append(offsets, rows * length).astype(np.int32)
    return Batch(data[:-1], data[1:], None, cu_seqlens, np.zeros(rows, dtype=np.int64), offsets)


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def product_rate(rows: int, width: int, dtype: torch.dtype) -> float:
    """FLOPs per second of processor time of a product of the size of a Mamba-2 input projection."""
    a, b = torch.randn(rows, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    return 8 * rows * width**2 / min(timed(lambda: torch.mm(a, b))[1] for _ in range(30))


class Products(TorchDispatchMode):
    """Remembers the matrix products of what runs under it."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.NAMES and "out" not in (kwargs or {}):
            self.calls.append(functools.partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    @torch.inference_mode()
    def replay(self) -> None:
        for call in self.calls:
            call()


class Variant:
    """One model in training."""

    def __init__(self, config: RunConfig, kernels: str, precision: str) -> None:
        settings = {"kernels": kernels, "precision": precision}
        self.config = RunConfig(**{**vars(config), **settings})
        torch.manual_seed(0)
        self.model = build_model(self.config)
        self.optimizer = build_optimizer(self.model, self.config)
        self.autocast = precision_context(self.config, torch.device("cpu"))
        self.batches = [batch(config.train.rows, config.train.sequence_length, seed) for seed in range(4)]
        self.steps, self.record, self.best = 0, dict[str, float](), (math.inf, math.inf)
        for _ in range(WARM_UP):
            self.step()
        with Products() as self.products:
            self.step()
        self.products_best = math.inf

    def step(self) -> None:
        batches = [self.batches[self.steps % len(self.batches)]]
        self.record = train_step(self.model, self.optimizer, batches, self.steps, self.config, self.autocast)()
        self.steps += 1

    def measure(self) -> None:
        self.best = tuple(map(min, self.best, timed(self.step)))
        self.products_best = min(self.products_best, timed(self.products.replay)[1])

    def result(self, ceiling: float) -> dict[str, float]:
        train = self.config.train
        fractions = self.chunk_fractions()
        flops = 3 * train.batch_bytes * self.config.model.flops_per_byte(fractions, train.sequence_length)
        wall, cpu = self.best
        return {
            "ms": round(1e3 * wall, 1),
            "cpu_ms": round(1e3 * cpu, 1),
            "bytes_per_s": round(train.batch_bytes / wall),
            "bytes_per_cpu_s": round(train.batch_bytes / cpu),
            "of_ceiling": round(flops / cpu / ceiling, 3),
            "own_products": round(flops / self.products_best / ceiling, 3),
        }

    @torch.no_grad()
    def chunk_fractions(self) -> tuple[float, ...]:
        """Positions of each inner level per byte."""
        first = self.batches[0]
        out = self.model(torch.tensor(first.inputs).long(), cu_seqlens=torch.tensor(first.cu_seqlens))
        return tuple(float(routing.boundary_mask.sum()) / len(first.inputs) for routing in out.routing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--rows", type=int, help="rows of the preset's length per step (default 16, of small 2)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=8)
    given = parser.parse_args()
    rows = given.rows or (16 if given.preset == "nano" else 2)
    length = resolve(given.preset).train.sequence_length
    config = resolve(given.preset, [f"train.batch_bytes={rows * length}", "train.micro_batches=1", "train.warmup=0"])
    found: dict[str, Any] = {"preset": given.preset, "rows": rows, "length": length, "threads": {}}
    for threads in given.threads:
        torch.set_num_threads(threads)
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        rates = {name: product_rate(rows * length, config.model.d_model[0], dtype) for name, dtype in dtypes.items()}
        variants = {(k, p): Variant(config, k, p) for p in dtypes for k in ("reference", "auto")}
        for _ in range(given.repeats):
            for variant in variants.values():
                variant.measure()
        results = {f"{k}_{p}": variant.result(max(rates.values())) for (k, p), variant in variants.items()}
        print(f"{threads} thread(s): products {', '.join(f'{n} {r / 1e9:.0f} GFLOP/s' for n, r in rates.items())}")
        for name, result in results.items():
            print(f"  {name:16}" + "  ".join(f"{key} {value}" for key, value in result.items()), flush=True)
        ceilings = {name: round(rate / 1e9, 1) for name, rate in rates.items()}
        fractions = [round(f, 3) for f in variants["auto", "bf16"].chunk_fractions()]
        found["threads"][threads] = {"gflops": ceilings, "chunks_per_byte": fractions, **results}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
