"""The sections of benchmarks/gpu.py: each gives what it has found out, piece by piece."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gc
import importlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

RATES = {0: (), 1: (0.21,), 2: (0.357, 0.145 / 0.357)}
"""Boundaries per position of each stage (paper)."""
RAGGED = ([1], [63], [64], [65], [1, 63, 64, 65, 700, 2500])
Found = Iterator[dict[str, Any]]


# -- what the sections share -------------------------------------------------------------------------------------------


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

    from hnet_cli.config import preset_text
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


def force_boundaries(model: Any) -> None:
    """Boundaries at the paper's rates at positions that do not depend on the data; the gradient is the router's."""
    from hnet_cli.model.chunking import RoutingModule

    class Forced(RoutingModule):
        rate: float

        def forward(self, hidden: Any, packing: Any, input_ids: Any = None) -> Any:
            out = super().forward(hidden, packing, input_ids)
            mask = self.decide(packing.position, packing.document).index_fill(0, packing.first, True)
            prob = self.follow(out.boundary_prob, mask).index_fill(0, packing.first, 1.0)
            return dataclasses.replace(out, boundary_prob=prob, boundary_mask=mask)

        def step(self, hidden: Any, tokens: Any, state: Any, now: Any) -> Any:
            prob = super().step(hidden, tokens, state, now)
            rows = torch.arange(len(prob), device=prob.device) if now.rows is None else now.rows
            return self.follow(prob, self.decide(now.position, rows))

        def decide(self, position: Any, document: Any) -> Any:
            mixed = (position + 1) * 2654435761 + (document + 1) * 40503 * 65537
            return ((mixed >> 7) * 2246822519 >> 9) % 10_000 < round(10_000 * self.rate)

        def follow(self, prob: Any, mask: Any) -> Any:
            return torch.where(mask, 0.5 + 0.5 * prob.clamp(1e-3, 1), 0.5 * prob)

    routers = [module for module in model.modules() if isinstance(module, RoutingModule)]
    for router, rate in zip(routers, RATES[len(routers)], strict=True):  # outermost first: levels are nested
        router.__class__, router.rate = Forced, rate


def documents(rows: int, length: int, seed: int = 0) -> Any:
    """A micro-batch of random letters; what they are makes no difference to the time."""
    from hnet_cli.corpus.loader import Batch

    data = np.random.default_rng(seed).integers(97, 123, rows * length + 1, dtype=np.uint8)
    offsets = np.arange(0, rows * length + 1, length, dtype=np.int32)
    index = np.arange(rows, dtype=np.int64)
    return Batch(data[:-1], data[1:], None, offsets, index, index)


def version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


# -- sections ----------------------------------------------------------------------------------------------------------


def warm(o: argparse.Namespace) -> Found:
    """Compiles and tunes the scan's kernels for one combination of sizes, or all that torch.compile has to do."""
    from hnet_cli import kernels

    if o.part == "compiled":
        yield from warm_compiled(o)
        return
    from hnet_cli.kernels.checking import Sizes, inputs
    from hnet_cli.kernels.packing import Packing

    chunk, width, state = (int(part) for part in o.part.split(","))
    packing = Packing.of_lengths([8192] * (1 if o.quick else 8), o.device)
    sizes = Sizes(32, width, state, chunk)
    args = inputs("ssd_scan", packing, torch.Generator().manual_seed(0), sizes)
    args = [a.to(o.device, torch.bfloat16).requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    args[2], args[5], args[6] = (args[i].detach().float().requires_grad_() for i in (2, 5, 6))
    out = kernels.choose(o.device, torch.bfloat16).ssd_scan(*args)
    out.backward(torch.randn_like(out))
    wait(o)
    yield {}


def warm_compiled(o: argparse.Namespace) -> Found:
    """Some steps of a tiny model, of a block length with which the scan is the reference's, and of its generation."""
    from hnet_cli.model import HNetConfig

    config = HNetConfig.from_dict({
        "arch_layout": ["m2", ["T1M1"], "m2"], "d_model": [64, 128], "d_intermediate": [0, 256],
        "ssm_cfg": {"d_state": 16, "headdim": 32, "chunk_size": 8},
        "attn_cfg": {"num_heads": [2, 2], "rotary_emb_dim": [16, 16], "window_size": [31, 31]},
    })  # fmt: skip
    o = argparse.Namespace(**vars(o) | {"quick": True, "tflops": None, "measure": 0.1})
    for length in (96, 128, 256):
        yield from ({} for _ in training(o, config, length, [4.0], False))


def machine(o: argparse.Namespace) -> Found:
    about: dict[str, Any] = {"device": o.device, "cpu_cores": os.cpu_count(), "python": sys.version.split()[0]}
    if on_gpu(o):
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "device": torch.cuda.get_device_name(),
            "gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "cuda": torch.version.cuda,
        }
    about |= {name: version(name) for name in ("triton", "mamba-ssm", "flash-attn", "einops")}
    about["ptxas"] = os.environ.get("TRITON_PTXAS_PATH", "bundled with triton")
    yield {"machine": about, "torch": torch.__version__}
    n = 256 if o.quick else 8192
    a, b = (torch.randn(n, n, device=o.device).bfloat16() for _ in range(2))
    timed(o, lambda: a @ b, 3)
    about["bf16_tflops"] = 2 * n**3 / median(timed(o, lambda: a @ b, 12)) / 1e12
    x = torch.randn(1 << (16 if o.quick else 30), device=o.device)
    y = torch.empty_like(x)
    timed(o, lambda: y.copy_(x), 3)
    about["memory_tb_s"] = 2 * x.nbytes / median(timed(o, lambda: y.copy_(x), 12)) / 1e12
    yield {"machine": about}


