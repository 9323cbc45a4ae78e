"""Speed of generation on the CPU: bytes per second at batch 1, 8 and 64, beside the bound of reading the weights.

    python benchmarks/sample.py [--preset base] [--dtype fp32] [--threads 1] [--batches 1 8 64] [--seconds 5]

`hnet_cli.inference.generate.generate` is measured, which `hnet sample -n` calls: bytes drawn, rows that wait for each
other and all. Weights are random; the share of positions at a boundary is what the preset aims at, at random
places that differ from row to row. The bound: the products of one row with every matrix that a byte needs, one after
the other and nothing else (encoders, decoders and head for every byte, what lies within a stage at the share of its
boundaries). `of_bound` is the time that takes over the time of a byte at batch 1; rounds of all variants take turns and
the fastest counts, by the clock and by processor time, because machines are shared. `aggregate` is bytes per second of
all rows over those of the first batch in the same turn, the median of all turns: what the machine is busy with changes
from one to the next. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import nn
from train_step import timed

from hnet_cli.checkpoints.convert import DTYPES
from hnet_cli.config.run import resolve
from hnet_cli.inference.generate import generate
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.chunking import RoutingModule
from hnet_cli.model.hnet import HNet

ROUND = 24
"""Bytes per row of a round: several chunks."""


class Every(RoutingModule):
    """A learned router, of which one position in every n is a boundary, a random one that no other row shares: its
    cost, and a known share."""

    every: int
    places: torch.Tensor
    """(rows, spans): which of its positions."""

    def step(
        self, hidden: torch.Tensor, tokens: torch.Tensor | None, state: Any, now: Any, kernels: Any
    ) -> torch.Tensor:
        prob = super().step(hidden, tokens, state, now, kernels)
        rows = torch.arange(len(prob)) if now.rows is None else now.rows
        place = self.places[rows, now.position // self.every % self.places.shape[1]]
        return torch.where(now.position % self.every == place, 0.75, 0.0) + prob / 4  # prob may be 0


def levels(model: HNetForCausalLM) -> list[HNet]:
    found, level = [], model.backbone
    while isinstance(level, HNet):
        found.append(level)
        level = level.main_network
    return found


def build(preset: str, dtype: torch.dtype, rows: int) -> tuple[HNetForCausalLM, list[float]]:
    """The model, and the share of the bytes that reach each level."""
    config = resolve(preset)
    torch.manual_seed(0)
    model = HNetForCausalLM(config.model).cast(dtype).eval().requires_grad_(False)
    shares, ratios = [1.0], [max(2, round(ratio)) for ratio in config.train.ratios()]
    for level, ratio in zip(levels(model), ratios, strict=False):
        level.routing_module.__class__ = Every
        level.routing_module.every, level.routing_module.places = ratio, torch.randint(ratio, (rows, 997))
        shares.append(shares[-1] / ratio)
    return model, shares


def matrices(model: HNetForCausalLM) -> list[list[torch.Tensor]]:
    """Per level, the matrices that one position of it is multiplied with."""
    found = []
    for level in levels(model):
        outer = () if level.is_innermost else (level.encoder, level.routing_module, level.decoder, level.residual_proj)
        parts = outer or (level.main_network,)
        found.append([m.weight for part in parts for m in part.modules() if isinstance(m, nn.Linear)])
    found[0].append(model.lm_head.weight)
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=5, help="of measuring, for each batch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, shares = build(options.preset, DTYPES[options.dtype], max(options.batches))
    vectors = {weight.shape[1]: {} for level in matrices(model) for weight in level}
    for level in matrices(model):
        for weight in level:
            vectors[weight.shape[1]][weight.dtype] = torch.randn(1, weight.shape[1], dtype=weight.dtype)

    def stream(level: list[torch.Tensor]) -> None:
        for weight in level:
            nn.functional.linear(vectors[weight.shape[1]][weight.dtype], weight)

    prompt = bytes(random.Random(0).choices(range(256), k=ROUND - 1))  # and the mark of the beginning: a whole round
    sampled = {batch: generate(model, [prompt] * batch, max_bytes=1 << 30) for batch in options.batches}

    def rounds_of(batch: int) -> None:
        for _ in islice(sampled[batch], batch * ROUND):
            pass

    seen: dict[Any, list[tuple[float, float]]] = {}

    def measure(key: Any, run: Callable[[], Any]) -> None:
        seen.setdefault(key, []).append(timed(run))

    for batch in options.batches:
        next(sampled[batch])  # the prompt is read
    began, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - began < options.seconds * len(options.batches):
        for number, level in enumerate(matrices(model)):
            measure(("level", number), lambda level=level: stream(level))
        for batch in options.batches:
            measure(batch, lambda batch=batch: rounds_of(batch))
        rounds += 1
    best = {key: [min(each) for each in zip(*times, strict=True)] for key, times in seen.items()}
    bounds = [sum(share * best["level", n][kind] for n, share in enumerate(shares)) for kind in (0, 1)]
    size = sum(share * sum(w.nbytes for w in level) for share, level in zip(shares, matrices(model), strict=True))
    result: dict[str, Any] = {name: vars(options)[name] for name in ("preset", "dtype", "threads")} | {
        "shares": shares,
        "weights_mb_per_byte": round(size / 1e6, 1),
        "bound_bytes_per_s": round(1 / bounds[0], 1),
        "bound_gb_per_s": round(size / bounds[0] / 1e9, 2),
    }

    def ratio(batch: int, kind: int) -> float:
        turns = zip(seen[options.batches[0]], seen[batch], strict=True)
        return batch / options.batches[0] * median(first[kind] / own[kind] for first, own in turns)

    for batch in options.batches:
        wall, cpu = best[batch]
        result[f"batch_{batch}"] = own = {
            "bytes_per_s": round(batch * ROUND / wall, 1),
            "bytes_per_cpu_s": round(batch * ROUND / cpu, 1),
            "aggregate": round(ratio(batch, 0), 2),
            "aggregate_cpu": round(ratio(batch, 1), 2),
        }
        if batch == 1:
            own |= {"of_bound": round(ROUND * bounds[0] / wall, 3), "of_bound_cpu": round(ROUND * bounds[1] / cpu, 3)}
        print(f"batch {batch}: {own}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
