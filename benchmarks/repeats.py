"""The cost of a passage the second time: whether a model copies from its context.

    python benchmarks/repeats.py MODEL... --files FILE...

Excerpts of 110 bytes, spread over the files, are scored as documents of their own, once alone and once written twice
with a line feed between. One JSON line for each model: bits per byte of the first time, and of the second with its
line feed, which is what the longer document costs more; 95% over excerpts. A model that copies pays for finding the
place and little else; one that does not pays what it paid before. Both fit into windows of 256 bytes.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from hnet_cli import modality
from hnet_cli.checkpoints.find import load
from hnet_cli.evaluation.material import gather
from hnet_cli.evaluation.resampling import with_interval
from hnet_cli.inference.scoring import score
from hnet_cli.model import HNetForCausalLM

LENGTH = 110
EXCERPTS = 200


def excerpts(documents: list[bytes]) -> list[bytes]:
    """At most `EXCERPTS` passages of `LENGTH` bytes that do not overlap, evenly spread over the documents."""
    places = [(d, at) for d, data in enumerate(documents) for at in range(0, len(data) - LENGTH + 1, LENGTH)]
    chosen = (places[i] for i in np.linspace(0, len(places) - 1, min(EXCERPTS, len(places))).astype(int).tolist())
    return [documents[d][at : at + LENGTH] for d, at in chosen]


def repeated(model: HNetForCausalLM, passages: list[bytes]) -> dict[str, Any]:
    """{"first", "second"}: bits per byte of passages and of their repetition, each with its interval."""
    once, twice = (
        scores.per_document(scores.bits)
        for scores in (score(model, given, None) for given in (passages, [each + b"\n" + each for each in passages]))
    )
    sizes = np.array([len(each) for each in passages])
    return with_interval("first", np.stack([once, sizes], 1)) | with_interval(
        "second", np.stack([twice - once, sizes + 1], 1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--files", nargs="+", metavar="FILE", required=True)
    options = parser.parse_args()
    for name in options.models:
        model = load(name).eval()
        kind = modality.get(model.modality or "text")
        documents = [each.data.translate(kind.input_table) for each in gather(options.files, kind, None).documents]
        passages = excerpts(documents) or parser.error(f"no file has {LENGTH} bytes")
        print(json.dumps({"model": name} | repeated(model, passages)), flush=True)


if __name__ == "__main__":
    main()
