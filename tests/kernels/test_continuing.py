"""Operations that continue a state give, in any pieces, what the operation gives for whole documents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in

from hnet_cli.kernels import REFERENCE, choose, continuing
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import ScanInputs

HOST = choose("cpu", torch.float64)


def pieces(lengths, cuts):
    """Packings of the two parts of each document, and where their positions lie in the whole; no empty parts."""
    whole, cuts = Packing.of_lengths(lengths), [min(cut, n - 1) for cut, n in zip(cuts, lengths, strict=True)]
    first, second = Packing.of_lengths(cuts), Packing.of_lengths([n - c for n, c in zip(lengths, cuts, strict=True)])
    second.start = cuts
    early = whole.position < torch.tensor(cuts)[whole.document]
    return whole, [(first, early), (second, ~early)]


@pytest.mark.parametrize("kernels", [REFERENCE, HOST], ids=["reference", "host"])
@one_in(5)
@given(st.lists(st.tuples(st.integers(2, 150), st.integers(1, 149)), min_size=1, max_size=3), st.integers(0, 99))
def test_pieces_are_the_whole(kernels, documents, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    whole, parts = pieces(*map(list, zip(*documents, strict=True)))
    total, rows = whole.total, whole.batch_size
    scan = ScanInputs(
        normal(total, 2, 4), normal(total, 2), -normal(2).exp(), normal(total, 8), normal(total, 8), *normal(2, 2)
    )
    x, weight, bias, p = normal(total, 6), normal(6, 4), normal(6), torch.sigmoid(normal(total))
    expected = (
        kernels.ssd_scan(scan, whole),
        kernels.causal_conv(x, weight, bias, whole),
        kernels.ema_scan(x, p, whole),
    )
    state, conv, average = kernels.ssd_state(x, rows, 2, 4, 8), x.new_zeros(rows, 3, 6), x.new_zeros(rows, 6)
    for packing, at in parts:
        part = scan._replace(x=scan.x[at], dt=scan.dt[at], B=scan.B[at], C=scan.C[at])
        z = continuing.ema_scan(kernels, x[at], p[at], packing, average)
        average = z[packing.last]
        found = (
            continuing.ssd_scan(kernels, part, packing, 64, state),
            continuing.causal_conv(kernels, x[at], weight, bias, packing, conv),
            z,
        )
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want[at], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.value, kernels.ssd_scan_states(scan, whole)[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(conv, whole.tails(x, 3))
