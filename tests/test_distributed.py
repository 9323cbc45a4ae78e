"""Many ranks give what one gives: the same weights, records and files, whatever happens to one of them."""

import pytest
from rankkit import Ranks
from runkit import TWO_STAGES, dataset, metrics, tiny, weights

from hnet_cli.distributed import joined
from hnet_cli.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("fox"))


def trained(config, data, run, size, **options):
    """The run folder of a training on `size` ranks."""
    if size == 1:
        train(config, data, run, **options)
        return run

    def work(rank):
        with joined("cpu") as world:
            train(config, data, run, world=world, **options)
        return 0

    ranks = Ranks(size, work, run.parent / f"{run.name}-said")
    assert ranks.wait() == [0] * size, [ranks.said(rank) for rank in range(size)]
    return run


def without(records, *words):
    return [{key: value for key, value in record.items() if not any(w in key for w in words)} for record in records]


def test_two_ranks_are_two_micro_batches_bit_for_bit(data, tmp_path):
    config = tiny(*TWO_STAGES, "train.micro_batches=2", "train.samples=true")
    one = trained(config, data, tmp_path / "one", 1)
    two = trained(config, data, tmp_path / "two", 2)
    assert weights(two) == weights(one)
    assert without(metrics(two), "imbalance") == metrics(one)
