"""Bits per byte with honest counts: every byte once, whatever the windows and batches."""

import math

import numpy as np
import pytest
import torch
from rowkit import rows_dataset
from runkit import dataset, tiny

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.evaluation import compression
from hnet_cli.inference.scoring import Scores, Stretch, passes
from hnet_cli.model.config import BOS
from hnet_cli.training import validation as evaluate
from hnet_cli.training.build import build_model
from hnet_cli.training.validation import validation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Dataset.open(dataset(tmp_path_factory.mktemp("fox")))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tiny())


@pytest.mark.parametrize("max_bytes", [100, 1000, 10**9])
def test_bits_per_byte_are_those_of_every_byte_once(data, model, max_bytes):
    (held_out,) = data.documents("val")
    windows = Windows(data, "val", 64, max_bytes)
    first = windows.table[0, 1]
    nats, count = 0.0, 0
    for start, size in (windows.table[:, 2:] - [first, 0]).tolist():
        target = held_out[start : start + size]
        count += size
        given = bytes([BOS if start == 0 else held_out[start - 1]]) + target[:-1]
        with torch.no_grad():
            logits = model(torch.tensor([list(given)])).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(list(target)), reduction="sum"))
    scored = validation(model, windows, [4.0])
    assert scored["bytes"] == count == min(len(held_out), max_bytes // 64 * 64 if max_bytes < 10**9 else 10**9)
    assert scored["bpb"] == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_the_size_of_a_pass_changes_nothing(data, model, monkeypatch):
    whole = validation(model, Windows(data, "val", 64, 2000), [4.0])
    monkeypatch.setattr(evaluate, "PIECE", 100)
    pieces = validation(model, Windows(data, "val", 64, 2000), [4.0])
    assert pieces.pop("stage0_prob_histogram") == whole.pop("stage0_prob_histogram")
    assert pieces == pytest.approx(whole, rel=1e-5)


def test_an_untrained_model_knows_nothing_and_stays_in_training(data, model):
    model.train()
    scored = validation(model, Windows(data, "val", 64, 500), [4.0])
    assert scored["bpb"] == pytest.approx(8, abs=0.4)
    assert model.training
    assert scored["stage0_target_fraction"] == 0.25
    assert scored["stage0_bytes_per_chunk"] == pytest.approx(1 / scored["stage0_boundary_fraction"])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("length", [64, 24])
def test_of_rows_only_completions_count(model, tmp_path, length):
    """And the marks that end them; what a window does not hold of a prompt is not seen."""
    rows = rows_dataset(tmp_path)
    nats = count = 0
    for row in rows.documents("val"):
        counted, seen = len(row) - row.index(b"\n") - 1, row[-length:]
        assert counted <= len(seen)
        with torch.no_grad():
            logits = model(torch.tensor([[BOS, *seen[:-1]]])).logits[0, -counted:]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(list(seen[-counted:])), reduction="sum"))
        count += counted
    scored = validation(model, Windows(rows, "val", length), [4.0])
    assert scored["bytes"] == count
    assert scored["bpb"] == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_the_worth_is_that_of_eval_on_a_part_of_the_windows(data, model):
    """The same as by `hnet eval`'s measure, whose bootstrap interval is near the one of standard errors."""
    windows = Windows(data, "val", 64, 64 * 64)
    scored = validation(model, windows, [4.0])
    rows = windows.part(8).table.tolist()
    (held_out,) = data.documents("val")
    first = windows.table[0, 1]
    stretches = [
        Stretch(bytes([held_out[start - first - 1] if start > first else BOS]) + text[:-1], text, 0, n, False)
        for n, (_, _, start, size) in enumerate(rows)
        for text in [held_out[start - first : start - first + size]]
    ]

    def score():
        parts = list(passes(model.eval(), stretches))
        nats = np.concatenate([np.add.reduceat(part.nats, part.offsets[:-1]) for part in parts])
        sizes = np.array([len(stretch.targets) for stretch in stretches])
        return Scores(np.arange(len(rows)), sizes, nats, np.zeros((len(rows), 1, 6)))

    (found,) = compression.worth(model, score)
    assert scored["stage0_worth"] == pytest.approx(found["worth"], rel=1e-4, abs=1e-7)
    ends = [scored["stage0_worth_low"], scored["stage0_worth_high"]]
    assert ends == pytest.approx(found["worth_ci95"], abs=0.5 * (ends[1] - ends[0]))


def test_few_windows_have_a_worth_without_an_interval(data, model):
    scored = validation(model, Windows(data, "val", 64, 500), [4.0])
    assert math.isfinite(scored["stage0_worth"])
    assert "stage0_worth_low" not in scored
