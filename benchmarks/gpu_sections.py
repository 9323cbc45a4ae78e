"""The sections of benchmarks/gpu.py: each gives what it has found out, piece by piece."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_tools import Found, force_boundaries, fractions, isotropic, on_gpu, preset, timed, version, wait
from gpu_training import models
from gpu_warm import compiled, one_configuration, pieces, tuned, tuners

from hnet_cli.kernels.checking import relative, worst

LENGTHS: tuple[list[list[int]], ...] = ([[1, 63, 64, 65, 700, 2500]], [[1]], [[64]], [[63], [65]])
"""Of the documents of each check. Triton compiles anew for every group: each is a process of its own."""
CHECKS = [f"{dtype} {group}" for dtype in ("bfloat16", "float32") for group in range(len(LENGTHS))]
PARITY = ["float32", "bfloat16", "steps"]


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
    """One dtype and group of lengths. Of bfloat16 and long documents with the configurations that were tuned, then with
    all others; else with the smallest, since what is compiled for these lengths alone is soon compiled so."""
    from hnet_cli import kernels as seam
    from hnet_cli.kernels.checking import Sizes

    name, group = o.part.split()
    dtype, is_first = getattr(torch, name), group == "0"
    is_tuned = is_first and dtype == torch.bfloat16 and not o.untuned
    if not is_tuned:
        one_configuration()
    rows = [dataclasses.asdict(row) for row in seam.report() if row.device in ("any", o.device)]
    part: dict[str, Any] = {"operations": {}}
    found = {"chosen": {name: seam.choose(o.device, dtype).names}, "backends": rows, "parts": {o.part: part}}
    sizes = Sizes(state=16, chunk=32) if o.quick else Sizes(heads=32, state=128, chunk=256)
    lengths = [[100]] if o.quick else LENGTHS[int(group)]
    cases = [([operation], sizes, each) for operation in seam.OPERATIONS for each in lengths]
    if is_first:
        cases += [(["attention"], Sizes(width=width), lengths[0]) for width in (96, 128)]
    for operations, size, each in cases:
        for result in seam.check(o.device, operations, [dtype], lengths=each, sizes=size):
            key = f"{result.op} ({result.backend})"
            so_far = part["operations"].get(key)
            if so_far is None or worst([so_far["error"], result.error]) == 1:
                part["operations"][key] = {
                    "error": result.error, "bound": result.bound, "ok": result.ok, "where": result.where,
                    "lengths": each,
                }  # fmt: skip
        yield {"kernels": found}
    for number, result in configurations(o, sizes, lengths[0]) if is_tuned else ():
        own = part.setdefault("configurations", {})
        own[number] = {"error": result.error, "ok": result.ok, "where": result.where}
        yield {"kernels": found}


def configurations(o: argparse.Namespace, sizes: Any, lengths: list[int]) -> Iterator[tuple[int, Any]]:
    """The scan with every configuration that tuning may choose, the same number of each kernel at a time. What does not
    fit into shared memory is no error: tuning passes it over."""
    from hnet_cli import kernels as seam

    every = [(tuner, tuner.configs) for tuner in tuners()]
    for number in range(max((len(configs) for _, configs in every), default=0)):
        for tuner, configs in every:
            tuner.configs = [configs[number % len(configs)]]
        for result in seam.check(o.device, ["ssd_scan"], [torch.bfloat16], lengths=lengths, sizes=sizes):
            yield number, result


def parity(o: argparse.Namespace) -> Found:
    """Relative errors in the 2-norm, of a whole model with one configuration of each kernel; boundaries are given: near
    0.5 rounding would decide, and what follows differ altogether. `boundaries_differ`: how many of the bytes do so."""
    from hnet_cli.kernels.packing import Packing
    from hnet_cli.model import HNetConfig, HNetForCausalLM

    one_configuration()
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
    fast = HNetForCausalLM(config)
    fast.load_state_dict(truth.state_dict())
    fast = fast.to(o.device)
    lengths = [1, 20, 33] if o.quick else [1, 63, 64, 65, 700, 1500]
    data = [torch.randint(97, 123, (n,)) for n in lengths]
    ids, offsets = torch.cat(data), Packing.of_lengths(lengths).cu_seqlens
    found: dict[str, Any] = {}
    if o.part == "steps":
        force_boundaries(fast, alike=True)
        yield from ({"parity": found} for _ in steps(o, fast, data, found))
        return
    if o.part == "float32":
        with torch.no_grad():
            a, b = (m(ids.to(d), cu_seqlens=offsets).routing[0] for m, d in ((truth, "cpu"), (fast, o.device)))
        found["boundaries_differ"] = float((a.boundary_mask != b.boundary_mask.cpu()).double().mean())
    force_boundaries(truth)
    force_boundaries(fast)
    truth = truth.double()
    expected = truth(ids, cu_seqlens=offsets).logits
    weight = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weight).sum().backward()
    gradients = {name: p.grad for name, p in truth.named_parameters()}
    with torch.autocast(o.device, torch.bfloat16, enabled=o.part == "bfloat16"):
        logits = fast(ids.to(o.device), cu_seqlens=offsets).logits
    (logits.double() * weight.to(o.device)).sum().backward()
    errors = {key: relative(p.grad, gradients[key]) for key, p in fast.named_parameters() if key in gradients}
    name = list(errors)[worst([*errors.values()])]
    found[o.part] = {"logits": relative(logits, expected), "gradient": errors[name], "worst_gradient": name}
    yield {"parity": found}


def largest(errors: list[float]) -> float:
    return errors[worst(errors)]


def steps(o: argparse.Namespace, model: Any, data: list[torch.Tensor], found: dict[str, Any]) -> Iterator[None]:
    """Packed, alone, stepped and replayed from recordings: all in float32, the forward pass over each row is right."""
    from hnet_cli.inference.graphs import GraphSteps, PlainSteps, cuda_graphs
    from hnet_cli.kernels.packing import Packing

    def alone(row: torch.Tensor) -> torch.Tensor:
        return model(row.to(o.device)[None]).logits[0]

    lengths = [len(row) for row in data]
    with torch.no_grad():
        packed = model(torch.cat(data).to(o.device), cu_seqlens=Packing.of_lengths(lengths).cu_seqlens)
        pairs = zip(packed.logits.split(lengths), data, strict=True)
        found["packed_alone"] = largest([relative(some, alone(row)) for some, row in pairs])
        yield
        count = 8 if o.quick else 60
        rows = [torch.randint(97, 123, (n + count,)) for n in (1, 9, 40)]
        whole = [alone(row) for row in rows]
        ways: dict[str, Any] = {"stepped": PlainSteps}
        ways["replayed"] = lambda m, s: GraphSteps(m, s, cuda_graphs() if on_gpu(o) else None)
        for way, make in ways.items():
            state = model.allocate_state(len(rows), 200)
            model.prefill([row[:-count] for row in rows], state)
            stepper, error = make(model, state), 0.0
            for t in range(count):
                logits, _ = stepper.step(torch.stack([row[t - count] for row in rows]))
                each = [relative(a, b[t - count]) for a, b in zip(logits, whole, strict=True)]
                error = largest([error, *each])
            found[way] = error
            if getattr(stepper, "failure", None):
                found["graph_failure"] = stepper.failure
            yield


def generation(o: argparse.Namespace) -> Found:
    """Bytes per second of all rows together. Tokens are given: neither sampling nor printing counts."""
    from hnet_cli.inference.graphs import GraphSteps, PlainSteps, cuda_graphs
    from hnet_cli.model import HNetForCausalLM

    config, _ = preset(o.part, o.quick)
    torch.manual_seed(0)
    with torch.device(o.device):
        model = HNetForCausalLM(config)
    model = model.cast(torch.bfloat16 if on_gpu(o) else torch.float32).eval().requires_grad_(False)
    force_boundaries(model)
    found: dict[str, Any] = {"model": o.part}
    if o.bandwidth:
        weights, level = model.lm_head.weight.nbytes, model.backbone
        for share in (1.0, *fractions(config)):
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
            model.prefill([(bytes(range(97, 123)) * 10)[: 26 if o.quick else 257]] * batch, state)
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
    from hnet_cli.data.dataset import Dataset
    from hnet_cli.data.loader import Batches
    from hnet_cli.data.prepare.preparation import prepare
    from hnet_cli.training.validation import to_device

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
    from hnet_cli.config.run import resolve
    from hnet_cli.training.loop import train

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


WORK = {f.__name__: f for f in (compiled, pieces, tuned, machine, kernels, parity, models, generation, loader, real)}