def kernels(o: argparse.Namespace) -> Found:
    from hnet_cli import kernels as seam
    from hnet_cli.kernels.checking import Sizes

    rows = [dataclasses.asdict(row) for row in seam.report() if row.device in ("any", o.device)]
    chosen = {str(dtype)[6:]: seam.choose(o.device, dtype).names for dtype in (torch.float32, torch.bfloat16)}
    found: dict[str, Any] = {"chosen": chosen, "backends": rows, "operations": {}, "ok": True}
    sizes = Sizes(state=16, chunk=32) if o.quick else Sizes(state=128, chunk=256)
    cases = [(seam.OPERATIONS, sizes, lengths) for lengths in (RAGGED[1:2] if o.quick else RAGGED)]
    cases += [(["attention"], Sizes(width=width), [100] if o.quick else RAGGED[-1]) for width in (96, 128)]
    for operations, each, lengths in cases:
        for result in seam.check(o.device, operations, lengths=lengths, sizes=each):
            own = found["operations"].setdefault(f"{result.op} ({result.backend})", {})
            worst = own.get(result.dtype)
            if worst is None or not result.error <= worst["error"]:
                own[result.dtype] = {
                    "error": result.error, "bound": result.bound, "ok": result.ok, "where": result.where,
                    "lengths": lengths,
                }  # fmt: skip
            found["ok"] &= result.ok
        yield {"kernels": found}


