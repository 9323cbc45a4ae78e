"""The page of a run: of any age and state, self-contained, and nothing in the data can act in it."""

import base64
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagekit import checked
from runkit import dataset, tiny

from hnet_cli.report import history
from hnet_cli.report import run_page as report
from hnet_cli.report.history import Sketch
from hnet_cli.training.loop import train

EVIL = "</script><script>alert(1)</script>\x1b[31m\u202e\x9b<b onload=x>&amp;"
OLD = [
    {"step": n, "bytes": 1000 * n, "bpb": 8 / n, "grad_norm": 1 / n, "lr": 1e-3, "bytes_per_s": 500, "ratio_loss": 1.0,
     "stage0_bytes_per_chunk": 4.5, "stage0_target_bytes_per_chunk": 5.0, "stage0_boundary_fraction": 0.22,
     "stage0_target_fraction": 0.2, "stage0_mean_boundary_prob": 0.3} for n in range(1, 9)
]  # fmt: skip
CONFIG = "name: nano\ndata: nowhere\ntrain:\n  steps: 8\n"


def written(run, records, config=CONFIG, samples=(), log=""):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "by')
    (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (run / "config.yaml").write_text(config)
    (run / "log.txt").write_text(log)
    return run


def b64(data):
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


def shot(step, text, depth, probability=None, sample=None):
    probe = {"base64": b64(text), "depth": depth, "probability": probability or []}
    return {"step": step, "bytes": 1000 * step, "probe": probe} | ({"sample": sample} if sample else {})


@pytest.mark.parametrize("records", [
    [], OLD[:1], [{"step": 1, "bytes": 1000, "skipped": 1}], [{"step": 1}], OLD, [{"bytes": "x"}, 3, [], None],
    [OLD[0] | {"stage0_prob_histogram": "x", "bpb": None, "lr": True, "event": 7, "val_bpb": "low"}],
])  # fmt: skip
def test_a_run_of_any_age(tmp_path, records):
    page = checked(report.page(written(tmp_path / "run", records)))
    assert "run" in page.text
    assert ("no records yet" in page.text) == (
        not [r for r in records if isinstance(r, dict) and r.get("bytes") == 1000]
    )


def test_a_run_folder_without_anything(tmp_path):
    assert "no records yet" in checked(report.page(tmp_path)).text


def test_what_is_drawn(tmp_path):
    new = {"stage0_prob_histogram": [*range(20)], "stage0_undecided": 0.1, "grad_norm_main": 0.5, "lr_stage0": 1e-3}
    records = [record | new for record in OLD]
    records.insert(
        5, {"step": 5, "bytes": 5000, "val_bpb": 1.5, "stage0_flips": 0.3, "val_stage0_bytes_per_chunk": 4.4}
    )
    page = checked(report.page(written(tmp_path / "run", records)))
    for title in ("Bits per byte", "Bytes per chunk", "Boundary probability p", "How settled", "Gradient norm",
                  "Learning rate", "Throughput", "Losses of the boundaries", "Evaluations"):  # fmt: skip
        assert title in page.text, title
    assert {"validation", "training", "main"} <= set(page.values("data-label"))
    assert "1.500" in page.text


def test_a_real_run_and_its_events(tmp_path):
    run = tmp_path / "run"
    train(tiny("train.steps=8", "train.eval_every=4", "train.samples=true"), dataset(tmp_path / "data"), run)
    (run / "log.txt").write_text("2026-01-01 00:00:00  step 3  x\n2026-01-01 00:00:01  warning: disk <nearly> full\n"
                                 "2026-01-01 00:00:02  going on from step 4\n")  # fmt: skip
    page = checked(report.write(run).read_text())
    marks = {title for tag, name, title in page.attributes if tag == "i" and name == "title"}
    assert marks == {"step 3, warning: disk <nearly> full", "step 4, resume: went on from a checkpoint"}
    assert page.text.count("A held-out text in chunks") == 2
    assert "finished" in page.text


def test_events_are_told_with_what_the_log_says(tmp_path):
    records = [*OLD[:3], OLD[3] | {"skipped": 1}, OLD[4] | {"event": "spike", "documents": [4, 7]}]
    when = "2026-01-01 00:00:00  "
    lines = ["step 2  x", "warning: disk full", "warning: step 5: the loss jumped", "warning: step 5: the loss jumped",
             "warning: step 3: too few boundaries", "going on from step 3; train.lr 1 -> 2"]  # fmt: skip
    run = written(tmp_path / "run", records, log="".join(f"{when}{line}\n" for line in lines))
    happened = [(event.kind, event.step, event.bytes, event.text) for event in history.events(run, records)]
    assert happened == [
        ("warning", 2, 2000, "disk full"),
        ("resume", 3, 3000, "went on from a checkpoint; train.lr 1 -> 2"),
        ("warning", 3, 3000, "too few boundaries"),
        ("skipped", 4, 4000, ""),
        ("spike", 5, 5000, "the loss jumped; documents 4, 7"),
    ]
    assert checked(report.page(run)).text.count("the loss jumped") == 1


def test_nothing_in_the_data_acts(tmp_path):
    log = f"2026-01-01 00:00:01  warning: {EVIL}\n"
    config = json.dumps({"name": EVIL, "data": EVIL, "train": {"steps": 9}})
    sample = {"prompt": b64(EVIL), "base64": b64(EVIL), "depth": [1] * len(EVIL.encode())}
    samples = [shot(1, EVIL, [1, 0] * 40, sample=sample)]
    run = written(tmp_path / "<b>x", [OLD[0] | {"event": EVIL, "documents": EVIL}], config, samples, log)
    page = checked(report.page(run))
    assert page.text.count("alert(1)") >= 4
    checked(report.comparison([run, run], [EVIL, "b"], [(EVIL, [["", EVIL], [EVIL, "1"]])]))


def test_chunks_over_training(tmp_path):
    text = "世界 and “peace”"
    n = len(text.encode())
    samples = [shot(s, text, [int(i % s == 0) for i in range(n)], [[None if i % 2 else 0.5 for i in range(n)]])
               for s in range(1, 100)]  # fmt: skip
    page = checked(report.page(written(tmp_path / "run", OLD, samples=samples)))
    assert page.text.count("A held-out text") == report.FRAMES
    assert page.text.count(text) == report.FRAMES  # never a broken character
    assert ("input", "max", str(report.FRAMES - 1)) in page.attributes
    assert page.values("hidden").count("") == report.FRAMES - 1
    assert "Step 99" in page.text


@pytest.mark.parametrize("line", [
    {"step": 1, "probe": {"base64": "!"}}, {"probe": 3}, {"probe": {"base64": b64("abc"), "depth": "x"}},
    {"sample": None}, {"probe": {"base64": b64("abc"), "depth": [1] * 9, "probability": [[0.5]]}},
    {"probe": {"base64": b64(b"\xff\xe4"), "depth": []}},
])  # fmt: skip
def test_samples_that_cannot_be_read_are_passed_over(tmp_path, line):
    checked(report.page(written(tmp_path / "run", OLD, samples=[line])))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30).filter(lambda text: "\ufffd" not in text), st.data())
def test_chunks_drawn_are_the_text(text, data):
    size = len(text.encode("utf-8", "surrogatepass"))
    depth = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    html = report.drawn(Sketch(text.encode("utf-8", "surrogatepass"), depth))
    assert html.count("<span") == html.count("</span>")
    if text.isprintable():
        plain = re.sub("<[^>]*>", "", html)
        assert plain == text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace(
            '"', "&quot;"
        ).replace("'", "&#x27;")


def test_time_is_that_of_training_steps():
    records = [{"bytes": 1000, "bytes_per_s": 100}, {"bytes": 1000, "val_bpb": 1}, {"bytes": 3000, "bytes_per_s": 400}]
    seconds = history.clock(records)
    assert [seconds(b) for b in (0, 500, 1000, 2000, 3000, 9000)] == [0, 5, 10, 12.5, 15, 15]
    assert history.clock([])(5) == 0
