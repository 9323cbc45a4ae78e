"""A skeleton is the model but for the values."""

from __future__ import annotations

import subprocess
import sys

import torch

from hnet_cli.config.run import resolve
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.init import skeleton


def test_names_shapes_and_dtypes_are_the_models() -> None:
    config = resolve("nano").model
    real, bare = HNetForCausalLM(config).state_dict(), skeleton(HNetForCausalLM, config).state_dict()
    assert [(n, t.shape, t.dtype) for n, t in bare.items()] == [(n, t.shape, t.dtype) for n, t in real.items()]
    assert all(tensor.is_meta for tensor in bare.values())


def test_it_becomes_the_model() -> None:
    config = resolve("nano").model
    model = HNetForCausalLM(config).eval()
    copy = skeleton(HNetForCausalLM, config).to_empty(device="cpu").eval()
    copy.load_state_dict(model.state_dict())
    ids = torch.arange(64)[None]
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, model(ids).logits)


def test_it_imports_no_compiler() -> None:
    """torch._dynamo takes seconds to import, and every command that loads a model would pay for it."""
    script = """
import sys
from hnet_cli.config.run import resolve
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.init import skeleton
skeleton(HNetForCausalLM, resolve("2stage-xl").model)
print("torch._dynamo" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
