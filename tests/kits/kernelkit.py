"""Inputs for the tests of kernels."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from hnet_cli.kernels.checking import inputs
from hnet_cli.kernels.packing import Packing

some_lengths = st.lists(st.integers(1, 150), min_size=1, max_size=6)
any_lengths = st.one_of(some_lengths, st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda n: [64 * n[0]] * n[1]))
"""Lengths of documents; the second kind are whole blocks."""


def arguments(operation: str, lengths: list[int], seed: int = 0) -> list[Any]:
    """`checking.inputs` for documents of these lengths."""
    return inputs(operation, Packing.of_lengths(lengths), torch.Generator().manual_seed(seed))
