"""The comparison with the reference finds wrong operations, and only those."""

import pytest
import torch

from hnet_cli import kernels
from hnet_cli.kernels import reference
from hnet_cli.kernels.checking import compare
from hnet_cli.kernels.packing import Packing


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
    def wrong(*given):
        return 1.01 * reference.attention_step(*given)

    where = (torch.device("cpu"), torch.float32)
    assert compare("attention_step", "right", reference.attention_step, *where, lengths=[1]).ok
    assert not compare("attention_step", "wrong", wrong, *where, lengths=[1]).ok


def test_gradients_that_are_nothing_but_rounding():
    """With one position, no gradient reaches query or key; the gradient of the value is still compared."""
    where = (torch.device("cpu"), torch.float32)
    assert compare("attention", "right", reference.attention, *where, lengths=[1]).ok

    def wrong(q, k, v, packing, window):
        return reference.attention(q, k, 1.01 * v, packing, window)

    assert not compare("attention", "wrong", wrong, *where, lengths=[1]).ok


@pytest.mark.parametrize(
    ("operation", "part"),
    [("mamba_in_step", "causal_conv_step"), ("attention_step", "attend_step"), ("ssd_step", "ssd_step")],
)
def test_what_is_checked_is_not_the_reference_itself(operation, part, monkeypatch):
    """A CPU does small steps as the reference does; those of a check are large enough."""
    ran, real = [], getattr(reference, part)
    monkeypatch.setattr(reference, part, lambda *args: ran.append(args) or real(*args))
    (result,) = kernels.check("cpu", [operation], [torch.float32])
    assert result.ok
    assert len(ran) == 2  # the two steps of the truth
