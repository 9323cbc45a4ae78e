"""benchmarks/gpu.py on a CPU, with tiny models: the same program a GPU runs, whose time must not be lost to a slip."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OPTIONAL = ("pydantic", "safetensors", "typer", "rich", "zstandard", "Bio", "pygments")
TRAINED = {"training hnet", "training bpe", "training isotropic"}


def command(out, *options):
    return [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--dry", "--measure", "0.05", "--out", str(out), *options]


def run(out, *options, path=""):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
    done = subprocess.run(command(out, *options), capture_output=True, text=True, env=environment, cwd=out.parent)
    return done, json.loads((out / "gpu.json").read_text())


def test_every_section(tmp_path):
    """The whole plan where torch, numpy and PyYAML are the only packages; then the rest where there are others."""
    without, out = tmp_path / "without", tmp_path / "out"
    without.mkdir()
    for name in OPTIONAL:
        (without / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here')")
    done, found = run(out, "--inline", path=without)
    failed = {name: row["error"] for name, row in found["sections"].items() if not row["ok"]}
    assert failed.keys() == {"data", *TRAINED}, done.stdout + done.stderr
    assert re.search(r"no \w+ here", failed["training hnet"])
    assert done.returncode == 1
    assert found["machine"]["bf16_tflops"] > 0
    assert found["kernels"]["ok"]
    assert found["kernels"]["operations"]["ssd_scan (host)"]["bfloat16 [100]"]["error"] > 0
    assert found["parity"]["float32"]["gradient"] < 1e-4
    assert max(found["parity"][way] for way in ("packed_alone", "stepped", "replayed")) < 1e-4
    model = found["models"]["2stage-xl"]
    assert model["finite"]
    assert model["micro_batches"] == 4
    assert 0.8 < model["flops_per_byte"] / model["isotropic_flops_per_byte"] < 1.25
    assert model["mfu_of_isotropic"] > 0
    assert 0.2 < model["chunks_per_byte"][0] < 0.5
    assert model["kernel_time"]["kinds_ms"]["matrix products"] > 0
    rates = [found["generation"][f"batch_{batch}"] for batch in (1, 64, 8)]
    assert all(rate[f"{way}bytes_per_s"] > 0 for rate in rates for way in ("", "others_", "eager_"))
    assert rates[0]["of_bound"] > 0
    aims = {
        "models 2stage-xl mfu": (model["mfu"], 0.42),
        "models 2stage-xl mfu_of_isotropic": (model["mfu_of_isotropic"], 0.75),
        "generation batch_1 of_bound": (rates[0]["of_bound"], 0.5),
    }
    assert {name: (row["found"], row["aim"]) for name, row in found["aims"].items()} == aims
    assert f"mfu_of_isotropic: {model['mfu_of_isotropic']:.4g}, " in done.stdout

    pytest.importorskip("tokenizers")
    before = found["models"]
    done, found = run(out, "--inline", "--rest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split("  ")[0] for line in done.stdout.splitlines() if " s  ok" in line} == {
        "machine",
        "ab small",
        "data",
        *TRAINED,
    }
    assert found["models"] == before
    trained = [found["training"][name] for name in ("hnet", "bpe", "isotropic")]
    assert all(row["val_bpb"] > 0 for row in trained)
    assert all(0.7 < row["flops_per_byte"] / trained[0]["flops_per_byte"] < 1.4 for row in trained)
    assert (out / "metrics-bpe.jsonl").read_text().count("val_bpb") == 1
    assert found["aims"]["training hnet bytes_per_s"] == {"found": trained[0]["bytes_per_s"], "aim": 1.4e6}
    assert "training hnet bytes_per_s: " in done.stdout
    assert found["ab"]["small"]["ssd_scan: reference"]["time_ratio"] > 0
    assert found["ab"]["small"]["half the micro-batch"]["time_ratio"] > 0


def test_a_section_that_fails_costs_only_itself(tmp_path):
    """In processes of their own, as on a GPU."""
    only = ["--only", "machine,compiled,models,tune", "--models", "no-such-preset", "small"]
    done, found = run(tmp_path / "out", *only)
    fine = ["machine", "compiled 0/1", "tune", "models small"]
    assert done.returncode == 1
    assert [name for name, row in found["sections"].items() if row["ok"]] == fine
    assert "no preset is called" in found["sections"]["models no-such-preset"]["error"]
    assert found["machine"]["memory_tb_s"] > 0
    assert found["models"]["small"]["bytes_per_s"] > 0
    assert "== models small" in (tmp_path / "out/gpu.log").read_text()


def test_a_section_that_takes_too_long_is_stopped(tmp_path):
    """It measures for ever."""
    endless = ["--measure", "1e9", "--seconds", "30", "--only", "models", "--models", "small", "2stage-xl"]
    _, found = run(tmp_path / "out", *endless)
    assert found["sections"]["models small"]["error"].startswith("stopped after")
    assert found["sections"]["models 2stage-xl"]["error"] == "no time was left"


def test_sections_end_with_the_command(tmp_path):
    """Also when it is killed: a section left behind would hold the GPU."""
    out = tmp_path / "out"
    given = command(out, "--only", "models", "--models", "2stage-xl", "--measure", "1e9")
    running = subprocess.Popen(given, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def sections():
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.parent.name != str(running.pid) and str(out).encode() in path.read_bytes():
                    found.append(path)
            except OSError:  # it has ended meanwhile
                continue
        return found

    def until(condition):
        end = time.monotonic() + 100
        while not condition() and time.monotonic() < end:
            time.sleep(0.1)
        assert condition()

    try:
        until(lambda: (out / "gpu.json").exists())  # written at the section's first figure
        assert len(sections()) == 1
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    until(lambda: not sections())
