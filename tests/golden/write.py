"""Writes tests/golden/run-N: a dataset and a run stopped after step 2, in today's formats, and the curve of going on.

    PYTHONPATH=tests:tests/reliability python tests/golden/write.py run-2

Run it when a format gets a new version, into a new folder; a folder that was released is never written again.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import golden_curve
from runkit import dataset, fox, tiny

from hnet_cli.training.loop import train

SMALLEST = [
    "model.d_model=[8, 8]",
    "model.d_intermediate=[0, 16]",
    "model.ssm_cfg={d_state: 4, headdim: 8}",
    "model.attn_cfg={num_heads: [1, 1], rotary_emb_dim: [4, 4], window_size: [-1, -1]}",
]


def main(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)  # so that the files name no path of this machine
    text = fox(Path(), 100)
    data = dataset(Path(), text)
    text.unlink()
    settings = [*SMALLEST, "train.checkpoint_every=2", "train.eval_every=0"]
    train(tiny(*settings, "train.steps=2"), data, Path("run"))
    for name in ("run/.lock", "dataset/.verified.json"):
        Path(name).unlink(missing_ok=True)
    curve = golden_curve.of(folder)
    (folder / "curve.json").write_text(json.dumps(golden_curve.build() | {"curve": curve}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent / sys.argv[1])
