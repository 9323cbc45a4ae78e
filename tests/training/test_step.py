"""One step: the losses and their gradient, micro-batches, and numbers that are not finite."""

import contextlib
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from runkit import dataset, metrics, newest_model, tiny
from stepkit import batch, gradient
from torch.utils._python_dispatch import TorchDispatchMode

from hnet_cli.checkpoints.find import newest
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches
from hnet_cli.errors import NumericalError
from hnet_cli.modality import Document, Modality
from hnet_cli.training.build import build_model, precision_context
from hnet_cli.training.loop import train
from hnet_cli.training.losses import confidence_alignment, entropy_alignment, losses
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import train_step
from hnet_cli.training.validation import to_device


def parts(config, data, seed=0):
    """Operands of `train_step`: model, optimizer, and a function that returns a batch in micro-batches."""
    torch.manual_seed(seed)
    model = build_model(config)
    train = config.train
    batches = Batches(Dataset.open(data), sequence_length=train.sequence_length, rows=train.rows, seed=train.seed)
    rows = train.rows // train.micro_batches
    pieces = [batches.batch(0, (i * rows, (i + 1) * rows)) for i in range(train.micro_batches)]
    return model, build_optimizer(model, config), pieces, precision_context(config, torch.device("cpu"))


def stepped(config, data):
    """The model and record after one step without clipping."""
    config = replace(config, train=replace(config.train, grad_clip=0))
    model, optimizer, pieces, autocast = parts(config, data)
    return model, train_step(model, optimizer, pieces, 0, config, autocast)()


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [[], ["train.ratio_loss_weight=0", "train.alignment_loss_weight=0"]])
def test_any_number_of_micro_batches_is_the_same_byte_loss(data, settings):
    """And the same loss, where no ratio loss is computed from each."""
    records = [stepped(tiny(*settings, f"train.micro_batches={pieces}"), data)[1] for pieces in (1, 2, 4)]
    assert [record["bpb"] for record in records] == pytest.approx([records[0]["bpb"]] * 3, rel=1e-6)
    same = [record["loss"] for record in records] == pytest.approx([records[0]["loss"]] * 3, rel=1e-6)
    assert same == bool(settings)


@pytest.mark.parametrize("again", ["none", "all"])
def test_weights_are_cast_once_for_all_micro_batches(again, monkeypatch):
    """With the same gradient to the bit, also where layers are computed again; nothing is kept beyond the step."""
    config = tiny("train.activation_checkpointing=" + again, "precision=bf16")
    batches = [batch([9, 4], seed) for seed in range(3)]
    counts = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and isinstance(args[0], torch.nn.Parameter):
                counts[-1][id(args[0])] += 1
            return func(*args, **(kwargs or {}))

    def run():
        counts.append(Counter())
        with Casts():
            return gradient(config, batches)[0]

    kept = run()
    monkeypatch.setattr("hnet_cli.training.step.casts_kept", contextlib.nullcontext)
    every = run()
    assert all(torch.equal(kept[name], every[name]) for name in kept)
    once, often = counts
    assert min(often.values()) >= 3
    assert len(once) == len(often)
    assert sum(count > 1 for count in once.values()) == 2  # the convolution casts its weight and bias by itself
    assert not torch.is_autocast_enabled("cpu")


