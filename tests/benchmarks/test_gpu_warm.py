"""Kernels compiled before they are needed are those that are needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import contextlib, dataclasses, json, sys
from unittest import mock
import fake_gpu, gpu_warm, torch
from triton.runtime import jit
from hnet_cli import kernels as seam
from hnet_cli.config.run import resolve
from hnet_cli.inference.graphs import GraphSteps
from hnet_cli.kernels import cuda, triton_elementwise, triton_step


@contextlib.contextmanager
def launches():
    found = set()
    with mock.patch.object(jit.JITFunction, "run", lambda kernel, *args, grid, warmup, **options: found.add(
        json.dumps(gpu_warm.variant(kernel, args, options), default=str)
    )):
        yield found


fake_gpu.have_guard()
name = sys.argv[1]
config = resolve(name, ["precision=bf16", "train.micro_batches=2"])
config = dataclasses.replace(config, model=gpu_warm.thin(config.model))
own = {operation: getattr(triton_elementwise, operation) for operation in seam.ELEMENTWISE}
attention = cuda.varlen_attention(cuda.load_varlen()[1])
kernels = seam.Kernels(attention=attention, wide_linear=cuda.wide_linear, **own)
with launches() as trained, mock.patch.object(seam, "_choose", return_value=kernels):
    fake_gpu.training(config, 3)
with contextlib.ExitStack() as stack:
    generated = stack.enter_context(launches())
    prompts = seam.Kernels(**own)  # the rest is the reference's
    stack.enter_context(mock.patch.object(seam, "_choose", return_value=prompts))
    for context in (fake_gpu.faked(fake_gpu.Offsets(400, [0.5] * 2), lambda what: None), fake_gpu.Pinned()):
        stack.enter_context(context)
    stack.enter_context(torch.inference_mode())
    model = fake_gpu.without_values(config, fake_gpu.GPU).cast(torch.bfloat16)
    for batch, groups in ((1, ()), (8, ([3], [0, 3], [0, 3, 4]))):
        state = model.allocate_state(batch, 600)
        model.prefill([torch.zeros(400 // batch, dtype=torch.int64)] * batch, state)
        steps = {operation: getattr(triton_step, operation) for operation in seam.STEPS}
        state.kernels = seam.Kernels(add_rms_norm=own["add_rms_norm"], **steps)
        stepper = GraphSteps(model, state)
        stepper.step(torch.zeros(batch, dtype=torch.int64, device=fake_gpu.GPU))
        for rows in groups:  # which reach the inner levels
            stepper._descend(1, rows, [])
gpu_warm.without_gpu(90)
with launches() as warm:
    for run in gpu_warm.own_launches(name):
        run()
sizes = {"trained": len(trained), "generated": len(generated), "warm": len(warm)}
print(json.dumps(sizes | {"missing": sorted((trained | generated) - warm)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
@pytest.mark.parametrize("preset", ["2stage-xl", "small"])
def test_whatever_is_launched_was_compiled(preset):
    """A training step forward, prompts, and bytes of one row, of all rows and of some."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", ROOT / "tests/kits")))
    command = [sys.executable, "-c", PROGRAM, preset]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if done.returncode == 69:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["missing"] == []
    assert min(found["trained"], found["generated"]) > 8
