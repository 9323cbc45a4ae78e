"""The commands as functions: the same results, the same refusals."""

import json
import math

import numpy as np
import pytest
from runkit import SETTINGS, fox
from typer.testing import CliRunner

import hnet_cli
from hnet_cli.api import default_name
from hnet_cli.cli.app import app
from hnet_cli.errors import InputError, UsageError


def test_from_files_to_figures(tmp_path, monkeypatch, capsys):
    """One of each, as a script would: and the commands give the same."""
    monkeypatch.chdir(tmp_path)
    file = fox(tmp_path)
    summary = hnet_cli.prepare(file, val=0.1, modality="text")
    assert summary.path.name == file.stem
    assert summary.splits["val"]["bytes"] > 0
    settings = {key: value for key, _, value in (setting.partition("=") for setting in SETTINGS)}
    result = hnet_cli.train(summary.path, "runs/a", preset="nano", settings=settings, device="cpu")
    assert result.state.step == 12
    assert repr(result).startswith("<runs/a: 12 steps, ")
    curves = hnet_cli.metrics("runs/a")
    assert curves["step"].dtype == np.int64
    assert len({len(column) for column in curves.values()}) == 1
    assert curves["val_bpb"][~np.isnan(curves["val_bpb"])][-1] == result.last["val_bpb"]
    figures = hnet_cli.evaluate("runs/a", summary.path, max_bytes=2000, samples=False)
    model = hnet_cli.load("runs/a")
    assert hnet_cli.evaluate(model, summary.path, max_bytes=2000, samples=False)["bpb"] == figures["bpb"]
    capsys.readouterr()
    shown = CliRunner().invoke(
        app, ["eval", "runs/a", "--data", str(summary.path), "--max-bytes", "2000", "--no-samples", "--json"]
    )
    assert math.isclose(json.loads(shown.stdout)["bpb"], figures["bpb"])


def test_one_gold_file_or_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gold.txt").write_text("共同  创造  美好  的  新  世纪\n" * 9, encoding="utf-8")
    one, several = (
        hnet_cli.evaluate("starter:chinese", gold=gold, samples=False) for gold in ("gold.txt", ["gold.txt"])
    )
    assert one["gold"] == several["gold"]
    with pytest.raises(UsageError, match="nothing to evaluate"):
        hnet_cli.evaluate("starter:chinese", gold=None, tasks=None)


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ("a/b-1.0.tar.gz", "b-1.0"),
        ("b-1.1.tgz", "b-1.1"),
        ("genome.fa.gz", "genome"),
        ("notes.txt", "notes"),
        ("-", "stdin"),
        ("https://x.org/v1/data.jsonl.zst?key=1", "data"),
        (".gz", "gz"),
    ],
)
def test_a_dataset_has_the_name_of_its_first_input(first, name):
    assert default_name(first) == name


def test_every_record_of_a_run_is_a_row(tmp_path):
    """Validations of other bytes too, and of long runs more than a page shows."""
    records = [{"step": step, "bytes": step, "bpb": 2.0} for step in range(1, 12_001)]
    records += [{"step": 12_000, "bytes": 9, "val_bpb": 2.0, "val_sample": sample} for sample in "ab"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    curves = hnet_cli.metrics(tmp_path)
    assert curves["step"].tolist() == [record["step"] for record in records]
    assert curves["step"].dtype == np.int64
    assert (~np.isnan(curves["val_bpb"])).sum() == 2
    (tmp_path / "metrics.jsonl").write_text('{"bytes": 1, "bpb": 2.0}\n{"step": 2, "bytes": 2}\n')
    assert np.isnan(hnet_cli.metrics(tmp_path)["step"]).tolist() == [True, False]


def test_settings_are_a_mapping_or_lines(tmp_path):
    with pytest.raises(UsageError, match=r"train\.stepz"):
        hnet_cli.train(tmp_path, preset="nano", settings={"train.stepz": 3})
    with pytest.raises(UsageError, match=r"train\.lr"):
        hnet_cli.train(tmp_path, preset="nano", settings=["train.lr=fast"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hnet_cli.prepare([]), UsageError, "nothing to prepare"),
        (lambda: hnet_cli.prepare("a", val=0.1, val_inputs="b"), UsageError, "exclude each other"),
        (lambda: hnet_cli.prepare("a", val=2), UsageError, "between 0 and 1"),
        (lambda: hnet_cli.train("a", strict=True), UsageError, "--resume"),
        (lambda: hnet_cli.train("a", resume=True, start="starter:text"), UsageError, "begins a run"),
        (lambda: hnet_cli.train("nowhere"), InputError, "does not exist"),
        (lambda: hnet_cli.evaluate("starter:text", colour="red"), UsageError, "unexpected keyword argument 'colour'"),
        (lambda: hnet_cli.evaluate("nowhere"), InputError, "no model at nowhere"),
        (lambda: hnet_cli.metrics("nowhere"), InputError, "is no run"),
        (lambda: hnet_cli.load("starter:dna").chunks("ACGT", stage="all"), UsageError, "one stage is wanted"),
        (lambda: hnet_cli.load("starter:dna").sample("ACGT", seed=-1), UsageError, "--seed"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_package_lists_what_it_offers():
    assert {"load", "prepare", "train", "evaluate", "metrics", "HNetConfig", "__version__"} <= set(dir(hnet_cli))
    assert all(hasattr(hnet_cli, name) for name in hnet_cli.__all__)
