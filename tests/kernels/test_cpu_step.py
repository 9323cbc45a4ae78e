"""The CPU's kernels of a generation step against the reference, whichever rows take part."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hnet_cli.kernels import cpu, cpu_step, reference
from hnet_cli.kernels.reference import ScanInputs

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}
HEADS, WIDTH, STATE, CHANNELS = 3, 8, 5, 24
ROWS = 5


def normal(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def operands(rows, dtype, seed):
    """Heads that forget at once, hardly ever, and in between; per-head parameters in float32 or wider."""
    high = torch.promote_types(dtype, torch.float32)
    rates = -torch.tensor([1e-3, 2.0, 300.0], dtype=high)
    x, dt = (normal(rows, HEADS, *size, dtype=dtype, seed=seed) for size in ((WIDTH,), ()))
    B, C = normal(2, rows, STATE, dtype=dtype, seed=rows)
    D, bias = normal(2, HEADS, dtype=high, seed=1)
    return ScanInputs(x, dt, rates, B, C, D, bias - 1)


@given(
    steps=st.lists(st.none() | st.sets(st.integers(0, ROWS - 1), min_size=1).map(sorted), min_size=1, max_size=40),
    fits=st.booleans(),
    dtype=st.sampled_from(list(BOUNDS)),
)
@example(steps=[None] * 3 + [[0, 1, 3]] * 9 + [None] * 12 + [[4]] * 9, fits=False, dtype=torch.float32)
@example(steps=[None] * 20 + [[1, 4]] * 20, fits=False, dtype=torch.float64)
def test_steps_equal_the_reference_whatever_rows_take_part(steps, fits, dtype):
    """Decays and additions that are put off, a scale that gets small; rows that take no part keep their states."""
    value = torch.randn(ROWS, HEADS, WIDTH, STATE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "TILE", value.numel() if fits else (value.numel() - 1) // 2)
        own = cpu_step.ssd_state(torch.empty(0, dtype=dtype), *value.shape)
    assert isinstance(own, reference.SSMState if fits else cpu_step.LaterState)
    own.fill(value)
    truth = reference.SSMState(own.value.double().clone())
    for seed, rows in enumerate(steps):
        index = None if rows is None else torch.tensor(rows)
        inputs = operands(ROWS if rows is None else len(rows), dtype, seed)
        got = cpu_step.ssd_step(own, inputs, index)
        expected = reference.ssd_step(truth, ScanInputs(*(t.double() for t in inputs)), index)
        assert got.dtype == dtype
        for a, b in ((got, expected), (own.value, truth.value)):
            assert torch.isfinite(a).all()
            assert (a.double() - b).norm() <= BOUNDS[dtype] * b.norm()


def test_a_state_that_is_filled_forgets_what_was_not_finite():
    state = cpu_step.ssd_state(torch.zeros(1), 8, 8, 64, 128)
    assert isinstance(state, cpu_step.LaterState)
    state.state.fill_(torch.nan)
    value = torch.randn(8, 8, 64, 128)
    state.fill(value)
    assert torch.equal(state.value, value)


def test_a_row_that_is_not_finite_does_not_reach_the_others(monkeypatch):
    monkeypatch.setattr(cpu, "TILE", 1)
    together, alone = (cpu_step.ssd_state(torch.empty(0), rows, HEADS, WIDTH, STATE) for rows in (2, 1))
    for seed in range(40):
        both = operands(2, torch.float32, seed)
        both.dt[0] = torch.nan
        second = both._replace(x=both.x[1:], dt=both.dt[1:], B=both.B[1:], C=both.C[1:])
        torch.testing.assert_close(cpu_step.ssd_step(together, both)[1:], cpu_step.ssd_step(alone, second))


@pytest.mark.parametrize("width", [4, 1])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_step_of_the_convolution_out_of_the_cache(dtype, width, monkeypatch):
    monkeypatch.setattr(cpu, "TILE", 1)
    x, taps = normal(12, CHANNELS, dtype=dtype), normal(width, CHANNELS, dtype=dtype, seed=1)
    bias, state = normal(CHANNELS, dtype=dtype, seed=2), torch.zeros(3, width - 1, CHANNELS, dtype=dtype)
    truth = state.double().clone()
    for part in x.view(4, 3, CHANNELS):
        got = cpu_step.causal_conv_step(part, state, taps, bias)
        expected = reference.causal_conv_step(part.double(), truth, taps.double(), bias.double())
        assert (got.double() - expected).norm() <= BOUNDS[dtype] * expected.norm()
        assert torch.equal(state.double(), truth)


@pytest.mark.parametrize("count", [1, 3, 4, 11, 64, 65])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_linear_maps_of_a_step(count, dtype):
    x, weight = normal(count, 520, dtype=dtype, seed=1), normal(512, 520, dtype=dtype, seed=2)
    got, expected = cpu_step.step_linear(x, weight), x.double() @ weight.double().T
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= BOUNDS[dtype] * expected.norm()