def parity(o: argparse.Namespace) -> Found:
    """Relative errors in the 2-norm; the same boundaries everywhere, but for `stepped`, whose own decide."""
    from hnet_cli.kernels.packing import Packing
    from hnet_cli.model import HNetConfig, HNetForCausalLM
    from hnet_cli.model.graphs import GraphSteps, PlainSteps, cuda_graphs

    wide = [64, 64, 64] if o.quick else [128, 192, 256]
    ssm = {"d_state": 16, "headdim": 32, "chunk_size": 32} if o.quick else {"d_state": 128, "headdim": 64}
    config = HNetConfig.from_dict({
        "arch_layout": ["m2", ["T1m1", ["T2"], "m1T1"], "m2"], "d_model": wide, "d_intermediate": [0, 256, 256],
        "ssm_cfg": ssm, "attn_cfg": {"num_heads": [2, 2, 4], "rotary_emb_dim": [16, 16, 16],
                                     "window_size": [31, 31, -1]},
    })  # fmt: skip
    torch.manual_seed(0)
    truth = HNetForCausalLM(config, backend="reference")
    with torch.no_grad():
        for name, p in truth.named_parameters():
            if p.ndim > 1 and "conv1d" not in name:
                p.copy_(torch.randn(p.shape) / (1 if "embeddings" in name else p.shape[-1] ** 0.5))
    found: dict[str, Any] = {}

    def relative(a: Any, b: Any) -> float:
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        return float((a - b).norm() / b.norm().clamp_min(1e-30))

    lengths = [1, 20, 33] if o.quick else [1, 63, 64, 65, 700, 1500]
    data = [torch.randint(97, 123, (n,)) for n in lengths]
    ids, offsets = torch.cat(data), Packing.of_lengths(lengths).cu_seqlens
    fast = HNetForCausalLM(config)
    fast.load_state_dict(truth.state_dict())
    fast = fast.to(o.device)
    free = HNetForCausalLM(config)
    free.load_state_dict(truth.state_dict())
    free = free.to(o.device)
    force_boundaries(truth)
    force_boundaries(fast)
    truth = truth.double()
    expected = truth(ids, cu_seqlens=offsets).logits
    weight = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weight).sum().backward()
    gradients = {name: p.grad for name, p in truth.named_parameters()}
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        fast.zero_grad(set_to_none=True)
        with torch.autocast(o.device, torch.bfloat16, enabled=bf16):
            logits = fast(ids.to(o.device), cu_seqlens=offsets).logits
        (logits.double() * weight.to(o.device)).sum().backward()
        errors = {key: relative(p.grad, gradients[key]) for key, p in fast.named_parameters() if key in gradients}
        worst = max(errors, key=errors.__getitem__)
        found[name] = {"logits": relative(logits, expected), "gradient": errors[worst], "worst_gradient": worst}
        yield {"parity": found}
    with torch.no_grad():
        packed = free(ids.to(o.device), cu_seqlens=offsets).logits.split(lengths)
        alone = [free(row.to(o.device)[None]).logits[0] for row in data]
        found["packed_alone"] = max(relative(a, b) for a, b in zip(packed, alone, strict=True))
        yield {"parity": found}
        count = 8 if o.quick else 60
        rows = [torch.randint(97, 123, (n + count,)) for n in (1, 9, 40)]
        whole = [free(row.to(o.device)[None]).logits[0] for row in rows]
        ways: dict[str, Any] = {"stepped": PlainSteps}
        ways["replayed"] = lambda m, s: GraphSteps(m, s, cuda_graphs() if on_gpu(o) else None)
        for way, make in ways.items():
            state = free.allocate_state(len(rows), 200)
            logits = free.prefill([row[:-count] for row in rows], state)
            stepper, error = make(free, state), 0.0
            for t in range(count):
                logits, _ = stepper.step(torch.stack([row[t - count] for row in rows]))
                each = [relative(a, b[t - count]) for a, b in zip(logits, whole, strict=True)]
                error = max(error, *each)
            found[way] = error
            if getattr(stepper, "failure", None):
                found["graph_failure"] = stepper.failure
            yield {"parity": found}


def models(o: argparse.Namespace) -> Found:
    """One preset, then its isotropic counterpart."""
    config, train = preset(o.part, o.quick)
    length = train["sequence_length"]
    other = isotropic(config, length, o.quick)
    found: dict[str, Any] = {}
    for kind, model in (("", config), ("isotropic_", other)):
        for piece in training(o, model, length, train["target_ratios"] if not kind else [], bool(not kind)):
            found |= {kind + key: value for key, value in piece.items()}
            if "isotropic_mfu" in found and found.get("mfu"):
                found["mfu_of_isotropic"] = found["mfu"] / found["isotropic_mfu"]
            yield {"models": {o.part: found}}
        release(o)


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


