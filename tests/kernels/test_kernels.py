"""Every operation against its definition: reference against plain recurrences, fast ones against the reference."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hnet_cli import kernels
from hnet_cli.kernels import cpu as host
from hnet_cli.kernels import cpu_step as host_step
from hnet_cli.kernels import cuda as external
from hnet_cli.kernels import reference
from hnet_cli.kernels.checking import BOUNDS, compare, differentiated, inputs, relative
from hnet_cli.kernels.packing import Packing, scattered_positions, true_positions

some_lengths = st.lists(st.integers(1, 150), min_size=1, max_size=6)
whole_blocks = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda n: [64 * n[0]] * n[1])
backend = pytest.mark.parametrize("ops", [reference, host], ids=["reference", "host"])


def arguments(operation, lengths, seed=0):
    return inputs(operation, Packing.of_lengths(lengths), torch.Generator().manual_seed(seed))


def documents(packing):
    return [slice(int(a), int(b) + 1) for a, b in zip(packing.first, packing.last, strict=True)]


# -- definitions -------------------------------------------------------------------------------------------------------


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
@settings(max_examples=6, deadline=None)
@given(lengths=st.one_of(some_lengths, whole_blocks), seed=st.integers(0, 99))
def test_scan_is_the_recurrence(ops, lengths, seed):
    *args, packing, _ = arguments("ssd_scan", lengths, seed)
    y, finals = ops.ssd_scan(*args, packing, return_states=True)
    expected, expected_finals = scan_by_recurrence(*args, packing)
    assert relative(y, expected) < 1e-12
    assert relative(finals, expected_finals) < 1e-12
    assert relative(ops.ssd_scan(*args, packing), expected) < 1e-12


def test_scan_over_many_groups_of_blocks():
    """More blocks than one product passes on, in one document and in several."""
    long = reference.BLOCK * (reference.GROUP + 2)
    for lengths in ([long * 2 + 5], [70, long, 3, long + 1]):
        *args, packing, _ = arguments("ssd_scan", lengths)
        args = [
            a[:, :1, :4] if i == 0 else a[:, :1] if i == 1 else a[:1] if i in (2, 5, 6) else a[:, :4]
            for i, a in enumerate(args)
        ]
        y, finals = reference.ssd_scan(*args, packing, return_states=True)
        expected, expected_finals = scan_by_recurrence(*args, packing)
        assert relative(y, expected) < 1e-12
        assert relative(finals, expected_finals) < 1e-12
        assert relative(host.ssd_scan(*args, packing), expected) < 1e-12


@backend
def test_strong_decay_does_not_overflow(ops):
    """Decays of e^-1000 within a block: differences of logarithms, never ratios."""
    *args, packing, _ = arguments("ssd_scan", [100, 60])
    args[1] = args[1] + 20
    out = differentiated(lambda *a: ops.ssd_scan(*a, packing), [a.float() for a in args])
    assert all(o.isfinite().all() for o in out)


@backend
def test_what_was_forgotten_long_ago_costs_no_digits(ops):
    """40 blocks forget all at every position, then little: differences of sums that have become large."""
    *args, packing, _ = arguments("ssd_scan", [reference.BLOCK * 60])
    args[1] = torch.full_like(args[1], -8.0)
    args[1][: reference.BLOCK * 40] = 40.0
    args[0][reference.BLOCK * 40 : reference.BLOCK * 41] *= 50
    late = slice(reference.BLOCK * 41, None)
    expected = reference.ssd_scan(*args, packing)
    assert relative(ops.ssd_scan(*(a.float() for a in args), packing)[late], expected[late]) < 1e-5
    p = torch.where(args[1][:, 0] > 0, 1 - 1e-4, 1e-4)
    expected = reference.ema_scan(args[3], p, packing)
    assert relative(reference.ema_scan(args[3].float(), p.float(), packing)[late], expected[late]) < 5e-5


@settings(max_examples=10, deadline=None)
@given(lengths=st.one_of(some_lengths, whole_blocks), seed=st.integers(0, 99))
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
@settings(max_examples=10, deadline=None)
@given(lengths=some_lengths, seed=st.integers(0, 99))
def test_convolution_of_each_document(ops, lengths, seed):
    x, weight, bias, packing = arguments("causal_conv", lengths, seed)
    expected = [
        F.silu(F.conv1d(F.pad(x[rows].T, (3, 0)), weight[:, None], bias, groups=len(weight)).T)
        for rows in documents(packing)
    ]
    assert relative(ops.causal_conv(x, weight, bias, packing), torch.cat(expected)) < 1e-12


@backend
@settings(max_examples=15, deadline=None)
@given(
    lengths=some_lengths, window=st.sampled_from([-1, 0, 1, 7, 63, 64, 65, 100]), dtype=st.sampled_from([torch.float64])
)
def test_attention_of_each_document(ops, lengths, window, dtype):
    q, k, v, packing, _ = arguments("attention", lengths)
    expected = []
    for rows in documents(packing):
        i = torch.arange(rows.stop - rows.start)
        seen = (i[:, None] >= i) & ((i[:, None] - i <= window) | (window < 0))
        parts = [t[rows].transpose(0, 1) for t in (q, k, v)]
        expected.append(F.scaled_dot_product_attention(*parts, attn_mask=seen).transpose(0, 1))
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
    assert (
        relative(ops.gated_rms_norm(x, residual, weight, eps), F.rms_norm(x * F.silu(residual), (96,), weight, eps))
        < 1e-12
    )
    first, stream = ops.add_rms_norm(x.bfloat16(), None, weight.float(), eps)
    assert (first.dtype, stream.dtype) == (torch.float32, torch.float32)


@backend
def test_no_value_of_memory_that_was_never_written(ops):
    """With fresh memory full of not-a-number the results stay the same: padding and gaps are zeroed, not assumed."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for operation in (name for name in kernels.HOST if "step" not in name):
            args = arguments(operation, [70, 1, 2, 64])
            assert all(o.isfinite().all() for o in differentiated(getattr(ops, operation), args)), operation
    finally:
        torch.use_deterministic_algorithms(False)


