"""Waits of the host in a step, on tensors without values: only where docs/gpu.md lists them."""

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
    done = subprocess.run(
        [*command, *SETTINGS, *TWO_STAGES, *more],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    if done.returncode == 69:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["nano"]
