"""A step in pieces: micro-batches that do not fit are split, activations are computed twice; the gradient stays."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runkit import TWO_STAGES, tiny
from stepkit import batch, gradient

from hnet_cli.model.blocks import Isotropic
from hnet_cli.training import budget
from hnet_cli.training.build import build_model


@given(st.lists(st.integers(1, 40), min_size=2, max_size=7))
def test_halves_are_the_batch(lengths):
    whole = batch(lengths)
    first, second = whole.halves()
    for name in ("inputs", "targets", "weights", "documents", "offsets"):
        assert np.array_equal(np.concatenate([getattr(first, name), getattr(second, name)]), getattr(whole, name))
    for half in (first, second):
        assert half.cu_seqlens[0] == 0
        assert half.cu_seqlens[-1] == len(half.targets) > 0
        assert half.cu_seqlens.dtype == np.int32
    assert np.diff(first.cu_seqlens).tolist() + np.diff(second.cu_seqlens).tolist() == lengths
    assert abs(len(first.targets) - len(second.targets)) <= max(lengths)


@pytest.mark.parametrize("choice", ["main", "all"])
def test_checkpointing_changes_no_bit(choice):
    config = tiny(*TWO_STAGES)
    expected, _, _ = gradient(config, [batch([40, 24, 64])])
    changed = replace(config, train=replace(config.train, activation_checkpointing=choice))
    model = build_model(changed)
    again = [name for name, module in model.named_modules() if isinstance(module, Isotropic) and module.recompute]
    assert len(again) == {"main": 1, "all": 5}[choice]
    found, _, _ = gradient(changed, [batch([40, 24, 64])])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpointing_keeps_less():
    """Memory that autograd holds between the passes shrinks as the plan predicts."""
    held = {}
    for choice in ("none", "main", "all"):
        config = tiny("model.arch_layout=[m2, [T3], m2]", f"train.activation_checkpointing={choice}")
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        model = build_model(config)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.arange(256).view(4, 64))
        held[choice] = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
        assert held[choice] <= budget.needs(config).worst_activations - budget.BASE_MEMORY
    assert held["all"] < 0.5 * held["none"]
    assert held["all"] < held["main"] < held["none"]


SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from stepkit import batch, gradient
from runkit import tiny
rows, length = 8, 2048
whole = batch([length] * rows)
quarters = [*whole.halves(), *whole.halves()]
settings = [f"train.batch_bytes={2 * rows * length}", f"train.sequence_length={length}"]
expected, none, ratios = gradient(tiny(*settings, "train.micro_batches=4"), quarters)
used = int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmPeak")).split()[1])
for more in range(64, 512, 32):  # what the allocator loses in gaps differs from run to run
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + (more << 20), -1))
    found, splits, again = gradient(tiny(*settings, "train.micro_batches=2"), [whole, whole])
    if splits <= 2:
        break
print(json.dumps({
    "before": none, "splits": splits, "ratios": [ratios, again],
    "equal": all(torch.equal(found[name], expected[name]) for name in expected),
}))
gradient(tiny(*settings), [batch([rows * length])])
"""


@pytest.mark.slow
def test_what_does_not_fit_is_halved():
    """Under the first limit that half a micro-batch fits into: the gradient is that of twice as many, to the bit; the
    second one fails when the first has left its gradient. One document that does not fit stays an error."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1] / "kits")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "can't allocate memory" in done.stderr.splitlines()[-1], done.stderr
    result = json.loads(done.stdout)
    assert result["before"] == 0
    assert result["splits"] == 2
    assert result["equal"]
    assert result["ratios"][1] == [ratio / 2 for ratio in result["ratios"][0]]