# -- fast against reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", kernels.HOST)
def test_host_equals_reference(operation, dtype):
    where = (torch.device("cpu"), dtype)
    result = compare(operation, "host", kernels.HOST[operation], *where, state=host_step.ssd_state)
    assert result.ok, result
    assert result.error < {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: BOUNDS[dtype]}[dtype]


@settings(max_examples=5, deadline=None)
@given(lengths=st.one_of(some_lengths, whole_blocks), seed=st.integers(0, 99))
@pytest.mark.parametrize("operation", ["ssd_scan", "causal_conv", "attention"])
def test_gradients_whatever_the_lengths(operation, lengths, seed):
    args = arguments(operation, lengths, seed)
    expected = differentiated(getattr(reference, operation), args)
    for value, truth in zip(differentiated(getattr(host, operation), args), expected, strict=True):
        assert relative(value, truth) < 1e-9


def test_a_wrong_operation_is_found():
    def leaky(x, weight, bias, packing):
        return reference.causal_conv(x, weight, bias, Packing.of_lengths([packing.total]))

    result = compare("causal_conv", "leaky", leaky, torch.device("cpu"), torch.float32)
    assert not result.ok
    assert result.error > result.bound

    def broken(x):
        raise MemoryError("no luck")

    result = compare("swiglu", "broken", broken, torch.device("cpu"), torch.float32)
    assert not result.ok
    assert "MemoryError: no luck" in result.where

    def undefined(x, weight, bias, packing):  # the gradient of the last argument alone
        return reference.causal_conv(x, weight, torch.where(bias < 99, bias, (bias - 99).sqrt()), packing)

    result = compare("causal_conv", "undefined", undefined, torch.device("cpu"), torch.float32)
    assert not result.ok
    assert result.where == "gradient of argument 2"


def test_the_step_of_one_row_is_compared():
    def wrong(q, keys, values, length, rows):
        return 1.01 * reference.attention_step(q, keys, values, length, rows)

    where = (torch.device("cpu"), torch.float32)
    assert compare("attention_step", "right", reference.attention_step, *where, lengths=[1]).ok
    assert not compare("attention_step", "wrong", wrong, *where, lengths=[1]).ok


def test_gradients_that_are_nothing_but_rounding():
    """Of a document of one position nothing depends on its query or its key. What depends on its value still counts."""
    where = (torch.device("cpu"), torch.float32)
    assert compare("attention", "right", reference.attention, *where, lengths=[1]).ok

    def wrong(q, k, v, packing, window):
        return reference.attention(q, k, 1.01 * v, packing, window)

    assert not compare("attention", "wrong", wrong, *where, lengths=[1]).ok


@pytest.mark.parametrize("operation", ["causal_conv_step", "attention_step", "ssd_step"])
def test_what_is_checked_is_not_the_reference_itself(operation, monkeypatch):
    """A CPU does small steps as the reference does; those of a check are large enough."""
    ran, real = [], getattr(reference, operation)
    monkeypatch.setattr(reference, operation, lambda *args: ran.append(args) or real(*args))
    (result,) = kernels.check("cpu", [operation], [torch.float32])
    assert result.ok
    assert len(ran) == 2  # the two steps of the truth


