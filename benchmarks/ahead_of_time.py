"""Compile for a GPU that is not there every Triton kernel that the scan and the step of Mamba-2 launch on it.

    python benchmarks/ahead_of_time.py [--presets 2stage-xl small] [--configurations 0] [--capability 90]

Needs triton and mamba-ssm (docs/gpu.md), no GPU: the kernels are called through the adapters of `hnet_cli.kernels` with
tensors that have no data, training forward and backward, a prompt and a step, and compiled down to machine code instead
of launched. Of each kernel every configuration that Triton would try out on a GPU is compiled (`--configurations`: so
many at most). Printed are, for each kernel, how many compiled and how many did not, shared memory and registers of the
largest, what spills registers into memory, and the seconds of this; the last line is a JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from gpu_warm import Scan, launches

SHARED = {80: 163, 90: 227, 100: 227}
"""KiB that a block of threads may take, by compute capability (CUDA programming guide)."""
Made = dict[str, dict[str, Any]]
"""What compiled, by Triton's hash of it, or did not, by what it was."""


def without_gpu(capability: int, limit: int, made: Made) -> None:
    """From here on Triton takes this machine for one with such a GPU, and compiles what it is told to launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import autotuner, jit
    from triton.runtime.driver import driver

    def benchmarker() -> Callable[..., Any]:
        return lambda call, **_: (call(), (0.0, 0.0, 0.0))[1]

    driver.set_active(types.SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device=None: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32), get_benchmarker=benchmarker,
        get_active_torch_device=lambda: torch.device("meta"), get_device_interface=lambda: torch.cuda,
    ))  # fmt: skip
    torch.cuda.device = lambda *_: contextlib.nullcontext()  # type: ignore[assignment, misc]
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=132)  # type: ignore
    launch, tune = jit.JITFunction.run, autotuner.Autotuner.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        began, name = time.perf_counter(), self.fn.__name__
        shown = {k: v for k, v in options.items() if k.startswith("BLOCK") or k in ("num_warps", "num_stages")}
        try:
            kernel = launch(self, *args, grid=grid, warmup=True, **options)
        except Exception as error:
            text = f"{name} {shown}: {type(error).__name__}: {error}"
            made[text] = {"kernel": name, "error": text[:500]}
            return None
        if kernel.hash not in made:
            spent = time.perf_counter() - began
            found = {"kernel": name, "configuration": shown, "seconds": spent, "shared": kernel.metadata.shared}
            made[kernel.hash] = found | usage(kernel.asm["cubin"])
        return kernel

    def try_all(self: Any, *args: Any, **options: Any) -> Any:
        if limit:
            self.configs = self.configs[:limit]
        return tune(self, *args, **options)

    jit.JITFunction.run, autotuner.Autotuner.run = compile_only, try_all
    tools = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def usage(cubin: bytes) -> dict[str, int]:
        """Registers of a thread, and bytes of memory that it keeps there what does not fit into them."""
        if not tools.exists():
            return {}
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            told = subprocess.run([tools, "-res-usage", file.name], capture_output=True, text=True).stdout
        numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", told))
        return {"registers": int(numbers["REG"]), "spilled": int(numbers["STACK"]) + int(numbers["LOCAL"])}


def table(made: Made, limit: float) -> dict[str, Any]:
    """Prints a line per kernel; the totals."""
    total = {"compiled": 0, "failed": 0, "too_much_shared": 0, "spilling": 0, "seconds": 0.0}
    print(f"{'kernel':44} {'compiled':>8} {'failed':>6} {'shared KiB':>10} {'registers':>9} {'spilled B':>9} {'s':>6}")
    for name in sorted({each["kernel"] for each in made.values()}):
        own = [each for each in made.values() if each["kernel"] == name]
        fine = [each for each in own if "error" not in each]
        large = sum(each["shared"] > 1024 * limit for each in fine)
        spilling = sum(each.get("spilled", 0) > 0 for each in fine)
        seconds = sum(each["seconds"] for each in fine)
        most = {key: max((each.get(key, 0) for each in fine), default=0) for key in ("shared", "registers", "spilled")}
        print(f"{name:44} {len(fine):8} {len(own) - len(fine):6} {most['shared'] / 1024:10.0f} "
              f"{most['registers']:9} {most['spilled']:9} {seconds:6.0f}")  # fmt: skip
        counts = (len(fine), len(own) - len(fine), large, spilling, seconds)
        total = {key: total[key] + count for key, count in zip(total, counts, strict=True)}
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["2stage-xl", "small"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192])
    parser.add_argument("--configurations", type=int, default=0)
    parser.add_argument("--capability", type=int, default=90, choices=SHARED)
    given = parser.parse_args()
    from hnet_cli.config.run import resolve

    made: Made = {}
    without_gpu(given.capability, given.configurations, made)
    done = set()
    for name in given.presets:
        model = resolve(name).model
        for level, width in zip(model.levels, model.d_model, strict=True):
            heads = model.ssm_cfg.expand * width // model.ssm_cfg.headdim
            for total in given.lengths if set(level.letters) & set("mM") else ():
                ssm = model.ssm_cfg
                size = f"chunk {ssm.chunk_size}, head {ssm.headdim}, state {ssm.d_state}, {heads} heads, {total} long"
                if size in done:
                    continue
                done.add(size)
                scan = Scan(ssm.chunk_size, ssm.d_state, heads, total, total, ssm.headdim)
                for what, run in launches(scan, total, "meta").items():
                    began, before = time.perf_counter(), len(made)
                    run()
                    print(f"{size}: {what}, {len(made) - before} variants, {time.perf_counter() - began:.0f} s",
                          file=sys.stderr, flush=True)  # fmt: skip
    totals = table(made, SHARED[given.capability])
    failures = [each["error"] for each in made.values() if "error" in each]
    print("\n".join(failures), file=sys.stderr)
    for each in made.values():
        if each.get("shared", 0) > 1024 * SHARED[given.capability] or each.get("spilled", 0) > 512:
            print(each, file=sys.stderr)
    print(json.dumps({key: round(value, 1) for key, value in totals.items()} | {"capability": given.capability}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
