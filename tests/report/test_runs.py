"""`hnet runs`: what there is, while it is written, and side by side."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pagekit import checked
from runkit import dataset, tiny

from hnet_cli import storage
from hnet_cli.checkpoints.find import default_model
from hnet_cli.cli import app as cli
from hnet_cli.errors import InputError, UsageError
from hnet_cli.report import history
from hnet_cli.report.runs import ORDERS, show
from hnet_cli.training.loop import train
from hnet_cli.training.plan import _newest_run


def fake(run, bits, steps=100, **changes):
    """A run of 100 bytes a step with a validation every ten steps, of these bits."""
    run.mkdir(parents=True)
    settings = {"steps": steps, "lr": 0.001} | changes
    (run / "config.yaml").write_text(json.dumps({"name": "nano", "data": "data/fox", "train": settings}))
    lines = []
    for n, value in enumerate(bits, start=1):
        step = {"step": 10 * n, "bytes": 1000 * n}
        reached = {"stage0_bytes_per_chunk": 4.0, "stage0_target_bytes_per_chunk": 5.0}
        lines += [step | {"bpb": value + 0.1, "bytes_per_s": 50} | reached, step | {"val_bpb": value}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_narrow_terminal_shows_names_whole(tmp_path, capsys, monkeypatch):
    fake(tmp_path / "runs" / "the-novels-of-the-century-nano", [2.5, 2.4])
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    seen = {}
    for width in (80, 130, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert cli.run(["runs", str(tmp_path / "runs")]) == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert len(rows) == 1
        assert "the-novels-of-the-century-nano" in rows[0]
        assert "…" not in head + rows[0]
        assert max(map(len, (head, *rows))) <= width
        seen[width] = len(head.split("  "))
    assert seen[80] < seen[130] <= seen[200]


def test_bits_at_other_budgets(tmp_path, capsys):
    paths = [fake(tmp_path / name, [2.5, 2.0]) for name in ("one", "several")]
    with (paths[1] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "bytes": 3000, "val_bpb": 2.0, "val_bpb_at_0.5": 1.875}) + "\n")
    assert history.glance(paths[1]).to_dict()["budgets"] == {0.5: 1.875, 1: 2.0}
    assert cli.run(["runs", str(paths[1])]) == 0
    assert "-0.125" in capsys.readouterr().out
    assert cli.run(["runs", *map(str, paths)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "at budget 0.5" in line]
    assert row.split()[-2:] == ["-", "1.875"]


def test_a_real_run_in_every_state(tmp_path, capsys):
    run, data = tmp_path / "runs" / "fox", dataset(tmp_path / "data")
    seen = []

    def listen(kind, record):
        if kind == "eval":
            seen.append(history.glance(run))

    train(tiny("train.steps=8", "train.eval_every=4", "train.checkpoint_every=4"), data, run, listen=listen)
    assert [(g.state, g.step, g.steps) for g in seen] == [("running", 4, 8), ("running", 8, 8)]
    assert str(os.getpid()) in seen[0].about

    done = history.glance(run)
    assert (done.state, done.modality, done.preset) == ("finished", "text", "nano")
    assert done.bpb_best <= done.bpb_last
    records = history.read_metrics(run)
    assert done.bpb_last == records[-1]["val_bpb"]
    bytes_per_chunk, worth = (records[-1][f"val_stage0_{name}"] for name in ("bytes_per_chunk", "worth"))
    assert done.to_dict()["stages"] == [{"bytes_per_chunk": bytes_per_chunk, "target": 4.0, "worth": worth}]

    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "bytes": 99')  # being written
    assert history.glance(run) == done.__class__(**vars(done) | {"when": history.glance(run).when})

    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("steps: 8", "steps: 16"))
    assert history.glance(run).state == "stopped"
    (run / "config.yaml").write_text("train: [")
    assert history.glance(run).state == "damaged"
    (run / "config.yaml").write_text(text)
    shutil.rmtree(run / "checkpoints" / (run / "latest").read_text().strip())
    assert (history.glance(run).state, history.glance(run).about) == (
        "damaged",
        "the checkpoint step-00000008 is missing",
    )
    show([tmp_path / "runs"])
    assert "is missing" in capsys.readouterr().err


def test_a_run_that_failed_is_listed_with_the_reason(tmp_path, capsys):
    run = fake(tmp_path / "a", [3.0])
    (run / "events.jsonl").write_text(json.dumps({"step": 10, "kind": "failed", "text": "[red]no disk\x1b[2J"}) + "\n")
    (listed,) = show([tmp_path]).data["runs"]
    assert (listed["state"], listed["about"]) == ("stopped", "[red]no disk\x1b[2J")
    assert "a: [red]no disk\\x1b[2J" in capsys.readouterr().err


def test_a_lock_left_behind_is_no_running_run(tmp_path):
    run = fake(tmp_path / "a", [3.0])
    (run / ".lock").write_text("elsewhere 1\n")
    assert history.glance(run).state == "stopped"
    with storage.FolderLock(run):
        assert history.glance(run).state == "running"
        assert (run / ".lock").read_text().split()[1] == str(os.getpid())
    with storage.FolderLock(run):  # looking at it left nothing behind
        pass


@pytest.mark.parametrize(("sort", "wanted"), [("name", "abc"), ("bpb", "bca"), ("bytes", "cab"), ("speed", "cba")])
def test_orders(tmp_path, sort, wanted):
    fake(tmp_path / "c", [4, 3, 2.5])
    fake(tmp_path / "a", [4, 3])
    fake(tmp_path / "b", [2])
    for name, speed in (("a", 10), ("b", 20), ("c", 30)):
        with (tmp_path / name / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 100, "bytes": 1, "bpb": 1, "bytes_per_s": speed}) + "\n")
    assert "".join(run["name"] for run in show([tmp_path], sort).data["runs"]) == wanted


def test_every_order_takes_runs_that_have_nothing_yet(tmp_path):
    fake(tmp_path / "a", [4])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").touch()
    for order in ORDERS:
        assert len(show([tmp_path], order).data["runs"]) == 2


def test_a_comparison(tmp_path):
    a, b = fake(tmp_path / "a", [4, 3, 2, 1]), fake(tmp_path / "b", [5, 3], lr=0.002, seed=7)
    shown = show([a, b], out=tmp_path / "page.html")
    assert shown.data["differences"] == {"train.lr": ["0.001", "0.002"], "train.seed": ["-", "7"]}
    assert shown.data["bpb_at_equal_bytes"] == [{"bytes": 1000, "bpb": [4, 5]}, {"bytes": 2000, "bpb": [3, 3]}]
    page = checked((tmp_path / "page.html").read_text())
    assert {"a", "b"} <= page.labels
    assert "train.lr" in page.text


def test_runs_that_have_no_validation_in_common_are_compared_without(tmp_path):
    a, b = fake(tmp_path / "a", [4, 3]), fake(tmp_path / "b", [])
    assert show([a, b], out=tmp_path / "page.html").data["bpb_at_equal_bytes"] == []
    checked((tmp_path / "page.html").read_text())


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    paths = [fake(tmp_path / "x" / "a", [4]), fake(tmp_path / "y" / "a", [3])]
    show(paths, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(str(path) in page for path in paths)


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for paths in ([], [Path("nowhere")], [tmp_path]):
        with pytest.raises(InputError, match="run"):
            show(paths)
    with pytest.raises(UsageError, match="sorted"):
        show([], "beauty")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fake(tmp_path / "runs" / "evil\x1b[2J[bold]", [4])
    fake(tmp_path / "runs" / "b", [3])
    assert cli.run(["runs"]) == 0
    listed = capsys.readouterr().out
    assert "evil\\x1b[2J[bold]" in listed
    assert "10/100" in listed
    assert cli.run(["runs", "--json", "runs/b"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["bpb_last"] == 3
    assert cli.run(["runs", "runs/b", "--out", "b.html"]) == 0
    checked(Path("b.html").read_text())
    assert cli.run(["runs", "nothing"]) == 3
    fake(tmp_path / "runs" / "c", [2])
    capsys.readouterr()
    assert cli.run(["runs", "b", "c"]) == 0  # as the list calls them
    compared = capsys.readouterr().out
    assert "Figures" in compared
    assert "Bits per byte at equal bytes" in compared  # in one piece, though the table is narrow


def test_listing_imports_neither_torch_nor_numpy(tmp_path):
    fake(tmp_path / "a", [4])
    code = f"""
