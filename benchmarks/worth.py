"""The worth of chunks: definitions of it side by side, and what could raise it for DNA.

    python benchmarks/worth.py definitions MODEL FILE...
    python benchmarks/worth.py copies FASTA...
    python benchmarks/worth.py remedies FOLDER DATASET [--steps N] [--only NAME...] [--report]

`definitions` reads up to 48 KiB of the files (2 KiB of each document) and prints how many bits per byte are lost where
each position is handed, instead of its own chunk's vector: the mean of all (`worth` of `hnet eval`), zero, that of the
chunk before, that of a chunk drawn from all; and where every document is one chunk. Of the vectors that the main
network puts out it prints which share of their size varies: near 0 they are one constant, whatever a chunk holds.

`copies` prints the share of bases that could be copied: the 16 bases before them stand, as they are or as reverse
complement, at most so many bases back; and how often the base after the nearest such place is the right one.

`remedies` trains preset nano-dna, and the same with one thing changed, on the same bases in the same order, and
measures bits per base and worth on the same 65,536 held-out bases. What is in FOLDER is not measured again, a run that
was stopped goes on, and several processes share the work. `--report` prints the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli import storage
from hnet_cli.checkpoints.find import load
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.config.run import resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.evaluation import compression
from hnet_cli.evaluation.material import equal_shares, gather
from hnet_cli.evaluation.resampling import with_interval
from hnet_cli.inference.scoring import Scores, score
from hnet_cli.kernels.packing import Packing
from hnet_cli.modality import get
from hnet_cli.model.hnet import HNet
from hnet_cli.training import losses as losses_module
from hnet_cli.training import step as step_module
from hnet_cli.training.budget import chunk_fractions
from hnet_cli.training.loop import train

SAMPLE, SHARE = 49_152, 2048
SEED = 16
"""Bases that a copy has in common with the place it is copied from."""
REACH = {"1024": 1 << 10, "4096": 1 << 12, "16384": 1 << 14, "65536": 1 << 16, "anywhere": 1 << 60}
HELD_OUT, STRETCH = 65_536, 4096
COMMON = [
    *("model.arch_layout=[m2T1, [T3], m2]", "model.d_intermediate=[256, 512]", "train.sequence_length=1024"),
    *("train.target_ratios=[3]", "train.ratio_loss_weight=0.3", "train.alignment_loss_weight=0"),
    *("train.lr=2e-3", "train.lr_multipliers=[1.5, 1.0]"),
    *("train.batch_bytes=4096", "train.eval_every=0", "train.eval_bytes=16384", "train.samples=false"),
    *("train.checkpoint_every=50", "train.keep_checkpoints=1", "train.log_every=10"),
]
ONE_LEVEL = [
    *("train.target_ratios=[]", "train.lr_multipliers=[1.5]"),
    "model.attn_cfg={num_heads: [2], rotary_emb_dim: [32], window_size: [1023]}",
]
SMALL = ["model.d_model=[64, 192]", "model.d_intermediate=[0, 512]", "model.attn_cfg.num_heads=[1, 3]"]
REMEDIES: dict[str, list[str]] = {
    "base": [],
    "no attention in the encoder": ["model.arch_layout=[m2, [T3], m2]"],
    "no inner level": ["model.arch_layout=[m2T1m2]", "model.d_model=[128]", "model.d_intermediate=[256]", *ONE_LEVEL],
    "small encoder": ["model.arch_layout=[m1, [T3], m1]", *SMALL],
    "residual dropped": [],
    "windows of 4096": ["train.sequence_length=4096"],
    "a chunk every 8": ["model.chunker=fixed:8", "train.target_ratios=[8]"],
    "loss from the chunk alone": [],
    "inner learning rate x 4": ["train.lr_multipliers=[1.5, 4.0]"],
    "inner learning rate / 4": ["train.lr_multipliers=[1.5, 0.25]"],
    "a chunk every 3": ["model.chunker=fixed:3"],
    "small encoder's layers alone": [
        "model.arch_layout=[m2]",
        "model.d_model=[64]",
        "model.d_intermediate=[0]",
        *ONE_LEVEL,
    ],
    "Mamba-2 main network": ["model.arch_layout=[m2T1, [M3], m2]", "model.d_intermediate=[256, 384]"],
    "N of 8": ["train.target_ratios=[8]"],
    "small encoder, a chunk every 3": ["model.arch_layout=[m1, [T3], m1]", *SMALL, "model.chunker=fixed:3"],
    "alignment loss": ["train.alignment_loss_weight=0.1"],
    "alignment by entropy": ["train.alignment=entropy", "train.alignment_loss_weight=0.5"],
}
"""Name: the settings that differ from `COMMON`. Two differ in the training step: `residual_dropped`, `chunk_alone`."""
DROPPED, STRETCHES_OF, ALONE = 0.3, 64, 0.3
"""Share of the residual that is dropped, the positions of a stretch of it, and the weight of the second loss."""


# -- definitions -------------------------------------------------------------------------------------------------------


def definitions(name: str, files: list[str]) -> dict[str, Any]:
    model = load(name).eval()
    assert model.modality
    modality = get(model.modality)
    found = equal_shares(
        [d._replace(data=d.data[:SHARE]) for d in gather(files, modality, None).documents], SAMPLE, SHARE
    )
    documents = [document.data.translate(modality.input_table) for document in found]
    random = torch.Generator().manual_seed(0)

    def scored() -> Scores:
        return score(model, documents, SHARE)

    with main_outputs(model) as outputs:
        whole = scored()
    handed, varies = model.backbone.dechunk_layer, varying(torch.cat(outputs))

    def lost(scores: Scores) -> dict[str, Any]:
        return with_interval("lost", whole.units(scores.bits - whole.bits, whole.bytes))

    def before(module: Any, arguments: Any, out: Tensor) -> Tensor:
        smoothed, routing, packing = arguments[:3]
        chunk = routing.boundary_mask.cumsum(0) - 1
        return smoothed.index_select(0, torch.maximum(chunk - 1, chunk[packing.first][packing.document]))

    def drawn(module: Any, arguments: Any, out: Tensor) -> Tensor:
        order = torch.randperm(len(arguments[0]), generator=random)
        return arguments[0][order].index_select(0, arguments[1].boundary_mask.cumsum(0) - 1)

    ways: dict[str, Callable[..., Tensor]] = {
        "zero": lambda module, arguments, out: torch.zeros_like(out),
        "the chunk before": before,
        "a chunk of another place": drawn,
    }
    (mean,) = compression.worth(model, scored)[:1]
    rows = {"mean": {"lost": mean["worth"], "lost_ci95": mean["worth_ci95"]}}
    for way, hook in ways.items():
        handle = handed.register_forward_hook(hook)
        rows[way] = lost(scored())
        handle.remove()
    with model.set_thresholds(1.0):
        rows["one chunk for each document"] = lost(scored())
    told = {"model": name, "bytes": int(whole.bytes.sum()), "documents": whole.documents, "varies": varies}
    return told | {"bpb": float(whole.bits.sum() / whole.bytes.sum()), "rows": rows}


def varying(vectors: Tensor) -> float:
    """The share of the size of vectors (n, D), root mean square, that differs from one to the next: 0 to 1."""
    vectors = vectors.double()
    whole = float(vectors.square().mean(0).sum())
    return (float(vectors.var(0, correction=0).sum()) / whole) ** 0.5 if whole else 0.0


@contextlib.contextmanager
def main_outputs(model: LoadedModel) -> Iterator[list[Tensor]]:
    """Collect what the main network puts out in the passes of the block, (chunks, D) each."""
    level, outputs = model.backbone, list[Tensor]()
    while isinstance(level.main_network, HNet):
        level = level.main_network
    handle = level.main_network.register_forward_hook(lambda module, arguments, out: outputs.append(out))
    yield outputs
    handle.remove()


# -- copies -----------------------------------------------------------------------------------------------------------


def copies(file: str) -> dict[str, Any]:
    hits, right, bases = dict.fromkeys(REACH, 0), dict.fromkeys(REACH, 0), 0
    for document in gather([file], get("dna"), None).documents:
        code = np.searchsorted(np.frombuffer(b"ACGT", np.uint8), np.frombuffer(document.data.upper(), np.uint8))
        if (number := len(code) - SEED) < 1:
            continue
        places, following = np.arange(number), code[SEED:]
        forward, reverse = np.zeros(number, np.uint64), np.zeros(number, np.uint64)
        for at in range(SEED):
            base = code[at : at + number].astype(np.uint64)
            forward = (forward << np.uint64(2)) | base
            reverse |= (np.uint64(3) - base) << np.uint64(2 * at)
        same = _before(forward, forward, strict=True)
        turned = _before(forward, reverse, strict=False)
        back = np.where(same >= 0, places - same, 1 << 61), np.where(turned > 0, places - turned, 1 << 61)
        fits = code[np.maximum(same, 0) + SEED] == following, 3 - code[np.maximum(turned, 1) - 1] == following
        bases += number
        for name, reach in REACH.items():
            direct = back[0] <= reach
            other = (back[1] <= reach) & ~direct
            hits[name] += int(direct.sum() + other.sum())
            right[name] += int((direct & fits[0]).sum() + (other & fits[1]).sum())
    shares = {name: {"share": hits[name] / bases, "right": right[name] / max(1, hits[name])} for name in REACH}
    return {"file": Path(file).name, "bases": bases, "copies": shares}


def _before(keys: np.ndarray, wanted: np.ndarray, strict: bool) -> np.ndarray:
    """For each place the last one up to it (`strict`: before it) whose key is wanted there; -1 for none."""
    number = len(keys)
    both, asks = np.concatenate([keys, wanted]), np.repeat([False, True], number)
    place = np.tile(np.arange(number), 2)
    order = np.lexsort((asks != strict, place, both))  # strict: a place asks before it answers
    asks, place, both = asks[order], place[order], both[order]
    last = np.maximum.accumulate(np.where(asks, -1, np.arange(2 * number)))
    found = np.where((last >= 0) & (both[last] == both), place[last], -1)
    result = np.empty(number, np.int64)
    result[place[asks]] = found[asks]
    return result


# -- remedies ----------------------------------------------------------------------------------------------------------


patched: Any = HNet
steps: Any = step_module


@contextlib.contextmanager
def residual_dropped() -> Iterator[None]:
    """Without the encoder's residual at `DROPPED` of the stretches of positions in training."""
    join = HNet.join

    def dropping(self: HNet, upsampled: Tensor, residual: Tensor, *rest: Any) -> Tensor:
        if torch.is_grad_enabled():
            kept = torch.rand(-(-len(residual) // STRETCHES_OF)) >= DROPPED
            residual = residual * kept.repeat_interleave(STRETCHES_OF)[: len(residual), None]
        return join(self, upsampled, residual, *rest)

    patched.join = dropping
    yield
    patched.join = join


@contextlib.contextmanager
def chunk_alone() -> Iterator[None]:
    """With a second loss: the same decoder and head predict each byte from its chunk's vector, without the residual."""
    join, losses, alone = HNet.join, losses_module.losses, list[Tensor]()

    def joining(self: HNet, upsampled: Tensor, residual: Tensor, *rest: Any) -> Tensor:
        if torch.is_grad_enabled():
            alone[:] = [join(self, upsampled, residual * 0, *rest)]
        return join(self, upsampled, residual, *rest)

    def both(
        model: Any, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor, weights: Any, total: float, *rest: Any
    ) -> Any:
        parts, routing = losses(model, inputs, targets, cu_seqlens, weights, total, *rest)
        decoded = model.backbone.decoder(alone.pop(), Packing.of_cu_seqlens(cu_seqlens, inputs.device), model.kernels())
        nll = F.cross_entropy(model.lm_head(decoded).float(), targets, reduction="sum")
        parts.total = parts.total + ALONE * nll / total
        return parts, routing

    patched.join, steps.losses = joining, both
    yield
    patched.join, steps.losses = join, losses


CHANGED_STEPS = {"residual dropped": residual_dropped, "loss from the chunk alone": chunk_alone}


def held_out(data: Dataset) -> list[bytes]:
    """`HELD_OUT` bases in stretches, as the model reads them."""
    found = []
    for document, _, start, size in Windows(data, "val", STRETCH, HELD_OUT).table.tolist():
        at = int(data.table[document, 0]) + start
        found.append(data.translate(np.frombuffer(data.shards.read(at, at + size), np.uint8)).tobytes())
    return found


def remedy(name: str, folder: Path, data: Path, steps: int) -> None:
    config = resolve("nano-dna", [*COMMON, f"train.steps={steps}", *REMEDIES[name]])
    run = folder / "runs" / f"{name.replace(' ', '-')}-{steps}"
    with CHANGED_STEPS.get(name, contextlib.nullcontext)():
        train(config, data, run, resume=(run / "config.yaml").exists())
    model, documents = load(str(run)).eval(), held_out(Dataset.open(data))
    length = config.train.sequence_length
    scores = score(model, documents, length)
    found: dict[str, Any] = {"name": name, "steps": steps, "bases": steps * config.train.batch_bytes, "context": length}
    found |= {
        "bpb": float(scores.bits.sum() / scores.bytes.sum()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    found["units"] = np.stack([scores.per_document(column) for column in (scores.bits, scores.bytes)], 1).tolist()
    found["flops"] = config.model.flops_per_byte(chunk_fractions(config), length)
    if model.config.num_stages:
        found["bytes_per_chunk"] = float(scores.bytes.sum() / scores.stages[:, 0, 1].sum())
        found |= compression.worth(model, lambda: score(model, documents, length))[0]
        found["one_chunk"] = one_chunk(model, documents, length, scores)
    storage.write_json(folder / f"{name.replace(' ', '-')}-{steps}.json", found)


def one_chunk(model: LoadedModel, documents: list[bytes], length: int, whole: Scores) -> float:
    with model.set_thresholds(1.0):
        return float((score(model, documents, length).nats - whole.nats).sum() / whole.bytes.sum() / math.log(2))


def report(folder: Path) -> Iterator[str]:
    """A row of a Markdown table for each result, in the order of `REMEDIES`; differences are paired by stretch."""
    yield "| | bits per base | minus base, 95% | worth, 95% | as one chunk | bases/chunk | parameters | MFLOPs/base |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    found = {(r["steps"], r["name"]): r for r in (json.loads(file.read_text()) for file in folder.glob("*.json"))}
    for (steps, name), r in sorted(found.items(), key=lambda each: (each[0][0], list(REMEDIES).index(each[0][1]))):
        cells = ["-"] * 4
        if name != "base" and (base := found.get((steps, "base"))):
            units = np.array(r["units"])
            units[:, 0] -= np.array(base["units"])[:, 0]
            cells[0] = _figure(with_interval("bits", units), "bits", "+.4f")
        if "worth" in r:
            cells[1:] = _figure(r, "worth"), f"{r['one_chunk']:.4f}", f"{r['bytes_per_chunk']:.2f}"
        sizes = f"{r['parameters'] / 1e6:.2f}M | {r['flops'] / 1e6:.2f}"
        yield f"| {name} | {r['bpb']:.4f} | {' | '.join(cells)} | {sizes} |"


def _figure(figures: dict[str, Any], name: str, form: str = ".4f") -> str:
    low, high = figures[f"{name}_ci95"]
    return f"{figures[name]:{form}} ({low:{form}} to {high:{form}})"


def claim(file: Path) -> bool:
    """Nobody else works on it: a claim is a file that holds a living process."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(file.read_text()), 0)
        return False
    storage.write_text(file, str(os.getpid()))
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["definitions", "copies", "remedies"])
    parser.add_argument("of", help="MODEL, FASTA, or FOLDER of the results")
    parser.add_argument("data", nargs="*")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--only", nargs="+", default=list(REMEDIES))
    parser.add_argument("--report", action="store_true")
    wanted = parser.parse_args()
    if wanted.part == "definitions":
        print(json.dumps(definitions(wanted.of, wanted.data)))
        return
    if wanted.part == "copies":
        for file in [wanted.of, *wanted.data]:
            print(json.dumps(copies(file)))
        return
    folder = Path(wanted.of)
    if not wanted.report:
        for name in wanted.only:
            stem = f"{name.replace(' ', '-')}-{wanted.steps}"
            if not (folder / f"{stem}.json").exists() and claim(folder / f"{stem}.claim"):
                remedy(name, folder, Path(wanted.data[0]), wanted.steps)
    print("\n".join(report(folder)))


if __name__ == "__main__":
    main()
