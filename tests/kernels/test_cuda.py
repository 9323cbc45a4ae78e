"""The CUDA kernels' adapters, as far as a CPU can run them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from kernelkit import arguments, some_lengths
from laws import one_in

from hnet_cli.kernels import cuda, reference
from hnet_cli.kernels.checking import compare, relative
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import ScanInputs


def test_split_for_32_bit_offsets_changes_nothing(monkeypatch):
    """The adapter cuts a batch that is too long into groups of documents; the pieces join to the whole."""
    monkeypatch.setattr(cuda, "INT32", 200 * 256)

    def kernel(
        x, dt, A, B, C, chunk_size, D, dt_bias, dt_softplus, seq_idx, cu_seqlens=None, return_varlen_states=False
    ):
        assert x.shape[1] * x.stride(1) < 200 * 256
        lengths = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        inputs = ScanInputs(x[0], dt[0], A, B[0, :, 0], C[0, :, 0], D, dt_bias)
        y, states = reference.ssd_scan_states(inputs, Packing.of_lengths(lengths))
        return (y[None], states) if return_varlen_states else y[None]

    *args, packing, _ = arguments("ssd_scan", [90, 100, 201, 5, 190])
    inputs = ScanInputs(*(a.float() for a in args))
    mamba = cuda.Mamba(kernel, update=None)
    y, states = mamba.ssd_scan_states(inputs, packing, 64)
    expected, expected_states = reference.ssd_scan_states(inputs, packing)
    assert relative(y, expected) < 1e-6
    assert relative(states, expected_states) < 1e-6
    assert relative(mamba.ssd_scan(inputs, packing, 64), expected) < 1e-6


STEP_IN_PLACE = """
import contextlib, torch
torch.cuda.device = lambda *_: contextlib.nullcontext()
from hnet_cli.kernels import cuda, reference
step = cuda.load_mamba().ssd_step
generator = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, generator=generator)
heads, width, size, batch = 2, 16, 16, 5
state, dt_bias, A, D = normal(batch, heads, width, size), normal(heads), -normal(heads).exp(), normal(heads)
for rows, once in ((None, None), ([3, 0], None), ([2, 4, 1, 2], [2, 4, 1, -1]), ([1, 1, 1, 1], [1, -1, -1, -1])):
    index, once = (None if each is None else torch.tensor(each) for each in (rows, once))
    source = torch.arange(batch) if rows is None else index
    given = [each[source] for each in (normal(batch, heads, width), normal(batch, heads))]
    more = [each[source] for each in (normal(batch, size), normal(batch, size))]
    inputs = reference.ScanInputs(*given, A, *more, D, dt_bias)
    ours, theirs = reference.SSMState(state.clone()), reference.SSMState(state.clone())
    for _ in range(2):
        y = step(ours, inputs, index, once)
        expected = reference.ssd_step(theirs, inputs, index)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
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
    result = compare("wide_linear", "", cuda.wide_linear, torch.device("cpu"), torch.bfloat16)
    assert result.ok, result
    assert result.where == "gradient of argument 0"  # given in bfloat16
    x, weight, bias = (each.float() for each in arguments("wide_linear", [600]))
    y = cuda.wide_linear(x.bfloat16(), weight, bias)
    assert y.dtype == torch.float32
    assert 0 < relative(y, reference.wide_linear(x.bfloat16(), weight, bias)) < 1e-5
    for few in (x, x[: cuda.FEW - 1].bfloat16()):  # nothing to gain
        assert torch.equal(cuda.wide_linear(few, weight, bias), reference.wide_linear(few, weight, bias))


@one_in(5)
@given(some_lengths)
def test_the_convolution_that_is_compiled(lengths):
    """Not compiled here: values and gradients by x, weight and bias of what is."""
    convolution = cuda.causal_conv_of(cuda.conv, cuda.conv_gradient)
    for dtype in (torch.float64, torch.bfloat16):
        found = compare("causal_conv", "", convolution, torch.device("cpu"), dtype, lengths=lengths)
        assert found.ok, found


@pytest.mark.slow
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
    cuda.compiled_elementwise.cache_clear()
    function = cuda.compiled_elementwise()[name]
    cuda.compiled_elementwise.cache_clear()
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

    piece, x = cuda.Compiled(reference.swiglu), torch.tensor([[2.0, 0.0]])
    vars(piece)["compiled"] = compiled
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            piece(x)
        assert piece.failure is None
    else:
        with pytest.warns(UserWarning, match="compilation of swiglu failed.*no compiler"):
            assert torch.equal(piece(x), reference.swiglu(x))
        assert "no compiler" in piece.failure
