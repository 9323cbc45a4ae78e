"""The vectors that a main network puts out, as `benchmarks/worth.py` describes them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import tiny_model

from benchmarks import worth


@given(st.integers(2, 40), st.floats(0, 1e3), st.floats(1e-3, 1e3), st.integers(0, 9))
def test_the_share_that_varies_is_that_beside_a_constant(n, constant, size, seed):
    """Vectors of one size around zero, and the same constant added to each."""
    around = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    around -= around.mean(0)
    around *= size / around.square().sum(1).mean().sqrt()
    shift = torch.full((8,), constant / 8**0.5, dtype=torch.float64)
    assert worth.varying(around + shift) == pytest.approx(size / (size**2 + constant**2) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_one_constant_does_not_vary(value):
    assert worth.varying(torch.full((5, 3), value)) == 0


def test_the_outputs_are_those_of_the_innermost_network():
    """One vector for each chunk of the innermost stage, in each pass of the block and none after it."""
    model = tiny_model().eval()
    ids = torch.tensor([list(b"of chunks inside of chunks")])
    with torch.no_grad(), worth.main_outputs(model) as outputs:
        passes = [model(ids) for _ in range(2)]
    chunks = int(passes[0].routing[-1].boundary_mask.sum())
    assert [tuple(out.shape) for out in outputs] == [(chunks, model.config.d_model[-1])] * 2
    with torch.no_grad():
        model(ids)
    assert len(outputs) == 2
