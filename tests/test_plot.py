"""The curves of a run."""

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.plot import Line, read_metrics, run_curves, spark, svg


def written(run, records):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "by')
    return run


def texts(path):
    return [node.text for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_curves_of_a_run(tmp_path):
    stage = {"stage0_bytes_per_chunk": 4.5, "stage0_target_bytes_per_chunk": 5.0, "stage0_target_fraction": 0.2}
    records = [{"step": n, "bytes": 100 * n, "bpb": 8 / n} | stage for n in range(1, 9)]
    run = written(tmp_path / "run", [*records, {"step": 8, "bytes": 800, "val_bpb": 1.5}])
    assert len(read_metrics(run)) == 9
    labels = texts(run_curves(run, {"xz <best>": 2.5}))
    assert {"bits per byte", "bytes per chunk", "training", "validation", "xz <best> 2.50", "stage 0"} <= set(labels)
    assert ElementTree.parse(run / "curves.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("records", [[], [{"step": 1, "bytes": 1, "bpb": 8.0}], [{"step": 1, "skipped": 1}]])
def test_curves_of_almost_nothing(tmp_path, records):
    assert "bits per byte" in texts(run_curves(written(tmp_path / "run", records)))


@given(st.lists(st.tuples(st.floats(0, 1e12), st.floats(-1e6, 1e6)), max_size=9))
def test_curves_stay_in_their_panel(points):
    drawn = svg([("title", [Line("a", [x for x, _ in points], [y for _, y in points])])], "bytes")
    for line in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}polyline"):
        for pair in line.get("points").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 640
            assert 0 <= y <= 220


@given(st.lists(st.floats(-1e9, 1e9), max_size=99), st.integers(1, 50))
def test_a_curve_in_a_line_of_text(values, width):
    drawn = spark(values, width)
    assert len(drawn) == min(width, len(values))
    assert set(drawn) <= set("▁▂▃▄▅▆▇█")


def test_a_rising_line_rises():
    assert spark(range(8)) == "▁▂▃▄▅▆▇█"
    assert spark([3, 3, 3]) == "▁▁▁"
