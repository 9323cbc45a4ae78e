"""Announced memory and FLOPs of a run, and what fits a machine."""

import dataclasses

import pytest
import torch
from runkit import tiny

from hnet_cli.config.presets import preset_names
from hnet_cli.config.run import resolve
from hnet_cli.distributed.device import GIB, Machine
from hnet_cli.errors import UsageError
from hnet_cli.training.budget import (
    BASE_MEMORY,
    fits,
    is_lean,
    is_sharded,
    needs,
    presets_that_fit,
    settled,
)
from hnet_cli.training.build import build_model


@pytest.mark.parametrize(
    ("preset", "gib", "enough"),
    [
        ("nano", 4, True),
        ("nano-dna", 4, True),
        ("small", 16, True),
        ("2stage-xl", 24, False),
        ("1stage-l", 8, False),
        ("2stage-xl", 141, True),
    ],
)
def test_what_fits(preset, gib, enough):
    assert fits(resolve(preset), Machine("cpu", gib * GIB)) is enough


@pytest.mark.parametrize("preset", preset_names())
def test_needs_are_sane(preset):
    config = resolve(preset)
    found = needs(config)
    assert found.parameters == config.model.num_parameters
    frozen = sum(config.model.count_parameters()[part] for part in config.train.frozen)
    assert found.weights == 16 * found.parameters - 12 * frozen
    assert BASE_MEMORY < found.activations < 200 * GIB
    assert found.memory == found.weights + found.activations
    # Two operations per weight and position; levels inside see fewer positions, attention to everything adds the most.
    assert 0.2 * found.parameters < found.flops_per_byte < 8 * found.parameters


def test_the_parameters_are_those_of_the_model():
    config = tiny()
    assert needs(config).parameters == sum(p.numel() for p in build_model(config).parameters())
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("preset", ["nano", "small", "2stage-xl"])
def test_more_micro_batches_need_less(preset):
    config, least = resolve(preset), 64 if preset == "2stage-xl" else 1
    each = []
    for pieces in (1, 2, 4):
        train = dataclasses.replace(config.train, micro_batches=least * pieces)
        each.append(needs(dataclasses.replace(config, train=train)).activations - BASE_MEMORY)
    assert each[0] == pytest.approx(2 * each[1], abs=4) == pytest.approx(4 * each[2], abs=12)


@pytest.mark.parametrize(
    ("preset", "checkpointing", "rows", "peak"),
    [
        ("small", "none", 4, 1.13),
        ("1stage-l", "none", 4, 27.03),
        ("1stage-l", "main", 4, 20.99),
        ("1stage-xl", "all", 4, 26.30),
        ("2stage-l", "none", 4, 32.39),
        ("2stage-xl", "none", 4, 48.42),
        ("2stage-xl", "main", 4, 41.86),
        ("2stage-xl", "all", 4, 32.99),
    ],
)
def test_what_is_announced_for_a_gpu_was_counted(preset, checkpointing, rows, peak):
    """GiB counted on tensors without values (docs/gpu.md)."""
    bytes_of_rows = rows * resolve(preset).train.sequence_length
    config = resolve(
        preset,
        [
            f"train.batch_bytes={2 * bytes_of_rows}",
            "train.micro_batches=2",
            "precision=bf16",
            f"train.activation_checkpointing={checkpointing}",
        ],
    )
    announced = needs(config, lean=True).memory - BASE_MEMORY
    assert announced / GIB == pytest.approx(peak, rel=0.03)
    assert announced < needs(config).memory - BASE_MEMORY


