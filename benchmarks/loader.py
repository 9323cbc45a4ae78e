"""The loader beside the fastest training step, measured in one run: python benchmarks/loader.py [--megabytes 200]

The step is that of the preset `nano` on this CPU, the fastest we have; on a GPU `small` is to reach 1.4 MB/s, so the
loader must give 14 MB/s there. Memory: what a loader process holds after many batches beyond what it held after a few.
Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from prepare import MB, measured, run_loader, run_prepare, write_text

TARGET = 1.4
"""MB per second of a training step of `small` on an H200 that is aimed at."""


def held(dataset: Path, steps: int) -> float:
    """MiB of anonymous memory after so many batches; pages of the mapped shards are the system's to take back."""
    from hnet_cli.data.dataset import Dataset
    from hnet_cli.data.loader import Batches

    batches = Batches(Dataset.open(dataset), sequence_length=256, rows=256)
    for step in range(steps):
        batches.batch(step)
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def step_bytes_per_s(dataset: Path) -> float:
    """Bytes per second of one core that the training step of `nano` takes in: the fastest of a few."""
    import torch

    from hnet_cli.config.run import resolve
    from hnet_cli.data.dataset import Dataset
    from hnet_cli.data.loader import Batches
    from hnet_cli.training.optim import build_optimizer
    from hnet_cli.training.step import build_model, precision_context, train_step

    torch.set_num_threads(1)
    config = resolve("nano")
    train = config.train
    batches = Batches(Dataset.open(dataset), sequence_length=train.sequence_length, rows=train.rows)
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    autocast = precision_context(config, torch.device("cpu"))
    spent = []
    for step in range(8):
        batch, began = batches.batch(step), time.process_time()
        train_step(model, optimizer, [batch], step, config, autocast)
        spent.append(time.process_time() - began)
    return train.batch_bytes / min(spent)


def main() -> None:
    import sysconfig

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "large.txt"
        write_text(text, options.megabytes, sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
        measured(run_prepare, text, "text", False)
        dataset = text.with_suffix(".dataset")
        count, cpu, _, _ = measured(run_loader, dataset)
        few, _, _, _ = measured(held, dataset, 50)
        many, _, _, _ = measured(held, dataset, 3000)
        step, _, _, _ = measured(step_bytes_per_s, dataset)
    figures = {
        "benchmark": "loader",
        "megabytes": options.megabytes,
        "loader_mb_per_s": round(count / MB / cpu, 2),
        "nano_step_mb_per_s": round(step / MB, 4),
        "loader_of_nano_step": round(count / cpu / step),
        "needed_for_small_on_h200_mb_per_s": 10 * TARGET,
        "grown_mib_over_3000_batches": round(many - few, 1),
    }
    for name, figure in figures.items():
        print(f"{name:36} {figure}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
