"""The sections of benchmarks/gpu.py: each yields what it has found so far, piece by piece."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import gc
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import gpu_warm
import numpy as np
import torch

from hnet_cli import kernels as seam
from hnet_cli.config.presets import preset_data
from hnet_cli.config.run import RunConfig, TrainConfig
from hnet_cli.data.loader import Batch
from hnet_cli.errors import is_out_of_memory
from hnet_cli.inference.graphs import GraphSteps, PlainSteps, cuda_graphs
from hnet_cli.kernels import cuda, tuned
from hnet_cli.kernels.checking import Sizes, relative, worst
from hnet_cli.kernels.packing import Packing
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.chunking import RoutingModule
from hnet_cli.training import budget
from hnet_cli.training.build import build_model, precision_context
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import train_step

MICRO_BATCHES = 4
LENGTHS: tuple[list[list[int]], ...] = ([[1, 63, 64, 65, 700, 2500]], [[1]], [[64]], [[63], [65]])
"""Document lengths of each check. Triton compiles anew for every group: each is a process of its own."""
CHECKS = [*(f"bfloat16 {group}" for group in range(len(LENGTHS))), "float32 0"]
PARITY = ["float32", "bfloat16", "steps"]
BATCHES = (1, 64, 8)
TRAINED = {"hnet": "small", "bpe": "transformer-small", "isotropic": "llamabyte-small"}
DRY_TRAINED = {"hnet": "nano", "bpe": "transformer-nano", "isotropic": "llamabyte-nano"}

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


def preset(name: str, dry: bool) -> tuple[Any, dict[str, Any]]:
    """Model and training section, read without pydantic."""
    data = preset_data(name)
    model, train = data["model"], data["train"]
    model.pop("chunker", None)
    if dry:
        levels = len(model["d_model"])
        model |= {
            "arch_layout": json.loads(re.sub(r"\d+", "1", json.dumps(model["arch_layout"]))),
            "d_model": [32, 48, 64][:levels],
            "d_intermediate": [0] * levels,
            "ssm_cfg": {"d_state": 16, "headdim": 16, "chunk_size": 32},
            "attn_cfg": {"num_heads": [2] * levels, "rotary_emb_dim": [8] * levels, "window_size": [31] * levels},
        }
        train["sequence_length"] = 64
    return HNetConfig.from_dict(model), train


def fractions(config: Any) -> list[float]:
    """Positions of each inner level per byte, at the paper's rates."""
    return np.cumprod(RATES[config.num_stages]).tolist()


def isotropic(config: Any, length: int, dry: bool) -> Any:
    """A Transformer over bytes as wide as the main network, with as many layers as cost the same per byte."""

    def of(layers: int) -> Any:
        attention = {
            "num_heads": [config.attn_cfg.num_heads[-1]],
            "rotary_emb_dim": [config.attn_cfg.rotary_emb_dim[-1]],
            "window_size": [31 if dry else 1023],
        }
        stack = {"arch_layout": [f"T{layers}"], "d_model": [config.d_model[-1]]}
        return HNetConfig.from_dict(stack | {"d_intermediate": [config.d_intermediate[-1]], "attn_cfg": attention})

    one, two = (of(layers).flops_per_byte((), length) for layers in (1, 2))
    wanted = config.flops_per_byte(fractions(config), length)
    return of(max(1, 1 + round((wanted - one) / (two - one))))


def force_boundaries(model: Any, alike: bool = False) -> None:
    """Boundaries at the paper's rates at positions that do not depend on the data; the gradient is the router's.
    `alike`: the same in every document, whatever is beside it."""

    class Forced(RoutingModule):
        rate: float

        def forward(self, hidden: Any, packing: Any, *others: Any) -> Any:
            out = super().forward(hidden, packing, *others)
            mask = self.decide(packing.position, packing.document).index_fill(0, packing.first, True)
            prob = self.follow(out.boundary_prob, mask).index_fill(0, packing.first, 1.0)
            return dataclasses.replace(out, boundary_prob=prob, boundary_mask=mask)

        def step(self, hidden: Any, tokens: Any, state: Any, now: Any, kernels: Any) -> Any:
            prob = super().step(hidden, tokens, state, now, kernels)
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
    data = np.random.default_rng(seed).integers(97, 123, rows * length + 1, dtype=np.uint8)
    offsets = np.arange(0, rows * length + 1, length, dtype=np.int32)
    index = np.arange(rows, dtype=np.int64)
    return Batch(data[:-1], data[1:], None, offsets, index, index)


