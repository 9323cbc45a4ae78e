"""The report over budgets: best rates, gaps, and where a line through the last two would meet the reference."""

import json

import pytest

from benchmarks import evidence


def comparison(folder, nbytes, bits, reference="transformer"):
    folder.mkdir(parents=True)
    models = [
        {"name": name, "bpb": bpb, "bpb_ci95": None, "bytes_per_chunk": 1.0, "seconds": 1.0}
        | {"differences": {} if name == reference else {reference: {"bpb": bpb - bits[reference]}}}
        for name, bpb in bits.items()
    ]
    told = {"budget": {"bytes": nbytes}, "reference": reference, "models": models}
    (folder / "compare.json").write_text(json.dumps(told))


def test_gaps_and_rates_of_each_budget(tmp_path):
    for rate, bits in ((0.001, 3.0), (0.004, 2.5)):
        comparison(tmp_path / f"text/rate-{rate:g}", 500, {"transformer": bits, "1stage": 5.6 - bits})
    for nbytes, gap in ((2000, 0.25), (200, 0.9), (20000, 0.125)):
        bits = {"transformer": 2.0, "1stage": 2.0 + gap, "mambabyte": 1.9, "space": 2.0 + nbytes / 1e6}
        comparison(tmp_path / f"text/bytes-{nbytes}", nbytes, bits)
    told = evidence.report(tmp_path)["text"]
    assert told["rates"]["transformer"] == {0.001: 3.0, 0.004: 2.5}
    assert evidence.best_rates(tmp_path / "text") == {"transformer": 0.004, "1stage": 0.001}
    assert list(told["budgets"]) == [200, 2000, 20000]
    assert told["budgets"][2000]["1stage"]["gap"]["bpb"] == 0.25
    # half the gap for ten times the bytes: the other half for ten times more
    assert told["crossings"] == {"1stage": pytest.approx(200_000), "mambabyte": 20000, "space": None}
