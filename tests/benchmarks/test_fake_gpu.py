"""Waits of the host in a step, on tensors without values: only where docs/gpu.md lists them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runkit import SETTINGS, TWO_STAGES

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_host_waits_once_per_pass_and_stage():
    """And once for the numbers of the record; no tensor is left on the host, none has a dtype that does not fit."""
    found = listed()
    assert found["stages"] == 2
    records = {place: count for place, count in found["step"].items() if place.startswith("health.py: read")}
    assert list(records.values()) == [1]
    assert found["step"] == records | {"packing.py: of_cu_seqlens: reads (3,)": 2 * found["stages"]}
    assert found["byte"] == {"hnet.py: step: reads (2,)": 2}
    assert found["recorded_byte"] == {"graphs.py: _descend: waits for the stream": 2}
    assert found["choice"] == {"generate.py: __call__: reads (2,)": 1}


@pytest.mark.slow
def test_no_float64_where_a_device_has_none():
    """Such as a Mac's: sums are float32 there, and the bytes are chosen on the host."""
    found = listed("--no-float64")
    assert found["stages"] == 2
    assert not any("float64" in place for part in ("step", "byte", "choice") for place in found[part])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
@pytest.mark.parametrize("rows", [1, 4])
def test_nodes_of_a_byte(rows):
    """Three of a Mamba-2 layer, five of a Transformer layer, and a few of each recording. At 2.5 us each they are what
    a byte of one row costs beside the reading of weights."""
    command = [sys.executable, str(ROOT / "tests/kits/fake_gpu.py"), "--nodes", "--presets", "2stage-xl"]
    plain, own = map(json.loads, run([*command, "--rows", str(rows)]).splitlines()[-2:])
    layers = {"0 in": "mmmm", "1 in": "Tmmmm", "2 main": "T" * 27, "1 out": "mmmmT", "0 out": "mmmm"}
    assert own["recordings"].keys() == layers.keys()
    for part, letters in layers.items():
        kinds, mamba, attention = own["recordings"][part], letters.count("m"), letters.count("T")
        assert kinds.get("_ssd", 0) == mamba
        assert kinds.get("_attend", 0) == attention
        beside = part != "2 main"  # the router's projection or the residual's
        assert kinds["_linear"] == 2 * mamba + 4 * attention + beside
        assert sum(kinds.values()) - 3 * mamba - 5 * attention <= (9 if rows == 1 else 15)
    assert own["per_byte"] <= 90
    assert own["per_byte"] < plain["per_byte"] / 4


def listed(*options):
    """The output of `tests/kits/fake_gpu.py` for a small model, in a process of its own: what torch is made to believe
    stays there."""
    more = [
        "model.arch_layout=[t1, [m1, [T1], t1], t1]",
        "train.activation_checkpointing=main",
        "train.alignment=entropy",
        "train.alignment_loss_weight=0.1",
        "train.ratio_loss_statistics=global",
        "model.chunker=[characters, learned]",
    ]
    command = [sys.executable, str(ROOT / "tests/kits/fake_gpu.py"), *options, "--presets", "nano", "--set"]
    return json.loads(run([*command, *SETTINGS, *TWO_STAGES, *more]).splitlines()[-1])["nano"]


def run(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 69:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
