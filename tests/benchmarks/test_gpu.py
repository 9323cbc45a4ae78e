"""benchmarks/gpu.py on a CPU, with tiny models: the same program a GPU runs, whose time must not be lost to a slip."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(out, *options):
    """Where torch, numpy and PyYAML are the only packages."""
    without = out.parent / "without"
    without.mkdir()
    for name in ("pydantic", "safetensors", "typer", "rich", "zstandard", "Bio", "pathspec", "pygments"):
        (without / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here')")
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--quick", "--measure", "0.05"]
    done = subprocess.run([*command, "--out", str(out), *options], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(without)},
                          cwd=out.parent)  # fmt: skip
    return done, json.loads((out / "gpu.json").read_text())


def test_every_section(tmp_path):
    wanted = "warm,machine,kernels,parity,models,generation,loader"
    done, found = run(tmp_path / "out", "--inline", "--models", "2stage-xl", "--only", wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(section["ok"] for section in found["sections"].values())
    assert found["machine"]["bf16_tflops"] > 0
    assert found["kernels"]["ok"]
    assert found["kernels"]["operations"]["ssd_scan (host)"]["bfloat16"]["error"] > 0
    assert found["parity"]["float32"]["gradient"] < 1e-4
    assert found["parity"]["boundaries_differ"] == 0
    assert max(found["parity"][way] for way in ("packed_alone", "stepped", "replayed")) < 1e-4
    model = found["models"]["2stage-xl"]
    assert model["finite"]
    assert 0.8 < model["flops_per_byte"] / model["isotropic_flops_per_byte"] < 1.25
    assert model["mfu_of_isotropic"] > 0
    assert 0.2 < model["chunks_per_byte"][0] < 0.5
    assert model["phases_ms"]["forward parts"]["encoder0"] > 0
    assert model["kernel_time"]["kinds_ms"]["matrix products"] > 0
    assert {"batch_1", "batch_2"} <= found["generation"].keys()
    assert found["generation"]["batch_1"]["eager_bytes_per_s"] > 0


def test_a_section_that_fails_costs_only_itself(tmp_path):
    """In processes of their own, as on a GPU; the loader is given a dataset that is none."""
    only = ["--only", "warm,machine,models,loader", "--models", "no-such-preset", "--data", str(tmp_path)]
    done, found = run(tmp_path / "out", *only)
    fine = ["compiled 0/1", "tuned", "machine"]
    assert done.returncode == 1
    assert [name for name, section in found["sections"].items() if section["ok"]] == fine
    assert "no preset is called" in found["sections"]["models no-such-preset"]["error"]
    assert "dataset" in found["sections"]["loader"]["error"]
    assert found["machine"]["memory_tb_s"] > 0
    assert "== loader" in (tmp_path / "out/gpu.log").read_text()