def training(o: argparse.Namespace, model_config: Any, length: int, ratios: list[float], detail: bool) -> Found:
    """Figures of training one model at the largest number of rows that fits, of 8, 4, 2, 1 (`small`: 64 and less)."""
    from hnet_cli import budget
    from hnet_cli.config import RunConfig, TrainConfig
    from hnet_cli.optim import build_optimizer
    from hnet_cli.train_step import build_model, out_of_memory, precision_context, train_step

    device = torch.device(o.device)
    found: dict[str, Any] = {
        "parameters": model_config.num_parameters, "layout": model_config.to_dict()["arch_layout"],
        "flops_per_byte": model_config.flops_per_byte(fractions(model_config), length),
    }  # fmt: skip
    settings: dict[str, Any] = {"sequence_length": length, "target_ratios": ratios, "micro_batches": 1}
    probe = RunConfig(model=model_config, train=TrainConfig(batch_bytes=length, **settings))
    per_row = 0.6 * (budget.needs(probe).activations - budget.BASE_MEMORY)  # an estimate in fp32; products are bf16
    memory = torch.cuda.mem_get_info()[0] if on_gpu(o) else 1 << 33
    room = 0.85 * memory - 20 * model_config.num_parameters
    rows = 2 if o.quick else min(65536 // length if length >= 8192 else 64, max(1, int(room / per_row)))
    rows = 1 << (rows.bit_length() - 1)
    while True:
        config = RunConfig(model=model_config, train=TrainConfig(batch_bytes=rows * length, **settings),
                           precision="bf16")  # fmt: skip
        torch.manual_seed(0)
        began = time.perf_counter()
        with device:
            model = build_model(config)
        force_boundaries(model)
        optimizer = build_optimizer(model, config)
        autocast = precision_context(config, device)
        batches = [documents(rows, length, seed) for seed in range(3)]
        numbers: dict[str, Any] = {}
        count = 0

        def step(given: tuple[Any, ...] = (model, optimizer, batches, config, autocast)) -> None:
            nonlocal numbers, count
            own, moves, some, settings, context = given
            numbers = train_step(own, moves, [some[count % 3]], 0, settings, context, histograms=False)
            count += 1

        failed = False
        try:
            for _ in range(3):
                step()
        except RuntimeError as error:
            if rows == 1 or not out_of_memory(error):
                raise
            failed = True
        if not failed and "splits" not in numbers:
            break
        rows //= 2  # it was too much for the memory, if only on the way
        del model, optimizer, step
        release(o)
    found |= {"rows": rows, "length": length, "start_s": time.perf_counter() - began}
    if on_gpu(o):
        torch.cuda.reset_peak_memory_stats()
    times = timed(o, step, 3 if o.quick else 12, o.measure)
    rate = rows * length / median(times)
    found |= {
        "bytes_per_s": rate,
        "ms_per_step": 1e3 * median(times),
        "spread": (max(times) - min(times)) / median(times),
        "finite": math.isfinite(numbers["loss"]) and "skipped" not in numbers,
    }
    found["chunks_per_byte"] = [1 / numbers[f"stage{s}_bytes_per_chunk"] for s in range(len(ratios))]
    if on_gpu(o):
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if o.tflops:
        flops = 3 * model_config.flops_per_byte(found["chunks_per_byte"], length)
        found["mfu"] = rate * flops / (o.tflops * 1e12)
    yield found
    if on_gpu(o):
        yield guarded("host_waits", waits, step)
    if detail:
        yield guarded("phases_ms", phases, o, model, optimizer, batches[0], config, autocast)
        yield guarded("kernel_time", kernel_time, o, step, median(times))


def waits(step: Callable[[], None]) -> dict[str, int]:
    """Where, and how often, the host waits for the device in one step."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict(collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught))


def phases(o: argparse.Namespace, model: Any, optimizer: Any, batch: Any, config: Any, autocast: Any) -> dict[str, Any]:
    """Milliseconds of one step: forward pass by part, then the phases; `within*` is what lies between the parts of a
    level, that is selection, smoothing and plugging back."""
    from hnet_cli.evaluate import to_device
    from hnet_cli.health import clip_gradient
    from hnet_cli.train_step import losses

    marks: dict[str, list[tuple[Any, Any]]] = collections.defaultdict(list)

    def now() -> Any:
        if not on_gpu(o):
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    handles, level, open_marks = [], model.backbone, {}
    watched = {"embeddings": model.embeddings, "level0": model.backbone, "head": model.lm_head}
    number = 0
    while not level.is_innermost:
        parts = ("encoder", "routing_module", "residual_proj", "decoder")
        watched |= {f"{part}{number}": getattr(level, part) for part in parts if getattr(level, part, None) is not None}
        level, number = level.main_network, number + 1
        watched[f"level{number}"] = level
    for name, module in watched.items():

        def before(module: Any, args: Any, name: str = name) -> None:
            open_marks[name] = now()

        def after(module: Any, args: Any, out: Any, name: str = name) -> None:
            marks[name].append((open_marks.pop(name), now()))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        for _ in range(2):  # the first only warms up
            marks.clear()
            optimizer.zero_grad(set_to_none=True)
            inputs, targets, cu_seqlens, weights = to_device(batch, torch.device(o.device))
            at = [now()]
            with autocast():
                part, _ = losses(model, inputs, targets, cu_seqlens, weights, len(targets), config.train, 0)
            at.append(now())
            part.total.backward()
            at.append(now())
            clip_gradient(model, config.train.grad_clip)
            at.append(now())
            optimizer.step()
            at.append(now())
            wait(o)
    finally:
        for handle in handles:
            handle.remove()

    def milliseconds(a: Any, b: Any) -> float:
        return a.elapsed_time(b) if on_gpu(o) else 1e3 * (b - a)

    forward = {name: sum(milliseconds(*pair) for pair in pairs) for name, pairs in marks.items()}
    for s in range(number):
        own = [key for key in forward if key.endswith(str(s)) and not key.startswith(("level", "within"))]
        forward[f"within{s}"] = forward[f"level{s}"] - forward[f"level{s + 1}"] - sum(forward[key] for key in own)
    names = ("forward and loss", "backward", "clipping", "optimizer")
    return {name: milliseconds(*pair) for name, pair in zip(names, itertools.pairwise(at), strict=True)} | {
        "forward parts": forward
    }


KINDS = {
    "matrix products": r"gemm|cutlass|nvjet|xmma|aten::(mm|addmm|bmm)|cublas",
    "scan": r"_chunk_|_state_passing|_bmm_|ssd",
    "attention": r"flash|fmha|attention",
    "optimizer": r"adam|multi_tensor|_foreach",
    "compiled": r"^triton_",
    "copies": r"copy|memcpy|memset|cat",
    "reductions": r"reduce|norm|cumsum|scan_",
}


def kernel_time(o: argparse.Namespace, step: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Of a step that takes so many seconds: milliseconds by kind of kernel, the share of the time that the device was
    busy, and the longest kernels."""
    from torch.profiler import ProfilerActivity, profile

    wanted = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu(o) else [])]
    with profile(activities=wanted) as profiler:
        timed(o, step, 2)
    kinds: dict[str, float] = collections.defaultdict(float)
    longest = []
    for event in profiler.key_averages():
        if on_gpu(o):
            if "CUDA" not in str(event.device_type) or getattr(event, "is_user_annotation", False):
                continue
            spent = getattr(event, "self_device_time_total", None) or getattr(event, "self_cuda_time_total", 0.0)
        else:
            spent = event.self_cpu_time_total
        spent /= 2e3  # two steps, microseconds
        kind = next((kind for kind, names in KINDS.items() if re.search(names, event.key, re.I)), "other")
        kinds[kind] += spent
        longest.append((spent, event.count, event.key[:90]))
    longest.sort(reverse=True)
    return {"kinds_ms": dict(kinds), "busy": sum(kinds.values()) / (1e3 * seconds), "longest": longest[:12]}


