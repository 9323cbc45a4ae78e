"""The mathematics of comparisons on curves and figures that are known: crossings, intervals, the verdict; the page."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagekit import checked
from runkit import tiny

from hnet_cli.comparison import page
from hnet_cli.comparison.curves import Curve, crossover, efficiency, reached
from hnet_cli.comparison.members import Member
from hnet_cli.comparison.results import reference
from hnet_cli.comparison.statistics import estimate, interval, judged
from hnet_cli.comparison.verdict import verdict

ROOT = Path(__file__).parents[2]

# -- curves ------------------------------------------------------------------------------------------------------------

FALLING = st.lists(st.floats(0.01, 1), min_size=2, max_size=8).map(
    lambda drops: [9 - sum(drops[:n]) for n in range(len(drops))]
)


def spaced(ys, first=1000.0, step=1.7):
    return Curve.of([first * step**n for n in range(len(ys))], ys)


@given(FALLING, st.floats(0.1, 10))
def test_a_curve_needs_as_much_as_itself_and_k_times_what_is_k_times_faster(ys, k):
    own = spaced(ys)
    assert efficiency(own, own) == pytest.approx(1)
    slower = spaced(ys, first=1000 * k)
    assert efficiency(own, slower) == pytest.approx(k)
    assert efficiency(own, slower) == pytest.approx(1 / efficiency(slower, own))


@given(FALLING, st.floats(0.001, 1))
def test_what_never_gets_there_has_no_efficiency_and_never_crosses(ys, gap):
    own, better = spaced([y + gap for y in ys]), spaced(ys)
    assert efficiency(own, better) is None
    assert crossover(own, better) == {"state": "never", "at": None}
    assert crossover(better, own) == {"state": "from the beginning", "at": None}
    assert efficiency(better, own) >= 1
    assert crossover(own, own)["state"] == "never"


@given(st.floats(1, 5), st.floats(0.1, 0.9), st.floats(1e4, 1e7), st.integers(3, 40))
def test_the_crossing_of_two_logarithmic_curves_is_where_algebra_says(level, slope, place, points):
    """a - b ln x and a' - b' ln x, that meet at `place`, at grids of points that differ."""
    low, high = place / 50, place * 20

    def line(steepness, number):
        xs = [low * (high / low) ** (n / number) for n in range(number + 1)]
        return Curve.of(xs, [level - steepness * math.log(x / place) for x in xs])

    own, other = line(slope + 0.05, points), line(slope, points + 3)
    found = crossover(own, other)
    assert found["state"] == "crosses"
    assert found["at"] == pytest.approx(place, rel=1e-6)
    assert crossover(other, own)["state"] == "never"
    assert reached(own, level) == pytest.approx(place, rel=1e-6)


def test_only_the_last_crossing_counts():
    own = Curve.of([1, 2, 4, 8, 16], [5, 3, 3, 2, 1])
    other = Curve.of([1, 2, 4, 8, 16], [4, 4, 2, 3, 2])
    found = crossover(own, other)
    assert found["state"] == "crosses"
    assert 4 < found["at"] < 8
    assert crossover(own, Curve.of([100, 200], [1, 1]))["state"] == "unknown"
    assert crossover(own, Curve.of([], []))["state"] == "unknown"


# -- how sure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seeds", "documents"), [(0.05, 0.05), (0.005, 0.3)])
def test_an_interval_covers_the_truth_as_often_as_it_says(seeds, documents):
    """Documents and seeds both drawn from known spreads: the true mean is inside in about 95 of 100."""
    random, inside, rounds = np.random.default_rng(3), 0, 50
    for _ in range(rounds):
        luck = random.normal(0, seeds, (4, 1))  # of a training
        bits = 2 + luck + random.normal(0, documents, (1, 40))
        _, drawn = estimate(np.stack([bits, np.ones((4, 40))], 2))
        low, high = interval(drawn)
        inside += low <= 2 <= high
    assert 0.88 <= inside / rounds <= 1


def test_seeds_make_an_interval_wider_never_narrower():
    bits = np.random.default_rng(0).normal(2, 0.1, (1, 30))
    alone = interval(estimate(np.stack([bits, np.ones((1, 30))], 2))[1])
    for spread in (0.01, 0.1):
        both = np.concatenate([bits - spread, bits + spread])
        wider = interval(estimate(np.stack([both, np.ones((2, 30))], 2))[1])
        assert wider[0] <= alone[0] + 1e-3
        assert wider[1] >= alone[1] - 1e-3
    assert wider[1] - wider[0] > 2 * (alone[1] - alone[0])
    assert estimate(np.ones((1, 3, 2)))[1] is None  # too few to know


def test_a_switch_does_not_win_by_the_luck_of_two_seeds(tmp_path):
    """benchmarks/switches.py: seeds that disagree are no twice as many documents."""
    spec = importlib.util.spec_from_file_location("switches", ROOT / "benchmarks" / "switches.py")
    switches = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(switches)
    (tmp_path / "text").mkdir()
    documents = np.random.default_rng(0).normal(2, 0.01, 40)
    for name, luck in {"base": (0, 0.3), "muon": (-0.2, 0.25)}.items():
        for seed, own in enumerate(luck):
            told = {"name": name, "seed": seed, "bytes": 1, "seconds": 1, "flops_per_byte": 1, "bytes_per_chunk": 5,
                    "unit": "document", "units": [[100 * (bits + own), 100] for bits in documents]}  # fmt: skip
            (tmp_path / "text" / f"{name}-s{seed}.json").write_text(json.dumps(told))
    found = next(row for row in switches.report(tmp_path) if row["name"] == "muon")
    assert found["change"] == pytest.approx(-0.125 / math.log(2))
    assert found["change_ci95"][1] > 0
    assert not found["wins"]


@pytest.mark.parametrize(("ci95", "word"), [
    ([-0.2, -0.1], "wins"), ([0.1, 0.2], "loses"), ([-0.1, 0.1], "cannot be told apart"),
    (None, "cannot be told apart"),
])  # fmt: skip
def test_what_an_interval_says(ci95, word):
    assert judged(ci95) == word


# -- the verdict -------------------------------------------------------------------------------------------------------


def told_of(*members, seeds=1):
    """What `compare.json` would hold of members (name, learned, bpb); intervals of 0.02 around differences."""
    rival = next(name for name, learned, _ in members if not learned)
    level = {name: bpb for name, _, bpb in members}
    models = []
    for name, learned, bpb in members:
        differences = {}
        for other in {rival, min(level, key=level.get), *(each for each in level if "2x" in each)} - {name}:
            gap = bpb - level[other]
            ci95 = [gap - 0.02, gap + 0.02]
            whole = {"bpb": gap, "bpb_ci95": ci95, "judged": judged(ci95)}
            late = {"bpb": gap + 0.1, "bpb_ci95": [ci95[0] + 0.1, ci95[1] + 0.1], "seconds": 60.0}
            differences[other] = whole | {"equal_time": late | {"judged": judged(late["bpb_ci95"])}}
        models.append({"name": name, "learned": learned, "bpb": bpb, "bpb_ci95": [bpb - 0.1, bpb + 0.1],
                       "differences": differences, "flops_per_byte": 1e6, "unsteady": 1.0,
                       "share_of_flops": 2 if "2x" in name else 1})  # fmt: skip
    return {"models": models, "reference": rival, "best": min(level, key=level.get), "failed": {}, "missing": [],
            "dataset": {"name": "x", "modality": "text", "epochs": 1.0}, "exam": {"unit": "document"},
            "budget": {"bytes": 10**6, "flops_per_byte": 1e6, "seeds": seeds, "minutes": None}}  # fmt: skip


@pytest.mark.parametrize(("bpb", "outcome", "words"), [
    (1.90, "wins", "the best H-Net (2stage) wins against bpe"),
    (2.10, "loses", "the H-Net does not win: the best of them (2stage) loses to bpe"),
    (1.99, "cannot be told apart", "the H-Net does not win: 2stage and bpe cannot be told apart"),
])  # fmt: skip
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


def test_a_transformer_of_twice_the_flops_is_no_reference_where_others_have_the_same():
    def member(name, share, chunker):
        return Member(name, tiny(f"model.chunker={chunker}"), 1e6, share)

    double, fixed, learned = member("2x", 2.0, "fixed:4"), member("fixed", 1.0, "fixed:4"), member("h", 1.0, "learned")
    assert reference([double, fixed, learned]) == "fixed"
    assert reference([double, learned]) == "h"
    assert reference([double]) == "2x"
    assert reference([]) is None

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


def test_a_page_of_names_that_are_meant_to_hurt():
    evil = "</script><b onload=x>"
    told = told_of(("bpe", False, 2.0), (evil, True, 1.9))
    told |= {"size": "nano", "settings": [evil], "crossovers": {}, "efficiency": {}, "format": 1,
             "exam": {"documents": "all", "bytes": 9, "context": 64, "unit": "document"},
             "machine": {"device": "cpu", "name": evil, "threads": 1, "versions": {"hnet": "0"}}}  # fmt: skip
    told["dataset"] |= {"name": evil, "baselines": {}}
    for model in told["models"]:
        model |= {"layout": "m1", "parameters": 10, "planned_flops_per_byte": 1.0, "bytes": 10, "steps": 1,
                  "stages": [], "bytes_per_chunk": 1.0, "seconds": 1.0, "bytes_per_s": 1.0,
                  "curve": [[5, 2.5], [10, model["bpb"]]],
                  "curve_seconds": [[1, 2.5], [2, model["bpb"]]], "seeds": [{"seed": 0, "bpb": model["bpb"]}],
                  "robustness": {"score": 50.0, "bpb": 4.0, "clean_bpb": 2.0, "distortions": {}}}  # fmt: skip
    told["verdict"] = verdict(told)
    shown = checked(page.page(told))
    assert evil in shown.text
    assert "-0.100" in shown.text