def test_micro_batches_add_up_to_the_batch(data):
    """The next-byte loss of the whole batch; the ratio loss multiplies two means and is the average over the pieces."""
    plain = ["train.ratio_loss_weight=0", "train.alignment_loss_weight=0"]
    one, whole = stepped(tiny(*plain), data)
    two, halves = stepped(tiny(*plain, "train.micro_batches=2"), data)
    assert halves["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert halves["bpb"] == pytest.approx(whole["bpb"], rel=1e-6)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    config = tiny("train.micro_batches=2")
    model, _, pieces, _ = parts(config, data)
    each = [losses(model, *to_device(piece, torch.device("cpu")), 1.0, config.train, 0)[0].ratio for piece in pieces]
    assert halves["ratio_loss"] == pytest.approx(float(sum(each)) / 2, rel=1e-6)


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_loss_is_the_sum_of_its_parts(data, pieces):
    pieces = f"train.micro_batches={pieces}"
    _, plain = stepped(tiny("train.ratio_loss_weight=0", "train.alignment_loss_weight=0", pieces), data)
    _, full = stepped(tiny("train.ratio_loss_weight=0.5", "train.alignment_loss_weight=0.25", pieces), data)
    assert plain["loss"] == pytest.approx(plain["bpb"] * np.log(2), rel=1e-5)
    expected = plain["loss"] + 0.5 * full["ratio_loss"] + 0.25 * full["alignment_loss"]
    assert full["loss"] == pytest.approx(expected, rel=1e-5)
    assert "alignment_loss" not in plain


@pytest.mark.parametrize("chunker", ["learned", "characters"])
def test_the_alignment_that_is_asked_for(data, chunker):
    asked = ["train.alignment_loss_weight=1", f"model.chunker={chunker}"]
    config = tiny(*asked, "train.alignment=entropy")
    model, _, pieces, _ = parts(config, data)
    inputs, targets, cu_seqlens, _ = to_device(pieces[0], torch.device("cpu"))
    out = model(inputs, cu_seqlens=cu_seqlens)
    nll = torch.nn.functional.cross_entropy(out.logits, targets, reduction="none")
    expected = {
        "confidence": confidence_alignment(nll, out.routing[0]),
        "entropy": entropy_alignment(out.logits, nll, out.routing[0], config.train.ratios()[0]),
    }
    assert expected["confidence"].item() != pytest.approx(expected["entropy"].item(), rel=1e-2)
    for name, loss in expected.items():
        _, record = stepped(tiny(*asked, f"train.alignment={name}"), data)
        assert record["alignment_loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(("chunker", "per_chunk"), [("fixed:4", 4), ("space", None)])
def test_chunkers_without_parameters_take_no_part_in_the_loss(data, chunker, per_chunk):
    _, record = stepped(tiny(f"model.chunker={chunker}"), data)
    assert record["ratio_loss"] == record["alignment_loss"] == 0
    assert record["loss"] == pytest.approx(record["bpb"] * np.log(2), rel=1e-5)
    if per_chunk:
        assert record["stage0_bytes_per_chunk"] == pytest.approx(per_chunk, rel=0.05)


def test_weights_of_a_dataset_count(tmp_path):
    """Soft-masked bases weigh less in the loss, not in bits per byte."""
    bases = "".join(random.Random(0).choices("ACGTacgt", k=4000))
    (tmp_path / "a.fa").write_text(f">chr1\n{bases}\n")
    data = dataset(tmp_path, tmp_path / "a.fa", kind="dna")
    config = tiny("train.ratio_loss_weight=0", "train.alignment_loss_weight=0")
    model, optimizer, (batch,), autocast = parts(config, data)
    assert len(set(batch.weights.tolist())) == 2
    with torch.no_grad():
        logits = model(torch.tensor(batch.inputs).long(), cu_seqlens=torch.tensor(batch.cu_seqlens)).logits
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(batch.targets).long(), reduction="none")
    record = train_step(model, optimizer, [batch], 0, config, autocast)()
    weight = torch.tensor(batch.weights)
    assert record["loss"] == pytest.approx(float((nll * weight).sum() / weight.sum()), rel=1e-5)
    assert record["bpb"] == pytest.approx(float(nll.mean()) / np.log(2), rel=1e-5)
    assert record["loss"] != pytest.approx(float(nll.mean()), rel=1e-5)


# -- numbers that are not finite ---------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing(data):
    config = tiny()
    model, optimizer, (batch,), autocast = parts(config, data)
    train_step(model, optimizer, [batch], 0, config, autocast)()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [{k: v.clone() for k, v in state.items()} for state in optimizer.state.values()]
    poisoned = replace(batch, weights=np.where(np.arange(len(batch.targets)) == 7, np.inf, 1).astype(np.float32))
    record = train_step(model, optimizer, [poisoned], 1, config, autocast)()
    assert record["skipped"] == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    after = optimizer.state.values()
    assert all(torch.equal(a[k], b[k]) for a, b in zip(moments, after, strict=True) for k in a)
    assert "skipped" not in train_step(model, optimizer, [batch], 1, config, autocast)()


class Explosive(Modality):
    """Every "!" in a text makes the loss overflow."""

    name, summary = "explosive", ""
    loss_weights = tuple(1e308 if byte == ord("!") else 1.0 for byte in range(256))

    def documents(self, source):
        with source.open() as stream:
            yield Document(stream.read(), source.name, source.name)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_step_that_is_not_finite_is_skipped_and_recorded(tmp_path):
    (tmp_path / "a.txt").write_text("Some words and no more. " * 60 + "!" + "Some words and no more. " * 60)
    data, said = dataset(tmp_path, tmp_path / "a.txt", kind=Explosive()), []
    windows = Dataset.open(data).nbytes("train") // 64
    config = tiny(f"train.steps={windows // 4 + 1}", "train.log_every=1000", "train.eval_every=0")
    result = train(config, data, tmp_path / "run", listen=lambda kind, record: said.append((kind, record)))
    skipped = [record for record in metrics(tmp_path / "run") if "skipped" in record]
    assert 1 <= len(skipped) <= 2
    assert "loss" not in skipped[0]
    assert (skipped[0]["event"], skipped[0]["documents"]) == ("skipped", [0])
    assert result.state.skipped_steps == len(skipped)
    assert result.state.step == config.train.steps
    warned = [record for kind, record in said if kind == "warning"]
    assert (warned[0]["event"], warned[0]["step"]) == ("skipped", skipped[0]["step"])
    assert f"step {skipped[0]['step']}: " in warned[0]["message"]
    assert all(torch.isfinite(p).all() for p in newest_model(tmp_path / "run").parameters())


def test_weights_without_a_finite_loss_displace_no_good_checkpoint(data, tmp_path):
    """And the command named begins from the good one, for no learning rate helps the weights after it."""
    run = tmp_path / "run"
    settings = ["train.eval_every=0", "train.checkpoint_every=2", "train.keep_checkpoints=1", "train.decay=0"]
    train(tiny("train.steps=4", *settings), data, run)
    (run / "best").unlink()  # as in a run that has not been validated yet
    good = newest(run)
    for rate in ("1e15", "1e-9", "1e-9"):
        config = tiny("train.steps=40", f"train.lr={rate}", *settings, "train.grad_clip=0")
        with pytest.raises(NumericalError, match="3 steps in a row") as error:
            train(config, data, run, resume=True)
        assert good.exists()
        assert re.search(f"the (last good checkpoint|checkpoint before) is {good}", str(error.value))
        assert f"hnet train --start {good} --run NEW" in error.value.hint
    assert "no step since" in str(error.value)
    assert error.value.hint.startswith("--resume makes the same steps again")
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_three_in_a_row_end_the_run(data, tmp_path):
    with pytest.raises(NumericalError, match="3 steps in a row") as error:
        train(tiny("train.lr=1e15", "train.warmup=0", "train.eval_every=0"), data, tmp_path / "run")
    assert "lower train.lr" in error.value.hint
    records = metrics(tmp_path / "run")
    assert [("skipped" in r) for r in records[-3:]] == [True] * 3
    assert f"saved in {newest(tmp_path / 'run')}; no earlier checkpoint is known to be good" in str(error.value)
    assert all(torch.isfinite(p).all() for p in newest_model(tmp_path / "run").parameters())
