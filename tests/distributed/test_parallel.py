"""Gradients summed over replicas: every one once, also where a rank computes its micro-batch in parts."""

import contextlib

import torch
from rankkit import Ranks
from runkit import FLAT, TWO_STAGES, tiny
from stepkit import batch

from hnet_cli.distributed import parallel
from hnet_cli.distributed.parallel import GradientSum
from hnet_cli.distributed.world import ALONE, joined
from hnet_cli.training.build import build_model
from hnet_cli.training.step import accumulate


def test_every_gradient_travels_once():
    ours = (["model.residual=spacebyte"], ["model.adapter_width=16"], ["model.ngram_rows=8"])
    for more in ([], TWO_STAGES, FLAT, *ours):
        model = build_model(tiny(*more))
        model.lm_head.weight.requires_grad_(False)
        sent = [parameter for bucket in GradientSum(model).buckets for parameter in bucket]
        assert len(sent) == len(set(sent))
        assert set(sent) == {parameter for parameter in model.parameters() if parameter.requires_grad}


def test_a_bucket_is_full_at_its_limit(monkeypatch):
    """A gradient larger than the limit travels alone; the first bucket holds what the backward pass completes first."""
    monkeypatch.setattr(parallel, "BUCKET", 40_000)
    model = build_model(tiny())
    buckets = GradientSum(model).buckets
    sizes = [sum(parameter.nbytes for parameter in bucket) for bucket in buckets]
    assert len(buckets) > 2
    assert all(size <= 40_000 or len(bucket) == 1 for size, bucket in zip(sizes, buckets, strict=True))
    assert buckets[0][0] is model.lm_head.weight


def test_a_rank_that_has_to_split_adds_the_same_gradient(tmp_path):
    """Its memory runs out in the middle of the backward pass during which gradients would have left."""
    configuration = tiny("train.batch_bytes=256", "train.micro_batches=2", "train.ratio_loss_weight=0")
    batches = [batch([40, 24, 64], 1), batch([100, 28], 2)]
    weight_sum = sum(float(each.weights.sum()) for each in batches)

    def gradient(world, own, fails):
        torch.manual_seed(0)
        model = build_model(configuration)
        world.spread(model, torch.device("cpu"), False)

        def fail(*_):
            if fails:
                fails.pop()
                raise torch.OutOfMemoryError("none left")

        model.backbone.encoder.layers[0].mixer.register_full_backward_hook(fail)
        splits = accumulate(model, own, weight_sum, 0, configuration, contextlib.nullcontext, False, world)[2]
        return splits, [parameter.grad for parameter in model.parameters()]

    def work(rank):
        with joined("cpu") as world:
            found = gradient(world, batches[rank : rank + 1], [1] * rank)
        if rank == 1:
            torch.save(found, tmp_path / "found")
        return 0

    ranks = Ranks(2, work, tmp_path / "said")
    assert ranks.wait() == [0, 0], [ranks.said(rank) for rank in range(2)]
    none, wanted = gradient(ALONE, batches, [])
    splits, found = torch.load(tmp_path / "found")
    assert (none, splits) == (0, 1)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