def release(o: argparse.Namespace) -> None:
    gc.collect()
    if on_gpu(o):
        torch.cuda.empty_cache()


def have_mamba(o: argparse.Namespace) -> bool:
    return on_gpu(o) and importlib.util.find_spec("mamba_ssm") is not None


def prepare_process(o: argparse.Namespace) -> None:
    """Configurations that an earlier section has measured are used; what it had no time for is tuned briefly."""
    if have_mamba(o):
        with contextlib.suppress(Exception):  # it is broken: the report on kernels says so
            cuda.load_mamba()
            tuned.seed(o.tuned.get(tuned.machine(), {}))
            gpu_warm.tune_briefly()


def machine(o: argparse.Namespace) -> Found:
    about: dict[str, Any] = {"device": o.device, "cpu_cores": os.cpu_count(), "python": sys.version.split()[0]}
    if on_gpu(o):
        properties = torch.cuda.get_device_properties(0)
        about |= {"device": properties.name, "gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
        about |= {"capability": ".".join(map(str, torch.cuda.get_device_capability()))}
    yield {"machine": about, "torch": torch.__version__}
    n = 256 if o.dry else 8192
    a, b = (torch.randn(n, n, device=o.device).bfloat16() for _ in range(2))
    timed(o, lambda: a @ b, 3)
    about["bf16_tflops"] = 2 * n**3 / median(timed(o, lambda: a @ b, 12)) / 1e12
    x = torch.randn(1 << (16 if o.dry else 30), device=o.device)
    y = torch.empty_like(x)
    timed(o, lambda: y.copy_(x), 3)
    about["memory_tb_s"] = 2 * x.nbytes / median(timed(o, lambda: y.copy_(x), 12)) / 1e12
    yield {"machine": about}


# -- compilation, checks, tuning ---------------------------------------------------------------------------------------


def compiled(o: argparse.Namespace) -> Found:
    """A share of the variants of all kernels, such as part "3/16"."""
    if have_mamba(o):
        major, minor = torch.cuda.get_device_capability()
        for made in gpu_warm.compile_share(o.part, 10 * major + minor):
            yield {"compiled": {o.part: {"variants": len(made), "failed": [error for error in made if error]}}}


def checked(o: argparse.Namespace, operations: list[str], dtype: str, lengths: list[int], sizes: Sizes) -> Found:
    for operation in operations:
        for row in seam.check(o.device, [operation], [getattr(torch, dtype)], lengths=lengths, sizes=sizes):
            found = {"error": row.error, "bound": row.bound, "ok": row.ok, "where": row.where}
            yield {"kernels": {"operations": {f"{row.op} ({row.backend})": {f"{dtype} {lengths}": found}}}}


def kernels(o: argparse.Namespace) -> Found:
    """Every fast operation against the reference in float64, forward and backward: one dtype and group of lengths, with
    the smallest configuration of each kernel, which is soon compiled."""
    dtype, group = o.part.split()
    gpu_warm.one_configuration()
    rows = [dataclasses.asdict(row) for row in seam.report() if row.device in ("any", o.device)]
    chosen = seam.choose(o.device, getattr(torch, dtype)).names
    yield {"kernels": {"chosen": {dtype: chosen}, "backends": rows}}
    sizes = Sizes(state=16, chunk=32) if o.dry else Sizes(heads=32, state=128, chunk=256)
    for lengths in [[100]] if o.dry else LENGTHS[int(group)]:
        yield from checked(o, seam.OPERATIONS, dtype, lengths, sizes)


def tune(o: argparse.Namespace) -> Found:
    """The winners, after every launch: what is known when the time is over is used. Then those are checked."""
    if not have_mamba(o):
        yield {"tuned": {}}
        return
    for winners in gpu_warm.tune():
        yield {"tuned": {tuned.machine(): winners}}
    for scan in gpu_warm.SCANS:
        yield from checked(o, ["ssd_scan"], "bfloat16", [1500, 1000], Sizes(scan.heads, 64, scan.state, scan.chunk))


def parity(o: argparse.Namespace) -> Found:
    """Relative errors in the 2-norm of a whole model with one configuration of each kernel. Boundaries are given: near
    0.5 rounding would decide, and what follows differ altogether."""
    gpu_warm.one_configuration()
    wide = [64, 64, 64] if o.dry else [128, 192, 256]
    ssm = {"d_state": 16, "headdim": 32, "chunk_size": 32} if o.dry else {"d_state": 128, "headdim": 64}
    attention = {"num_heads": [2, 2, 4], "rotary_emb_dim": [16, 16, 16], "window_size": [31, 31, -1]}
    layout = {"arch_layout": ["m2", ["T1m1", ["T2"], "m1T1"], "m2"], "d_model": wide, "d_intermediate": [0, 256, 256]}
    config = HNetConfig.from_dict(layout | {"ssm_cfg": ssm, "attn_cfg": attention})
    torch.manual_seed(0)
    truth = HNetForCausalLM(config, backend="reference")
    with torch.no_grad():
        for name, p in truth.named_parameters():
            if p.ndim > 1 and "conv1d" not in name:
                p.copy_(torch.randn(p.shape) / (1 if "embeddings" in name else p.shape[-1] ** 0.5))
    fast = HNetForCausalLM(config)
    fast.load_state_dict(truth.state_dict())
    fast = fast.to(o.device)
    lengths = [1, 20, 33] if o.dry else [1, 63, 64, 65, 700, 1500]
    data = [torch.randint(97, 123, (n,)) for n in lengths]
    ids, offsets = torch.cat(data), Packing.of_lengths(lengths).cu_seqlens
    found: dict[str, Any] = {}
    if o.part == "steps":
        force_boundaries(fast, alike=True)
        yield from ({"parity": found} for _ in steps(o, fast, data, found))
        return
    force_boundaries(truth)
    force_boundaries(fast)
    truth = truth.double()
    expected = truth(ids, cu_seqlens=offsets).logits
    weight = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weight).sum().backward()
    gradients = {name: p.grad for name, p in truth.named_parameters() if p.grad is not None}
    with torch.autocast(o.device, torch.bfloat16, enabled=o.part == "bfloat16"):
        logits = fast(ids.to(o.device), cu_seqlens=offsets).logits
    (logits.double() * weight.to(o.device)).sum().backward()
    own = {name: p.grad for name, p in fast.named_parameters() if p.grad is not None}
    errors = {name: relative(own[name], gradient) for name, gradient in gradients.items()}
    name = list(errors)[worst([*errors.values()])]
    found[o.part] = {"logits": relative(logits, expected), "gradient": errors[name], "worst_gradient": name}
    yield {"parity": found}


