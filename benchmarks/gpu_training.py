"""The section `models` of benchmarks/gpu.py: training of one preset beside an isotropic Transformer of equal FLOPs."""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_tools import (
    Found,
    documents,
    force_boundaries,
    fractions,
    guarded,
    isotropic,
    on_gpu,
    preset,
    release,
    timed,
    wait,
)


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


def training(o: argparse.Namespace, model_config: Any, length: int, ratios: list[float], detail: bool) -> Found:
    """Figures of training one model at the largest number of rows that fits, of 8, 4, 2, 1 (`small`: 64 and less)."""
    from hnet_cli.config.run import RunConfig, TrainConfig
    from hnet_cli.errors import is_out_of_memory
    from hnet_cli.training import budget
    from hnet_cli.training.optim import build_optimizer
    from hnet_cli.training.step import build_model, precision_context, train_step

    device = torch.device(o.device)
    found: dict[str, Any] = {
        "parameters": model_config.num_parameters, "layout": model_config.to_dict()["arch_layout"],
        "flops_per_byte": model_config.flops_per_byte(fractions(model_config), length),
    }  # fmt: skip
    settings: dict[str, Any] = {"sequence_length": length, "target_ratios": ratios, "micro_batches": 1}
    one, two = (
        budget.needs(RunConfig(model=model_config, train=TrainConfig(batch_bytes=n * length, **settings)),
                     lean=on_gpu(o)).activations for n in (1, 2)
    )  # fmt: skip
    memory = torch.cuda.mem_get_info()[0] if on_gpu(o) else 1 << 33
    room = 0.85 * memory - 20 * model_config.num_parameters
    rows = 2 if o.quick else min(65536 // length if length >= 8192 else 64, max(1, int(room / (two - one))))
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
            if rows == 1 or not is_out_of_memory(error):
                raise
            failed = True
        if not failed and "splits" not in numbers:
            break
        rows //= 2  # it was too much for the memory, if only on the way
        del model, optimizer, step
        release(o)
    found |= {"rows": rows, "length": length, "start_s": time.perf_counter() - began}
    yield found  # compiling may have taken all the time there was
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
    from hnet_cli.training.health import clip_gradient
    from hnet_cli.training.step import losses
    from hnet_cli.training.validation import to_device

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


KINDS = {  # the first that fits: names of attention kernels have cutlass in them
    "attention": r"flash|fmha|attention",
    "scan": r"_chunk_|_state_passing|_bmm_|ssd",
    "matrix products": r"gemm|cutlass|nvjet|xmma|aten::(mm|addmm|bmm)|cublas",
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
