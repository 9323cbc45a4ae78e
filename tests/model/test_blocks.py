"""Layers: a mixer that continues from its state gives what it gives for the whole document."""

import pytest
import torch
from modelkit import randomised, tiny_config, worst

from hnet_cli.kernels import REFERENCE, choose
from hnet_cli.kernels.packing import Packing
from hnet_cli.model.blocks import Attention, Mamba2


@pytest.mark.parametrize("kernels", [REFERENCE, choose("cpu", torch.float64)], ids=["reference", "host"])
@pytest.mark.parametrize("kind", [Mamba2, Attention])
@torch.no_grad()
def test_mixers_go_on_from_their_state(kind, kernels):
    """Two documents of 90 and 40 positions, read at different paces."""
    mixer = randomised(kind(tiny_config(window=5), 0)).double()
    documents = torch.randn(130, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64).split([90, 40])
    expected = mixer(torch.cat(documents), Packing.of_lengths([90, 40]), kernels).split([90, 40])
    state, at = mixer.allocate(2, kernels), [0, 0]
    for lengths in ([70, 2], [1, 30], [19, 8]):
        packing = Packing.of_lengths(lengths)
        packing.start = at if any(at) else None
        x = torch.cat([d[a : a + n] for d, a, n in zip(documents, at, lengths, strict=True)])
        for row, y in enumerate(mixer(x, packing, kernels, state).split(lengths)):
            assert worst(y, expected[row][at[row] : at[row] + lengths[row]]) < 1e-10
        at = [a + n for a, n in zip(at, lengths, strict=True)]
