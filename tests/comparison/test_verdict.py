"""The verdict on figures that are known."""

import pytest
from comparisonkit import told_of

from hnet_cli.comparison.verdict import headline, verdict


@pytest.mark.parametrize(
    ("bpb", "outcome", "words"),
    [
        (1.90, "wins", "the best H-Net (2stage) wins against bpe"),
        (2.10, "loses", "the H-Net does not win: the best of them (2stage) loses to bpe"),
        (1.99, "cannot be told apart", "the H-Net does not win: 2stage and bpe cannot be told apart"),
    ],
)
def test_the_verdict_says_plainly_who_wins(bpb, outcome, words):
    found = verdict(told_of(("bpe", False, 2.0), ("1stage", True, 2.5), ("2stage", True, bpb)))
    assert found["hnet"] == "2stage"
    assert found["outcome"]["equal_bytes"] == outcome
    text = " ".join(found["text"])
    assert f"At equal bytes and FLOPs {words}" in text
    assert f"{bpb - 2:+.3f} bits per byte" in text
    assert "One seed" in text


def test_the_verdict_tells_equal_time_from_equal_bytes():
    found = verdict(told_of(("bpe", False, 2.0), ("1stage", True, 1.95), seeds=3))
    assert found["outcome"] == {"equal_bytes": "wins", "equal_time": "loses"}
    assert "One seed" not in " ".join(found["text"])


def test_a_baseline_without_learned_boundaries_that_is_as_good_is_named():
    text = " ".join(verdict(told_of(("bpe", False, 2.0), ("space", False, 1.8), ("1stage", True, 1.85)))["text"])
    assert "space, which learns no boundaries, is at least as good as every H-Net here" in text
    text = " ".join(verdict(told_of(("bpe", False, 2.0), ("space", False, 1.9), ("1stage", True, 1.85)))["text"])
    assert "at least as good" not in text


def test_the_transformer_of_twice_the_flops_has_its_own_sentence():
    found = verdict(told_of(("bpe", False, 2.0), ("bpe-2x", False, 1.9), ("2stage", True, 1.91)))
    assert found["outcome"]["equal_bytes"] == "wins"
    text = " ".join(found["text"])
    assert (
        "Against bpe-2x, of 2 times the FLOPs: the H-Net does not win: 2stage and bpe-2x cannot be told apart" in text
    )


def test_a_transformer_of_twice_the_flops_is_no_rival_of_equal_flops():
    told = told_of(("bpe-2x", False, 1.9), ("2stage", True, 1.85)) | {"reference": "2stage", "best": "2stage"}
    found = verdict(told)
    assert found["outcome"] == {"equal_bytes": None, "equal_time": None}
    text = " ".join(found["text"])
    assert "No other model of these FLOPs took part" in text
    assert "Against bpe-2x, of 2 times the FLOPs: the best H-Net (2stage) wins" in text
    assert "not equal" not in text


def test_intervals_over_windows_are_not_said_to_cover_documents():
    told = told_of(("bpe", False, 2.0), ("2stage", True, 1.9))
    assert "choice of held-out documents" in " ".join(verdict(told)["text"])
    text = " ".join(verdict(told | {"exam": {"unit": "window"}})["text"])
    assert "choice of held-out documents" not in text
    assert "do not cover another choice of documents" in text


def test_without_an_hnet_there_is_no_verdict_on_one():
    found = verdict(told_of(("bpe", False, 2.0), ("space", False, 1.8)))
    assert found["outcome"] == {"equal_bytes": None, "equal_time": None}
    assert "No H-Net" in " ".join(found["text"])


@pytest.mark.parametrize(
    ("bpb", "begins", "ends"),
    [
        (1.9, "The H-Net wins: learned needs 0.100 bits per byte less than fixed (1.900 against 2.000; 95%", "win."),
        (2.1, "The H-Net loses: learned needs 0.100 bits per byte more than fixed", "with 1 seed."),
        (1.99, "Not settled: the H-Net learned and fixed cannot be told apart, -0.010", "with 1 seed."),
    ],
)
def test_the_headline_is_one_sentence_and_settles_nothing_that_its_interval_does_not(bpb, begins, ends):
    figures = told_of(("fixed", False, 2.0), ("learned", True, bpb))
    said = headline(figures | {"verdict": verdict(figures)})
    assert said.startswith(begins)
    assert said.endswith(ends)
    assert said.count(". ") == 0


def test_the_headline_of_nothing_to_compare():
    figures = told_of(("fixed", False, 2.0))
    assert headline(figures | {"verdict": verdict(figures)}).startswith("Not settled")
