"""Imbalance of work between ranks, and scaling of training speed with their number.

    python benchmarks/distributed.py [--inputs FILE...] [--modality text] [--length 1024] [--ranks 2] [--rounds 3]
        [--preset nano] [--set train.shard=full precision=bf16]

`imbalance`: rows of `--length` bytes as the loader deals them out, their chunks as the starter model of the modality
decides. For several numbers of ranks and rows on each, over many batches: the chunks of the rank that has most over
their mean (`in_order`), what is left of that if rows are dealt by a cheap estimate, the number of words that begin in
them (`by_words`) or by the chunks themselves (`by_chunks`: nothing can do better), and `waiting`, the share of the
floating-point operations of a step of `--flops-of` that the ranks wait for the slowest, in order.

`scaling`: `hnet train` for a few steps by one rank and by `--ranks`, processes of one thread, turn by turn for
`--rounds`; the best bytes per second of both, the median of the ratios of the rounds, and that over the number of ranks
(`efficiency`; 1 needs a core for each). The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from hnet_cli import modality
from hnet_cli.checkpoints.find import load
from hnet_cli.config.run import resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches
from hnet_cli.data.prepare import preparation
from hnet_cli.model.settings import space_like
from hnet_cli.training.budget import chunk_fractions

BATCHES = 200
"""Batches of each size, drawn from the rows that were routed."""


def counted(dataset: Dataset, kind: str, length: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of the outermost stage, and words, in each of at most `most` rows."""
    model = load(f"starter:{kind}")
    batches = Batches(dataset, sequence_length=length, rows=16)
    chunks, words = [], []
    for step in range(max(1, min(most, batches.windows_per_epoch) // 16)):
        batch = batches.batch(step)
        ids = torch.from_numpy(batch.inputs).long()
        with torch.no_grad():
            routing = model(ids, cu_seqlens=torch.from_numpy(batch.cu_seqlens), until="routing").routing
        mask = routing[0].boundary_mask
        chunks.append(mask.view(16, length).sum(1).numpy())
        space = space_like(ids)
        begins = torch.nn.functional.pad(space[1:] & ~space[:-1], (1, 0))
        words.append(begins.view(16, length).sum(1).numpy())
    return np.concatenate(chunks), np.concatenate(words)


def dealt(estimate: np.ndarray, ranks: int) -> np.ndarray:
    """(ranks, rows): equally many rows to each, the largest first, back and forth."""
    order = np.argsort(-estimate, kind="stable").reshape(-1, ranks)
    order[1::2] = order[1::2, ::-1]
    return order.T


def imbalance(chunks: np.ndarray, words: np.ndarray, length: int, preset: str) -> list[dict[str, Any]]:
    config = resolve(preset)
    outer = config.model.flops_per_byte([0.0] * config.model.num_stages, config.train.sequence_length)
    inner = config.model.flops_per_byte(chunk_fractions(config), config.train.sequence_length) - outer
    rng, found = np.random.default_rng(0), []
    for ranks in (2, 8, 64):
        for rows in (1, 4, 16):
            each: dict[str, list[float]] = {"in_order": [], "by_words": [], "by_chunks": []}
            waiting = []
            for _ in range(BATCHES):
                batch = rng.choice(len(chunks), ranks * rows)
                for name, shares in {
                    "in_order": np.arange(ranks * rows).reshape(ranks, rows),
                    "by_words": dealt(words[batch], ranks),
                    "by_chunks": dealt(chunks[batch], ranks),
                }.items():
                    own = chunks[batch][shares].sum(1)
                    each[name].append(own.max() / own.mean())
                    if name == "in_order":
                        work = outer + inner * own / own.mean()
                        waiting.append(1 - work.mean() / work.max())
            means = {name: round(float(np.mean(values)), 4) for name, values in each.items()}
            found.append({"ranks": ranks, "rows": rows} | means | {"waiting": round(float(np.mean(waiting)), 4)})
    return found


def speed(data: Path, ranks: int, preset: str, run: Path, more: list[str]) -> float:
    """Bytes per second of a short training, the record of its fastest steps."""
    settings = ["steps=12", "log_every=4", "eval_every=0", "eval_bytes=256", "checkpoint_every=1000", "samples=false"]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "--"]
    command = [sys.executable, *(launch if ranks > 1 else ["-m"]), "hnet_cli", "train", "--preset", preset]
    command += ["--data", str(data), "--run", str(run), "--device", "cpu"]
    command += [word for each in (*(f"train.{s}" for s in settings), *more) for word in ("--set", each)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(record["bytes_per_s"] for record in records[1:] if "bytes_per_s" in record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", nargs="+", type=Path)
    parser.add_argument("--modality", default="text")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=512, help="rows that are routed")
    parser.add_argument("--flops-of", default="1stage-l")
    parser.add_argument("--ranks", type=int, default=2, help="0: no measurement of speed")
    parser.add_argument("--rounds", type=int, default=3, help="of that measurement")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="of the run whose speed is measured")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, as_file(files("hnet_cli.starters") / "quickstart.txt") as text:
        data = Path(folder) / "data"
        preparation.prepare(given.inputs or [text], modality.get(given.modality), data, measure=False, val=0.05)
        chunks, words = counted(Dataset.open(data), given.modality, given.length, given.rows)
        result: dict[str, Any] = {
            "modality": given.modality,
            "rows": len(chunks),
            "length": given.length,
            "chunks_per_row": round(float(chunks.mean()), 1),
            "deviation": round(float(chunks.std() / chunks.mean()), 4),
            "correlation_with_words": round(float(np.corrcoef(chunks, words)[0, 1]), 3),
            "imbalance": imbalance(chunks, words, given.length, given.flops_of),
        }
        if given.ranks > 1:
            settings = [f"train.micro_batches={given.ranks}", *given.settings]
            rounds = [
                [speed(data, n, given.preset, Path(folder) / f"run-{n}-{i}", settings) for n in (1, given.ranks)]
                for i in range(given.rounds)
            ]
            one, many = (max(each) for each in zip(*rounds, strict=True))
            ratios = [b / a for a, b in rounds]
            result["scaling"] = {
                "preset": given.preset,
                "ranks": given.ranks,
                "cores": len(os.sched_getaffinity(0)),
                "bytes_per_s": {"1": one, str(given.ranks): many},
                "ratios": [round(r, 3) for r in ratios],
                "efficiency": round(median(ratios) / given.ranks, 3),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