def recorded(o: argparse.Namespace) -> Callable[[Any, Any], GraphSteps]:
    return lambda model, state: GraphSteps(model, state, cuda_graphs() if on_gpu(o) else None)


@torch.no_grad()
def steps(o: argparse.Namespace, model: Any, data: list[torch.Tensor], found: dict[str, Any]) -> Iterator[None]:
    """Packed, alone, stepped and replayed from recordings: all in float32, the forward pass over each row is right."""

    def alone(row: torch.Tensor) -> torch.Tensor:
        return model(row.to(o.device)[None]).logits[0]

    def largest(pairs: Any) -> float:
        errors = [relative(a, b) for a, b in pairs]
        return errors[worst(errors)]

    lengths = [len(row) for row in data]
    packed = model(torch.cat(data).to(o.device), cu_seqlens=Packing.of_lengths(lengths).cu_seqlens)
    found["packed_alone"] = largest(zip(packed.logits.split(lengths), map(alone, data), strict=True))
    yield
    count = 8 if o.dry else 60
    rows = [torch.randint(97, 123, (n + count,)) for n in (1, 9, 40)]
    whole = torch.stack([alone(row)[-count:] for row in rows])
    ways: dict[str, Callable[..., Any]] = {"stepped": PlainSteps, "replayed": recorded(o)}
    for way, make in ways.items():
        state = model.allocate_state(len(rows), 200)
        model.prefill([row[:-count] for row in rows], state)
        stepper = make(model, state)
        logits = [stepper.step(torch.stack([row[t - count] for row in rows]))[0].clone() for t in range(count)]
        found[way] = largest(zip(torch.stack(logits, 1).unbind(1), whole.unbind(1), strict=True))
        if getattr(stepper, "failure", None):
            found["graph_failure"] = stepper.failure
        yield


