"""What the sections of benchmarks/gpu.py share: presets without pydantic, forced boundaries, clocks."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

RATES = {0: (), 1: (0.21,), 2: (0.357, 0.145 / 0.357)}
"""Boundaries per position of each stage (paper)."""
Found = Iterator[dict[str, Any]]


def on_gpu(o: argparse.Namespace) -> bool:
    return o.device == "cuda"


def wait(o: argparse.Namespace) -> None:
    if on_gpu(o):
        torch.cuda.synchronize()


def timed(o: argparse.Namespace, run: Callable[[], Any], repeats: int, seconds: float = math.inf) -> list[float]:
    """Seconds of each run, the device waited for before and after; at least two."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < repeats and (len(times) < 2 or time.perf_counter() < until):
        wait(o)
        began = time.perf_counter()
        run()
        wait(o)
        times.append(time.perf_counter() - began)
    return times


def preset(name: str, quick: bool) -> tuple[Any, dict[str, Any]]:
    """Model and training section, read without pydantic."""
    import yaml

    from hnet_cli.config.run import preset_text
    from hnet_cli.model import HNetConfig

    data = yaml.safe_load(preset_text(name))
    model, train = data["model"], data["train"]
    model.pop("chunker", None)
    if quick:
        levels = len(model["d_model"])
        model |= {
            "arch_layout": json.loads(re.sub(r"\d+", "1", json.dumps(model["arch_layout"]))),
            "d_model": [64, 96, 128][:levels],
            "d_intermediate": [0] * levels,
            "ssm_cfg": {"d_state": 16, "headdim": 32, "chunk_size": 64},
            "attn_cfg": {"num_heads": [2] * levels, "rotary_emb_dim": [16] * levels, "window_size": [31] * levels},
        }
        train["sequence_length"] = 128
    return HNetConfig.from_dict(model), train


def fractions(config: Any) -> list[float]:
    """Positions of each inner level per byte, at the paper's rates."""
    return np.cumprod(RATES[config.num_stages]).tolist()


def isotropic(config: Any, length: int, quick: bool) -> Any:
    """A Transformer over bytes as wide as the main network, with as many layers as cost the same per byte."""
    from hnet_cli.model import HNetConfig

    def of(layers: int) -> Any:
        attention = {
            "num_heads": [config.attn_cfg.num_heads[-1]],
            "rotary_emb_dim": [config.attn_cfg.rotary_emb_dim[-1]],
            "window_size": [31 if quick else 1023],
        }
        return HNetConfig.from_dict({
            "arch_layout": [f"T{layers}"], "d_model": [config.d_model[-1]],
            "d_intermediate": [config.d_intermediate[-1]], "attn_cfg": attention,
        })  # fmt: skip

    one, two = (of(layers).flops_per_byte((), length) for layers in (1, 2))
    wanted = config.flops_per_byte(fractions(config), length)
    return of(max(1, 1 + round((wanted - one) / (two - one))))


def force_boundaries(model: Any, alike: bool = False) -> None:
    """Boundaries at the paper's rates at positions that do not depend on the data; the gradient is the router's.
    `alike`: the same in every document, whatever is beside it."""
    from hnet_cli.model.chunking import RoutingModule

    class Forced(RoutingModule):
        rate: float

        def forward(self, hidden: Any, packing: Any, input_ids: Any = None, state: Any = None) -> Any:
            out = super().forward(hidden, packing, input_ids, state)
            mask = self.decide(packing.position, packing.document).index_fill(0, packing.first, True)
            prob = self.follow(out.boundary_prob, mask).index_fill(0, packing.first, 1.0)
            return dataclasses.replace(out, boundary_prob=prob, boundary_mask=mask)

        def step(self, hidden: Any, tokens: Any, state: Any, now: Any) -> Any:
            prob = super().step(hidden, tokens, state, now)
            rows = torch.arange(len(prob), device=prob.device) if now.rows is None else now.rows
            return self.follow(prob, self.decide(now.position, rows))

        def decide(self, position: Any, document: Any) -> Any:
            document = document * 0 if alike else document
            mixed = (position + 1) * 2654435761 + (document + 1) * 40503 * 65537
            return ((mixed >> 7) * 2246822519 >> 9) % 10_000 < round(10_000 * self.rate)

        def follow(self, prob: Any, mask: Any) -> Any:
            return torch.where(mask, 0.5 + 0.5 * prob.clamp(1e-3, 1), 0.5 * prob)

    routers = [module for module in model.modules() if isinstance(module, RoutingModule)]
    for router, rate in zip(routers, RATES[len(routers)], strict=True):  # outermost first: levels are nested
        router.__class__, router.rate = Forced, rate


def documents(rows: int, length: int, seed: int = 0) -> Any:
    """A micro-batch of random letters; what they are makes no difference to the time."""
    from hnet_cli.data.loader import Batch

    data = np.random.default_rng(seed).integers(97, 123, rows * length + 1, dtype=np.uint8)
    offsets = np.arange(0, rows * length + 1, length, dtype=np.int32)
    index = np.arange(rows, dtype=np.int64)
    return Batch(data[:-1], data[1:], None, offsets, index, index)


def version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def release(o: argparse.Namespace) -> None:
    gc.collect()
    if on_gpu(o):
        torch.cuda.empty_cache()


def guarded(name: str, run: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What `run` finds out under that name, or why it did not."""
    try:
        return {name: run(*args)}
    except Exception as error:
        return {name: f"{type(error).__name__}: {error}"}
