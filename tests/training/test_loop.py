"""Training: it learns, it repeats itself bit for bit, and nothing that happens to it is lost or hidden."""

import json
import os
import random
import re
import resource
import shutil
import signal
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
from runkit import FLAT, TWO_STAGES, fox, metrics, newest_model, sending, tiny, weights, when

from hnet_cli import storage
from hnet_cli.checkpoints.find import newest
from hnet_cli.config.run import resolve
from hnet_cli.data import baselines
from hnet_cli.data.baselines import xz_bits
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.data.mixture import HeldOut, Mixture
from hnet_cli.data.prepare import preparation
from hnet_cli.errors import BusyError, DamagedError, InputError, Stopped, StorageError
from hnet_cli.modality import get
from hnet_cli.training.loop import train
from hnet_cli.training.validation import validation

RECORD = {"step", "bytes", "loss", "bpb", "ratio_loss", "alignment_loss", "grad_norm", "lr"}
PARTS = {"embeddings", "encoder0", "routing0", "residual0", "decoder0", "main", "head"}
STAGE = {
    "boundary_fraction",
    "target_fraction",
    "mean_boundary_prob",
    "bytes_per_chunk",
    "target_bytes_per_chunk",
    "prob_histogram",
    "undecided",
}


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        [],
        TWO_STAGES,
        pytest.param(FLAT, marks=pytest.mark.slow),
        pytest.param(["model.chunker=characters"], marks=pytest.mark.slow),
        pytest.param(["model.chunker=space"], marks=pytest.mark.slow),
        pytest.param(["model.chunker=fixed:5"], marks=pytest.mark.slow),
        pytest.param(["train.micro_batches=2"], marks=pytest.mark.slow),
    ],
    ids=["one stage", "two stages", "no stage", "characters", "space", "fixed", "micro-batches"],
)
def test_it_learns(data, tmp_path, settings):
    config = tiny(*settings, "train.steps=24", "train.eval_every=0", "train.lr=1e-2")
    result = train(config, data, tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert records[0]["bpb"] == pytest.approx(8, abs=0.5)
    assert result.last["val_bpb"] < 5
    assert result.state.step == 24
    assert result.state.bytes_seen == 24 * 256


def test_records_are_flat_and_complete(whole):
    records = metrics(whole)
    steps = [r for r in records if "loss" in r]
    validations = [r for r in records if "val_bpb" in r]
    assert [r["step"] for r in steps] == list(range(1, 13))
    assert [r["step"] for r in validations] == [4, 8, 12]
    stage = {f"stage0_{key}" for key in STAGE}
    parts = {f"grad_norm_{part}" for part in PARTS} | {"lr_stage0", "lr_stage1"}
    assert all(set(r) == RECORD | stage | parts for r in steps)
    of_validation = {"step", "bytes", "val_bpb", "val_bytes", "val_of", "val_sample", "val_stage0_worth"}
    of_validation |= {f"val_{key}" for key in stage}
    assert [set(r) - of_validation for r in validations] == [set(), {"stage0_flips"}, {"stage0_flips"}]
    assert all(set(r) >= of_validation for r in validations)
    lists = {key for r in records for key, value in r.items() if not isinstance(value, int | float)}
    assert lists == {"stage0_prob_histogram", "val_stage0_prob_histogram", "val_sample"}
    assert steps[-1]["bytes"] == 12 * 256
    assert validations[-1]["val_bytes"] == 512
    assert steps[0]["stage0_target_bytes_per_chunk"] == 4


def test_what_is_logged_does_not_matter(whole, data, tmp_path):
    """Neither the weights nor the records that are written anyway."""
    train(tiny("train.log_every=5"), data, tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert [r["step"] for r in records] == [4, 5, 8, 10, 12, 12]
    assert all(record in metrics(whole) for record in records)
    assert not (tmp_path / "run/samples.jsonl").exists()
    assert weights(tmp_path / "run") == weights(whole)


def test_every_validation_leaves_a_sample(whole, data):
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [4, 8, 12]
    held_out = b"".join(Dataset.open(data).documents("val"))
    for sample in samples:
        assert b64decode(sample["probe"]["base64"]) == held_out[:512]
        assert len(sample["probe"]["depth"]) == 512
        (probability,) = sample["probe"]["probability"]
        assert sample["probe"]["depth"] == [int(p > 0.5) for p in probability]
        assert held_out.startswith(b64decode(sample["sample"]["prompt"]))
        assert len(b64decode(sample["sample"]["base64"])) == len(sample["sample"]["depth"]) > 100


def test_the_run_folder_is_as_documented(whole):
    names = {path.name for path in whole.iterdir()} - {".lock"}
    assert names == {"config.yaml", "metrics.jsonl", "samples.jsonl", "events.jsonl", "checkpoints", "latest", "best"}
    checkpoint = whole / "checkpoints" / (whole / "latest").read_text().strip()
    assert json.loads((checkpoint / "state.json").read_text())["step"] == 12


# -- mixtures ----------------------------------------------------------------------------------------------------------


def test_a_mixture_is_validated_on_each_source_and_as_a_whole(mixed, sources):
    records = [record for record in metrics(mixed) if "val_bpb" in record]
    mixture = Mixture.open(sources)
    one, two = mixture.names
    held_out = HeldOut.choose(mixture, 64, 512)
    model = newest_model(mixed)
    for record in records:
        bits = [record[f"val_bpb/{name}"] for name in mixture.names]
        assert record["val_bpb"] == pytest.approx(0.75 * bits[0] + 0.25 * bits[1])
        assert [record[f"val_share/{name}"] for name in mixture.names] == [0.75, 0.25]
        assert [record[f"val_bytes/{name}"] for name in mixture.names] == [part.bytes for part in held_out.parts]
        assert record["val_bytes"] == held_out.bytes
        assert record["val_of"] == mixture.nbytes("val")
        assert record["val_sample"] == held_out.key
    for name, part in zip(mixture.names, held_out.parts, strict=True):
        assert records[-1][f"val_bpb/{name}"] == pytest.approx(validation(model, part, [4.0])["bpb"], rel=1e-5)
        read = 12 * 256 * {one: 0.75, two: 0.25}[name] / part.dataset.nbytes("train")
        assert records[-1][f"val_epochs/{name}"] == pytest.approx(read, rel=0.02)
    state = json.loads((newest(mixed) / "state.json").read_text())
    best = min(records, key=lambda record: record["val_bpb"])
    assert (state["best_bpb"], state["best_step"]) == (best["val_bpb"], best["step"])
    assert state["dataset"] == mixture.key


def test_a_mixture_is_trained_on_its_batches(mixed, sources, tmp_path):
    """In any division into micro-batches, as far as rounding goes."""
    config = tiny("train.steps=4", "train.eval_every=0", "train.micro_batches=2", "train.ratio_loss_weight=0")
    train(replace(config, train=replace(config.train, micro_batches=1)), sources, tmp_path / "one")
    train(config, sources, tmp_path / "two")
    one, two = ([r["bpb"] for r in metrics(tmp_path / run) if "bpb" in r] for run in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-4)
    assert next(r["bpb"] for r in metrics(mixed) if "bpb" in r) == pytest.approx(one[0], rel=1e-5)


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_the_ratio_loss_follows_its_schedules(data, tmp_path):
    config = tiny(
        "train.ratio_loss_weight=[[0, 1], [1, 0]]",
        "train.target_ratios=[[[0, 2], [0.5, 6]]]",
        "train.alignment_loss_weight=0",
    )
    train(config, data, tmp_path / "run")
    records = metrics(tmp_path / "run")
    steps = [r for r in records if "loss" in r]
    assert [r["ratio_loss_weight"] for r in steps] == pytest.approx([1 - s / 12 for s in range(12)])
    expected = [min(6, 2 + 4 * s / 6) for s in range(12)]
    assert [r["stage0_target_bytes_per_chunk"] for r in steps] == pytest.approx(expected)
    for r, n in zip(steps, expected, strict=True):
        f, g = r["stage0_boundary_fraction"], r["stage0_mean_boundary_prob"]
        assert r["ratio_loss"] == pytest.approx(n / (n - 1) * ((n - 1) * f * g + (1 - f) * (1 - g)), rel=1e-4)
        assert r["loss"] == pytest.approx(r["bpb"] * np.log(2) + r["ratio_loss_weight"] * r["ratio_loss"], rel=1e-5)
    (last,) = [r for r in records if "val_bpb" in r and r["step"] == 12]
    assert last["val_stage0_target_fraction"] == pytest.approx(1 / 6)
    assert newest_model(tmp_path / "run").config.target_ratios == (6.0,)


# -- the same again ----------------------------------------------------------------------------------------------------


def test_the_same_command_gives_the_same_bits(whole, data, tmp_path):
    train(tiny(), data, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)


def test_the_seed_matters(whole, data, tmp_path):
    train(tiny("train.seed=1", "train.steps=1"), data, tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(whole)[0]["loss"]


@pytest.mark.parametrize(
    ("kind", "step", "number"),
    [
        ("eval", 8, "SIGINT"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("checkpoint", 4, "SIGUSR1"), ("step", 6, "SIGTERM"), ("log", 1, "SIGHUP"))
        ),
    ],
)
def test_stopped_and_resumed_is_never_stopped(whole, data, tmp_path, signals, kind, step, number):
    """Also while a validation or a checkpoint is under way."""
    run = tmp_path / "a run"
    listen = when(kind, step, sending(number))
    with pytest.raises(Stopped, match=f"stopped by {number} after step {step + (kind == 'checkpoint')} of 12") as error:
        train(tiny("train.samples=true"), data, run, listen=listen)
    assert f"hnet train --run '{run}' --resume" in error.value.hint
    assert train(tiny("train.samples=true"), data, run, resume=True).last == metrics(whole)[-1]
    assert metrics(run) == metrics(whole)
    assert (run / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert weights(run) == weights(whole)


def test_stopped_twice(whole, data, tmp_path, signals):
    for step, resume in ((3, False), (5, True)):
        with pytest.raises(Stopped):
            train(tiny(), data, tmp_path / "run", resume=resume, listen=when("step", step, sending("SIGTERM")))
    train(tiny(), data, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_loses_no_checkpoint(whole, data, tmp_path, signals):
    def twice():
        sending("SIGINT")()
        sending("SIGINT")()

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), data, run, listen=when("step", 6, twice))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert newest(run).name == "step-00000004"
    train(tiny(), data, run, resume=True)
    assert metrics(run) == metrics(whole)
    assert weights(run) == weights(whole)


def test_what_is_ignored_stays_ignored(data, tmp_path, signals):
    """`nohup hnet train` survives the terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    result = train(tiny(), data, tmp_path / "run", listen=when("step", 6, sending("SIGHUP")))
    assert result.state.step == 12


def test_a_signal_at_the_last_step_finds_nothing_to_stop(data, tmp_path, signals):
    result = train(tiny(), data, tmp_path / "run", listen=when("step", 12, sending("SIGTERM")))
    assert result.state.step == 12


def test_a_record_torn_by_a_kill_is_dropped(whole, data, tmp_path, signals):
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(tiny(), data, run, listen=when("step", 6, sending("SIGTERM")))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "bytes": 1}\n[1]\n{"step": 8, "by')
    train(tiny(), data, run, resume=True)
    assert metrics(run) == metrics(whole)


# -- limited time ------------------------------------------------------------------------------------------------------


def test_a_run_with_limited_time_lays_its_schedule_out_over_fewer_steps(data, tmp_path):
    """And ends as if it had been planned so: the rate has decayed, the configuration says so, nothing is left to do."""
    run, said = tmp_path / "run", []
    config = tiny("train.steps=5000", "train.eval_every=0", "train.min_lr_ratio=0.02")
    result = train(config, data, run, seconds=1.5, listen=lambda kind, record: said.append((kind, record)))
    steps = result.state.step
    assert 1 < steps < 5000
    assert resolve(str(run / "config.yaml")).train == replace(config.train, steps=steps)
    assert [record["steps"] for kind, record in said if kind == "shortened"][-1] == steps
    assert metrics(run)[-2]["lr"] == pytest.approx(0.02 * config.train.lr)
    assert metrics(run)[-1]["step"] == steps == json.loads((newest(run) / "state.json").read_text())["step"]
    assert train(resolve(str(run / "config.yaml")), data, run, resume=True).state.step == steps
    few, before = tiny("train.steps=1", "train.eval_every=0"), metrics(run)
    assert train(few, data, run, resume=True, seconds=1.5, most=1).state.step == steps  # all that were asked are done
    assert metrics(run) == before


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_not_begun_again(whole, data):
    before = weights(whole)
    with pytest.raises(BusyError, match="already holds a run") as error:
        train(tiny(), data, whole)
    assert "--resume" in error.value.hint
    assert weights(whole) == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_live_run_is_left_alone(whole, data, resume):
    before = metrics(whole)
    with storage.FolderLock(whole), pytest.raises(BusyError, match=f"in use by process {os.getpid()}"):
        train(tiny(), data, whole, resume=resume)
    assert metrics(whole) == before


def test_what_fails_before_anything_is_written_leaves_no_folder(data, tmp_path):
    bad = shutil.copytree(data, tmp_path / "bad")
    (bad / "documents.bin").write_bytes(b"")
    with pytest.raises(DamagedError):
        train(tiny(), bad, tmp_path / "runs" / "a")
    with pytest.raises(InputError, match="sequence"):
        train(tiny("train.sequence_length=60000", "train.batch_bytes=60000"), data, tmp_path / "runs" / "a")
    assert os.listdir(tmp_path) == ["bad"]


def test_too_little_data(data, tmp_path):
    with pytest.raises(InputError, match="less than one sequence"):
        train(tiny("train.sequence_length=65536", "train.batch_bytes=65536"), data, tmp_path / "run")


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file_limit():
    """Files may grow to so many bytes, no further; as a full disk, but for this process only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_cannot_be_written_is_no_reason_to_stop(whole, data, tmp_path, file_limit):
    said = []

    def listen(kind, record):
        if kind == "step" and record["step"] in (6, 9):
            file_limit({6: 100_000, 9: None}[record["step"]])
        if kind == "warning":
            said.append(record["message"])

    train(tiny("train.eval_every=0"), data, tmp_path / "run", listen=listen)
    assert len(said) == 1
    assert "step-00000008" in said[0]
    assert said[0].endswith("training goes on")
    assert weights(tmp_path / "run") == weights(whole)


def test_a_schedule_that_cannot_be_written_down_is_written_later(data, tmp_path, file_limit):
    run, said = tmp_path / "run", []

    def listen(kind, record):
        if kind in ("shortened", "eval"):
            file_limit({"shortened": 100, "eval": None}[kind])
        if kind == "warning":
            said.append(record["message"])

    config = tiny("train.steps=5000", "train.eval_every=0", "train.checkpoint_every=5000")
    done = train(config, data, run, seconds=1.5, listen=listen)
    assert any("config.yaml" in message and message.endswith("training goes on") for message in said)
    assert resolve(str(run / "config.yaml")).train.steps == done.state.step < 5000


def test_a_disk_that_stays_full_ends_the_run_and_spares_what_was_saved(data, tmp_path, file_limit):
    run = tmp_path / "run"
    with pytest.raises(StorageError, match="step-00000012"):
        train(tiny("train.eval_every=0"), data, run, listen=when("step", 6, lambda: file_limit(100_000)))
    assert newest(run).name == "step-00000004"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]


def test_three_checkpoints_in_a_row_that_cannot_be_written_end_the_run(data, tmp_path, file_limit):
    with pytest.raises(StorageError, match="step-00000004"):
        train(
            tiny("train.eval_every=0", "train.checkpoint_every=1"),
            data,
            tmp_path / "run",
            listen=when("step", 2, lambda: file_limit(100_000)),
        )
    assert newest(tmp_path / "run").name == "step-00000001"


# -- which bytes -------------------------------------------------------------------------------------------------------


def test_easy_and_hard_text_are_both_validated_on_beside_baselines_of_the_same(tmp_path):
    """Two documents are held out, the easy one first and longer than a validation."""
    easy, hard = tmp_path / "easy.txt", tmp_path / "hard.txt"
    easy.write_bytes(b"All work and no play.\n" * 200)
    hard.write_bytes(bytes(random.Random(0).choices(range(33, 127), k=4400)))
    preparation.prepare([fox(tmp_path)], get("text"), tmp_path / "d", val_inputs=[easy, hard])
    data, run = Dataset.open(tmp_path / "d"), tmp_path / "run"
    config = tiny("train.steps=4", "train.eval_every=2", "train.eval_bytes=1024")
    result = train(config, tmp_path / "d", run)
    windows = Windows(data, "val", 64, 1024)
    assert windows.table[:, 0].tolist() == [1] * 8 + [2] * 8
    records = [record for record in metrics(run) if "val_bpb" in record]
    assert len(records) == 2
    for record in records:
        assert (record["val_bytes"], record["val_of"], record["val_sample"]) == (1024, 8800, windows.key)
        assert record["val_xz"] == pytest.approx(xz_bits(windows.read()) / 1024, abs=1e-4)
        assert record["val_order_k"] == baselines.beside(windows)["order_k"]
    assert result.last == records[-1]

    # with another sample the best begins anew
    said, more = [], tiny("train.steps=6", "train.eval_every=2", "train.eval_bytes=512")
    again = train(more, tmp_path / "d", run, resume=True, listen=lambda kind, record: said.append(record))
    assert any("512 of 8,800 held-out bytes from now on" in record.get("message", "") for record in said)
    assert again.state.best_step == 6
    assert again.state.best_bpb == again.last["val_bpb"]


@pytest.mark.slow
def test_a_higher_learning_rate_than_a_run_ended_with_is_said(data, tmp_path, signals):
    def resumed(*settings):
        said = []
        train(tiny(*settings), data, tmp_path, resume=True, listen=lambda kind, record: said.append(record))
        return [record["message"] for record in said if record.get("event") == "higher rate"]

    with pytest.raises(Stopped):  # while it warms up
        train(tiny("train.warmup=0.5"), data, tmp_path, listen=when("step", 3, sending("SIGINT")))
    assert resumed("train.warmup=0.5") == []
    (message,) = resumed("train.warmup=0.5", "train.steps=24")
    assert re.search("step 13: the learning rate, 4e-05 at step 12, goes on at 0.002, so the loss rises", message)