import sys
from hnet_cli.cli import app as cli
assert cli.run(["runs", {str(tmp_path)!r}]) == 0
print([name for name in ("torch", "numpy") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]", done.stderr


def test_runs_validated_on_other_bytes_are_not_compared(tmp_path, capsys):
    """Neither in figures at equal bytes nor in one chart; versions that differ are told."""
    one, two = (fake(tmp_path / name, [3, 2, 1]) for name in ("one", "two"))
    assert "bpb_at_equal_bytes" in show([one, two]).data
    assert show([one, two]).data["bpb_at_equal_bytes"]
    for run, sample in ((one, "aa"), (two, "bb")):
        file = run / "metrics.jsonl"
        marks = f'"val_bytes": 9, "val_of": 10, "val_sample": "{sample}", "val_bpb"'
        file.write_text(file.read_text().replace('"val_bpb"', marks))
    out = tmp_path / "runs.html"
    shown = show([one, two], out=out)
    assert shown.data["bpb_at_equal_bytes"] == []
    assert "validated on different bytes" in capsys.readouterr().err
    assert out.read_text().count("Validation, bits per byte") >= 2
    assert [run["held_out"] for run in shown.data["runs"]] == ["9 of 10 bytes"] * 2
    show([tmp_path], sort="bpb")
    assert "validated on different bytes" in capsys.readouterr().err


def nul_in_latest(run):
    (run / "latest").write_bytes(b"step-\0\n")


def a_number_of_400_digits(run):
    (run / "metrics.jsonl").write_text('{"step": 10, "bytes": %s, "val_bpb": 1.0}\n' % ("9" * 400))


def a_step_of_5000_digits(run):
    (run / "metrics.jsonl").write_text('{"step": %s, "bytes": 1000}\n' % ("9" * 5000))


def steps_of_400_digits(run):
    (run / "config.yaml").write_text('{"train": {"steps": %s}}' % ("9" * 400))


def deep(run):
    (run / "metrics.jsonl").write_text('{"step":' * 100_000)
    (run / "config.yaml").write_text("[" * 100_000)


def folders_for_files(run):
    for name in ("metrics.jsonl", "latest", "events.jsonl"):
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()


def odd_types(run):
    (run / "metrics.jsonl").write_text('{"step": [1], "bytes": 5, "bpb": {}, "val_bpb": "x", "bytes_per_s": null}\n')
    (run / "config.yaml").write_text('{"name": [1], "data": {"a": 1}, "train": [1]}')


def not_utf8(run):
    (run / "config.yaml").write_bytes(b"name: \xff\xfe\n")
    (run / "latest").write_bytes(b"\xff\xfe\n")


def link_loop(run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("metrics.jsonl")


ODD = [nul_in_latest, a_number_of_400_digits, a_step_of_5000_digits, steps_of_400_digits, deep, folders_for_files]
ODD += [odd_types, not_utf8, link_loop]


@pytest.mark.parametrize("spoil", ODD)
def test_one_odd_run_hides_no_other(tmp_path, capsys, monkeypatch, spoil):
    monkeypatch.chdir(tmp_path)
    for name, bits in (("a", [3.0, 2.5]), ("odd", [2.0]), ("z", [2.7, 2.4])):
        fake(tmp_path / "runs" / name, bits)
    spoil(tmp_path / "runs" / "odd")
    for line in ("runs", "runs --json", "runs --out page.html", "runs runs/a runs/odd runs/z --json"):
        assert cli.run(line.split()) == 0
        out = capsys.readouterr().out
        if "--json" in line:
            runs = {run["name"]: run for run in json.loads(out)["runs"]}
            assert (runs["a"]["bpb_best"], runs["z"]["bpb_best"]) == (2.5, 2.4)
        else:
            assert "2.500" in out
            assert "2.400" in out
    checked((tmp_path / "page.html").read_text())
    newest = _newest_run()
    assert newest is not None
    assert newest.name in ("a", "z", "odd")
    assert default_model("text") == "starter:text"


def test_runs_on_a_mixture_are_compared_on_each_source(tmp_path, capsys):
    for name, bits in (("a", [2.5, 2.4]), ("b", [2.6, 2.3])):
        run = fake(tmp_path / name, bits)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if "val_bpb" in line:
                line |= {"val_sample": "same", "val_bpb/books": line["val_bpb"] - 0.1, "val_bpb/code": 3.0}
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.run(["runs", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"bits per byte, last, books +2\.300 +2\.200\n", out)
    assert re.search(r"bits per byte, last, code +3\.000 +3\.000\n", out)
    assert cli.run(["runs", str(tmp_path / "a"), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert [(source["name"], source["bpb"]) for source in run["sources"]] == [("books", 2.3), ("code", 3.0)]
