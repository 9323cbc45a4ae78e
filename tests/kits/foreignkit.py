"""Every page of this package, with a foreign text in each place that is filled from a file."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

from comparisonkit import told_of, whole

from hnet_cli.comparison import page as comparison_page
from hnet_cli.inference import chunks_page
from hnet_cli.inference.chunks_page import About, Part, Piece
from hnet_cli.inference.render import shower
from hnet_cli.modality import Shown
from hnet_cli.report import run_page


def records(steps, evaluations=1, stages=1, spike=0):
    """Records of a run of so many logged steps: all figures there are, and a gradient norm of 80 at step `spike`."""
    found = []
    for n in range(1, steps + 1):
        record = {"step": n, "bytes": 1000 * n, "bpb": 2 + 6 / n, "bytes_per_s": 500, "ratio_loss": 1.0, "lr": 1e-3}
        record |= {"grad_norm": 80 if n == spike else 1 + 1 / n, "grad_norm_main": 0.5, "lr_stage0": 1e-3}
        for s in range(stages):
            record |= {f"stage{s}_bytes_per_chunk": 4 - 1 / n, f"stage{s}_target_bytes_per_chunk": 5.0}
            record |= {f"stage{s}_boundary_fraction": 0.2, f"stage{s}_prob_histogram": [n, *range(18), n]}
        found.append(record)
        if evaluations and n % math.ceil(steps / evaluations) == 0:
            found.append({"step": n, "bytes": 1000 * n, "val_bpb": 2.1 + 5 / n, "stage0_flips": 0.1})
    return found


def written(run: Path, records, word="", samples=1):
    """A run folder of these records; `word` wherever a run has words."""
    run.mkdir(exist_ok=True, parents=True)
    encoded = base64.b64encode((word or "Some words.").encode("utf-8", "surrogatepass")).decode()
    sketch = {"base64": encoded, "prompt": encoded, "depth": [1, 0, 2, 1], "probability": [[0.9, None, 0.7, 0.6]]}
    lines = {
        "metrics": records,
        "samples": [{"step": n, "bytes": n, "probe": sketch, "sample": sketch} for n in range(1, samples + 1)],
        "events": [{"step": 1, "kind": word or "spike", "text": word, "documents": [word]}],
    }
    for name, rows in lines.items():
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"name": word or "nano", "data": word or "fox", "train": {"steps": len(records)}}
    (run / "config.yaml").write_text(json.dumps(config))
    return run


def chunks(data: bytes, size=4, heading="a.txt", label="", note="", further=0.8):
    """The page of a text in chunks of `size` bytes; with every second one a chunk of stage 1 begins, of p `further`."""
    show = shower(None)
    pieces = [
        Piece(at, at + len(part), part, (0.9, further if n % 2 == 0 else math.nan), [1.0] * len(part))
        for n, at in enumerate(range(0, len(data), size))
        if (part := data[at : at + size])
    ]
    about = About(heading, "", label, heading, heading or "byte")
    part = Part(pieces, heading=heading, features=[Shown("gene", 0, 9, 1, heading)])
    return "".join(chunks_page.page([part], show, [0, 1], about, lambda: note, ([Part(pieces)], 2)))


def pages(folder: Path, word: str) -> dict[str, str]:
    """The pages by name."""
    name = word.encode("utf-8", "ignore").decode().replace("/", "").replace("\0", "")[:60].strip(". ") or "run"
    rows = [*records(9), {"step": word, "bytes": 9500, f"grad_norm_{word}": 1.0, "val_bpb": word, "lr": word}]
    run = written(folder / name, rows, word)
    told = whole(told_of(("fixed", False, 2.0), (f"learned {word}", True, 1.9)), word)
    return {
        "report": run_page.page(run),
        "runs": run_page.comparison({word: run, f"{word}2": run}, {word: [["", word, word], [word, word, word]]}),
        "compare": comparison_page.page(told),
        "chunks": chunks(word.encode("utf-8", "surrogatepass") * 9, 7, word, word, word),
    }