def test_fused_kernels_need_less_where_they_are(monkeypatch):
    config, there = resolve("1stage-l"), Machine("cuda:0", 30 * GIB)
    reference, attention = dataclasses.replace(config, kernels="reference"), resolve("transformer-l")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not fits(config, there)
    assert is_lean(attention, "cuda:0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert fits(config, there)
    assert not fits(config, Machine("cpu", 30 * GIB))
    assert not fits(reference, there)


def test_presets_that_fit_are_the_largest_first():
    names = [name for name, _ in presets_that_fit(Machine("cpu", 4 * GIB))]
    sizes = [needs(resolve(name)).parameters for name in names]
    assert {"nano", "nano-dna"} <= set(names)
    assert "2stage-xl" not in names
    assert sizes == sorted(sizes, reverse=True)
    assert presets_that_fit(Machine("cpu", 0)) == []


def test_shares_of_a_model_need_less():
    config = resolve("2stage-xl")
    whole, shares = needs(config), [needs(config, ranks) for ranks in (2, 8, 64)]
    assert [share.activations for share in shares] == [whole.activations] * 3
    gathered = [share.weights - whole.weights // ranks for share, ranks in zip(shares, (2, 8, 64), strict=True)]
    assert len(set(gathered)) == 1
    assert 0 < gathered[0] < 0.1 * whole.weights


def test_a_model_is_shared_where_a_copy_does_not_fit():
    config = resolve("2stage-xl")
    needed = needs(config, lean=is_lean(config, "cuda:0")).memory
    small, large = Machine("cuda:0", needed - 1), Machine("cuda:0", needed)
    assert (is_sharded(config, small, 8), is_sharded(config, large, 8), is_sharded(config, small, 1)) == (
        True,
        False,
        False,
    )
    for choice, wanted in (("full", True), ("none", False)):
        chosen = resolve("2stage-xl", [f"train.shard={choice}"])
        assert is_sharded(chosen, small, 8) is is_sharded(chosen, large, 8) is wanted
        assert not is_sharded(chosen, small, 1)


@pytest.mark.parametrize("gib", [1, 4, 10, 22, 40, 78, 139])
@pytest.mark.parametrize(("preset", "ranks"), [("small", 1), ("small", 4), ("base", 1), ("1stage-xl", 1)])
def test_micro_batches_are_the_fewest_that_fit_a_gpu(preset, ranks, gib):
    config, here = resolve(preset, ["train.micro_batches=auto", "train.shard=none"]), Machine("cuda:0", gib * GIB)
    pieces, rows = settled(config, here, ranks).train.micro_batches, config.train.rows
    fitting = []
    for n in range(ranks, rows + 1, ranks):
        if rows % n == 0:
            chosen = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=n))
            if needs(chosen, lean=is_lean(chosen, "cuda:0")).worst_memory <= 0.9 * here.memory:
                fitting.append(n)
    assert pieces == (fitting[0] if fitting else rows)


def test_one_micro_batch_is_enough_for_small_on_a_large_gpu():
    """Smaller GPUs compute it in more, a CPU in pieces of 16 KiB as ever."""
    config = resolve("small")
    gpus = [settled(config, Machine("cuda:0", gib * GIB)).train.pieces for gib in (8, 16, 24, 80)]
    assert gpus == sorted(gpus, reverse=True)
    assert gpus[0] > gpus[-1] == 1
    assert settled(config, Machine("cpu", 1000 * GIB)).train.pieces == 8
    assert settled(config, Machine("cpu", 1 * GIB)).train.pieces > 8


def test_a_number_of_micro_batches_stays_and_auto_is_the_least_memory_until_it_is_one():
    config = resolve("small", ["train.micro_batches=4"])
    assert settled(config, Machine("cuda:0", 1)) == config
    assert settled(config, Machine("cuda:0", 1), 8).train.pieces == 8
    most = resolve("small", [f"train.micro_batches={config.train.rows}"])
    assert needs(resolve("small")) == needs(most)
    with pytest.raises(UsageError, match=r"64 rows .* cannot be shared by 3 ranks") as error:
        settled(resolve("small"), Machine("cpu", GIB), 3)
    assert error.value.hint.startswith("1, 2, 4, 8 ranks can")
    for wrong in ("many", "0", "-1", "1.5"):
        with pytest.raises(UsageError, match=r"train\.micro_batches"):
            resolve("small", [f"train.micro_batches={wrong}"])
