"""The GPU of a Mac, as far as a machine without one can tell: kernels of the reference, float32, no float64."""

import dataclasses

import pytest
import torch
from runkit import TWO_STAGES, dataset, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches, Windows
from hnet_cli.distributed.world import World
from hnet_cli.errors import UsageError
from hnet_cli.kernels import reference
from hnet_cli.training import budget
from hnet_cli.training.build import build_model, multiplies_in_bf16, precision_context
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import train_step
from hnet_cli.training.validation import validation

CPU = torch.device("cpu")


class Wide(TorchDispatchMode):
    """Notes operations that give float64."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(each, torch.Tensor) and each.dtype == torch.float64 for each in tree_leaves(out)):
            self.found.add(str(func))
        return out


def worked(data):
    """A training step with its backward pass, a validation, a prompt, steps and blocks of generation, all with the
    reference's kernels on this CPU: the record, bits per byte, logits, and what gave float64."""
    config = dataclasses.replace(tiny(*TWO_STAGES, "model.chunker=[characters, learned]"), kernels="reference")
    torch.manual_seed(0)
    model = build_model(config)
    optimizer, autocast = build_optimizer(model, config), precision_context(config, CPU)
    batch = Batches(data, sequence_length=64, rows=4, seed=0).batch(0, (0, 4))
    with Wide() as wide:
        record = train_step(model, optimizer, [batch], 0, config, autocast)()
        bpb = validation(model, Windows(data, "val", 64, 2000), [3.0, 2.0])["bpb"]
        state = model.allocate_state(1, 600)
        logits = [model.prefill([b"The quick brown fox"], state), model.step(torch.tensor([32]), state)[0]]
        logits.append(model.extend(b"jumps over the lazy dog" * 10, state).logits)
    return record, bpb, torch.cat(logits), wide.found


def test_no_float64_where_a_device_has_none(tmp_path, monkeypatch):
    data = Dataset.open(dataset(tmp_path / "fox"))
    record, bpb, logits, wide = worked(data)
    assert wide
    monkeypatch.setattr(reference, "WITHOUT_FLOAT64", {"cpu"})
    its_record, its_bpb, its_logits, wide = worked(data)
    assert not wide
    assert its_bpb == pytest.approx(bpb, rel=1e-5)
    torch.testing.assert_close(its_logits, logits, rtol=1e-4, atol=1e-4)
    for name, value in record.items():
        assert its_record[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_mac_multiplies_in_float32_with_the_kernels_of_the_reference():
    assert not budget.is_lean(tiny(), "mps")
    assert not multiplies_in_bf16(dataclasses.replace(tiny(), precision="auto"), torch.device("mps"))


def test_ranks_do_not_share_it():
    with pytest.raises(UsageError, match="--device mps would be that of all 2 ranks"):
        World(rank=0, size=2, local_rank=0, local_size=2).device("mps")
