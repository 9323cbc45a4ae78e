"""Rows answered: --exact is greedy decoding step by step, and what is no row is refused."""

import copy

import pytest
import torch
from rowkit import PAIRS, rows_dataset, rows_file

from hnet_cli import modality
from hnet_cli.errors import UsageError
from hnet_cli.evaluation.exact import END, Row, answers, figures, rows_of
from hnet_cli.evaluation.material import gather
from hnet_cli.model.config import BOS, EOS

TEXT = modality.get("text")


def greedy(model, row, most):
    """One byte after the other, each the likeliest legal one, by full passes."""
    automaton = TEXT.automaton()
    written = b""
    while len(written) < most:
        with torch.no_grad():
            logits = model(torch.tensor([[BOS, *row.prompt, *written]])).logits[0, -1]
        state = automaton.run(row.prompt + written)
        legal = [byte for byte in range(256) if automaton.transitions[state][byte] >= 0]
        legal += [EOS] * (state in automaton.accepting)
        byte = max(legal, key=lambda each: float(logits[each]))
        if byte == EOS:
            break
        written += bytes([byte])
    return written


@pytest.fixture
def ending(model):
    """The model, but for writing EOS more often."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight[EOS] *= 3
    return other


def test_exact_is_greedy_decoding_step_by_step(ending, monkeypatch):
    monkeypatch.setattr("hnet_cli.evaluation.exact.BATCH", 2)
    rows = [Row(f"{n}", f"{word}\n".encode(), word.encode() * n) for n, word in enumerate(["ox", "Zoë", "word"], 1)]
    found = answers(ending, rows, TEXT)
    for row, answer in zip(rows, found, strict=True):
        plain = greedy(ending, row, len(answer) + 1)
        assert answer in (plain, plain[: len(answer)])
        assert len(answer) >= len(row.completion) or answer == plain
    ended = [len(answer) < len(row.completion) for row, answer in zip(rows, found, strict=True)]
    assert any(ended)
    true = [row._replace(completion=answer) for row, answer, end in zip(rows, found, ended, strict=True) if end]
    measured = figures(ending, [*true, rows[2]], TEXT)
    assert measured["exact"] == measured["forced"] == len(true) / (len(true) + 1)
    assert measured["exact_ci95"][0] < measured["exact"] < measured["exact_ci95"][1]
    assert [row["completion"] for row in measured["wrong"]] == ["word" * 3]
    assert measured["wrong"][0]["answer"] == found[2].decode()


def test_a_row_that_does_not_end_is_wrong(model):
    row = Row("x", b"ox\n", b"")
    written = greedy(model, row, 3)
    assert len(written) == 3  # it has more to say
    assert figures(model, [row._replace(completion=written)])["exact"] == 0


def test_rows_are_those_of_a_dataset_or_of_a_file(tmp_path):
    dataset = rows_dataset(tmp_path)
    held_out = gather([str(dataset.path)], TEXT, None)
    rows = rows_of(held_out.documents)
    assert [row.prompt + row.completion + END for row in rows] == list(dataset.documents("val"))
    assert all(row.prompt.endswith(b"\n") and b"\n" not in row.completion for row in rows)
    assert held_out.bytes == sum(len(row.completion) + 1 for row in rows)
    assert "the completions and the mark that ends each" in held_out.chosen
    file = gather([str(rows_file(tmp_path / "x.jsonl"))], TEXT, None, ("prompt", "completion"))
    assert [(row.prompt.decode(), row.completion.decode()) for row in rows_of(file.documents, most=1000)] == PAIRS
    assert [row.prompt for row in rows_of(file.documents, most=2)] == [PAIRS[0][0].encode(), PAIRS[56][0].encode()]
    plain = [without_end(document) for document in file.documents]
    with pytest.raises(UsageError, match="rows of prompt and completion, and there are none"):
        rows_of(plain)


def without_end(document):
    return document._replace(data=document.data[:-1])


def test_trivial_answers_are_counted(model):
    rows = [Row("", b"ox\n", b"ox"), Row("", b"an ox\n", b"ox"), Row("", b"a\n", b"an")]
    assert figures(model, rows)["trivial"] == {"most_common": 2 / 3, "copy": 1 / 3}
