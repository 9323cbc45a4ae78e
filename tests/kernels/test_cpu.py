"""The CPU kernels against the reference: results and all gradients, whatever the lengths of the documents."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hnet_cli.kernels import cpu as host
from hnet_cli.kernels import cpu_step as host_step
from hnet_cli.kernels import reference
from hnet_cli.kernels.packing import Packing

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
    out = function(*leaves, 1e-5 if "norm" in operation else packing)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outs]
    return [*outs, *torch.autograd.grad(outs, leaves, weights)]


def compare(operation, lengths, dtype, change=lambda tensors: tensors):
    packing = Packing.of_lengths(lengths)
    tensors = change(arguments(operation, packing.total, dtype))
    truth = run(getattr(reference, operation), operation, [t.double() for t in tensors], packing)
    for got, expected in zip(run(getattr(host, operation), operation, tensors, packing), truth, strict=True):
        assert torch.isfinite(got).all()
        # relative to the largest values, or to 1: some gradients of a single position are exactly zero
        assert (got.double() - expected).norm() <= BOUNDS[dtype] * expected.norm().clamp_min(1)


@pytest.mark.parametrize("operation", ["ssd_scan", "causal_conv", "attention", "add_rms_norm", "gated_rms_norm"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_equals_the_reference(operation, lengths, dtype):
    compare(operation, lengths, dtype)


def test_a_first_layer_has_no_residual_stream_yet():
    hidden, weight = torch.randn(70, CHANNELS, dtype=torch.float64), torch.randn(CHANNELS, dtype=torch.float64)
    got = run(lambda h, w, eps: host.add_rms_norm(h, None, w, eps), "norm", [hidden, weight], None)
    expected = run(lambda h, w, eps: reference.add_rms_norm(h, None, w, eps), "norm", [hidden, weight], None)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rate", [0.0, -1e-6, -50.0, -1e4])
def test_scan_with_extreme_decays(rate):
    compare("ssd_scan", [100, 1, 200], torch.float32, lambda t: [*t[:2], torch.full_like(t[2], rate), *t[3:]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_scan_where_what_is_not_visible_would_overflow(dtype):
    """The decay from a later to an earlier position is above 1: float16 ends at 65,504, large gradients at 1e38."""
    tensors = arguments("ssd_scan", 130, dtype)
    tensors[1], tensors[2] = torch.full_like(tensors[1], 3.0), torch.full_like(tensors[2], -16.0)
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = host.ssd_scan(*leaves, Packing.of_lengths([130]))
    torch.testing.assert_close(y, reference.ssd_scan(*tensors, Packing.of_lengths([130])), rtol=1e-2, atol=1e-2)
    if dtype == torch.float32:
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y, leaves, torch.full_like(y, 1e6)))


def test_scan_with_steps_of_zero():
    """softplus(dt) underflows where dt is very negative."""
    change = lambda t: [t[0], t[1].masked_fill(t[1] < 0, -200.0), *t[2:]]  # noqa: E731
    compare("ssd_scan", [100, 30], torch.float32, change)


def test_documents_do_not_see_each_other():
    """Not even through rounding or values that are not finite."""
    packing, alone = Packing.of_lengths([30, 70]), Packing.of_lengths([70])
    x, weight, bias = arguments("causal_conv", 100, torch.float32)
    x[:30] = torch.nan
    together = host.causal_conv(x, weight, bias, packing)[30:]
    torch.testing.assert_close(together, host.causal_conv(x[30:], weight, bias, alone))


def test_autocast_does_not_reach_inside():
    tensors, packing = arguments("ssd_scan", 100, torch.float32), Packing.of_lengths([100])
    expected = run(host.ssd_scan, "ssd_scan", tensors, packing)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(host.ssd_scan, "ssd_scan", tensors, packing)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


ROWS = 5


def step_arguments(rows, dtype, seed):
    """Of `ssd_step` without the state: heads that forget at once, hardly ever, and in between."""
    x, dt, _, B, C, D, bias = arguments("ssd_scan", rows, dtype)
    generator = torch.Generator().manual_seed(seed)
    x, dt = (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in (x, dt))
    return x, dt, -torch.tensor([1e-3, 2.0, 300.0], dtype=D.dtype), B, C, D, bias


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.none() | st.sets(st.integers(0, ROWS - 1), min_size=1).map(sorted), min_size=1, max_size=40),
       fits=st.booleans(), dtype=st.sampled_from(list(BOUNDS)))  # fmt: skip
@example(steps=[None] * 3 + [[0, 1, 3]] * 9 + [None] * 12 + [[4]] * 9, fits=False, dtype=torch.float32)
@example(steps=[None] * 20 + [[1, 4]] * 20, fits=False, dtype=torch.float64)
def test_steps_equal_the_reference_whatever_rows_take_part(steps, fits, dtype):
    """Decays and additions that are put off, a scale that gets small; rows that take no part keep their states."""
    value = torch.randn(ROWS, HEADS, WIDTH, STATE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "TILE", value.numel() if fits else (value.numel() - 1) // 2)
        own = host_step.ssd_state(torch.empty(0, dtype=dtype), *value.shape)
    assert isinstance(own, reference.SSMState if fits else host_step.LaterState)
    own.fill(value.to(own.value.dtype))
    truth = reference.SSMState(own.value.double().clone())
    for seed, rows in enumerate(steps):
        index = None if rows is None else torch.tensor(rows)
        given = step_arguments(ROWS if rows is None else len(rows), dtype, seed)
        got = host_step.ssd_step(own, *given, index)
        expected = reference.ssd_step(truth, *(t.double() for t in given), index)
        assert got.dtype == dtype
        for a, b in ((got, expected), (own.value, truth.value)):
            assert torch.isfinite(a).all()
            assert (a.double() - b).norm() <= BOUNDS[dtype] * b.norm()


def test_a_state_that_is_filled_forgets_what_was_not_finite():
    state = host_step.ssd_state(torch.zeros(1), 8, 8, 64, 128)
    assert isinstance(state, host_step.LaterState)
    state.state.fill_(torch.nan)
    value = torch.randn(8, 8, 64, 128)
    state.fill(value)
    assert torch.equal(state.value, value)


def test_a_row_that_is_not_finite_does_not_reach_the_others(monkeypatch):
    monkeypatch.setattr(host, "TILE", 1)
    together, alone = (host_step.ssd_state(torch.empty(0), rows, HEADS, WIDTH, STATE) for rows in (2, 1))
    for seed in range(40):
        x, dt, A, B, C, D, bias = step_arguments(2, torch.float32, seed)
        dt[0] = torch.nan
        own = host_step.ssd_step(together, x, dt, A, B, C, D, bias)[1:]
        torch.testing.assert_close(own, host_step.ssd_step(alone, x[1:], dt[1:], A, B[1:], C[1:], D, bias))


@pytest.mark.parametrize("width", [4, 1])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_step_of_the_convolution_out_of_the_cache(dtype, width, monkeypatch):
    monkeypatch.setattr(host, "TILE", 1)
    x, weight, bias = arguments("causal_conv", 12, dtype)
    taps, bias, state = weight.T[:width].to(dtype), bias.to(dtype), torch.zeros(3, width - 1, CHANNELS, dtype=dtype)
    truth = state.double().clone()
    for part in x.view(4, 3, CHANNELS):
        got = host_step.causal_conv_step(part, state, taps, bias)
        expected = reference.causal_conv_step(part.double(), truth, taps.double(), bias.double())
        assert (got.double() - expected).norm() <= BOUNDS[dtype] * expected.norm()
        assert torch.equal(state.double(), truth)


@pytest.mark.parametrize("count", [1, 3, 4, 11, 64, 65])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_linear_maps_of_a_step(count, dtype):
    generator = torch.Generator().manual_seed(count)
    x, weight = (torch.randn(n, 520, generator=generator, dtype=torch.float64).to(dtype) for n in (count, 512))
    got, expected = host_step.step_linear(x, weight), x.double() @ weight.double().T
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= BOUNDS[dtype] * expected.norm()
