"""How a model does on all held-out documents of a dataset, beside xz: the figures recorded with the starter models.

    python benchmarks/heldout.py --model starter:text --data data/text [--window 2048] [--bytes N]

Bits per byte in windows of `--window` bytes (nothing older is seen), xz over the documents as one stream and over each
document by itself, an order-k model that saw the training split, bytes per chunk, and where the boundaries fall.
One JSON object.
"""

from __future__ import annotations

import argparse
import json
import lzma
from itertools import islice
from pathlib import Path

import torch

import hnet_cli
from hnet_cli import modality as modalities
from hnet_cli.corpus import Dataset
from hnet_cli.evaluate import validation
from hnet_cli.modality import Source
from hnet_cli.segment import Summary, segment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--bytes", type=int, default=1 << 40, help="at most this many held-out bytes")
    parser.add_argument("--scored", type=int, default=200_000, help="bytes to score boundaries on")
    wanted = parser.parse_args()
    model, dataset = hnet_cli.load(wanted.model), Dataset.open(wanted.data)
    kind = modalities.get(dataset.modality)
    ratios = list(model.config.target_ratios or ())
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        scored = validation(model, dataset, wanted.window, wanted.bytes, ratios)
    left, each, documents = scored["bytes"], 0, []
    for document in dataset.documents("val"):
        document = document[:left].translate(kind.input_table)
        left -= len(document)
        if document:
            documents.append(document)
            each += len(lzma.compress(document, preset=9 | lzma.PRESET_EXTREME))
    whole = len(lzma.compress(b"".join(documents), preset=9 | lzma.PRESET_EXTREME))
    summary, size = Summary(model.config, kind), 0
    for document in islice(documents, 200):
        if size < wanted.scored:
            piece = document[: wanted.scored - size]
            size += len(piece)
            # DNA documents are bare sequences by now, no longer FASTA
            reader = None if kind.input_table else kind
            for _ in segment(model, [Source.of_bytes(piece)], reader, format="plain", summary=summary):
                pass
    result = {
        "model": wanted.model,
        "bytes": scored["bytes"],
        "documents": len(documents),
        "window": wanted.window,
        "bpb": round(scored["bpb"], 4),
        "xz": round(8 * whole / scored["bytes"], 4),
        "xz_each_document": round(8 * each / scored["bytes"], 4),
        "order_k": round(dataset.about["baselines"]["order_k"], 4),
        "k": dataset.about["baselines"]["k"],
        "stages": [
            {k: v for k, v in stage.items() if k in ("bytes_per_chunk", "target", "edges")}
            for stage in summary.stages()
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
