"""Rotary positions: what a query and a key give depends on their distance alone."""

import math

import pytest
import torch

from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import rotate
from hnet_cli.model import rotary
from hnet_cli.model.settings import Rotary


def test_a_product_depends_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(
        2, 50, 1, 16
    )
    cos, sin = (t[:, 0] for t in rotary.table(torch.arange(50), 8, torch.float64, Rotary()))
    products = rotate(q, cos, sin).squeeze(1) @ rotate(k, cos, sin).squeeze(1).T
    for distance in (0, 3, 20):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert torch.equal(rotate(q, cos, sin)[..., 8:], q[..., 8:])
    assert rotate(q, cos[..., :0], sin[..., :0]) is q


def test_slow_pairs_are_stretched():
    """Llama 3.1: pairs of more than 4 turns in the original length stay, those of less than one turn 8 times slower."""
    stretched = Rotary(base=500000.0, factor=8.0, original_length=8192)
    plain, slower = (
        rotary.table(torch.tensor([1]), 64, torch.float64, each)[1][0, 0, 0].asin()
        for each in (Rotary(base=500000.0), stretched)
    )
    turns = plain * 8192 / (2 * math.pi)
    assert torch.allclose(slower[turns > 4], plain[turns > 4])
    assert torch.allclose(slower[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert (slower < plain)[between].all()
    assert between.any()


@pytest.mark.parametrize("start", [None, [7, 0]])
def test_packed_positions_count_from_where_documents_begin(start):
    packing = Packing.of_lengths([3, 2])
    packing.start = start
    cos, _ = rotary.of_packing(packing, 4, torch.float64, Rotary())
    wanted = torch.tensor([0, 1, 2, 0, 1]) + (0 if start is None else torch.tensor([7, 7, 7, 0, 0]))
    assert torch.equal(cos, rotary.table(wanted, 4, torch.float64, Rotary())[0])
