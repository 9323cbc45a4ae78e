"""Records of a run folder, whole, torn or foreign."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangerkit import KINDS, changed, replaced

from hnet_cli.report import history, run_page, runs

RECORDS = [{"step": n, "bytes": 1000 * n} for n in range(1, 6)]


def test_time_is_that_of_training_steps():
    records = [{"bytes": 1000, "bytes_per_s": 100}, {"bytes": 1000, "val_bpb": 1}, {"bytes": 3000, "bytes_per_s": 400}]
    seconds = history.clock(records)
    assert [seconds(b) for b in (0, 500, 1000, 2000, 3000, 9000)] == [0, 5, 10, 12.5, 15, 15]
    assert history.clock([])(5) == 0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-9, 9)), min_size=1, max_size=6, unique_by=lambda p: p[0]))
def test_between_two_points_a_curve_is_between_them(points):
    xs, ys = zip(*sorted(points), strict=True)
    assert [history.interpolated(xs, ys, x) for x in xs] == pytest.approx(ys)
    assert history.interpolated(xs, ys, xs[0] - 1) is history.interpolated(xs, ys, xs[-1] + 1) is None
    for n in range(1, len(xs)):
        middle = history.interpolated(xs, ys, (xs[n - 1] + xs[n]) / 2)
        assert min(ys[n - 1 : n + 1]) - 1e-9 <= middle <= max(ys[n - 1 : n + 1]) + 1e-9


def test_events_have_their_place_among_the_records(tmp_path):
    assert history.read_events(tmp_path, RECORDS) is None  # recorded before there were events
    lines = [
        {"step": 5, "kind": "skipped", "text": "not finite", "documents": [4, 7]},
        {"step": 3, "kind": "resume", "text": "went on"},
        {"step": 99, "kind": "spike"},
        {"kind": 7, "step": "x", "text": None, "documents": "x"},
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n[1]\n{"step": 4, "kind": "spi')
    events = [(e.kind, e.step, e.bytes, e.text) for e in history.read_events(tmp_path, RECORDS)]
    assert events == [
        ("", 0, 1000, ""),
        ("resume", 3, 3000, "went on"),
        ("skipped", 5, 5000, "not finite; documents 4, 7"),
        ("spike", 99, 5000, ""),
    ]
    assert history.read_events(tmp_path, [])[0].bytes == 0


@pytest.mark.parametrize("kind", ["stopped", "failed", "spike"])
def test_a_run_that_stopped_says_why(tmp_path, kind):
    assert history.ending(tmp_path) == ""
    lines = [{"step": 1, "kind": "failed", "text": "before"}, {"step": 2, "kind": kind, "text": "the disk is full"}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert history.ending(tmp_path) == ("" if kind == "spike" else "the disk is full")


def test_a_validation_says_which_bytes_it_is_of():
    old, whole = {"val_bytes": 512}, {"val_bytes": 512, "val_of": 512, "val_sample": "a"}
    assert history.bytes_of(old) == "512 bytes"
    assert history.bytes_of(whole) == "all 512 bytes"
    assert history.bytes_of({"val_bytes": 5120, "val_of": 10_000}) == "5,120 of 10,000 bytes"
    assert history.bytes_of(whole | {"val_completions": 1}) == "all 512 bytes of completions"
    dataset = {"baselines": {"xz": 3.0, "order_k": 2.5, "k": 4, "bytes": 512}, "splits": {"val": {"bytes": 512}}}
    assert history.beside(old, dataset) == {"xz": 3.0, "order-4": 2.5}
    assert history.beside({"val_bytes": 511}, dataset) == {}  # measured on other bytes
    assert history.beside(old, dataset | {"splits": {"val": {"bytes": 900}}}) == {}
    measured = whole | {"val_xz": 1.5, "val_order_k": float("nan"), "val_k": 1, "val_uniform": 2.0}
    assert history.beside(measured, dataset) == {"xz": 1.5, "uniform": 2.0}
    for foreign in (None, [], {"val": 3}):
        assert history.beside(old, {"baselines": foreign, "splits": foreign}) == {}


def test_validations_of_other_bytes_are_not_compared(tmp_path):
    rows = [
        {"val_bpb": 1.0, "val_bytes": 9},
        {"val_bpb": 2.0, "val_bytes": 10, "val_of": 20, "val_sample": "a"},
        {"bpb": 3.0},
        {"val_bpb": 4.0, "val_bytes": 12, "val_of": 20, "val_sample": "b"},
        {"val_bpb": 3.5, "val_bytes": 12, "val_of": 20, "val_sample": "b"},
    ]
    lines = [json.dumps(record | row) for record, row in zip(RECORDS, rows, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert history.series(history.read_metrics(tmp_path), "val_bpb")[1] == [4.0, 3.5]
    run = history.glance(tmp_path)
    assert (run.bpb_best, run.held_out, run.sample) == (3.5, "12 of 20 bytes", "b")
    early = [{"val_bpb": 1.0, "val_bytes": 20}, {"val_bpb": 2.0, "val_bytes": 20, "val_of": 20, "val_sample": "a"}]
    assert history.comparable(early) == early  # all of it, then and now


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "samples.jsonl", "config.yaml", "latest", ".lock"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_which_a_file_is_something_else_is_listed(tmp_path, name, kind):
    """With the others, and its page is written."""
    for run in ("a", "b"):
        shutil.copytree(Path(__file__).parents[1] / "golden/run-1/run", tmp_path / run)
    replaced(tmp_path / "a" / name, kind)
    shown = {run["name"]: run["state"] for run in runs.show([tmp_path]).data["runs"]}
    assert shown["b"] == "finished"
    if name in ("metrics.jsonl", "config.yaml", "latest"):
        assert shown["a"] == "damaged" or kind == "empty"
    assert "</html>" in run_page.page(tmp_path / "a")


@pytest.mark.slow
def test_records_of_a_stranger_make_a_page_or_are_passed_over(tmp_path):
    """Whatever is in a line, and JSON can say what is shown of it."""
    run = tmp_path / "a"
    shutil.copytree(Path(__file__).parents[1] / "golden/run-1/run", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    event = {"step": 2, "kind": "skipped", "text": "x", "documents": [1, 2]}
    sketch = {"base64": "YWJj", "prompt": "YQ==", "depth": [1, 0, 1], "probability": [[0.1, None, 0.3]]}
    sample = {"step": 2, "bytes": 9, "probe": sketch, "sample": sketch}
    for number in range(30):
        luck = random.Random(number)
        hostile = {"metrics": json.loads(luck.choice(lines)), "events": event, "samples": sample}
        for name, record in hostile.items():
            more = [changed(record, luck)[0].replace("\n", " ") for _ in range(5)]
            (run / f"{name}.jsonl").write_text("\n".join([*(lines if name == "metrics" else []), *more]) + "\n")
        assert "</html>" in run_page.page(run)
        json.dumps(history.glance(run).to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ("data/fox", "data/fox"),
        ([{"path": "a", "weight": 8}, {"path": "b", "weight": 0.5}], "a:8, b:0.5"),
        ([{"path": "a"}, {"path": "b", "weight": "x"}], "a, b"),
        ([{"path": 1}, 7, None, [], {"weight": 8}, {"path": ""}, {"path": "a"}], "a"),
        ([{"path": "x" * 50}] * 100, ", ".join(["x" * 50] * 64)[:2000]),
        (7, None),
        ({"path": "a"}, None),
        (None, None),
    ],
)
def test_the_data_of_a_run_whatever_its_file_says(tmp_path, data, read):
    (tmp_path / "config.yaml").write_text(json.dumps({"data": data, "train": {"steps": 5}}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    glance = history.glance(tmp_path)
    assert (glance.data, glance.state) == (read, "finished")
    assert history.find_sources(tmp_path, history.sources_in({"data": data})) is None


def test_all_datasets_of_a_run_are_found_or_none(tmp_path):
    run, sources = tmp_path / "runs/x", history.sources_in({"data": [{"path": "data/a"}, {"path": "data/b"}]})
    for name in "ab":
        assert history.find_sources(run, sources) is None
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "dataset.json").touch()
    found = history.find_sources(run, sources)
    assert [source.path for source in found] == [str(tmp_path / "data" / name) for name in "ab"]


def test_a_run_on_a_failing_disk_is_damaged(tmp_path, monkeypatch):
    run, real = tmp_path / "run", os.open
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))

    def failing(path, *more, **options):
        if str(path).endswith("metrics.jsonl"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", failing)
    glance = history.glance(run)
    assert (glance.state, glance.step) == ("damaged", 0)
    assert "input/output error" in glance.about


def test_of_a_long_run_the_spikes_and_the_best_remain(tmp_path, monkeypatch):
    """Memory is that of so many records; what a page and the list say of the run does not change."""
    records = [{"step": n, "bytes": n, "bpb": 3.0, "grad_norm": 1 + n % 7 / 10} for n in range(1, 999)]
    records[500]["grad_norm"] = 80.0
    scored = [{"step": n, "bytes": n, "val_bpb": 2.0 + (n != 123)} for n in range(3, 999, 10)]
    rows = sorted([*records, *scored], key=lambda row: row["step"])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, before = history.read_metrics(tmp_path), history.glance(tmp_path)
    assert whole == rows
    monkeypatch.setattr(history, "MOST_RECORDS", 32)
    kept = history.read_metrics(tmp_path)
    assert 32 <= len(kept) <= 2 * 33
    assert kept == [row for row in rows if row in kept]
    assert {501, 123, 998} <= {row["step"] for row in kept}
    assert {row["grad_norm"] for row in kept if "grad_norm" in row} - {80.0} == {1 + n / 10 for n in range(7)}
    assert history.glance(tmp_path) == before
    assert before.bpb_best == 2.0


def test_time_of_a_long_run_is_that_of_all_its_records(tmp_path, monkeypatch):
    rows = [{"step": n, "bytes": 1000 * n, "bytes_per_s": 4000 if n % 2 else 1000} for n in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(history, "MOST_RECORDS", 32)
    seconds = history.clock(history.read_metrics(tmp_path))
    assert seconds(1_000_000) == pytest.approx(625)
    assert seconds(500_000) == pytest.approx(312.5, rel=0.01)


def test_a_record_takes_no_more_memory_than_one_of_ours(tmp_path):
    row = {"step": 1, "bytes": 1, "a" * 5000: 1, "b": [1] * 10_001, "c": {}, **{f"k{n}": n for n in range(9000)}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    ((found),) = history.read_metrics(tmp_path)
    assert found == {"step": 1, "bytes": 1} | {f"k{n}": n for n in range(history.MOST_KEYS - 3)}
