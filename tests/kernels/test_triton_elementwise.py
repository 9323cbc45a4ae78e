"""Our Triton kernels against the reference: in the interpreter, and compiled for GPUs that are not here."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERPRETED = """
import sys, torch
from hnet_cli.kernels import ELEMENTWISE, joint, reference, triton_elementwise as own
from hnet_cli.kernels.checking import compare, differentiated, inputs, placed, relative
from hnet_cli.kernels.packing import Packing

torch.use_deterministic_algorithms(True)  # memory that nobody has written is NaN
torch.utils.deterministic.fill_uninitialized_memory = True
cpu = torch.device("cpu")
for operation in ELEMENTWISE:
    function, known = getattr(own, operation), getattr(reference, operation)
    for dtype, lengths in ((torch.float32, [70, 1, 3]), (torch.bfloat16, [63, 64, 65]), (torch.float32, [1])):
        own.STRIPES = 1 if len(lengths) == 3 else 256  # a program sums over several tiles of rows
        found = compare(operation, "triton", function, cpu, dtype, lengths=lengths)
        assert found.ok, found
        if dtype == torch.float32:
            assert found.error < 1e-5, found
    # no rows at all (a packing has some), and rows that lie apart
    args = [placed(a, torch.float32, cpu) for a in inputs(operation, Packing.of_lengths([9]), torch.Generator())]
    if operation != "causal_conv":
        nothing = [a[:0] if torch.is_tensor(a) and len(a) == 9 else a for a in args]
        nothing = [tuple(t[:0] for t in a) if isinstance(a, tuple) else a for a in nothing]
        assert all(bool((x == 0).all()) for x in differentiated(function, nothing)), operation
    apart = [torch.stack([a, a + 1], 1)[:, 0] if torch.is_tensor(a) and len(a) == 9 else a for a in args]
    assert operation == "rotary" or not apart[0].is_contiguous()
    for value, expected in zip(function(*apart), known(*args)):
        assert relative(value, expected) < 1e-5, operation
# parts of a product: their gradients are written into that of the product, beside each other
sizes, packing = (24, 40, 3), Packing.of_lengths([70, 1, 3])
leaf, saved = torch.randn(74, 67), []
taps, added = torch.randn(40, 4, requires_grad=True), torch.randn(40, requires_grad=True)
weight, values = torch.randn(24, requires_grad=True), torch.randn(74, 24)
for functions, split in ((own, joint.split), (reference, lambda x, sizes: x.split(sizes, -1))):
    memory, x = {}, leaf.clone().requires_grad_()
    product = 2 * x
    gate, raw, dt = split(product, sizes)
    for tensor in (product, gate, raw, dt):
        tensor.register_hook(lambda grad, of=id(tensor): memory.update({of: grad.untyped_storage().data_ptr()}))
    mixed = functions.causal_conv(raw, taps, added, packing)
    out = functions.gated_rms_norm(values * dt[:, :1], gate, weight, 1e-5).sin().sum() + mixed.cos().sum()
    saved.append(torch.autograd.grad(out, [x, taps, added, weight]))
    shared = [memory[id(part)] == memory[id(product)] for part in (gate, raw, dt)]
    assert functions is reference or shared == [True, True, False]
assert all(relative(a, b) < 1e-5 for a, b in zip(*saved)), saved
hidden, weight = torch.randn(5, 12, requires_grad=True), torch.ones(12, requires_grad=True)
for function in (own.add_rms_norm, reference.add_rms_norm):  # a first layer, and a stream whose norm nobody uses
    normed, stream = function(hidden, None, weight, 1e-5)
    grads = [torch.autograd.grad(out.square().sum(), hidden, retain_graph=True)[0] for out in (normed + stream, stream)]
    saved = grads if function is own.add_rms_norm else [relative(a, b) < 1e-5 for a, b in zip(saved, grads)]
assert saved == [True, True]
"""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")


@pytest.mark.slow
def test_values_and_gradients_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


COMPILED = """
import gpu_warm, json, sys
from triton.runtime import jit

known, launch, found = gpu_warm.variant, jit.JITFunction.run, {}
gpu_warm.variant = lambda kernel, args, options: tuple(  # of numbers one is as good as the other
    part for part in known(kernel, args, options) if isinstance(part, str) or not isinstance(part[1], tuple | bool)
    or "torch" in str(part[1])
)


def remember(kernel, *args, **options):
    compiled = launch(kernel, *args, **options)
    found.setdefault(kernel.fn.__name__, []).append([bool(compiled.asm["cubin"]), compiled.metadata.shared])
    return compiled


gpu_warm.without_gpu(int(sys.argv[1]))
jit.JITFunction.run = remember
gpu_warm.PRESETS, gpu_warm.BATCHES, gpu_warm.scan_launches = ("small",), (), lambda *_: iter(())
*_, made = gpu_warm.compile_share("0/1", int(sys.argv[1]))
print(json.dumps([made, found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_for_a_gpu(capability, tmp_path):
    """Every variant that a training step and a prompt of `small` launch."""
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    command = [sys.executable, "-c", COMPILED, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    made, found = json.loads(done.stdout)
    assert not any(made)
    assert len(found) == 10
    assert all(compiled and shared < 100_000 for variants in found.values() for compiled, shared in variants)
