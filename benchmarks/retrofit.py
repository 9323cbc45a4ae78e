"""Bits per byte of a Transformer over tokens, and of the H-Net over bytes that it is retrofitted into.

    python benchmarks/retrofit.py FILE... [--folder out] [--tiny] [--set train.steps=600]... [--control]

Runs `hnet prepare`, `hnet train --preset transformer-nano`, `hnet retrofit` and `hnet train` in `--folder`, where a
second call goes on, and prints each command. `--set` changes the training of the H-Net; `--tiny`: a Transformer and an
H-Net of minutes on one core. `--control` trains the same H-Net once more around a Transformer of random weights, as
frozen and taught with the same table: what the Transformer's layers are worth.

Measured on the same held-out bytes in windows of the training length: bits per byte of the Transformer (nats of its
tokens over bytes) and of the H-Net before and after; how often the H-Net's boundaries are first bytes of tokens
(where a sequence does not end too soon to know); the squared distance of what the main network reads from the
embeddings, over their mean squared length. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from hnet_cli.checkpoints.find import find, load
from hnet_cli.cli import app as cli
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.model import HNetForCausalLM
from hnet_cli.training.teacher import Teacher
from hnet_cli.training.validation import to_device

SMALLER = {
    "teacher": [
        "tokenizer=bpe:512",
        "model.arch_layout=[T3]",
        "model.d_model=[128]",
        "model.d_intermediate=[384]",
        "model.attn_cfg={num_heads: [2], rotary_emb_dim: [64], window_size: [-1]}",
        "train.steps=400",
    ],
    "hnet": ["model.d_model=[128, 128]", "model.adapter_width=384", "train.steps=350"],
}
QUIET = ["train.eval_every=0", "train.samples=false", "train.checkpoint_every=100000"]


def hnet(*arguments: str | Path, done: Path) -> None:
    """Run one command, unless what it makes is there."""
    words = [str(word) for word in arguments]
    print("$ hnet", shlex.join(words), flush=True)
    if not done.exists() and (code := cli.run(["-q", *words])):
        raise SystemExit(code)


def chosen(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@torch.inference_mode()
def measure(model: HNetForCausalLM, teacher: Teacher, data: Dataset, length: int, most: int) -> dict[str, float]:
    """Bits per byte of the H-Net on at most `most` held-out bytes."""
    nats = distance = 0.0
    total = chunks = 0
    counts = torch.zeros(4)  # judged positions by (is first byte, is boundary)
    batches = 0
    for batch in Windows(data, "val", length, most).batches(16384):
        inputs, targets, edges, _ = to_device(batch, torch.device("cpu"))
        out = model(inputs, cu_seqlens=edges)
        lesson = teacher.lesson(batch, torch.device("cpu"))
        nats += F.cross_entropy(out.logits.float(), targets, reduction="sum").item()
        distance += lesson.losses(out.routing[0], out.embedding)[1].item()
        kind = 2 * lesson.boundary.long() + out.routing[0].boundary_mask.long()
        counts += torch.bincount(kind[lesson.judged], minlength=4)
        chunks += int(out.routing[0].boundary_mask.sum())
        total, batches = total + len(batch.targets), batches + 1
    right, extra, missed, found = counts.tolist()
    return {
        "bpb": nats / total / math.log(2),
        "boundary_accuracy": (right + found) / (right + extra + missed + found),
        "boundary_precision": found / max(1.0, found + extra),
        "boundary_recall": found / max(1.0, found + missed),
        "bytes_per_chunk": total / chunks,
        "embedding_distance": distance / batches,
    }


def randomised(source: Path, target: Path) -> None:
    """The checkpoint in `source` with its layers drawn anew, each matrix with the spread it had; the table stays."""
    shutil.copytree(source, target)
    (target / "manifest.json").unlink()
    weights = load_file(target / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if "layers" in name and value.ndim == 2:
            weights[name] = torch.randn(value.shape, generator=generator) * value.std()
    save_file(weights, target / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--folder", type=Path, default=Path("retrofit"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--bytes", type=int, default=65536, help="held-out bytes at most")
    options = parser.parse_args()
    folder: Path = options.folder
    smaller = SMALLER if options.tiny else {"teacher": [], "hnet": []}
    data, teacher = folder / "data", folder / "teacher"
    hnet("prepare", *options.files, "--out", data, done=data)
    of_teacher = chosen([*QUIET, *smaller["teacher"], f"train.eval_bytes={options.bytes}"])
    hnet("train", "--preset", "transformer-nano", "--data", data, "--run", teacher, *of_teacher, done=teacher / "best")
    dataset = Dataset.open(data)
    records = map(json.loads, (teacher / "metrics.jsonl").read_text().splitlines())
    result: dict[str, Any] = {"teacher_bpb": next(each["val_bpb"] for each in records if "val_bpb" in each)}

    def retrofitted(name: str, source: Path) -> None:
        start, run = folder / name, folder / f"{name}-run"
        own = [*QUIET, *smaller["hnet"], f"train.eval_bytes={options.bytes}", *options.settings]
        hnet("retrofit", source, start, *chosen(own), done=start)
        hnet("train", "--preset", start / "config.yaml", "--data", data, "--run", run, done=run / "best")
        length = load(start).config.extra["sequence_length"]
        for when, model in (("before", load(start)), ("after", load(run))):
            result[f"{name}_{when}"] = measure(model, Teacher(start), dataset, length, options.bytes)
        parts = model.config.count_parameters()
        result["frozen"] = parts["level1.main_network"]
        result["trained"] = sum(parts.values()) - result["frozen"]

    retrofitted("hnet", teacher)
    if options.control:
        if not (folder / "random").exists():
            randomised(find(teacher), folder / "random")
        retrofitted("control", folder / "random")
    for name, value in result.items():
        shown = value if isinstance(value, dict) else {"": value}
        print(f"{name:16}", "  ".join(f"{key} {number:.4f}" for key, number in shown.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
