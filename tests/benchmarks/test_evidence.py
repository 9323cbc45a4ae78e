"""The report over budgets: best rates, gaps, and where a line through the last two would meet the reference."""

import json

import pytest
import yaml

from benchmarks import evidence, results
from hnet_cli.config.run import resolve


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
    assert told["tuned_on"] == 500
    table = results.evidence({"text": json.loads(json.dumps(told))})
    assert [line for line in table if line.startswith("| ")] == [
        "| model | 0.001 | 0.004 |",
        "| transformer | 3.000 | **2.500** |",
        "| 1stage | **2.600** | 3.100 |",
        "| model | learning rate | 200 B | 2 kB | 20 kB | gap 0 at |",
        "| transformer | 0.004 | 2.000 | 2.000 | 2.000 |  |",
        "| 1stage | 0.001 | 2.900 (+0.900) | 2.250 (+0.250) | 2.125 (+0.125) | 200 kB |",
        "| mambabyte |  | **1.900** (-0.100) | **1.900** (-0.100) | **1.900** (-0.100) | 20 kB |",
        "| space |  | 2.000 (+0.000) | 2.002 (+0.002) | 2.020 (+0.020) | never |",
    ]


def test_members_that_come_from_others_have_their_rates(tmp_path):
    best = {"transformer": 0.004, "1stage": 0.001, "space": 0.002}
    presets = evidence.members(tuple(best), best, 300_000, "nano")
    assert list(presets) == ["transformer", "transformer-read", "1stage", "1stage-ngrams", "space"]
    configs = {}
    for name, preset in presets.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(preset))
        configs[name] = resolve(str(tmp_path / f"{name}.yaml"))
    assert [config.train.lr for config in configs.values()] == [0.004, 0.004, 0.001, 0.001, 0.002]
    assert str(configs["transformer-read"].tokenizer).endswith("@300000")
    assert [config.model.ngram_rows for config in configs.values()] == [0, 0, 0, evidence.ROWS, 0]


def test_the_worth_of_chunks_stands_beside_the_bits():
    base = {
        "modality": "code",
        "name": "base",
        "bpb": [2.5, 2.6],
        "worth": [[0.01, 0.0], [0.02, 0.0]],
        "flops_per_byte": 1e6,
    }
    choice = {"modality": "code", "name": "slower", "change": -0.1, "change_ci95": [-0.2, -0.05], "wins": True}
    table = results.switches([base, base | choice | {"worth": [None, [0.1]]}])
    assert table[2:4] == [
        "| base, each seed | 2.500 / 2.600; worth 0.010 / 0.020 | 1.00 |  |",
        "| slower | **-0.1000** (-0.200 to -0.050); worth 0.100 | 1.00 | 1 of 1 |",
    ]
