"""Bits per byte gained by each choice beyond the paper, at equal bytes, against the same model without it.

    python benchmarks/switches.py FOLDER DATASET... [--steps N] [--seeds 0 1] [--only NAME...] [--report]

Trains the modality's nano preset with the paper's losses (and the alpha that reaches the target at this size), then
the same with one thing changed: same bytes in the same order, and FLOPs per byte beside it. Every model is scored on
the same held-out documents; a difference in bits per byte is paired, with a 95% interval over documents (over windows
where there are few documents) and, with several seeds, over those too, as in `hnet compare`. A run takes a minute or
two and is not repeated when its result is in FOLDER, so a stopped benchmark goes on. Prints one JSON line; `--report`
only reads what FOLDER holds. A choice wins on a modality where its whole interval is below zero, and earns its place
as a default by winning on three.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from hnet_cli import storage
from hnet_cli.checkpoints.find import load
from hnet_cli.config.run import RunConfig, resolve
from hnet_cli.data import tokens
from hnet_cli.data.dataset import Dataset
from hnet_cli.evaluation import compression
from hnet_cli.evaluation.resampling import interval, over_seeds, ratio
from hnet_cli.inference.scoring import score
from hnet_cli.training import lineup
from hnet_cli.training.loop import train

BASES = {"text": "nano", "chinese": "nano-chinese", "code": "nano", "dna": "nano"}
MODALITY = {
    "chinese": ["train.target_ratios=[5]"],
    "dna": ["train.target_ratios=[3]", "train.sequence_length=512", "train.ratio_loss_weight=0.3"],
}
"""DNA begins without the attention beside the chunking layer that its preset has: that is one of the choices."""
COMMON = [
    "model.arch_layout=[m2, [T3], m2]",
    *("train.alignment_loss_weight=0", "train.lr=2e-3", "train.lr_multipliers=[1.5, 1.0]"),
    *("train.eval_every=0", "train.eval_bytes=65536", "train.samples=false"),
]
"""Layers and rates are those that `nano` had when these choices were first measured."""
WORTH_BYTES, LEAST = 65_536, 1024
"""Held-out bytes that the worth of the chunks is measured on, about, and the fewest of a document."""
PIECES = ["train.micro_batches=4"]
CHOICES: dict[str, tuple[str, list[str]]] = {
    "muon": ("base", ["train.optimizer=muon"]),
    "smoothing of the input": ("base", ["model.smoothing=input"]),
    "alignment loss 0.1": ("base", ["train.alignment_loss_weight=0.1"]),
    "alignment by entropy": ("base", ["train.alignment=entropy", "train.alignment_loss_weight=0.5"]),
    "alpha 1 to 0.03": ("base", ["train.ratio_loss_weight=[[0, 1.0], [0.6, 0.03]]"]),
    "N from 2 up": ("base", ["train.target_ratios=[[[0, 2], [0.4, {n}]]]"]),
    "hybrid main network": ("base", ["model.arch_layout=[m2, [M1T1M1], m2]"]),
    "attention beside chunking": ("base", ["model.arch_layout=[m1t1, [T3], t1m1]"]),
    "hashed n-grams": ("base", ["model.ngram_rows=16384"]),
    "hashed n-grams, 2,048 rows": ("base", ["model.ngram_rows=2048"]),
    "chunks by a pattern": ("base", ["model.chunker=regex:{pattern}"]),
    "chunks by BPE tokens": ("base", ["model.chunker=bpe:{tokenizer}"]),
    "main network at a quarter": ("base", ["train.lr_multipliers=[1.5, 0.25]"]),
    "twice the rate": ("base", ["train.lr=4e-3"]),
    "twice the rate, main network at a quarter": ("base", ["train.lr=4e-3", "train.lr_multipliers=[1.5, 0.25]"]),
    "global ratio loss": ("base in 4 pieces", [*PIECES, "train.ratio_loss_statistics=global"]),
}
"""Name: what it is compared with, and the settings that differ from `BASES`."""
PATTERNS = {
    "text": "[^A-Za-z][A-Za-z]",
    "code": "[^A-Za-z_0-9][A-Za-z_0-9]",
    "chinese": r"[\xc0-\xff]|[^A-Za-z][A-Za-z]",
    "dna": "[AG][CT]",
}
"""First letters of words; Chinese characters; a pyrimidine after a purine."""
VOCABULARY = "bpe:4096"
CONTROLS: dict[str, list[str]] = {"base": [], "base in 4 pieces": PIECES}


def configuration(modality: str, name: str, seed: int, steps: int, tokenizer: Path) -> RunConfig:
    preset = BASES.get(modality, "nano")
    fixed = [*COMMON, *MODALITY.get(modality, []), "train.batch_bytes=4096", f"train.steps={steps}"]
    n = resolve(preset, MODALITY.get(modality, [])).train.ratios()[0]
    changes = CONTROLS[name] if name in CONTROLS else CHOICES[name][1]
    for mark, value in {"n": str(n), "pattern": PATTERNS[modality], "tokenizer": str(tokenizer)}.items():
        changes = [setting.replace(f"{{{mark}}}", value) for setting in changes]
    return resolve(preset, [*fixed, f"train.checkpoint_every={steps}", f"train.seed={seed}", *changes])


def measure(data: Path, folder: Path, name: str, seed: int, steps: int, limit: int) -> None:
    dataset = Dataset.open(data)
    result = folder / dataset.modality / f"{name.replace(' ', '-')}-s{seed}.json"
    if result.exists():
        return
    tokenizer = result.with_name("tokenizer.json")
    if "BPE" in name and not tokenizer.exists():
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.write_text(tokens.of_setting(VOCABULARY, dataset).text)
    config = configuration(dataset.modality, name, seed, steps, tokenizer)
    run = result.with_suffix("")
    began = time.monotonic()
    done = train(config, data, run, resume=run.exists())
    seconds = time.monotonic() - began
    length = config.train.sequence_length
    kept: list[bytes] = []
    for document in dataset.documents("val"):
        if room := limit - sum(map(len, kept)):
            kept.append(dataset.translate(np.frombuffer(document[:room], np.uint8)).tobytes())
    model = load(str(run)).eval()
    scores = score(model, kept, length)
    units = scores.units(scores.nats, scores.bytes)
    some = [document[: max(LEAST, WORTH_BYTES // len(kept))] for document in kept[: WORTH_BYTES // LEAST]]
    stages = compression.worth(model, lambda: score(model, some, length)) if model.config.num_stages else []
    storage.write_json(
        result,
        {
            "modality": dataset.modality,
            "name": name,
            "seed": seed,
            "bytes": done.state.bytes_seen,
            "seconds": seconds,
            "flops_per_byte": lineup.flops_per_byte(config, dataset),
            "bytes_per_chunk": float(scores.bytes.sum() / scores.stages[:, 0, 1].sum()),
            "worth": [stage["worth"] for stage in stages],
            "unit": scores.unit,
            "units": units.tolist(),
        },
    )
    storage.remove_folder(run)


def report(folder: Path) -> list[dict[str, object]]:
    """Per modality and choice: bits per byte, and the paired difference over the seeds that both have."""
    rows: list[dict[str, object]] = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {(r["name"], r["seed"]): r for r in (json.loads(file.read_text()) for file in place.glob("*-s*.json"))}
        for name in [*CONTROLS, *CHOICES]:
            own = [found[key] for key in sorted(found) if key[0] == name]
            if not own:
                continue
            base = CHOICES[name][0] if name in CHOICES else name
            pairs = [(r, found[base, r["seed"]]) for r in own if (base, r["seed"]) in found]
            row = {
                "modality": place.name,
                "name": name,
                "bpb": [float(ratio(np.sum(r["units"], 0))) / np.log(2) for r in own],
                "bytes_per_chunk": [r["bytes_per_chunk"] for r in own],
                "flops_per_byte": own[0]["flops_per_byte"],
                "bytes": own[0]["bytes"],
                "seconds": [r["seconds"] for r in own],
                "worth": [r.get("worth") for r in own],
                "seeds": [r["seed"] for r in own],
            }
            if name in CHOICES and pairs:
                units = np.array([np.subtract(a["units"], [[u[0], 0] for u in b["units"]]) for a, b in pairs])
                change, drawn = over_seeds(units, lambda sums: ratio(sums) / np.log(2))
                around = interval(drawn)
                row |= {"against": base, "change": change, "change_ci95": around, "unit": own[0]["unit"]}
                row["wins"] = around is not None and around[1] < 0
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--bytes", type=int, default=262_144, help="held-out bytes that are scored")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[*CONTROLS, *CHOICES])
    parser.add_argument("--report", action="store_true")
    wanted = parser.parse_args()
    if not wanted.report:
        for seed in wanted.seeds:
            for name in wanted.only:
                for data in wanted.data:
                    measure(data, wanted.folder, name, seed, wanted.steps, wanted.bytes)
    print(json.dumps({"results": report(wanted.folder)}))


if __name__ == "__main__":
    main()