def generation(o: argparse.Namespace) -> Found:
    """Bytes per second of all rows together. Tokens are given: neither sampling nor printing counts."""
    from hnet_cli.model import HNetForCausalLM
    from hnet_cli.model.graphs import GraphSteps, PlainSteps, cuda_graphs

    config, _ = preset(o.part, o.quick)
    torch.manual_seed(0)
    with torch.device(o.device):
        model = HNetForCausalLM(config)
    model = model.cast(torch.bfloat16 if on_gpu(o) else torch.float32).eval().requires_grad_(False)
    force_boundaries(model)
    found: dict[str, Any] = {"model": o.part}
    if o.bandwidth:
        weights, level, share, rates = model.lm_head.weight.nbytes, model.backbone, 1.0, [1.0, *fractions(config)]
        for share in rates:
            inner = level.main_network if not level.is_innermost else None
            inside = {id(p) for p in inner.parameters()} if inner is not None else set()
            weights += share * sum(p.nbytes for p in level.parameters() if id(p) not in inside)
            level = inner
        found["bound_batch_1"] = o.bandwidth * 1e12 / weights
    for batch in (1, 2) if o.quick else (1, 8, 64):
        own: dict[str, Any] = {}
        tokens = torch.randint(97, 123, (batch,), device=o.device)
        ways: dict[str, Any] = {"": lambda m, s: GraphSteps(m, s, cuda_graphs() if on_gpu(o) else None)}
        ways["eager_"] = PlainSteps
        for name, make in ways.items():
            state = model.allocate_state(batch, 1 << 20)
            model.prefill([bytes(range(97, 123)) * (1 if o.quick else 10)] * batch, state)
            stepper = make(model, state)
            warm_up, chunk = (2, 2) if o.quick else (96, 32) if not name else (12, 12)

            def several(stepper: Any = stepper, count: int = chunk, tokens: Any = tokens) -> None:
                for _ in range(count):
                    stepper.step(tokens)

            began = time.perf_counter()
            several(count=warm_up)
            wait(o)
            own[f"{name}start_s"] = time.perf_counter() - began
            times = timed(o, several, 3 if o.quick else 20, o.measure / 3)
            own[f"{name}bytes_per_s"] = batch * chunk / median(times)
            if getattr(stepper, "failure", None):
                own["graph_failure"] = stepper.failure
            found[f"batch_{batch}"] = own
            if "eager_bytes_per_s" in own:
                own["of_eager"] = own["bytes_per_s"] / own["eager_bytes_per_s"]
            yield {"generation": found} if o.part == o.models[0] else {"generation_of": {o.part: found}}
            del stepper, state


