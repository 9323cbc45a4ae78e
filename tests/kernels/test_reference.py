"""The reference and the CPU's kernels against the plain definition of each operation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernelkit import any_lengths, arguments, some_lengths
from laws import one_in
from torch.nn import functional as F

from hnet_cli.kernels import HOST, REFERENCE, reference
from hnet_cli.kernels.checking import differentiated, flat, relative
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import ScanInputs

backend = pytest.mark.parametrize("ops", [REFERENCE, HOST.kernels], ids=["reference", "host"])


def documents(packing):
    return [slice(int(a), int(b) + 1) for a, b in zip(packing.first, packing.last, strict=True)]


def scan_by_recurrence(x, dt, A, B, C, D, dt_bias, packing):
    y, finals = torch.empty_like(x), []
    dt = F.softplus(dt + dt_bias)
    for rows in documents(packing):
        h = x.new_zeros(*x.shape[1:], B.shape[1])
        for t in range(rows.start, rows.stop):
            h = h * (dt[t] * A).exp()[:, None, None] + (dt[t, :, None] * x[t])[:, :, None] * B[t]
            y[t] = h @ C[t] + D[:, None] * x[t]
        finals.append(h)
    return y, torch.stack(finals)


@backend
@one_in(5)
@given(lengths=any_lengths, seed=st.integers(0, 99))
def test_scan_is_the_recurrence(ops, lengths, seed):
    *args, packing, _ = arguments("ssd_scan", lengths, seed)
    y, finals = ops.ssd_scan_states(ScanInputs(*args), packing)
    expected, expected_finals = scan_by_recurrence(*args, packing)
    assert relative(y, expected) < 1e-12
    assert relative(finals, expected_finals) < 1e-12
    assert relative(ops.ssd_scan(ScanInputs(*args), packing), expected) < 1e-12


def test_scan_over_many_groups_of_blocks():
    """More blocks than one product passes on, in one document and in several."""
    long = reference.BLOCK * (reference.GROUP + 2)
    for lengths in ([long * 2 + 5], [70, long, 3, long + 1]):
        *args, packing, _ = arguments("ssd_scan", lengths)
        args = [
            a[:, :1, :4] if i == 0 else a[:, :1] if i == 1 else a[:1] if i in (2, 5, 6) else a[:, :4]
            for i, a in enumerate(args)
        ]
        y, finals = reference.ssd_scan_states(ScanInputs(*args), packing)
        expected, expected_finals = scan_by_recurrence(*args, packing)
        assert relative(y, expected) < 1e-12
        assert relative(finals, expected_finals) < 1e-12
        assert relative(HOST.kernels.ssd_scan(ScanInputs(*args), packing), expected) < 1e-12


@backend
def test_strong_decay_does_not_overflow(ops):
    """Decays of e^-1000 within a block: differences of logarithms, never ratios."""
    *args, packing, _ = arguments("ssd_scan", [100, 60])
    args[1] = args[1] + 20
    out = differentiated(lambda *a: ops.ssd_scan(ScanInputs(*a), packing), [a.float() for a in args])
    assert all(o.isfinite().all() for o in out)


@backend
def test_what_was_forgotten_long_ago_costs_no_digits(ops):
    """40 blocks forget all at every position, then little: differences of sums that have become large."""
    *args, packing, _ = arguments("ssd_scan", [reference.BLOCK * 60])
    args[1] = torch.full_like(args[1], -8.0)
    args[1][: reference.BLOCK * 40] = 40.0
    args[0][reference.BLOCK * 40 : reference.BLOCK * 41] *= 50
    late = slice(reference.BLOCK * 41, None)
    expected = reference.ssd_scan(ScanInputs(*args), packing)
    assert relative(ops.ssd_scan(ScanInputs(*(a.float() for a in args)), packing)[late], expected[late]) < 1e-5
    p = torch.where(args[1][:, 0] > 0, 1 - 1e-4, 1e-4)
    expected = reference.ema_scan(args[3], p, packing)
    assert relative(reference.ema_scan(args[3].float(), p.float(), packing)[late], expected[late]) < 5e-5


@one_in(5)
@given(lengths=any_lengths, seed=st.integers(0, 99))
def test_ema_is_the_recurrence(lengths, seed):
    x, p, packing = arguments("ema_scan", lengths, seed)
    p = p.clamp(1e-4, 1 - 1e-4)
    out = []
    for rows in documents(packing):
        z = x.new_zeros(x.shape[1])
        for t in range(rows.start, rows.stop):
            z = p[t] * x[t] + (1 - p[t]) * z
            out.append(z)
    assert relative(reference.ema_scan(x, p, packing), torch.stack(out)) < 1e-12
    assert relative(reference.ema_scan(x.float(), p.float(), packing), torch.stack(out)) < 1e-5


@backend
@one_in(5)
@given(lengths=some_lengths, seed=st.integers(0, 99))
def test_convolution_of_each_document(ops, lengths, seed):
    x, weight, bias, packing = arguments("causal_conv", lengths, seed)
    expected = [
        F.silu(F.conv1d(F.pad(x[rows].T, (3, 0)), weight[:, None], bias, groups=len(weight)).T)
        for rows in documents(packing)
    ]
    assert relative(ops.causal_conv(x, weight, bias, packing), torch.cat(expected)) < 1e-12


@backend
@one_in(5)
@given(lengths=some_lengths, window=st.sampled_from([-1, 0, 1, 7, 63, 64, 65, 100]))
def test_attention_of_each_document(ops, lengths, window):
    q, k, v, packing, _ = arguments("attention", lengths)
    expected = []
    for rows in documents(packing):
        i = torch.arange(rows.stop - rows.start)
        seen = (i[:, None] >= i) & ((i[:, None] - i <= window) | (window < 0))
        parts = [t[rows].transpose(0, 1) for t in (q, k, v)]
        expected.append(F.scaled_dot_product_attention(*parts, attn_mask=seen).transpose(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "QUERIES", 16)
        assert relative(ops.attention(q, k, v, packing, window), torch.cat(expected)) < 1e-12


def test_attention_memory_is_linear_in_the_length_with_a_window():
    """Scores of all pairs would take 6.4 GB."""
    packing = Packing.of_lengths([40_000])
    q = torch.zeros(packing.total, 1, 2)
    assert reference.attention(q, q, q + 1, packing, 31).eq(1).all()


@backend
def test_norms(ops):
    x, residual, weight, eps = arguments("add_rms_norm", [5])
    normed, stream = ops.add_rms_norm(x, residual, weight, eps)
    assert torch.equal(stream, x + residual)
    assert relative(normed, F.rms_norm(stream, (96,), weight, eps)) < 1e-12
    gated = F.rms_norm(x * F.silu(residual), (96,), weight, eps)
    assert relative(ops.gated_rms_norm(x, residual, weight, eps), gated) < 1e-12
    first, stream = ops.add_rms_norm(x.bfloat16(), None, weight.float(), eps)
    assert (first.dtype, stream.dtype) == (torch.float32, torch.float32)


@backend
def test_no_value_of_memory_that_was_never_written(ops):
    """With fresh memory full of not-a-number the results stay the same: padding and gaps are zeroed, not assumed."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for operation in (name for name in HOST.operations if "step" not in name):
            function = flat(operation, getattr(ops, operation))
            results = differentiated(function, arguments(operation, [70, 1, 2, 64]))
            assert all(result.isfinite().all() for result in results), operation
    finally:
        torch.use_deterministic_algorithms(False)
