"""The page of a run: of any age and state, self-contained, and nothing in the data can act in it."""

import base64
import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagekit import checked
from runkit import dataset, tiny

from hnet_cli.report import run_page as report
from hnet_cli.report.history import Sketch
from hnet_cli.training.loop import train

EVIL = "</script><script>alert(1)</script>\x1b[31m\u202e\x9b<b onload=x>&amp;"
OLD = [
    {
        "step": n,
        "bytes": 1000 * n,
        "bpb": 8 / n,
        "grad_norm": 1 / n,
        "lr": 1e-3,
        "bytes_per_s": 500,
        "ratio_loss": 1.0,
        "stage0_bytes_per_chunk": 4.5,
        "stage0_target_bytes_per_chunk": 5.0,
        "stage0_boundary_fraction": 0.22,
        "stage0_target_fraction": 0.2,
        "stage0_mean_boundary_prob": 0.3,
    }
    for n in range(1, 9)
]
CONFIG = "name: nano\ndata: nowhere\ntrain:\n  steps: 8\n"


def written(run, records, config=CONFIG, samples=()):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "by')
    (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (run / "config.yaml").write_text(config)
    return run


def b64(data):
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


def shot(step, text, depth, probability=None, sample=None):
    probe = {"base64": b64(text), "depth": depth, "probability": probability or []}
    return {"step": step, "bytes": 1000 * step, "probe": probe} | ({"sample": sample} if sample else {})


@pytest.mark.parametrize(
    "records",
    [
        [],
        OLD[:1],
        [{"step": 1, "bytes": 1000, "skipped": 1}],
        [{"step": 1}],
        OLD,
        [{"bytes": "x"}, 3, [], None],
        [OLD[0] | {"stage0_prob_histogram": "x", "bpb": None, "lr": True, "event": 7, "val_bpb": "low"}],
    ],
)
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
    worth = {"val_stage0_worth": 0.0004, "val_stage0_worth_low": -0.0002, "val_stage0_worth_high": 0.0009}
    validation = {"step": 5, "bytes": 5000, "val_bpb": 1.5, "stage0_flips": 0.3, "val_stage0_bytes_per_chunk": 4.4}
    records.insert(5, validation | worth)
    page = checked(report.page(written(tmp_path / "run", records)))
    for title in (
        "Bits per byte",
        "Bytes per chunk",
        "Boundary probability p",
        "How settled",
        "Worth of the chunks",
        "(95%: -0.000 to 0.001); less than 0.01: they are not used",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "Losses of the boundaries",
        "Evaluations",
    ):
        assert title in page.text, title
    assert {"validation", "training", "main"} <= page.labels
    assert "1.500" in page.text


@pytest.mark.parametrize("name", ["books", EVIL])
def test_a_mixture_has_a_table_and_curves_of_its_sources(tmp_path, name):
    def validation(n):
        of_each = {"val_bpb/code": 2.5, f"val_bpb/{name}": 2 / n, f"val_share/{name}": 0.8, f"val_epochs/{name}": 3.21}
        return {"step": n, "bytes": 1000 * n, "val_bpb": 2.0} | of_each

    page = checked(report.page(written(tmp_path / "run", [*OLD, validation(4), validation(8)])))
    for words in ("What it is trained on", "Bits per byte of each source", "80.0%", "3.2 times"):
        assert words in page.text
    assert {"code", "all, in their shares"} <= page.labels
    alone = checked(report.page(written(tmp_path / "alone", OLD))).text
    assert "What it is trained on" not in alone
    assert "of each source" not in alone


def test_budgets_have_a_table_once_they_are_measured(tmp_path):
    several, last = CONFIG + "  budgets: [0.5, 1]\n", {"step": 8, "bytes": 8000, "val_bpb": 2.0}
    for config, record, shown in ((several, {"val_bpb_at_0.5": 1.875}, "1.875"), (several, {}, ""), (CONFIG, {}, "")):
        page = checked(report.page(written(tmp_path / "run", [*OLD, last | record], config)))
        assert ("One model, several lengths of chunks" in page.text, shown in page.text) == (bool(shown), True)
        assert ("training with chunks of all budgets" in page.text) == (config == several)


@pytest.mark.slow
def test_a_real_run_and_its_events(tmp_path):
    run = tmp_path / "run"
    train(tiny("train.steps=8", "train.eval_every=4", "train.samples=true"), dataset(tmp_path / "data"), run)
    page = checked(report.write(run).read_text())
    assert "What happened" not in page.text
    events = [{"step": 3, "kind": "warning", "text": "disk <nearly> full"}, {"step": 4, "kind": "resume", "text": ""}]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"step": 5, "ki')
    page = checked(report.page(run))
    marks = {title for tag, name, title in page.attributes if tag == "i" and name == "title"}
    assert marks == {"step 3, warning: disk <nearly> full", "step 4, resume"}
    assert page.text.count("A held-out text in chunks") == 2
    assert "finished" in page.text


def test_a_run_that_recorded_no_events_says_so(tmp_path):
    run = written(tmp_path / "run", [*OLD, OLD[-1] | {"skipped": 1, "event": "spike"}])
    (run / "log.txt").write_text("2026-01-01 00:00:00  warning: step 3: too few boundaries\n")
    page = checked(report.page(run))
    assert "before events were kept" in page.text
    assert "too few boundaries" not in page.text  # a log is for people
    (run / "events.jsonl").write_text("")
    assert "events were kept" not in checked(report.page(run)).text


@pytest.mark.parametrize(
    "key",
    [
        "step",
        "bytes",
        "val_bpb",
        "bpb",
        "lr",
        "grad_norm_x",
        "stage0_bytes_per_chunk",
        "event",
        "val_stage0_bytes_per_chunk",
        "stage0_prob_histogram",
        "lr_stage0",
        f"grad_norm_{EVIL}",
    ],
)
def test_no_value_of_a_foreign_record_acts(tmp_path, key):
    """Each key of a record once with a script in its place, among good ones."""
    good = OLD[-1] | {"val_bpb": 1.5, "stage0_prob_histogram": [1] * 20}
    for value in (EVIL, {EVIL: EVIL}, [EVIL], 10**400, -1e308, True):
        foreign = good | {key: value, "step": value if key == "step" else 9}
        run = written(
            tmp_path / "run", [*OLD, foreign], samples=[{"step": value, "bytes": value, "probe": {"base64": value}}]
        )
        (run / "events.jsonl").write_text(
            json.dumps({"step": value, "kind": value, "text": value, "documents": [value]})
        )
        checked(report.page(run))
        checked(report.comparison({EVIL: run, "b": run}, {EVIL: [["", EVIL], [EVIL, "1"]]}))


def test_nothing_in_the_data_acts(tmp_path):
    config = json.dumps({"name": EVIL, "data": EVIL, "train": {"steps": 9}})
    sample = {"prompt": b64(EVIL), "base64": b64(EVIL), "depth": [1] * len(EVIL.encode())}
    run = written(tmp_path / "<b>x", OLD[:1], config, [shot(1, EVIL, [1, 0] * 40, sample=sample)])
    (run / "events.jsonl").write_text(json.dumps({"step": 1, "kind": EVIL, "text": EVIL, "documents": [EVIL]}) + "\n")
    page = checked(report.page(run))
    assert page.text.count("alert(1)") >= 6


def test_chunks_over_training(tmp_path):
    text = "世界 and “peace”"
    n = len(text.encode())
    samples = [
        shot(s, text, [int(i % s == 0) for i in range(n)], [[None if i % 2 else 0.5 for i in range(n)]])
        for s in range(1, 100)
    ]
    page = checked(report.page(written(tmp_path / "run", OLD, samples=samples)))
    assert page.text.count("A held-out text") == report.MOST_FRAMES
    assert page.text.count(text) == report.MOST_FRAMES  # never a broken character
    assert ("input", "max", str(report.MOST_FRAMES - 1)) in page.attributes
    assert [tag for tag, name, _ in page.attributes if name == "hidden"].count("div") == report.MOST_FRAMES - 1
    assert "Step 99" in page.text


@pytest.mark.parametrize(
    "line",
    [
        {"step": 1, "probe": {"base64": "!"}},
        {"probe": 3},
        {"probe": {"base64": b64("abc"), "depth": "x"}},
        {"sample": None},
        {"probe": {"base64": b64("abc"), "depth": [1] * 9, "probability": [[0.5]]}},
        {"probe": {"base64": b64(b"\xff\xe4"), "depth": []}},
    ],
)
def test_samples_that_cannot_be_read_are_passed_over(tmp_path, line):
    checked(report.page(written(tmp_path / "run", OLD, samples=[line])))


@given(st.text(max_size=30).filter(lambda text: "\ufffd" not in text), st.data())
def test_chunks_drawn_are_the_text(text, data):
    size = len(text.encode("utf-8", "surrogatepass"))
    depth = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    drawn = report.drawn(Sketch(text.encode("utf-8", "surrogatepass"), depth))
    assert drawn.count("<span") == drawn.count("</span>")
    if text.isprintable():
        plain = re.sub("<[^>]*>", "", drawn)
        assert html.unescape(plain) == text
