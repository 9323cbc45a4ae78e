"""The figures of a comparison."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from runkit import tiny

from hnet_cli.comparison.members import Member
from hnet_cli.comparison.results import judged, reference

ROOT = Path(__file__).parents[2]


def test_a_switch_does_not_win_by_the_luck_of_two_seeds(tmp_path):
    """benchmarks/switches.py: seeds that disagree are no twice as many documents."""
    spec = importlib.util.spec_from_file_location("switches", ROOT / "benchmarks" / "switches.py")
    switches = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(switches)
    (tmp_path / "text").mkdir()
    documents = np.random.default_rng(0).normal(2, 0.01, 40)
    for name, luck in {"base": (0, 0.3), "muon": (-0.2, 0.25)}.items():
        for seed, own in enumerate(luck):
            told = {
                "name": name,
                "seed": seed,
                "bytes": 1,
                "seconds": 1,
                "flops_per_byte": 1,
                "bytes_per_chunk": 5,
                "unit": "document",
                "units": [[100 * (bits + own), 100] for bits in documents],
            }
            (tmp_path / "text" / f"{name}-s{seed}.json").write_text(json.dumps(told))
    found = next(row for row in switches.report(tmp_path) if row["name"] == "muon")
    assert found["change"] == pytest.approx(-0.125 / math.log(2))
    assert found["change_ci95"][1] > 0
    assert not found["wins"]


@pytest.mark.parametrize(
    ("ci95", "word"),
    [
        ([-0.2, -0.1], "wins"),
        ([0.1, 0.2], "loses"),
        ([-0.1, 0.1], "cannot be told apart"),
        (None, "cannot be told apart"),
    ],
)
def test_what_an_interval_says(ci95, word):
    assert judged(ci95) == word


def test_a_transformer_of_twice_the_flops_is_no_reference_where_others_have_the_same():
    def member(name, share, chunker):
        return Member(name, tiny(f"model.chunker={chunker}"), 1e6, share)

    double, fixed, learned = member("2x", 2.0, "fixed:4"), member("fixed", 1.0, "fixed:4"), member("h", 1.0, "learned")
    assert reference([double, fixed, learned]) == "fixed"
    assert reference([double, learned]) == "h"
    assert reference([double]) == "2x"
    assert reference([]) is None
