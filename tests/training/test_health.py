"""Figures of a step: the routers' decisions and the gradient norm of every part."""

import pytest
import torch
from modelkit import tiny_config, tiny_model
from runkit import FLAT, TWO_STAGES, tiny
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hnet_cli.model import RoutingOutput
from hnet_cli.training.build import build_model
from hnet_cli.training.health import BINS, clip_gradient, read, routing_counts, short_part, stage_metrics


def routed(*probabilities):
    prob = torch.tensor(probabilities)
    return RoutingOutput(prob, prob > 0.5, torch.tensor([0, len(prob)]))


def test_counts_of_a_stage_by_hand():
    """0.45 and 0.5499 are undecided, 0.55 is not; 1 belongs to the last bin."""
    routing = [routed(1.0, 0.45, 0.5499, 0.55, 0.0, 0.049, 0.05, 0.999), routed(1.0, 0.2, 0.5, 0.7)]
    counts = routing_counts(routing).flatten().tolist()
    record = stage_metrics(counts, 8, [2.0, 3.0])
    assert record["stage0_prob_histogram"] == [2, 1, *[0] * 7, 1, 1, 1, *[0] * 7, 2]
    assert record["stage0_undecided"] == 2 / 8
    assert record["stage0_boundary_fraction"] == 4 / 8
    assert record["stage0_mean_boundary_prob"] == pytest.approx(3.6479 / 8)
    assert (record["stage0_target_fraction"], record["stage1_target_fraction"]) == (1 / 2, 1 / 3)
    assert (record["stage0_bytes_per_chunk"], record["stage1_bytes_per_chunk"]) == (2, 4)
    assert (record["stage0_target_bytes_per_chunk"], record["stage1_target_bytes_per_chunk"]) == (2, 6)
    assert record["stage1_undecided"] == 1 / 4


def test_counts_of_passes_add_up():
    prob = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    whole = routing_counts([routed(*prob.tolist())])
    parts = [routing_counts([routed(*part.tolist())]) for part in prob.split([1, 399, 600])]
    assert torch.allclose(torch.stack(parts).sum(0), whole)
    assert whole[0, 3:].sum() == 1000
    assert torch.equal(routing_counts([routed(*prob.tolist())], histogram=False), whole[:, :3])
    assert whole.shape == (1, 3 + BINS)


def test_without_histograms_there_are_none():
    record = stage_metrics(routing_counts([routed(1.0, 0.2)], histogram=False).flatten().tolist(), 2, [2.0])
    assert not {"stage0_prob_histogram", "stage0_undecided"} & set(record)


def test_all_is_read_at_once():
    values = {"a": torch.tensor(1.5), "none": torch.zeros(0), "b": torch.tensor([[1, 2], [3, 4]])}
    assert read(values) == {"a": [1.5], "none": [], "b": [1, 2, 3, 4]}


def test_a_model_without_stages_is_read_on_a_gpu_too():
    """Reading stops only at the values, which a fake GPU does not have."""
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        read({"loss": torch.ones(2, device="cuda"), "counts": routing_counts([])})


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (FLAT, {"embeddings", "main", "head"}),
        ([], {"embeddings", "encoder0", "routing0", "residual0", "main", "decoder0", "head"}),
        (
            TWO_STAGES,
            {"embeddings", "head", "main"}
            | {f"{part}{s}" for s in (0, 1) for part in ("encoder", "routing", "residual", "decoder")},
        ),
        (
            ["model.d_model=[64, 96]"],
            {"embeddings", "encoder0", "routing0", "residual0", "padding1", "main", "decoder0", "head"},
        ),
    ],
)
def test_every_parameter_has_its_part(settings, parts):
    model = build_model(tiny(*settings))
    assert {short_part(name) for name, _ in model.named_parameters()} == parts


@pytest.mark.parametrize("largest", [0.0, 0.01, 1e9])
def test_the_parts_add_up_to_the_norm_that_is_clipped(largest):
    model = tiny_model(torch.float32, config=tiny_config())
    out = model(torch.randint(97, 123, (2, 40), generator=torch.Generator().manual_seed(0)))
    out.logits.logsumexp(-1).sum().backward()
    reference = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    total = torch.cat([gradient.flatten() for gradient in reference]).double().norm()
    norm, parts = clip_gradient(model, largest)
    assert norm.item() == pytest.approx(total.item(), rel=1e-5)
    assert sum(part.item() ** 2 for part in parts.values()) == pytest.approx(total.item() ** 2, rel=1e-5)
    encoder = [p.grad for name, p in model.named_parameters() if name.startswith("backbone.encoder.")]
    assert parts["encoder0"].item() * (min(1, largest / total.item()) if largest else 1) == pytest.approx(
        torch.cat([gradient.flatten() for gradient in encoder]).norm().item(), rel=1e-4
    )
    scale = min(1.0, largest / total.item()) if largest else 1.0
    for gradient, before in zip((p.grad for p in model.parameters() if p.grad is not None), reference, strict=True):
        torch.testing.assert_close(gradient, before * scale, rtol=1e-4, atol=0)
