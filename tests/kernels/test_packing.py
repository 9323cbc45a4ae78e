"""Packed documents: groups, blocks, buckets, and positions found without waiting for a device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernelkit import any_lengths

from hnet_cli.kernels.packing import Packing, scattered_positions, true_positions


def test_groups_of_documents_below_a_limit():
    """Blocks of documents that keep a kernel's offsets below 2**31."""
    packing = Packing.of_lengths([3, 4, 9, 2, 2])
    groups = list(packing.groups(7))
    assert [(start, g.lengths) for start, g in groups] == [(0, [3, 4]), (7, [9]), (16, [2, 2])]


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_positions_found_without_asking_the_device(bits):
    mask = torch.tensor(bits)
    expected = [i for i, bit in enumerate(bits) if bit]
    assert true_positions(mask, len(expected)).tolist() == expected
    assert scattered_positions(mask, len(expected)).tolist() == expected


@given(any_lengths)
def test_every_view_of_a_position_agrees(lengths):
    """Document and position, first and last, tails, blocks and buckets against plain loops."""
    packing = Packing.of_lengths(lengths)
    pairs = [(b, i) for b, length in enumerate(lengths) for i in range(length)]
    assert list(zip(packing.document.tolist(), packing.position.tolist(), strict=True)) == pairs
    starts = [pairs.index((b, 0)) for b in range(len(lengths))]
    assert packing.first.tolist() == starts
    assert packing.last.tolist() == [start + length - 1 for start, length in zip(starts, lengths, strict=True)]
    x = torch.arange(1.0, packing.total + 1)[:, None]
    tails = [([0.0] * 3 + list(range(a + 1, a + n + 1)))[-3:] for a, n in zip(starts, lengths, strict=True)]
    assert packing.tails(x, 3)[:, :, 0].tolist() == tails
    blocks = packing.blocks(64)
    assert torch.equal(blocks.join(blocks.split(x), packing.total), x)
    padded = blocks.split(packing.document)
    same = padded[:, :, None] == padded[:, None]
    inside = blocks.split(torch.ones(packing.total, dtype=torch.bool))[:, :, None]  # padding may see anything
    assert ((blocks.visible == same.tril()) | ~inside).all()
    gathered = torch.zeros_like(x)
    for bucket in packing.buckets():
        rows = x if bucket.gather is None else x[bucket.gather]
        assert len(rows) == bucket.rows * bucket.length
        if bucket.scatter is None:
            gathered += rows
        else:
            gathered[bucket.target] += rows[bucket.scatter]
    assert torch.equal(gathered, x)


@pytest.mark.parametrize("offsets", [[0], [1, 3], [0, 2, 2], [0, 3, 1], [0.0, 2.0], [[0, 2]]], ids=str)
def test_offsets_that_are_none_are_refused(offsets):
    with pytest.raises(ValueError, match="cu_seqlens must"):
        Packing.of_cu_seqlens(torch.tensor(offsets))
    assert Packing.of_cu_seqlens(torch.tensor([0, 2, 5])).lengths == [2, 3]