def loader(o: argparse.Namespace) -> Found:
    from hnet_cli.corpus import Batches, Dataset, prepare
    from hnet_cli.evaluate import to_device

    with tempfile.TemporaryDirectory() as folder:
        path, made = o.data, False
        if path is None:
            text, path, made = Path(folder) / "random.txt", Path(folder) / "random", True
            size = 100_000 if o.quick else 50_000_000
            letters = np.random.default_rng(0).integers(97, 123, size, dtype=np.uint8)
            letters[::80] = 10
            text.write_bytes(letters.tobytes())
            began = time.perf_counter()
            prepare([text], importlib.import_module("hnet_cli.modalities.text").Text(), path, measure=False)
            yield {"loader": {"prepare_bytes_per_s": size / (time.perf_counter() - began)}}
        length, rows = (128, 8) if o.quick else (8192, 64)
        batches = Batches(Dataset.open(path), sequence_length=length, rows=rows)
        at = iter(range(10**9))
        times = timed(o, lambda: batches.batch(next(at)), 400, o.measure / 2)
        there = timed(o, lambda: to_device(batches.batch(next(at)), torch.device(o.device)), 400, o.measure / 2)
        yield {
            "loader": {
                "synthetic": made,
                "bytes_per_s": rows * length / median(times),
                "to_device_bytes_per_s": rows * length / median(there),
            }
        }


def real(o: argparse.Namespace) -> Found:
    """`small`, then an isotropic Transformer of equal FLOPs per byte, each for half the time, by the tool's own
    training."""
    from hnet_cli.config import resolve
    from hnet_cli.train import train

    config = resolve("nano" if o.quick else "small")
    share = 1.0
    inner = [share := share / ratio for ratio in config.train.ratios()]
    length = config.train.sequence_length
    other = isotropic(config.model, length, o.quick)
    found: dict[str, Any] = {}
    for name, model in (("hnet", config.model), ("isotropic", other)):
        ratios = config.train.target_ratios if name == "hnet" else []
        changed = dataclasses.replace(
            config, model=model, name=f"{config.name}-{name}",
            train=dataclasses.replace(config.train, target_ratios=ratios, lr_multipliers="auto", samples=False,
                                      micro_batches=1, steps=20 if o.quick else 2_000_000, eval_every=0),
        )  # fmt: skip
        folder = Path(tempfile.mkdtemp(prefix="hnet-")) / name  # checkpoints are too large for what comes back
        result = train(changed, o.data, folder, device=o.device, seconds=o.train_seconds / 2)
        shutil.copy(folder / "metrics.jsonl", Path(o.out) / f"metrics-{name}.jsonl")
        found[name] = {
            "parameters": model.num_parameters,
            "flops_per_byte": model.flops_per_byte(inner[: model.num_stages], length),
            "seconds": result.seconds, "bytes": result.state.bytes_seen, "val_bpb": result.last.get("val_bpb"),
        }  # fmt: skip
        yield {"training": found}


WORK = {f.__name__: f for f in (warm, machine, kernels, parity, models, generation, loader, real)}
