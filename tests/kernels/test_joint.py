"""Gradients of the parts of a product, joined without a copy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.kernels import cpu, joint

USES = {
    "in place": lambda part: cpu.gated_rms_norm(torch.ones_like(part), part, torch.ones(part.shape[1]), 1e-5),
    "elsewhere": torch.sin,
    "in place, then more": lambda part: cpu.gated_rms_norm(part.cos(), part, torch.ones(part.shape[1]), 1e-5) * part,
    "twice in place": lambda part: USES["in place"](part) - 2 * USES["in place"](part),
    "not at all": lambda part: part.detach(),
}


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(sorted(USES))), min_size=1, max_size=4), st.integers(0, 9))
def test_the_gradient_is_that_of_a_plain_split(parts, rows):
    """Whatever becomes of the parts, and in a second backward pass too."""
    sizes, grads = [size for size, _ in parts], []
    x = torch.randn(rows, sum(sizes), generator=torch.Generator().manual_seed(rows))
    for split in (joint.split, torch.Tensor.split):
        leaf = x.clone().requires_grad_()
        pieces = split(leaf, sizes) if split is joint.split else leaf.split(sizes, -1)
        used = [USES[use](piece) for piece, (_, use) in zip(pieces, parts, strict=True)]
        total = sum(n * piece.sum() for n, piece in enumerate(used, 1))
        if not total.requires_grad:
            return
        weights = torch.tensor(1.0), torch.tensor(3.0)
        grads.append([torch.autograd.grad(total, leaf, weight, retain_graph=True)[0] for weight in weights])
    for own, plain in zip(*grads, strict=True):
        torch.testing.assert_close(own, plain)


def test_a_kernel_writes_where_the_gradient_is_wanted():
    found = {}
    leaf = torch.randn(6, 7, requires_grad=True)
    product = leaf * 2
    gate, other = joint.split(product, (4, 3))
    for name, tensor in (("product", product), ("gate", gate), ("other", other)):
        tensor.register_hook(lambda grad, name=name: found.update({name: grad}))
    (USES["in place"](gate).sum() + other.sin().sum()).backward()
    memory = {name: grad.untyped_storage().data_ptr() for name, grad in found.items()}
    assert memory["gate"] == memory["product"]
    assert memory["other"] != memory["product"]


def test_without_gradients_it_is_a_split():
    x = torch.randn(3, 5)
    with torch.no_grad():
        parts = joint.split(x.requires_grad_(), (2, 3))
    assert all(part.data_ptr() == view.data_ptr() for part, view in zip(parts, x.split((2, 3), -1), strict=True))
