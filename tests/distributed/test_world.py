"""Many ranks give what one gives: the same weights, records and files, whatever happens to one of them."""

import json
import os
import resource
import shutil
import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankkit import hnet, losses, ranks_of, trained, without
from runkit import SETTINGS, TWO_STAGES, dataset, metrics, tiny, weights

from hnet_cli.checkpoints.find import newest
from hnet_cli.config.run import TrainConfig
from hnet_cli.config.sources import DataSource
from hnet_cli.distributed.world import ALONE, World, place
from hnet_cli.errors import UsageError
from hnet_cli.modality import Document, Modality


class Loud(Modality):
    """Weights that differ from byte to byte; a "!" makes the loss overflow."""

    name, summary = "loud", ""
    loss_weights = tuple(1e308 if byte == ord("!") else 0.5 + byte % 2 for byte in range(256))

    def documents(self, source):
        with source.open() as stream:
            for number, line in enumerate(stream.read().split(b"\n\n")):
                yield Document(line, f"{source.name}\t{number}", source.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Documents with many words, with none, and two that cannot be learned from."""
    folder = tmp_path_factory.mktemp("loud")
    documents = ["a b c d e f " * 10, "wordswithoutend" * 8] * 9
    documents[7] += "!"
    (folder / "loud.txt").write_text("\n\n".join(documents))
    return dataset(folder, folder / "loud.txt", kind=Loud())


def settings(*more):
    """Two stages, each wider than the one before, with hashed n-grams: words at first, then learned."""
    wider = "model.d_model=[64, 80, 96]"
    return [
        *SETTINGS,
        *TWO_STAGES,
        wider,
        "model.chunker=[space, learned]",
        "model.ngram_rows=16",
        "train.lr=3e-3",
        "train.steps=8",
        *more,
    ]


def config(*more):
    return tiny(*settings(*more))


def at(rank, step, action):
    """A listener that acts on one rank after one step."""

    def listen(here, kind, record):
        if (here, kind, record.get("step")) == (rank, "step", step):
            action()

    return listen


def sending(name):
    return lambda: os.kill(os.getpid(), signal.Signals[name])


@pytest.fixture(scope="module")
def halves(data, tmp_path_factory):
    """One rank, two micro-batches."""
    return trained(config("train.micro_batches=2"), data, tmp_path_factory.mktemp("halves") / "run", 1)


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """Two ranks."""
    return trained(config(), data, tmp_path_factory.mktemp("pair") / "run", 2)


@pytest.mark.slow
def test_two_ranks_are_two_micro_batches_bit_for_bit(halves, pair):
    """A step that is not finite on one is skipped on both; one has many chunks while the other has few."""
    assert weights(pair) == weights(halves)
    records = metrics(pair)
    assert without(records, "imbalance") == metrics(halves)
    assert any("skipped" in record for record in records)
    assert any("skipped" not in record and "loss" in record for record in records)
    assert max(record.get("stage0_imbalance", 0) for record in records) > 1.5


# -- other numbers of ranks, and what may happen to them ---------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_any_number_of_ranks_goes_on(data, tmp_path):
    quarters = config("train.micro_batches=4")
    whole = losses(trained(quarters, data, tmp_path / "whole", 1))
    run = tmp_path / "run"
    ranks = ranks_of(quarters, data, run, 2, at(1, 5, sending("SIGUSR1")))
    assert ranks.wait() == [75, 75]
    assert ranks.said(0).startswith("hnet: stopped by SIGUSR1 after step 5 of 8; saved in ")
    assert ranks.said(1) == ""
    shutil.copytree(run, tmp_path / "again")
    assert losses(trained(quarters, data, run, 4, resume=True)) == pytest.approx(whole, rel=1e-6)
    assert losses(trained(quarters, data, tmp_path / "again", 1, resume=True)) == pytest.approx(whole, rel=1e-6)


@pytest.mark.slow
def test_shares_of_a_model_are_a_model(data, pair, tmp_path):
    """FSDP2, on ranks with different numbers of chunks, bit for bit; one rank goes on with what two have saved."""
    run = tmp_path / "run"
    ranks = ranks_of(config("train.shard=full"), data, run, 2, at(0, 5, sending("SIGTERM")))
    assert ranks.wait() == [75, 75], ranks.said(0) + ranks.said(1)
    trained(config("train.micro_batches=2"), data, run, 1, resume=True)
    assert losses(run) == losses(pair)
    assert weights(run) == weights(pair)
    found, wanted = ([r["val_bpb"] for r in metrics(each) if "val_bpb" in r] for each in (run, pair))
    assert found == wanted


@pytest.mark.slow
def test_ranks_that_multiply_in_bfloat16(data, tmp_path):
    """FSDP2 gathers weights rounded as autocast rounds them on one rank; layers are recomputed."""
    each = ["precision=bf16", "train.activation_checkpointing=all", "train.steps=2", "train.eval_every=0"]
    one = trained(config("train.micro_batches=2", *each), data, tmp_path / "one", 1)
    two = trained(config("train.shard=full", *each), data, tmp_path / "two", 2)
    assert losses(two) == losses(one)
    assert weights(two) == weights(one)


@pytest.mark.slow
def test_statistics_of_the_batch_are_those_of_one_pass(data, tmp_path):
    each = ["train.steps=3", "train.eval_every=0", "train.ratio_loss_weight=1"]
    one = trained(config(*each), data, tmp_path / "one", 1)
    two = trained(config(*each, "train.ratio_loss_statistics=global"), data, tmp_path / "two", 2)
    for key in ("loss", "ratio_loss", "grad_norm"):
        found, wanted = ([r[key] for r in metrics(each) if key in r] for each in (two, one))
        assert found == pytest.approx(wanted, rel=1e-5), key


@pytest.mark.slow
def test_budgets_of_a_mixture_on_any_number_of_ranks(data, tmp_path):
    """Two ranks are micro-batches of one; what they began, one and four go on with, over the same batches; the whole,
    every source and every budget are validated alike."""
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("".join(f"{n * n} is the square of {n}\n" for n in range(300)))
    sources = [DataSource(path=str(data), weight=3), DataSource(path=str(dataset(tmp_path, numbers)), weight=1)]
    each = [*TWO_STAGES, "train.budgets=[0.5, 1, 2]", "train.target_ratios=[3, 3]", "train.micro_batches=4"]
    given = replace(tiny(*each, "train.steps=6", "train.eval_every=3", "train.checkpoint_every=2"), data=sources)
    wanted = metrics(trained(given, sources, tmp_path / "whole", 1))
    runs = [trained(given, sources, tmp_path / "pair", 2)]
    stopped = ranks_of(given, sources, tmp_path / "one", 2, at(0, 4, sending("SIGTERM")))
    assert stopped.wait() == [75, 75], stopped.said(0)
    shutil.copytree(tmp_path / "one", tmp_path / "four")
    runs += [trained(given, sources, tmp_path / name, n, resume=True) for name, n in (("one", 1), ("four", 4))]
    keys = sorted({"loss", "bpb"} | {key for key in wanted[-1] if "bpb" in key})
    assert len(keys) == 2 + 1 + 2 + 2  # of a validation the whole, two sources, two other budgets
    for run in runs:
        found = metrics(run)
        assert [record["step"] for record in found] == [record["step"] for record in wanted]
        for key in keys:
            values = [[record[key] for record in records if key in record] for records in (found, wanted)]
            assert values[0] == pytest.approx(values[1], rel=1e-5), (run.name, key)


@pytest.mark.slow
def test_a_full_disk_ends_all_ranks(data, tmp_path):
    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    ranks = ranks_of(config("train.eval_every=0"), data, tmp_path / "run", 2, at(0, 6, fill))
    assert ranks.wait() == [74, 74]
    assert "step-00000008" in ranks.said(0).splitlines()[-1]
    assert ranks.said(1) == ""
    assert newest(tmp_path / "run").name == "step-00000005"  # the loss of step 4 is not finite: it waited


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_rank_that_dies_ends_the_others(data, tmp_path, shard):
    each = config(f"train.shard={shard}", "train.checkpoint_every=1")
    ranks = ranks_of(each, data, tmp_path / "run", 2, at(1, 2, sending("SIGKILL")))
    assert ranks.wait(200) == [69, -signal.SIGKILL]
    assert ranks.said(0).startswith("hnet: rank 0 of 2 lost touch with another rank")
    assert ranks.said(0).count("\n") == 1
    assert newest(tmp_path / "run").name == "step-00000001"


@pytest.mark.slow
def test_a_rank_that_waits_for_nobody_gives_up(data, tmp_path):
    arguments = ["train", "--preset", "nano", "--data", data, "--run", tmp_path / "run", "--device", "cpu"]
    ranks = hnet(1, tmp_path / "said", *arguments, WORLD_SIZE="2", HNET_RANK_TIMEOUT="1")
    assert ranks.wait(200) == [69]
    assert ranks.said(0).startswith("hnet: rank 0 of 2 did not meet the others at 127.0.0.1:")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_all_ranks_would_say_is_said_once(data, tmp_path):
    plan = ["train", "--preset", "nano", "--data", data, "--device", "cpu"]
    dry = hnet(2, tmp_path / "dry", *plan, "--run", tmp_path / "run", "--dry-run", "--json")
    wrong = hnet(2, tmp_path / "wrong", *plan, "--run", tmp_path / "run", "--set", "train.batch_bytes=256")
    assert (dry.wait(), wrong.wait()) == ([0, 0], [2, 2])
    facts = json.loads(dry.said(0, "out"))
    assert (facts["ranks"], facts["sharded"]) == (2, False)
    assert wrong.said(0).count("hnet: a batch of 1 rows") == 1
    for other in (dry, wrong):
        assert other.said(1) + other.said(1, "out") == ""


# -- by itself ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
def test_the_shares_of_the_ranks_are_the_batch(size, own, rows):
    pieces = own * size
    shares = [World(rank, size).slices(rows * pieces, pieces) for rank in range(size)]
    assert [row for share in shares for a, b in share for row in range(a, b)] == list(range(rows * pieces))
    assert shares[0][0] == (0, rows)
    assert [piece for share in shares for piece in share] == ALONE.slices(rows * pieces, pieces)


@pytest.mark.parametrize("told", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "x"}])
def test_an_environment_that_makes_no_sense(monkeypatch, told):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="names no rank"):
        place()


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 12))
def test_micro_batches_never_grow_with_more_ranks(ranks, pieces, rows):
    given_train = TrainConfig(batch_bytes=64 * pieces * rows, sequence_length=64, micro_batches=pieces)
    try:
        train = given_train.shared_by(ranks)
    except UsageError:
        assert given_train.rows % ((pieces + ranks - 1) // ranks * ranks)
        return
    assert train.micro_batches % ranks == 0
    assert pieces <= train.micro_batches < pieces + ranks
    assert train.shared_by(ranks) == train


def test_a_gpu_by_its_number_is_not_that_of_every_rank():
    assert World(0, 2, 0, 2).device("cpu") == "cpu"
    assert World().device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="cuda:1 would be that of all 2 ranks"):
        World(1, 2, 1, 2).device("cuda:1")
