"""The CPU kernels against the reference: results and all gradients, whatever the lengths of the documents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernelkit import any_lengths
from kernelkit import arguments as flat_arguments
from laws import one_in

from hnet_cli.kernels import HOST, cpu, reference
from hnet_cli.kernels.checking import compare, differentiated, flat, relative
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import ScanInputs

LENGTHS = [[1], [2], [63], [64], [65], [64, 64], [256] * 3, [1, 63, 64, 65, 2, 3, 1, 200], [5, 700]]
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}
HEADS, WIDTH, STATE, CHANNELS = 3, 8, 5, 24


def arguments(operation, total, dtype):
    """Tensors first; what the model keeps in float32 is float32."""
    generator = torch.Generator().manual_seed(total)
    high = torch.promote_types(dtype, torch.float32)

    def normal(*shape, dtype=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    if operation == "ssd_scan":
        x, dt, B, C = normal(total, HEADS, WIDTH), normal(total, HEADS), normal(total, STATE), normal(total, STATE)
        rates = -normal(HEADS, dtype=high).exp(), normal(HEADS, dtype=high), normal(HEADS, dtype=high) - 1
        return [x, dt, rates[0], B, C, *rates[1:]]
    if operation == "causal_conv":
        return [normal(total, CHANNELS), normal(CHANNELS, 4, dtype=high), normal(CHANNELS, dtype=high)]
    if operation == "attention":
        return [normal(total, HEADS, WIDTH) for _ in range(3)]
    if operation == "add_rms_norm":
        return [normal(total, CHANNELS), normal(total, CHANNELS, dtype=high), normal(CHANNELS, dtype=dtype)]
    return [normal(total, CHANNELS), normal(total, CHANNELS), normal(CHANNELS, dtype=high)]


def run(function, operation, tensors, packing):
    """Results, then the gradient by every tensor."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = flat(operation, function)(*leaves, 1e-5 if "norm" in operation else packing)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outs]
    return [*outs, *torch.autograd.grad(outs, leaves, weights)]


def agree(operation, lengths, dtype, change=lambda tensors: tensors):
    packing = Packing.of_lengths(lengths)
    tensors = change(arguments(operation, packing.total, dtype))
    truth = run(getattr(reference, operation), operation, [t.double() for t in tensors], packing)
    for got, expected in zip(run(getattr(cpu, operation), operation, tensors, packing), truth, strict=True):
        assert torch.isfinite(got).all()
        # relative to the largest values, or to 1: some gradients of a single position are exactly zero
        assert (got.double() - expected).norm() <= BOUNDS[dtype] * expected.norm().clamp_min(1)


@pytest.mark.parametrize("operation", ["ssd_scan", "causal_conv", "attention", "add_rms_norm", "gated_rms_norm"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_equals_the_reference(operation, lengths, dtype):
    agree(operation, lengths, dtype)


def test_a_first_layer_has_no_residual_stream_yet():
    hidden, weight = torch.randn(70, CHANNELS, dtype=torch.float64), torch.randn(CHANNELS, dtype=torch.float64)
    got = run(lambda h, w, eps: cpu.add_rms_norm(h, None, w, eps), "norm", [hidden, weight], None)
    expected = run(lambda h, w, eps: reference.add_rms_norm(h, None, w, eps), "norm", [hidden, weight], None)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rate", [0.0, -1e-6, -50.0, -1e4])
def test_scan_with_extreme_decays(rate):
    agree("ssd_scan", [100, 1, 200], torch.float32, lambda t: [*t[:2], torch.full_like(t[2], rate), *t[3:]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_scan_where_what_is_not_visible_would_overflow(dtype):
    """The decay from a later to an earlier position is above 1: float16 ends at 65,504, large gradients at 1e38."""
    tensors = arguments("ssd_scan", 130, dtype)
    tensors[1], tensors[2] = torch.full_like(tensors[1], 3.0), torch.full_like(tensors[2], -16.0)
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = cpu.ssd_scan(ScanInputs(*leaves), Packing.of_lengths([130]))
    torch.testing.assert_close(
        y, reference.ssd_scan(ScanInputs(*tensors), Packing.of_lengths([130])), rtol=1e-2, atol=1e-2
    )
    if dtype == torch.float32:
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y, leaves, torch.full_like(y, 1e6)))


def test_scan_with_steps_of_zero():
    """softplus(dt) underflows where dt is very negative."""
    change = lambda t: [t[0], t[1].masked_fill(t[1] < 0, -200.0), *t[2:]]  # noqa: E731
    agree("ssd_scan", [100, 30], torch.float32, change)


def test_documents_do_not_see_each_other():
    """Not even through rounding or values that are not finite."""
    packing, alone = Packing.of_lengths([30, 70]), Packing.of_lengths([70])
    x, weight, bias = arguments("causal_conv", 100, torch.float32)
    x[:30] = torch.nan
    together = cpu.causal_conv(x, weight, bias, packing)[30:]
    torch.testing.assert_close(together, cpu.causal_conv(x[30:], weight, bias, alone))


def test_autocast_does_not_reach_inside():
    tensors, packing = arguments("ssd_scan", 100, torch.float32), Packing.of_lengths([100])
    expected = run(cpu.ssd_scan, "ssd_scan", tensors, packing)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(cpu.ssd_scan, "ssd_scan", tensors, packing)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", HOST.operations)
def test_every_operation_at_the_sizes_of_a_check(operation, dtype):
    function, state = getattr(HOST.kernels, operation), HOST.kernels.ssd_state
    result = compare(operation, "host", function, torch.device("cpu"), dtype, state=state)
    assert result.ok, result
    assert result.error < {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


@one_in(5)
@given(lengths=any_lengths, seed=st.integers(0, 99))
@pytest.mark.parametrize("operation", ["ssd_scan", "causal_conv", "attention"])
def test_gradients_whatever_the_lengths(operation, lengths, seed):
    args = flat_arguments(operation, lengths, seed)
    expected, results = (differentiated(flat(operation, getattr(ops, operation)), args) for ops in (reference, cpu))
    for value, truth in zip(results, expected, strict=True):
        assert relative(value, truth) < 1e-9
