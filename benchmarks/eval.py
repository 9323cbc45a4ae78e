"""Speed and memory of scoring in `hnet eval`, as ratios measured in one run; prints one JSON line.

    python benchmarks/eval.py [--model MODEL] [--bytes N] [--threads N]

- scoring_over_forward: bytes per second scored (documents of uneven length, windows of 2,048 bytes, packed) over
  those of the bare forward pass on rows of 2,048 bytes, the two in turns. Aim: at least 0.8.
- whole_document_mib: growth of the resident memory from a document of N / 8 bytes to one of N, each byte of which sees
  all before it (`--context 0`): what attention without a window remembers, nothing else.
- variant_s: seconds for a variant with one alternative on both strands, starter:dna, windows of at most 2,048 bases;
  far apart (5,000 bases) and close to each other (20 bases). shared_over_alone: variants scored in a second where
  alleles and neighbours share what they read, over those where each allele reads it all. Aim: at least 1.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from segment import text

import hnet_cli
from hnet_cli import modality
from hnet_cli.evaluation import variants
from hnet_cli.inference import continuations
from hnet_cli.inference.scoring import score
from hnet_cli.inference.windows import BATCH_BYTES

WIDTH = 2048


def seconds(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def of_variants(apart: int, count: int) -> dict[str, float]:
    """Speed of scoring `count` substitutions, one every `apart` random bases: figures by name."""
    model, letters, dna = hnet_cli.load("starter:dna"), random.Random(0), modality.get("dna")
    genome = "".join(letters.choices("ACGT", k=3000 + count * apart))
    places = range(1500, len(genome) - 1500, apart)
    rows = [f"chr1\t{at + 1}\t.\t{genome[at]}\t{'CA'[genome[at] == 'C']}\n" for at in places]
    with tempfile.TemporaryDirectory() as folder:
        vcf, fasta = Path(folder, "calls.vcf"), Path(folder, "genome.fa")
        vcf.write_text("##fileformat=VCFv4.2\n" + "".join(rows))
        fasta.write_text(f">chr1\n{genome}\n")
        calls = variants.read(dna, vcf, fasta)
        run = partial(variants.score, model, calls, WIDTH)

        def no(model: object) -> bool:
            return False

        def alone() -> None:
            """Score them as a device does that reads everything anew."""
            with patch.object(variants, "goes_on", no), patch.object(continuations, "goes_on", no):
                run()

        run()
        times = [(seconds(run), seconds(alone)) for _ in range(3)]
    shared, each = map(min, zip(*times, strict=True))
    return {"variant_s": round(shared / len(rows), 3), "shared_over_alone": round(each / shared, 2)}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter:text")
    parser.add_argument("--bytes", type=int, default=1 << 17)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = hnet_cli.load(options.model)
    lengths = [size for size in (300, 9000, 1500, 20_000, 60, 4100) for _ in range(2)]
    documents, total = [], 0
    while total < options.bytes:
        documents.append(text(lengths[len(documents) % len(lengths)], len(documents)))
        total += len(documents[-1])
    rows = torch.tensor(list(b"".join(documents)[: total // WIDTH * WIDTH])).view(-1, WIDTH)
    at_once = BATCH_BYTES.get("cpu", 8192) // WIDTH

    def forward() -> None:
        for low in range(0, len(rows), at_once):
            model(rows[low : low + at_once])

    forward()
    pairs = [(seconds(forward), seconds(lambda: score(model, documents, WIDTH))) for _ in range(3)]
    ratios = [(total / scored) / (rows.numel() / plain) for plain, scored in pairs]
    score(model, [text(options.bytes // 8, 0)], None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score(model, [text(options.bytes, 0)], None)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result = {
        "scored_kb_per_s": round(total / min(scored for _, scored in pairs) / 1e3, 2),
        "scoring_over_forward": round(median(ratios), 3),
        "whole_document_mib": round(grown, 1),
        "variants_far_apart": of_variants(5000, 6),
        "variants_close": of_variants(20, 32),
        "threads": options.threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
