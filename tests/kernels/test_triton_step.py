"""Our kernels of a step against the reference, in Triton's interpreter, and compiled for GPUs that are not here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from hnet_cli.kernels import cuda, reference

ROOT = Path(__file__).parents[2]
BEGIN = """
import sys, torch
sys.path.insert(0, "tests/kits")
from hnet_cli.kernels import STEPS, reference, triton_step as own
from hnet_cli.kernels.checking import Sizes, compare, placed, relative, tensors
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)  # memory that nobody has written is NaN
torch.utils.deterministic.fill_uninitialized_memory = True
def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
def agree(name, *given):
    pairs = []
    for functions in (own, reference):
        mine = [placed(each, torch.float64, "cpu") for each in given]
        results = tensors(getattr(functions, name)(*mine))
        pairs.append(results + [t for each in mine for t in tensors(getattr(each, "value", each))])
    assert len(pairs[0]) == len(pairs[1])
    for value, expected in zip(*pairs):
        assert value.isfinite().all()
        assert relative(value, expected) < 1e-12, (name, [each.shape for each in given if torch.is_tensor(each)])
"""
OPERATIONS = """
for operation in STEPS:
    for dtype, lengths in ((torch.float32, [1, 2]), (torch.bfloat16, [1])):
        found = compare(
            operation, "triton", getattr(own, operation), torch.device("cpu"), dtype,
            lengths=lengths, sizes=Sizes(heads=2, width=24, state=12, rows=3),
        )
        assert found.ok, found
        assert dtype == torch.bfloat16 or found.error < 1e-5, found
"""
ROWS = """
# some rows, in an order of their own, repeated as recordings repeat the first; all rows
for rows, once in (([3, 0], None), ([2, 4, 1, 2], [2, 4, 1, -1]), ([1, 1, 1], [1, -1, -1]), (None, None)):
    index, once = (None if each is None else torch.tensor(each, dtype=torch.int64) for each in (rows, once))
    source = torch.arange(5) if rows is None else index
    def of(*shape, seed=0):
        return normal(5, *shape, seed=seed)[source]
    conv = normal(5, 2, 20), normal(3, 20), normal(20), (8, 20, 3)
    agree("mamba_in_step", of(24), normal(31, 24), normal(24), *conv, index)
    scan = reference.ScanInputs(of(2, 10), of(2, seed=1), -normal(2).exp(), of(6), of(6, seed=1), normal(2), normal(2))
    for gate in (of(20), None):
        agree("ssd_step", reference.SSMState(normal(5, 2, 10, 6)), scan, index, once, gate)
    agree("router_step", of(24), normal(48, 24), normal(5, 24), index, once)
    p = torch.tensor([0.0, 1.0, 0.3, 0.6, 0.9])[source]
    agree("ema_step", of(24), p, normal(5, 24), index, once)
    # nothing seen yet, a window that is full, more positions than one program takes
    for window, used, position in ((-1, 70, [0, 5, 69, 64, 3]), (3, 4, [0, 2, 3, 4, 99]), (-1, 9, [0, 8, 2, 3, 1])):
        place = reference.Place(torch.tensor(position)[source], window, used, index)
        caches = normal(2, 5, used + 3, 2, 12)
        angle = of(1, 1, 3)
        agree("attention_step", of(3, 2, 12), (angle.cos(), angle.sin()), *caches, place)
# a decay and a step size beyond what their exponentials hold; state that has not begun
steps = torch.tensor([[90.0, -90.0]])
scan = reference.ScanInputs(normal(1, 2, 10), steps, -normal(2).exp(), *normal(2, 1, 6), *normal(2, 2))
agree("ssd_step", reference.SSMState(torch.zeros(1, 2, 10, 6)), scan)
for total in (1, 17, 64, 65):  # every size of a batch, and one that is left to a library
    agree("step_linear", normal(total, 40), normal(6, 40), True, normal(40), normal(6), normal(total, 3), True)
    agree("step_linear", normal(total, 300)[:, :40], normal(35, 40), True, None, None, normal(total, 90)[:, 7:42])
    agree("mamba_in_step", normal(total, 24), normal(31, 24), normal(24), normal(total, 2, 20), *conv[1:])
