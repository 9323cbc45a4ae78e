"""The GPU of a Mac, as far as a machine without one can tell: what is asked for it, and no float64 on it."""

import dataclasses

import pytest
import torch
from runkit import TWO_STAGES, dataset, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches
from hnet_cli.distributed.world import World
from hnet_cli.errors import EnvironmentLimit, UsageError
from hnet_cli.kernels import reference
from hnet_cli.model.carry import extend
from hnet_cli.training import budget
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import build_model, multiplies_in_bf16, precision_context, train_step
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
        record = train_step(model, optimizer, [batch], 0, config, autocast)
        bpb = validation(model, data, 64, 2000, [3.0, 2.0])["bpb"]
        state = model.allocate_state(1, 600)
        logits = [model.prefill([b"The quick brown fox"], state), model.step(torch.tensor([32]), state)[0]]
        logits.append(extend(model, torch.tensor(list(b"jumps over the lazy dog" * 10)), state).logits)
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


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="asks what a machine without it says")
def test_a_machine_without_it():
    with pytest.raises(EnvironmentLimit, match="there is no mps: it is the GPU of a Mac") as caught:
        budget.machine("mps")
    assert caught.value.exit_code == 69
    assert budget.machine().device != "mps"
    for device in ("mps:0", "mps:1"):
        with pytest.raises(UsageError, match="is not known"):
            budget.machine(device)


def test_what_a_mac_is_asked(monkeypatch):
    """The GPU has the CPU's memory: what both allow. Kernels are the reference's, products float32."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 << 20)
    for recommended, expected in ((5 << 20, 3 << 20), (1 << 60, budget.cpu_memory())):
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda recommended=recommended: recommended)
        here = budget.machine("mps")
        assert here.memory == pytest.approx(expected, rel=0.5)
    assert not budget.is_lean(tiny(), here.device)
    assert not multiplies_in_bf16(dataclasses.replace(tiny(), precision="auto"), torch.device("mps"))


def test_ranks_do_not_share_it():
    with pytest.raises(UsageError, match="--device mps would be that of all 2 ranks"):
        World(rank=0, size=2, local_rank=0, local_size=2).device("mps")
