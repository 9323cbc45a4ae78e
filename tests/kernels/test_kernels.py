"""The seam: choosing, reporting and checking backends."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hnet_cli import kernels
from hnet_cli.kernels import cpu, cuda, reference


def test_choice():
    auto = kernels.choose("cpu", torch.float32)
    assert auto is kernels.choose(torch.device("cpu"), torch.float32, "auto")
    assert auto.ssd_scan is cpu.ssd_scan
    assert auto.names["ssd_scan"] == "host"
    assert auto.names["ema_scan"] == "reference"
    plain = kernels.choose("cpu", torch.float32, "reference")
    assert set(plain.names.values()) == {"reference"}
    assert plain.ssd_scan is reference.ssd_scan
    with pytest.raises(ValueError, match="auto, reference or fast"):
        kernels.choose("cpu", torch.float32, "quick")
    with pytest.raises(RuntimeError, match="no fast kernels for mps"):
        kernels.choose("mps", torch.float32, "fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a machine without CUDA says")
def test_what_is_missing_is_said_in_the_words_of_the_exception():
    rows = [r for r in kernels.report() if not r.available]
    assert {r.backend for r in rows} == {
        "mamba-ssm",
        "torch varlen_attn",
        "flash-attn",
        "triton",
        "torch.compile",
        "split weights",
    }
    assert all("CUDA" in r.reason for r in rows)
    assert kernels.choose("cuda", torch.bfloat16).ssd_scan is reference.ssd_scan
    with pytest.raises(RuntimeError, match=r"no fast ssd_scan \(mamba-ssm: RuntimeError: torch sees no CUDA"):
        kernels.choose("cuda", torch.bfloat16, "fast")
    if not importlib.util.find_spec("mamba_ssm"):
        with pytest.raises(ImportError, match="not installed"):
            cuda.load_mamba()


CHOSEN = """
import json, torch
torch.cuda.is_available, torch.cuda.get_device_capability = lambda: True, lambda *_: (9, 0)
from hnet_cli import kernels
chosen = {str(dtype): kernels.choose("cuda", dtype) for dtype in (torch.bfloat16, torch.float32)}
print(json.dumps({dtype: {name: [backend, getattr(getattr(each, name), "function", getattr(each, name)).__module__]
                          for name, backend in each.names.items()} for dtype, each in chosen.items()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("triton") and importlib.util.find_spec("mamba_ssm")), reason="not here"
)
def test_on_a_gpu_our_own_kernels_are_chosen():
    """On one that is said to be there; what is launched is not tried."""
    done = subprocess.run([sys.executable, "-c", CHOSEN], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    bfloat16, float32 = json.loads(done.stdout).values()
    for name in kernels.ELEMENTWISE:
        assert bfloat16[name] == float32[name] == ["triton", "hnet_cli.kernels.triton_elementwise"]
    for name in kernels.STEPS:
        assert bfloat16[name] == float32[name] == ["triton", "hnet_cli.kernels.triton_step"]
    assert bfloat16["ssd_scan"][0] == float32["ssd_scan"][0] == "mamba-ssm"
    assert bfloat16["attention"][0] == "torch varlen_attn"
    assert bfloat16["wide_linear"][0] == "split weights"
    assert float32["wide_linear"][0] == float32["attention"][0] == "reference"


def test_check_on_this_machine():
    results = kernels.check("cpu")
    assert {r.op for r in results} == set(kernels.HOST.operations)
    assert all(r.ok for r in results), results


@pytest.mark.slow
def test_the_seam_needs_torch_only():
    code = (
        "import sys, hnet_cli.kernels as k; k.report(); k.choose('cpu', __import__('torch').float32);"
        "foreign = {'mamba_ssm', 'flash_attn', 'pydantic', 'yaml', 'typer', 'hnet_cli.model'};"
        "sys.exit(bool(foreign & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, "0"])
def test_attention_does_not_wait_for_plans_of_cudnn(given):
    """torch reads it once, when attention first runs; importing the model comes before. A value of the user's stays."""
    name = "TORCH_CUDNN_SDPA_DEPRIORITIZED"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: given} if given else {})
    code = f"import os; from hnet_cli.model import HNetForCausalLM; print(os.environ['{name}'])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == (given or "1"), done.stderr