def test_check_on_this_machine():
    results = kernels.check("cpu")
    assert {r.op for r in results} == set(kernels.HOST)
    assert all(r.ok for r in results), results


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_choice():
    auto = kernels.choose("cpu", torch.float32)
    assert auto is kernels.choose(torch.device("cpu"), torch.float32, "auto")
    assert auto.ssd_scan is host.ssd_scan
    assert auto.names["ssd_scan"] == "host"
    assert auto.names["ema_scan"] == "reference"
    plain = kernels.choose("cpu", torch.float32, "reference")
    assert set(plain.names.values()) == {"reference"}
    assert plain.ssd_scan is reference.ssd_scan
    with pytest.raises(ValueError, match="auto, reference or fast"):
        kernels.choose("cpu", torch.float32, "quick")
    with pytest.raises(RuntimeError, match="no fast kernels for mps"):
        kernels.choose("mps", torch.float32, "fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a machine without CUDA says")
def test_what_is_missing_is_said_in_the_words_of_the_exception():
    rows = [r for r in kernels.report() if not r.available]
    assert {r.backend for r in rows} == {
        "mamba-ssm",
        "torch varlen_attn",
        "flash-attn",
        "torch.compile",
        "split weights",
    }
    assert all("CUDA" in r.reason for r in rows)
    assert kernels.choose("cuda", torch.bfloat16).ssd_scan is reference.ssd_scan
    with pytest.raises(RuntimeError, match=r"no fast ssd_scan \(mamba-ssm: RuntimeError: torch sees no CUDA"):
        kernels.choose("cuda", torch.bfloat16, "fast")
    if not external.importlib.util.find_spec("mamba_ssm"):
        with pytest.raises(ImportError, match="not installed"):
            external.load_mamba()


def test_the_seam_needs_torch_only():
    code = (
        "import sys, hnet_cli.kernels as k; k.report(); k.choose('cpu', __import__('torch').float32);"
        "foreign = {'mamba_ssm', 'flash_attn', 'pydantic', 'yaml', 'typer', 'hnet_cli.model'};"
        "sys.exit(bool(foreign & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("given", [None, "0"])
def test_attention_does_not_wait_for_plans_of_cudnn(given):
    """torch reads it once, when attention first runs; importing the model comes before. A value of the user's stays."""
    name = "TORCH_CUDNN_SDPA_DEPRIORITIZED"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: given} if given else {})
    code = f"import os; from hnet_cli.model import HNetForCausalLM; print(os.environ['{name}'])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == (given or "1"), done.stderr


def test_groups_of_documents_below_a_limit():
    """How the 32-bit offsets of a kernel are respected."""
    packing = Packing.of_lengths([3, 4, 9, 2, 2])
    groups = list(packing.groups(7))
    assert [(start, g.lengths) for start, g in groups] == [(0, [3, 4]), (7, [9]), (16, [2, 2])]


def test_split_for_32_bit_offsets_changes_nothing(monkeypatch):
    """The adapter cuts a batch that is too long into groups of documents; the pieces join to the whole."""
    monkeypatch.setattr(external, "INT32", 200 * 256)

    def kernel(
        x, dt, A, B, C, chunk_size, D, dt_bias, dt_softplus, seq_idx, cu_seqlens=None, return_varlen_states=False
    ):
        assert x.shape[1] * x.stride(1) < 200 * 256
        lengths = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        out = reference.ssd_scan(
            x[0],
            dt[0],
            A,
            B[0, :, 0],
            C[0, :, 0],
            D,
            dt_bias,
            Packing.of_lengths(lengths),
            return_states=return_varlen_states,
        )
        return (out[0][None], out[1]) if return_varlen_states else out[None]

    *args, packing, _ = arguments("ssd_scan", [90, 100, 201, 5, 190])
    args = [a.float() for a in args]
    scan = external.mamba_scan(kernel)
    y, states = scan(*args, packing, 64, return_states=True)
    expected, expected_states = reference.ssd_scan(*args, packing, return_states=True)
    assert relative(y, expected) < 1e-6
    assert relative(states, expected_states) < 1e-6
    assert relative(scan(*args, packing, 64), expected) < 1e-6


