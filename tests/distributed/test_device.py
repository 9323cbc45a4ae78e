"""The device of a run and the memory it is said to have."""

import pytest
import torch

from hnet_cli.distributed.device import cpu_memory, this_machine
from hnet_cli.errors import EnvironmentLimit, UsageError


def test_this_machine():
    here = this_machine("cpu")
    assert here.device == "cpu"
    assert 0 < cpu_memory() < 2**50
    assert this_machine().device in ("cpu", "cuda:0")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "CPU", "cpu:0", ""])
def test_a_device_of_no_known_kind(device):
    with pytest.raises(UsageError, match=f"--device '{device}'"):
        this_machine(device)


def test_a_device_that_is_not_there():
    with pytest.raises(EnvironmentLimit, match="cuda:99"):
        this_machine("cuda:99")


def test_ranks_on_a_cpu_share_its_memory():
    assert this_machine("cpu", 4).memory == pytest.approx(this_machine("cpu").memory / 4, rel=0.5)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="asks what a machine without it says")
def test_a_machine_without_mps():
    with pytest.raises(EnvironmentLimit, match="there is no mps: it is the GPU of a Mac") as caught:
        this_machine("mps")
    assert caught.value.exit_code == 69
    assert this_machine().device != "mps"
    for device in ("mps:0", "mps:1"):
        with pytest.raises(UsageError, match="is not known"):
            this_machine(device)


def test_what_a_mac_is_asked(monkeypatch):
    """The GPU has the CPU's memory, as far as both allow."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 << 20)
    for recommended, expected in ((5 << 20, 3 << 20), (1 << 60, cpu_memory())):
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda recommended=recommended: recommended)
        here = this_machine("mps")
        assert here.memory == pytest.approx(expected, rel=0.5)
