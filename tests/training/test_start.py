"""Runs that begin with a trained model: its architecture, few epochs; and that know where they come from."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from rowkit import PAIRS, rows_dataset
from runkit import TWO_STAGES, metrics, newest_model, tiny, weights, when

from hnet_cli import modality
from hnet_cli.checkpoints.find import load, newest
from hnet_cli.checkpoints.model_folder import save_model
from hnet_cli.config.presets import preset_names
from hnet_cli.config.run import resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.errors import InputError, Stopped, UsageError
from hnet_cli.evaluation.exact import figures, rows_of
from hnet_cli.evaluation.material import gather
from hnet_cli.training.build import build_model
from hnet_cli.training.loop import train
from hnet_cli.training.optim import rate_multipliers
from hnet_cli.training.start import EPOCHS, tuned


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_dataset(tmp_path_factory.mktemp("rows"), PAIRS * 2)


def test_a_starter_gives_its_architecture_and_the_rest_follows(rows):
    config, why = tuned("starter:text", ["train.warmup=0.2"], rows, "cpu")
    nano = resolve("nano")
    assert replace(config.model, extra={}) == replace(load("starter:text").config, extra={}, target_ratios=None)
    assert (config.train.start, config.train.sequence_length, config.train.target_ratios) == (
        "starter:text",
        2048,
        [5.5, 3.0],
    )
    assert (config.train.lr, config.train.lr_multipliers) == (2e-3, [1.0, 0.8, 0.5])  # as its card says
    assert config.train.steps == EPOCHS * -(-rows.nbytes("train") // 4096)
    assert (config.train.warmup, config.train.ratio_loss_weight) == (0.2, nano.train.ratio_loss_weight)
    assert config.name == "from-text"
    assert "preset nano" in why
    assert f"{config.train.steps:,} steps" in why
    assert tuned("starter:text", ["train.lr=1e-3"], rows, "cpu")[0].train.lr == 1e-3
    with pytest.raises(UsageError, match=r"--set train\.lrr"):
        tuned("starter:text", ["train.lrr=1"], rows, "cpu")
    with pytest.raises(InputError, match="no starter model"):
        tuned("starter:klingon", [], rows, "cpu")


@pytest.mark.parametrize(
    "settings", [["train.steps=2000"], ["train.batch_bytes=8192"], ["train.batch_bytes=8192", "train.steps=50"]]
)
def test_what_follows_from_a_setting_follows_from_the_users(settings, rows):
    train = tuned("starter:text", settings, rows, "cpu")[0].train
    asked = dict(setting.split("=") for setting in settings)
    per_epoch = -(-rows.nbytes("train") // train.batch_bytes)
    assert train.steps == int(asked.get("train.steps", EPOCHS * per_epoch))
    assert train.eval_every == -(-train.steps // 10)
    assert tuned("starter:text", ["train.eval_every=7"], rows, "cpu")[0].train.eval_every == 7


def test_a_run_goes_on_as_it_was_trained(whole, rows):
    config, why = tuned(str(whole), [], rows, "cpu")
    before = tiny()
    assert config.model == before.model
    assert config.train.batch_bytes == before.train.batch_bytes
    assert config.train.steps == before.train.steps  # fewer than read the data three times
    assert config.name == f"from-{whole.name}"
    assert "its run" in why


def test_a_folder_that_names_no_preset_is_like_that_of_the_modality(tmp_path, rows):
    config = tiny(*TWO_STAGES)
    torch.manual_seed(0)
    folder = tmp_path / "a model"
    folder.mkdir()
    save_model(folder, build_model(config), {"preset": "mine"}, [3.0, 2.0])
    assert "mine" not in preset_names()
    found, _ = tuned(str(folder), [], rows, "cpu")
    assert found.train.lr == resolve("nano").train.lr
    assert (found.model.num_stages, found.train.target_ratios, found.train.lr_multipliers) == (2, [3.0, 2.0], "auto")
    assert found.name == "from-a-model"


@pytest.mark.parametrize("given", ["auto", "[0.5, 0]"])
def test_a_checkpoint_names_the_rates_it_was_trained_with(whole, rows, tmp_path, given):
    """Without its run, as after `hnet convert`, and whatever today's presets say."""
    config, _ = tuned(str(whole), ["train.steps=1", "train.lr=0.0123", f"train.lr_multipliers={given}"], rows, "cpu")
    train(config, rows.path, tmp_path / "one")
    shutil.copytree(newest(tmp_path / "one"), tmp_path / "alone")
    (tmp_path / "alone" / "config.yaml").unlink()
    found, _ = tuned(str(tmp_path / "alone"), [], rows, "cpu")
    assert (found.train.lr, found.train.lr_multipliers) == (0.0123, rate_multipliers(config))


@pytest.mark.slow
def test_a_run_on_rows_from_another_run_resumes_to_the_same_bits(whole, rows, tmp_path):
    """And says which model it began with."""
    config, _ = tuned(str(whole), ["train.steps=6", "train.eval_every=3", "train.checkpoint_every=3"], rows, "cpu")
    train(config, rows.path, tmp_path / "one")
    runs = tmp_path / "one", tmp_path / "two"

    def stop():
        raise Stopped("stopped", "")

    with pytest.raises(Stopped):
        train(config, rows.path, runs[1], listen=when("step", 5, stop))
    train(config, rows.path, runs[1], resume=True)
    assert weights(runs[0]) == weights(runs[1])
    assert metrics(runs[0]) == metrics(runs[1])
    made = json.loads((newest(runs[0]) / "config.json").read_text())["hnet"]["made"]
    start = made["start"]
    assert start["model"] == str(whole)
    assert len(start["sha256"]) == 64
    again = json.loads((newest(runs[1]) / "config.json").read_text())["hnet"]["made"]
    assert again["before"][0]["start"] == start
    first = newest_model(runs[0]).state_dict()["lm_head.weight"]
    assert not torch.equal(first, newest_model(whole).state_dict()["lm_head.weight"])
    last = metrics(runs[0])[-1]
    assert (last["val_completions"], last["val_of"]) == (1, Windows(rows, "val", 64).of)
    assert last["val_bytes"] < Dataset.open(rows.path).nbytes("val")


@pytest.mark.slow
def test_rows_are_learned_by_heart_and_answered_to_the_byte(tmp_path):
    """Answers that follow from nothing: loss, end mark, split and greedy decoding must all be right for each."""
    asked = [prompt.strip() for prompt, _ in PAIRS]
    pairs = [(f"{prompt}\n", asked[37 * number % len(asked)]) for number, prompt in enumerate(asked)]
    data = rows_dataset(tmp_path, pairs)
    config = tiny("train.steps=250", "train.lr=6e-3", "train.batch_bytes=512", "train.checkpoint_every=250")
    config = replace(config, train=replace(config.train, eval_every=0, log_every=250, weight_decay=0.0))
    train(config, data.path, tmp_path / "run")
    trained = set(data.documents("train"))
    text = modality.get("text")
    rows = rows_of(gather([str(tmp_path / "rows.jsonl")], text, None, ("prompt", "completion")).documents)
    learned = [row for row in rows if row.prompt + row.completion + b"\xff" in trained]
    assert len(learned) == len(trained) < len(rows)
    measured = figures(load(str(tmp_path / "run")).eval(), learned, text)
    assert measured["exact"] == measured["forced"] == 1, measured["wrong"]
    assert max(measured["trivial"].values()) < 0.05