STEP_IN_PLACE = """
import contextlib, torch
torch.cuda.device = lambda *_: contextlib.nullcontext()
from hnet_cli.kernels import cuda as external, reference
step = external.mamba_step(external.load_mamba()[2])
generator = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, generator=generator)
heads, width, size, batch = 2, 16, 16, 5
state, dt_bias, A, D = normal(batch, heads, width, size), normal(heads), -normal(heads).exp(), normal(heads)
for rows, once in ((None, None), ([3, 0], None), ([2, 4, 1, 2], [2, 4, 1, -1]), ([1, 1, 1, 1], [1, -1, -1, -1])):
    index, once = (None if each is None else torch.tensor(each) for each in (rows, once))
    source = torch.arange(batch) if rows is None else index
    given = [each[source] for each in (normal(batch, heads, width), normal(batch, heads))]
    more = [each[source] for each in (normal(batch, size), normal(batch, size))]
    ours, theirs = reference.SSMState(state.clone()), reference.SSMState(state.clone())
    for _ in range(2):
        y = step(ours, *given, A, *more, D, dt_bias, index, once)
        expected = reference.ssd_step(theirs, *given, A, *more, D, dt_bias, index)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("triton", "mamba_ssm"))), reason="no triton or mamba-ssm")
def test_mamba_updates_the_states_of_some_rows_in_place():
    """Like gathering and scattering them, and each once where a row is repeated; in Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", STEP_IN_PLACE]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_split_weights_give_float32():
    """Here the two products run in float32; the parts they are made of are those of a GPU."""
    result = compare("wide_linear", "", external.wide_linear, torch.device("cpu"), torch.bfloat16)
    assert result.ok, result
    assert result.where == "gradient of argument 0"  # given in bfloat16
    x, weight, bias = (each.float() for each in arguments("wide_linear", [600]))
    y = external.wide_linear(x.bfloat16(), weight, bias)
    assert y.dtype == torch.float32
    assert 0 < relative(y, reference.wide_linear(x.bfloat16(), weight, bias)) < 1e-5
    for few in (x, x[: external.FEW - 1].bfloat16()):  # nothing to gain
        assert torch.equal(external.wide_linear(few, weight, bias), reference.wide_linear(few, weight, bias))


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_positions_found_without_asking_the_device(bits):
    mask = torch.tensor(bits)
    expected = [i for i, bit in enumerate(bits) if bit]
    assert true_positions(mask, len(expected)).tolist() == expected
    assert scattered_positions(mask, len(expected)).tolist() == expected


@settings(deadline=None, max_examples=20)
@given(some_lengths)
def test_the_convolution_that_is_compiled(lengths):
    """Not compiled here: values and gradients by x, weight and bias of what is."""
    convolution = external.causal_conv_of(external.conv, external.conv_gradient)
    for dtype in (torch.float64, torch.bfloat16):
        found = compare("causal_conv", "", convolution, torch.device("cpu"), dtype, lengths=lengths)
        assert found.ok, found


@pytest.mark.parametrize("name", ["swiglu", "add_rms_norm", "gated_rms_norm", "causal_conv"])
def test_widths_are_constants_of_what_is_compiled(name, monkeypatch):
    """And the number of positions is not: no program for each."""
    shapes, compile_with = [], torch.compile

    def cut(x, width):
        return (x[..., :width] if x.shape[-1] == 96 else x[:width]).float()

    def backend(graph, inputs):
        given = (node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder")
        shapes.append([each.shape for each in given if isinstance(each, torch.Tensor) and each.ndim == 2])
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_with(function, backend=backend, **options)
    )
    external.compiled_elementwise.cache_clear()
    function = external.compiled_elementwise()[name]
    external.compiled_elementwise.cache_clear()
    for width in (96, 64):
        for lengths in ([33], [40], [50, 3]):
            args = [cut(each, width) if torch.is_tensor(each) else each for each in arguments(name, lengths)]
            function(*args)
    assert len(shapes) == 2
    assert all(isinstance(shape[1], int) for program in shapes for shape in program)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), RuntimeError("no compiler")])
def test_a_piece_that_fails_runs_plain_but_for_want_of_memory(error):
    """Memory that ran out was asked for by the data: the step is tried again with fewer, and compiled."""

    def compiled(x):
        raise error

    piece, x = external.Compiled(reference.swiglu), torch.tensor([[2.0, 0.0]])
    vars(piece)["compiled"] = compiled
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            piece(x)
        assert piece.failure is None
    else:
        with pytest.warns(UserWarning, match="torch.compile of swiglu failed.*no compiler"):
            assert torch.equal(piece(x), reference.swiglu(x))
        assert "no compiler" in piece.failure