# -- training steps ----------------------------------------------------------------------------------------------------


def run_config(
    model: Any, length: int, ratios: list[float], rows: int, micro_batches: int, precision: Any = "bf16"
) -> RunConfig:
    settings: dict[str, Any] = {"sequence_length": length, "target_ratios": ratios, "micro_batches": micro_batches}
    train = TrainConfig(batch_bytes=rows * micro_batches * length, **settings)
    return RunConfig(model=model, train=train, precision=precision)


def rows_that_fit(o: argparse.Namespace, model: Any, length: int, ratios: list[float]) -> int:
    """Rows of a micro-batch, a power of two: 64 KiB of bytes (`small`: twice that) where memory allows."""
    one, two = (budget.needs(run_config(model, length, ratios, rows, 1), lean=on_gpu(o)).activations for rows in (1, 2))
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu(o) else 1 << 33
    room = 0.85 * memory - 20 * model.num_parameters
    rows = 2 if o.dry else min(65536 // length if length >= 8192 else 64, max(1, int(room / (two - one))))
    return 1 << (rows.bit_length() - 1)


class Training:
    """A model in training on random letters, boundaries given, after two steps; with fewer rows if they do not fit."""

    def __init__(self, o: argparse.Namespace, model: Any, length: int, ratios: list[float], rows: int) -> None:
        while True:
            began = time.perf_counter()
            self.rows = rows
            self.config = run_config(model, length, ratios, rows, MICRO_BATCHES, "fp32" if o.dry else "bf16")
            self.bytes = self.config.train.batch_bytes
            torch.manual_seed(0)
            with torch.device(o.device):
                self.model = build_model(self.config)
            force_boundaries(self.model)
            self.optimizer = build_optimizer(self.model, self.config)
            self.autocast = precision_context(self.config, torch.device(o.device))
            self.batches = [documents(rows, length, seed) for seed in range(MICRO_BATCHES)]
            try:
                self.step()
                self.step()
            except RuntimeError as error:
                if rows == 1 or not is_out_of_memory(error):
                    raise
            else:
                if "splits" not in self.record:
                    break
            rows //= 2
            del self.model, self.optimizer
            release(o)
        self.start = time.perf_counter() - began

    def step(self) -> None:
        given = (self.model, self.optimizer, self.batches, 0, self.config, self.autocast)
        self.record = train_step(*given, histograms=False)()


def training_rate(o: argparse.Namespace, model: Any, length: int, ratios: list[float]) -> Found:
    flops = model.flops_per_byte(fractions(model), length)
    found: dict[str, Any] = {"parameters": model.num_parameters, "flops_per_byte": flops, "length": length}
    run = Training(o, model, length, ratios, rows_that_fit(o, model, length, ratios))
    found |= {"rows": run.rows, "micro_batches": MICRO_BATCHES, "start_s": run.start}
    yield found  # compiling may have taken all the time there was
    if on_gpu(o):
        torch.cuda.reset_peak_memory_stats()
    times = timed(o, run.step, 1 << 30, o.measure)
    chunks = [1 / run.record[f"stage{s}_bytes_per_chunk"] for s in range(len(ratios))]
    finite = math.isfinite(run.record["loss"]) and "skipped" not in run.record
    found |= {"bytes_per_s": run.bytes / median(times), "ms_per_step": 1e3 * median(times), "finite": finite}
    found |= {"spread": (max(times) - min(times)) / median(times), "chunks_per_byte": chunks}
    found |= refused(seam.choose(o.device, torch.bfloat16))
    if on_gpu(o):
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        announced = budget.needs(run.config, lean=True).memory - budget.BASE_MEMORY
        found["announced_gib"] = announced / 2**30
    if o.tflops:
        found["mfu"] = found["bytes_per_s"] * 3 * model.flops_per_byte(chunks, length) / (o.tflops * 1e12)
    yield found
    if ratios:
        run.batches = run.batches[: 1 if o.dry else MICRO_BATCHES]
        yield {"kernel_time": kernel_time(o, run.step, median(times))}


def models(o: argparse.Namespace) -> Found:
    """A preset, then its isotropic counterpart."""
    config, train = preset(o.part, o.dry)
    length, found = train["sequence_length"], dict[str, Any]()
    for kind, model in (("", config), ("isotropic_", isotropic(config, length, o.dry))):
        for piece in training_rate(o, model, length, [] if kind else train["target_ratios"]):
            found |= {kind + key: value for key, value in piece.items()}
            if found.get("mfu") and "isotropic_mfu" in found:
                found["mfu_of_isotropic"] = found["mfu"] / found["isotropic_mfu"]
            yield {"models": {o.part: found}}
        release(o)


KINDS = {  # the first that fits: names of attention kernels have cutlass in them
    "attention": r"flash|fmha|attention",
    "scan": r"_chunk_|_state_passing|_bmm_|ssd",
    "matrix products": r"gemm|cutlass|nvjet|xmma|aten::(mm|addmm|bmm)|cublas",
    "optimizer": r"adam|multi_tensor|_foreach",
    "our own": r"^_(conv|rotate|swiglu|add_norm|gated_norm)",
    "copies": r"copy|memcpy|memset|cat",
    "reductions": r"reduce|norm|cumsum|scan_",
}


def kernel_time(o: argparse.Namespace, step: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Profile a step of `seconds`: milliseconds by kind of kernel, the share of the time that the device was
    busy, and the longest kernels as [ms, launches, name]."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if on_gpu(o) else ProfilerActivity.CPU]) as profiler:
        step()
        wait(o)
    kinds: dict[str, float] = collections.defaultdict(float)
    longest = []
    for event in profiler.key_averages():
        if on_gpu(o) and ("CUDA" not in str(event.device_type) or getattr(event, "is_user_annotation", False)):
            continue
        spent = (event.self_device_time_total if on_gpu(o) else event.self_cpu_time_total) / 1e3
        kinds[next((kind for kind, names in KINDS.items() if re.search(names, event.key, re.I)), "other")] += spent
        longest.append((spent, event.count, event.key[:90]))
    return {
        "kinds_ms": dict(kinds),
        "busy": sum(kinds.values()) / (1e3 * seconds),
        "longest": sorted(longest, reverse=True)[:12],
    }


def ab(o: argparse.Namespace) -> Found:
    """A training step with one operation on another backend than the one chosen, and one with micro-batches of half the
    size: its time over that of the step as it is, which takes turns with it in one process."""
    config, train = preset(o.part, o.dry)
    length, ratios = train["sequence_length"], train["target_ratios"]
    run = Training(o, config, length, ratios, rows_that_fit(o, config, length, ratios))
    chosen, whole = seam.choose(o.device, torch.bfloat16), run.batches
    halves = [half for batch in whole for half in (batch.halves() if run.rows > 1 else [batch])]
    variants: dict[str, tuple[seam.Kernels, list[Any]]] = {"half the micro-batch": (chosen, halves)}
    for operation in seam.OPERATIONS:
        available = [b for b in seam.backends(o.device) if operation in b.operations and not b.reason]
        functions = {"reference": seam.REFERENCE} | {backend.name: backend.kernels for backend in available}
        for backend, functions_of in functions.items():
            if backend != chosen.names[operation] and not operation.endswith("_step"):
                changed = dataclasses.replace(chosen, **{operation: getattr(functions_of, operation)})
                variants[f"{operation}: {backend}"] = changed, whole
    for name in sorted(variants, key=lambda name: name.endswith("reference")):  # the slowest last
        changed, batches = variants[name]
        times: dict[bool, list[float]] = {False: [], True: []}
        try:
            for turn in range(2 if o.dry else 7):
                for is_changed in (False, True):
                    run.batches = batches if is_changed else whole
                    with mock.patch.object(seam, "_choose", return_value=changed if is_changed else chosen):
                        times[is_changed] += timed(o, run.step, 1)[-1 if turn else 1 :]
            found: Any = {"time_ratio": median(times[True]) / median(times[False])}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
            run.optimizer.zero_grad(set_to_none=True)
        release(o)
        yield {"ab": {o.part: {name: found}}}


# -- generation, and a real training -----------------------------------------------------------------------------------


def generation(o: argparse.Namespace) -> Found:
    """Bytes per second of all rows together: steps recorded, the same without our own kernels of a step, then eager.
    Tokens are given, so that neither sampling nor printing counts."""
    config, _ = preset(o.part, o.dry)
    torch.manual_seed(0)
    with torch.device(o.device):
        model = HNetForCausalLM(config)
    model = model.cast(torch.bfloat16 if on_gpu(o) else torch.float32).eval().requires_grad_(False)
    force_boundaries(model)
    found: dict[str, Any] = {"model": o.part}
    if o.bandwidth:
        weights, level = model.lm_head.weight.nbytes, model.backbone
        for share in (1.0, *fractions(config)):
            inner = None if level.is_innermost else level.main_network
            inside = {id(p) for p in inner.parameters()} if inner is not None else set()
            weights += share * sum(p.nbytes for p in level.parameters() if id(p) not in inside)
            level = inner
        found["bound_batch_1"] = o.bandwidth * 1e12 / weights
    for way, batch in itertools.product(("", "others_", "eager_"), BATCHES):
        rates = found.setdefault(f"batch_{batch}", {})
        tokens = torch.randint(97, 123, (batch,), device=o.device)
        began, state = time.perf_counter(), model.allocate_state(batch, 1 << 20)
        model.prefill([(bytes(range(97, 123)) * 10)[: 26 if o.dry else 257]] * batch, state)
        if way == "others_":
            state.kernels = without_own_steps(o, state.kernels)
        stepper: Any = PlainSteps(model, state) if way == "eager_" else recorded(o)(model, state)
        warm_up, count = (2, 2) if o.dry else (12, 12) if way == "eager_" else (96, 32)

        def several(count: int = count, stepper: Any = stepper, tokens: torch.Tensor = tokens) -> None:
            for _ in range(count):
                stepper.step(tokens)

        several(warm_up)
        wait(o)
        rates[f"{way}start_s"] = time.perf_counter() - began
        rates[f"{way}bytes_per_s"] = batch * count / median(timed(o, several, 2 if o.dry else 20, o.measure / 3))
        if way:
            rates[f"of_{way.removesuffix('_')}"] = rates["bytes_per_s"] / rates[f"{way}bytes_per_s"]
        elif o.bandwidth and batch == 1:
            rates["of_bound"] = rates["bytes_per_s"] / found["bound_batch_1"]
        rates |= refused(state.kernels, way)
        if getattr(stepper, "failure", None):
            rates["graph_failure"] = stepper.failure
        yield {"generation": found}
        del stepper, state


def refused(kernels: seam.Kernels, way: str = "") -> dict[str, Any]:
    """Operations of our own that did not compile, so that the reference's ran; nothing if there are none."""
    reasons = {name: getattr(function, "failure", None) for name, function in vars(kernels).items()}
    return {f"{way}refused": {name: why for name, why in reasons.items() if why}} if any(reasons.values()) else {}


def without_own_steps(o: argparse.Namespace, kernels: Any) -> Any:
    """The operations of a step as they are where ours are not: mamba-ssm's, else the reference's."""
    known = [backend.kernels.replaced() for backend in seam.backends(o.device) if backend.name == "mamba-ssm"]
    others = {name: getattr(seam.REFERENCE, name) for name in seam.STEPS} | (known[0] if known else {})
    return dataclasses.replace(kernels, **{name: others[name] for name in seam.STEPS})


def data(o: argparse.Namespace) -> Found:
    """The dataset for training: the one that was given, else of the file given, else of the sources of Python."""
    from hnet_cli.data.dataset import Dataset
    from hnet_cli.data.prepare.preparation import prepare
    from hnet_cli.modalities.text import Text

    path, text = Path(o.folder) / "data", Path(o.folder) / "sources.txt"
    if o.data and (Path(o.data) / "dataset.json").exists():
        path = Path(o.data)
    elif not (path / "dataset.json").exists():
        sources = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
        if not o.data:
            library = [source for source in sources[: 12 if o.dry else 4000] if "site-" not in str(source)]
            contents = (source.read_bytes() for source in library)
            text.write_bytes(b"\n".join(content for content in contents if content.isascii()))
        prepare([o.data or text], Text(), path, measure=False)
    dataset = Dataset.open(path)
    yield {"training": {"data": {"path": str(path), "train_bytes": dataset.nbytes("train")}}}


def training(o: argparse.Namespace) -> Found:
    """One of `TRAINED` for the same seconds as the others, by the tool's own training. FLOPs per byte are those of the
    H-Net, up to whole layers. Two steps and a validation before the clock starts compile what there is to compile."""
    from hnet_cli.config.run import resolve
    from hnet_cli.data.dataset import Dataset
    from hnet_cli.training import lineup
    from hnet_cli.training.loop import train

    dataset = Dataset.open(Path(o.trained_on))
    names = DRY_TRAINED if o.dry else TRAINED
    settings = ["train.samples=false", "train.eval_every=0", "train.checkpoint_every=1000000", "train.steps=1000000"]
    if o.dry:
        settings += ["train.eval_bytes=2048", "train.batch_bytes=256"]
    hnet, config = (resolve(name, settings) for name in (names["hnet"], names[o.part]))
    flops = lineup.flops_per_byte(hnet, dataset)
    if o.part != "hnet":
        config = lineup.sized(config, dataset, flops)
        flops = lineup.flops_per_byte(config, dataset)
    warm = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(warm, dataset.path, Path(o.folder) / f"warm-{o.part}-{os.getpid()}", device=o.device)
    run = Path(o.folder) / f"run-{o.part}-{os.getpid()}"
    found: dict[str, Any] = {"preset": names[o.part], "parameters": config.model.num_parameters}
    found["flops_per_byte"] = flops
    yield {"training": {o.part: found}}

    def listen(kind: str, record: dict[str, Any]) -> None:
        if kind == "log":
            print(json.dumps(record), flush=True)

    result = train(config, dataset.path, run, device=o.device, seconds=o.train_seconds, listen=listen)
    shutil.copy(run / "metrics.jsonl", Path(o.out) / f"metrics-{o.part}.jsonl")
    seen = result.state.bytes_seen
    found |= {"seconds": result.seconds, "bytes": seen, "bytes_per_s": seen / result.seconds}
    found |= refused(seam.choose(o.device, torch.bfloat16))
    yield {"training": {o.part: found | {"steps": result.state.step, "val_bpb": result.last.get("val_bpb")}}}


SECTIONS = (machine, compiled, kernels, parity, tune, models, generation, data, training, ab)
WORK = {section.__name__: section for section in SECTIONS}
