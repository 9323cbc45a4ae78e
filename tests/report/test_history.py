"""Records of a run folder, whole, torn or foreign."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.report import history

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
