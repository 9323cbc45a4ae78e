"""Memory of a large model on the CPU: sample, segment and eval of `2stage-xl` in bfloat16, mapped from its file.

    python benchmarks/official.py [--preset 2stage-xl] [--bytes 2000] [--folder DIR]

Writes a model folder with random weights (3.2 GB for 2stage-xl, removed afterwards), runs the three commands on it and
prints the largest resident memory and the time of each. About half of all positions are boundaries, more than in a
trained model. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hnet_cli import storage
from hnet_cli.checkpoints.convert import expected_shapes
from hnet_cli.checkpoints.safetensors_file import write_safetensors
from hnet_cli.config.run import resolve
from hnet_cli.model import HNetConfig

LIMIT = 8 << 30


def write_model(folder: Path, config: HNetConfig, dtype: torch.dtype) -> int:
    """A model folder with random weights, tensor by tensor. Gives its bytes."""
    generator = torch.Generator().manual_seed(0)

    def random(tensor: Any) -> torch.Tensor:
        if tensor.name.endswith("norm.weight") or ".norm" in tensor.name:
            return torch.ones(tensor.shape, dtype=dtype)
        scale = 1 / math.sqrt(tensor.shape[-1]) if len(tensor.shape) > 1 else 0.1
        return torch.empty(tensor.shape, dtype=dtype).normal_(std=scale, generator=generator)

    tensors = {
        name: SimpleNamespace(name=name, shape=shape, dtype=dtype) for name, shape in expected_shapes(config).items()
    }
    if config.tie_embeddings:
        del tensors["lm_head.weight"]
    with storage.staged_folder(folder, manifest={"kind": "model"}) as staged:
        storage.write_json(staged / "config.json", config.to_dict())
        with storage.NewFile(staged / "model.safetensors") as file:
            write_safetensors(file, tensors, random)
            return file.size


def peak(arguments: list[str]) -> tuple[int, float]:
    """Largest resident memory in bytes, and seconds, of an `hnet` command. Raises RuntimeError if it fails."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hnet_cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"hnet {arguments[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss << 10, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="2stage-xl")
    parser.add_argument("--bytes", type=int, default=2000, help="of the file that is segmented and evaluated")
    parser.add_argument("--folder", type=Path, help="where to put the model for a while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        model, text = Path(name) / "model", Path(name) / "text.txt"
        size = write_model(model, resolve(options.preset).model, torch.bfloat16)
        text.write_text(("where words begin, a chunk may begin too. " * options.bytes)[: options.bytes])
        print(f"{options.preset}: {size / 2**30:.2f} GiB of weights in bfloat16", flush=True)
        commands = {
            "sample": ["sample", str(model), "--prompt", "The ", "--max-bytes", "5"],
            "segment": ["segment", str(text), "--model", str(model), "--format", "plain", "--modality", "text"],
            "eval": ["eval", str(model), str(text), "--json", "--modality", "text"],
        }
        result: dict[str, Any] = {"preset": options.preset, "weights_gib": round(size / 2**30, 3)}
        for command, arguments in commands.items():
            memory, seconds = peak([*arguments, "--device", "cpu"])
            result[command] = {"peak_gib": round(memory / 2**30, 3), "seconds": round(seconds, 1)}
            fits = "fits" if memory <= LIMIT else "does NOT fit"
            print(f"{command}: peak {memory / 2**30:.2f} GiB ({fits} in 8 GiB), {seconds:.1f} s", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
