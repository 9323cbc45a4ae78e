"""Multiple choice and last words from local files."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.errors import InputError
from hnet_cli.evaluation import tasks
from hnet_cli.inference.continuations import loglikelihoods
from hnet_cli.inference.windows import BOS

ROWS = [
    {"ctx_a": "He sits [x] down.", "ctx_b": "he", "activity_label": "Chairs", "endings": ["a b", "c"], "label": "1"},
    {"goal": "Open it", "sol1": "Pull.", "sol2": "Push.", "label": 0},
    {"question": "Why?", "choices": {"text": ["so", "no"], "label": ["A", "B"]}, "answerKey": "B"},
    {"query": "Q", "choices": ["x", "y"], "gold": 1},
    {"context": "I do not care about", "continuation": "signs"},
    {"text": "a last word"},
]


def test_shapes_of_tasks(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert tasks.read_items(file) == [
        tasks.Item("Chairs: He sits down. He", ("a b", "c"), 1),
        tasks.Item("Question: Open it\nAnswer:", ("Pull.", "Push."), 0),
        tasks.Item("Question: Why?\nAnswer:", ("so", "no"), 1),
        tasks.Item("Q", ("x", "y"), 1),
        tasks.Item("I do not care about", ("signs",), 0),
        tasks.Item("a last", ("word",), 0),
    ]
    marked = "".join(f"\ufeff{json.dumps(row)}\n" for row in ROWS)  # of files joined, each with its byte order mark
    (tmp_path / "marked.jsonl").write_text(marked, encoding="utf-8")
    assert tasks.read_items(tmp_path / "marked.jsonl") == tasks.read_items(file)
    (tmp_path / "blank.jsonl").write_text("\n \n" + file.read_text())
    assert tasks.read_items(tmp_path / "blank.jsonl") == tasks.read_items(file)
    (tmp_path / "wide.jsonl").write_text(file.read_text(), encoding="utf-16")
    with pytest.raises(InputError, match=r"wide\.jsonl is UTF-16LE: convert it first"):
        tasks.read_items(tmp_path / "wide.jsonl")
    lines = tmp_path / "hellaswag.txt"
    lines.write_text("Cooking: she\n2\none\ntwo\nthree\nfour\n")
    assert tasks.read_items(lines) == [tasks.Item("Cooking: she", ("one", "two", "three", "four"), 2)]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "no items"),
        ('{"query": "a", "choices": ["b"], "gold": 3}\n', "line 1"),
        ('{"query": "a", "choices": ["b"], "gold": 0}\n{"other": 1}\n', "line 2"),
        ('{"query": "a", "choices": ["b"], "gold": 1e400}\n', "line 1"),
        ('{"query": "a"\n', "line 1"),
        ('{"query": "a", "choices": ["\\ud800"], "gold": 0}\n', "line 1"),
        ("text\n5\na\nb\nc\nd\n", "line 2"),
        ("text\n1\na\nb\n", "line 2"),
        ('{"goal": "g", "sol1": "x", "sol2": "y", "label": -1}\n', "no ending is the right one: -1 of 2"),
        ("# A page\n\na\nb\nc\nd\n", "line 2"),
        ("one line\n", "line 2"),
        ("text\n1\na\nb\nc\nd\nand a line too many\n", "line 8"),
    ],
)
def test_a_bad_task_is_named_by_its_line(tmp_path, text, where):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(InputError, match=where):
        tasks.read_items(tmp_path / "bad")


def test_choices_by_hand(model):
    items = [tasks.Item("Some text", ("one", "a longer one", "x"), answer) for answer in range(3)]
    log, _ = loglikelihoods(model, [(BOS + b"Some text", b" " + each.encode()) for each in items[0].endings])
    best, best_norm = log.argmax(), (log / [3, 12, 1]).argmax()
    outcome = tasks.score_items(model, items)
    assert outcome.right.tolist() == [answer == best for answer in range(3)]
    assert outcome.right_norm.tolist() == [answer == best_norm for answer in range(3)]
    assert outcome.log == pytest.approx(log, rel=1e-6)
    found = tasks.figures(outcome)
    assert found["answer_bpb"] == pytest.approx(-log.sum() / math.log(2) / (4 + 13 + 2), rel=1e-6)
    assert found["acc"] == pytest.approx(1 / 3)
    assert found["chance"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_the_robustness_score_is_the_paper_s(model):
    """100 (perturbed - chance) / (clean - chance); there is none for a model that is at chance when clean."""
    items = [tasks.Item(f"item {n}", ("a", "b", "c", "d"), n % 4) for n in range(40)]
    outcome = tasks.score_items(model, items)
    clean = tasks.Outcome(outcome.right, np.array([1.0, 1, 1, 0] * 10), outcome.log, outcome.bytes, outcome.chance)
    found = tasks.robustness(model, items, {"Same": lambda data, random: data}, clean)
    accuracy = found["perturbations"]["Same"]["acc"]
    assert accuracy == pytest.approx(outcome.right_norm.mean())
    assert found["robustness_score"] == pytest.approx(100 * (accuracy - 0.25) / 0.5)
    both = {"Same": lambda data, random: data, "Gone": lambda data, random: b"?"}
    some = tasks.robustness(model, items, both, clean, scored=["Same"])
    assert some["robustness_score"] == found["robustness_score"]
    assert some["perturbations"].keys() == both.keys()
    hopeless = tasks.Outcome(outcome.right, np.zeros(40), outcome.log, outcome.bytes, outcome.chance)
    found = tasks.robustness(model, items, {"Same": lambda data, random: data}, hopeless)
    assert found["robustness_score"] is None


@pytest.mark.filterwarnings("error")
def test_long_endings_that_are_alone_have_no_finite_perplexity():
    """The probability of a whole ending has no reciprocal in a float."""
    found = tasks.figures(tasks.Outcome(*np.array([[1.0, 1.0, -800.0, 400.0, 0.0]] * 9).T))
    assert found["perplexity"] == math.inf
    assert found["answer_bpb"] == pytest.approx(2 / math.log(2))


def test_where_noise_is_put():
    item = tasks.Item("ab", ("cd",), 0)

    def upper(data, random):
        return data.upper()

    for place, expected in [("prompt", ("AB", "cd")), ("completion", ("ab", "CD")), ("both", ("AB", "CD"))]:
        (found,) = tasks.perturbed([item], "Upper", upper, place)
        assert (found.text, found.endings[0]) == expected


@pytest.mark.slow
def test_tasks_from_the_command_line(evaluated, tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4] * 3))
    found = evaluated("starter:text", "--task", tmp_path / "t.jsonl", "--limit", 9, "--noise")["tasks"]["t.jsonl"]
    assert found["items"] == 9
    assert found["acc_ci95"][0] <= found["acc"] <= found["acc_ci95"][1]
    assert found["robustness"]["perturbations"].keys() == modality.get("text").perturbations().keys()
    for each in found["robustness"]["perturbations"].values():
        for figure in ("acc", "prompt", "both", "answer_bpb", "completion_answer_bpb"):
            assert each[f"{figure}_ci95"][0] <= each[figure] <= each[f"{figure}_ci95"][1]


@given(st.text("[]a\n ", max_size=30))
def test_brackets_are_left_out_as_the_harness_does(text):
    assert tasks._wikihow(text) == re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def test_brackets_take_time_once():
    for text in ("[" * 1_000_000, "[\n" * 500_000 + "]", "[]" * 200_000):
        assert len(tasks._wikihow(text)) <= len(text)


def test_items_are_bounded_and_read_a_few_at_a_time(tmp_path, monkeypatch):
    file = tmp_path / "large.jsonl"
    row = {"query": "a" * 6000, "choices": ["b" * 60] * 800, "gold": 0}
    file.write_text(json.dumps(row | {"choices": ["b", "c"]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"line 2: .* 4,848,000 characters must be read, more than 4,194,304"):
        tasks.read_items(file)
    file.write_text("\n".join([*"x1abcd", "y" * 1_100_000, *"1abcd", ""]))  # the form of six lines
    with pytest.raises(InputError, match=r"line 7: .* 4,400,004 characters"):
        tasks.read_items(file)
    items = [tasks.Item("x" * 300_000, ("a", "b"), 0)] * 5 + [tasks.Item("x", ("a",), 0)] * 200
    assert [len(batch) for batch in tasks._batches(items)] == [1, 1, 1, 1, 64, 64, 64, 9]
    monkeypatch.setattr(tasks, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        tasks.read_items(file)