"""
MODELS = """
from generationkit import full, text
from modelkit import tiny_config, tiny_model, worst
from hnet_cli.inference.graphs import GraphSteps
import hnet_cli.kernels as seam
configs = {
    "two stages": tiny_config(("m1", ("T1", ("T1",), "m1"), "M1"), window=5),
    "smoothing of the input": tiny_config(("m1", ("T1",), "t1"), smoothing="input"),
}
for name, config in configs.items():
    model, batch, count = tiny_model(config=config), 3, 7
    documents = [text(n + count, 10 + n) for n in (1, 9, 4)]
    expected = [full(model, document) for document in documents]
    state = model.allocate_state(batch, 40)
    state.kernels = seam.step_kernels()
    model.prefill([d[:-count] for d in documents], state)
    stepper, levels = GraphSteps(model, state), set()
    for t in range(count):
        logits, probs = stepper.step(torch.stack([d[t - count] for d in documents]))
        levels.add(sum(p > 0.5 for p in probs[0]))
        for row, (d, out) in enumerate(zip(documents, expected)):
            assert worst(logits[row], out.logits[0, t - count]) < 1e-10, (name, t, row)
            assert abs(probs[0][row] - out.routing[0].boundary_prob[t - count]) < 1e-10
    assert len(levels) > 1  # not all rows at a boundary together
    assert all(getattr(state.kernels, each).failure is None for each in seam.STEPS)
"""
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("program", [OPERATIONS, ROWS, MODELS], ids=["operations", "rows", "models"])
def test_in_the_interpreter(program):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BEGIN + program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def launches(rows, indexed):
    """Kernels with their arguments and constants, of a layer of each kind as in `2stage-xl`, in bfloat16."""
    import triton

    from hnet_cli.kernels import triton_step as own

    def of(*shape, dtype=torch.bfloat16):
        return torch.empty(*shape, dtype=dtype, device="meta")

    index, once = (of(rows, dtype=torch.int64) if indexed else None for _ in range(2))
    stream, float32 = of(rows, 1024, dtype=torch.float32), torch.float32
    split, place = (2048, 2304, 32), reference.Place(of(rows, dtype=torch.int64), -1, 4096, index)
    with mock.patch.object(triton.runtime.jit.JITFunction, "run", autospec=True) as run:
        conv = of(64, 3, 2304), of(4, 2304), of(2304)
        gate, mixed, dt = own.mamba_in_step(stream, of(4384, 1024), of(1024, dtype=float32), *conv, split, index)
        value, key, query = mixed.split((2048, 128, 128), -1)
        decay, others = of(32, dtype=float32), of(32)
        scan = reference.ScanInputs(value.unflatten(-1, (32, 64)), dt, decay, key, query, others, others)
        state = reference.SSMState(of(64, 32, 64, 128, dtype=float32))
        own.ssd_step(state, scan, index, once, gate)
        own.step_linear(stream, of(11008, 1024), norm=of(1024, dtype=float32), gated=True)
        own.step_linear(of(rows, 1024), of(1024, 1024, dtype=float32), bias=of(1024, dtype=float32), residual=stream)
        own.router_step(of(rows, 1024), of(2048, 1024), of(64, 1024), index, once)
        own.ema_step(of(rows, 1024), of(rows, dtype=float32), of(64, 1024, dtype=float32), index, once)
        tables, caches = (of(rows, 1, 1, 32), of(rows, 1, 1, 32)), [of(64, 4096, 16, 128) for _ in range(2)]
        own.attention_step(of(rows, 3, 16, 128), tables, *caches, place)
    return [(call.args[0], call.args[1:], call.kwargs) for call in run.call_args_list]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_for_a_gpu(capability, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    dtypes = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32"}
    compiled_names = set()
    for kernel, args, named in [*launches(1, False), *launches(1, True), *launches(64, True)]:
        constants = {name: value for name, value in named.items() if name in kernel.arg_names}
        signature = dict.fromkeys(constants, "constexpr")
        attributes = {}
        for at, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
            if torch.is_tensor(value):
                signature[name] = dtypes[value.dtype]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i64" if value >= 2**31 else "i32"
            if name != "total" and (torch.is_tensor(value) or (isinstance(value, int) and value % 16 == 0)):
                attributes[(at,)] = [["tt.divisibility", 16]]  # as Triton finds out, and needs to read ahead
        source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared < 100_000, kernel
        assert ("cp.async" in compiled.asm["ptx"]) == (kernel.fn.__name__ == "_linear")  # weights are read ahead
        compiled_names.add(kernel.fn.__name__)
    assert compiled_names == {"_linear", "_ssd", "_attend", "_boundary", "_average"}


def test_a_kernel_that_cannot_be_compiled_is_the_reference_from_then_on():
    def refused(x, weight):
        raise RuntimeError("PTXAS error: no\\nlong output")

    linear = cuda.Fallback(refused, reference.step_linear)
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.warns(UserWarning, match="compilation of step_linear failed, running it plain: RuntimeError: PTXAS"):
        assert torch.equal(linear(x, weight), x @ weight.T)
    assert torch.equal(linear(x, weight), x @ weight.T)
    assert "no" in linear.failure
