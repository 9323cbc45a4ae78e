"""Gaps in bits per byte between H-Nets and a BPE Transformer, by the bytes that all of them have read.

    python benchmarks/evidence.py FOLDER DATASET... [--bytes 500000 2000000 20000000] [--small 500000] [--report]

For each dataset, one modality each: first every member is trained on `--small` bytes with four learning rates, one
seed, and the rate with the lowest bits per byte is kept (the multipliers of the levels are those of the presets); then
`hnet compare` of all members with these rates at each of `--bytes`. Two kinds of members have the rate of those they
come from: `transformer-read`, over tokens learned from as many bytes as the models read, without the head start of
`transformer`, and those with hashed n-grams, `1stage-ngrams` and `mambabyte-ngrams`. A stopped benchmark goes on where
it was; `--report` only reads what FOLDER holds. Writes FOLDER/evidence.json; of docs/results/evidence.json
`benchmarks/results.py` makes a table. At nano 20 MB take about an hour of a core for each member.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import yaml

from hnet_cli.comparison.plan import ComparisonRequest
from hnet_cli.comparison.session import JSON, compare
from hnet_cli.config.run import resolve
from hnet_cli.data.dataset import Dataset

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
MEMBERS = ("transformer", "mambabyte", "space", "1stage", "2stage")
DNA = ("dna-transformer", "dna-mamba", "dna-1stage-transformer", "dna-1stage-mamba")
READ, NGRAMS = "transformer-read", "-ngrams"
ROWS = 16384
"""Hashed n-grams of each size, of the members that have them."""


def rates(folder: Path, data: Path, names: tuple[str, ...], small: int, size: str) -> None:
    """Train and measure every member with each learning rate."""
    for rate in RATES:
        place = folder / f"rate-{rate:g}"
        if not (place / JSON).exists():
            line_up, settings = ",".join(names), [f"train.lr={rate}"]
            request = ComparisonRequest(data, line_up, size, small, max_bytes=60_000, run=place, settings=settings)
            compare(request)


def found(folder: Path) -> dict[str, dict[float, float]]:
    """Bits per byte of every member by learning rate."""
    table: dict[str, dict[float, float]] = {}
    for rate in RATES:
        if (file := folder / f"rate-{rate:g}" / JSON).exists():
            for model in json.loads(file.read_text())["models"]:
                table.setdefault(model["name"], {})[rate] = model["bpb"]
    return table


def tuned_on(folder: Path) -> int | None:
    """Bytes that the members were trained on with each learning rate."""
    files = (folder / f"rate-{rate:g}" / JSON for rate in RATES)
    return next((json.loads(file.read_text())["budget"]["bytes"] for file in files if file.exists()), None)


def best_rates(folder: Path) -> dict[str, float]:
    return {name: min(bits, key=lambda rate: bits[rate]) for name, bits in found(folder).items()}


def members(names: tuple[str, ...], best: dict[str, float], nbytes: int, size: str) -> dict[str, dict[str, Any]]:
    """The presets of the members with their best rates, and of those that come from them."""
    presets: dict[str, dict[str, Any]] = {}
    for name in names:
        presets[name] = preset = {"extends": f"{name}-{size}", "train": {"lr": best[name]}}
        if name == "transformer":
            presets[READ] = preset | {"tokenizer": f"{resolve(f'{name}-{size}').tokenizer}@{nbytes}"}
        if name in ("1stage", "mambabyte"):
            presets[name + NGRAMS] = preset | {"model": {"ngram_rows": ROWS}}
    return presets


def compare_at(folder: Path, data: Path, names: tuple[str, ...], nbytes: int, size: str) -> None:
    """Compare the members with their best rates on `nbytes`."""
    place = folder / f"bytes-{nbytes}"
    if (place / JSON).exists():
        return
    presets = place / "presets"
    presets.mkdir(parents=True, exist_ok=True)
    files = []
    for name, preset in members(names, best_rates(folder), nbytes, size).items():
        files.append(str(presets / f"{name}.yaml"))
        Path(files[-1]).write_text(yaml.safe_dump(preset))
    compare(ComparisonRequest(data, ",".join(files), size, nbytes, max_bytes=300_000, run=place / "compare"))
    (place / JSON).write_bytes((place / "compare" / JSON).read_bytes())


def report(folder: Path) -> dict[str, Any]:
    """The bits of every member by rate, its bits and gap to the reference by bytes, and where that gap would be 0: on a
    straight line over the logarithm of bytes through the two largest budgets, and worth no more than such a line."""
    told: dict[str, Any] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        budgets = {}
        for file in place.glob(f"bytes-*/{JSON}"):
            data = json.loads(file.read_text())
            budgets[data["budget"]["bytes"]] = {
                model["name"]: {key: model[key] for key in ("bpb", "bpb_ci95", "bytes_per_chunk", "seconds")}
                | {"gap": model["differences"].get(data["reference"])}
                for model in data["models"]
            }
        told[place.name] = {
            "tuned_on": tuned_on(place),
            "rates": found(place),
            "budgets": dict(sorted(budgets.items())),
        }
        told[place.name]["crossings"] = crossings(told[place.name]["budgets"])
    return told


def crossings(budgets: dict[int, dict[str, Any]]) -> dict[str, float | None]:
    """Bytes at which a member's gap to the reference would be 0; None where it does not shrink."""
    if len(budgets) < 2:
        return {}
    (early, before), (late, after) = list(budgets.items())[-2:]
    where: dict[str, float | None] = {}
    for name in before.keys() & after.keys():
        if before[name]["gap"] and after[name]["gap"]:
            first, last = before[name]["gap"]["bpb"], after[name]["gap"]["bpb"]
            steps = last / (first - last) if first > last else math.inf
            shrinks = last > 0 and steps < 20
            where[name] = late * (late / early) ** steps if shrinks else late if last <= 0 else None
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--bytes", type=int, nargs="+", default=[500_000, 2_000_000, 20_000_000])
    parser.add_argument("--small", type=int, default=500_000)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    modalities = {data: Dataset.open(data).modality for data in given.data}
    for stage in (None, *sorted(given.bytes)) if not given.report else ():
        for data, modality in modalities.items():
            folder, names = given.folder / modality, DNA if modality == "dna" else MEMBERS
            if stage is None:
                rates(folder, data, names, given.small, given.size)
            else:
                compare_at(folder, data, names, stage, given.size)
    told = report(given.folder)
    (given.folder / "evidence.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
