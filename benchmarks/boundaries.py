"""Where a model's boundaries fall against annotation: gold words, or the codon phase of annotated genes.

    python benchmarks/boundaries.py --model starter:chinese --gold pku_test_gold.utf8      words separated by spaces
    python benchmarks/boundaries.py --model starter:dna --fasta genome.fna.gz --gff genome.gff.gz

Prints one JSON object. For codons: boundaries per base at codon positions 1, 2, 3 of the coding sequences read in the
direction of the file (the forward strand), beside the rate over all bases; the model reads forwards only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import hnet_cli
from hnet_cli import modality as modalities
from hnet_cli.boundaries import Agreement
from hnet_cli.modality import Document, Source
from hnet_cli.storage import open_input
from hnet_cli.windows import windows


def starts(model: Any, kind: modalities.Modality, document: Document) -> np.ndarray:
    """(n,) positions in the document where chunks of the outermost stage begin."""
    found = [w.starts for w in windows(model, [document], input_table=kind.input_table)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def gold_words(model: Any, kind: modalities.Modality, path: Path, limit: int) -> dict[str, Any]:
    """Agreement with words and characters over a file whose words are separated by white space."""
    words_scored, characters_scored, drawn_scored = Agreement(), Agreement(), Agreement()
    total = chunks = 0
    with open_input(path) as file:
        for line in file.read().decode("utf-8").splitlines():
            words = [word.encode() for word in line.split()]
            data = b"".join(words)
            if not data or total > limit:
                continue
            found = starts(model, kind, Document(data, "line", str(path)))
            edges = np.cumsum([0, *map(len, words)])[:-1]
            characters = np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80)
            words_scored.add(found, edges, len(data))
            characters_scored.add(found, characters, len(data))
            # as `hnet segment` draws them: a boundary inside a character stands behind that character
            drawn = np.unique(np.append(characters, len(data))[np.searchsorted(characters, found)])
            drawn_scored.add(drawn, edges, len(data))
            total, chunks = total + len(data), chunks + len(found)
    scored = {"word": words_scored.to_dict(), "character": characters_scored.to_dict()}
    # chance for these: among characters, not bytes
    share = words_scored.edges / max(1, characters_scored.edges)
    scored["word_as_drawn"] = drawn_scored.to_dict() | {"chance": share}
    return {"bytes": total, "bytes_per_chunk": total / chunks, **scored}


def codon_phase(model: Any, kind: modalities.Modality, fasta: Path, gff: Path, limit: int) -> dict[str, Any]:
    """Boundary rate by codon position over the first `limit` bases of each record."""
    coding: dict[str, list[tuple[int, int]]] = {}
    with open_input(gff) as file:
        for line in file.read().decode("utf-8", "replace").splitlines():
            columns = line.split("\t")
            if len(columns) > 7 and columns[2] == "CDS" and columns[6] == "+" and columns[7] in "012":
                first = int(columns[3]) - 1 + int(columns[7])
                coding.setdefault(columns[0], []).append((first, int(columns[4])))
    hits, bases = np.zeros(3), np.zeros(3)
    everywhere = total = 0
    source = Source(str(fasta), lambda: open_input(fasta))
    for document in kind.documents(source):
        if not isinstance(document, Document) or document.offset >= limit:
            continue
        found = starts(model, kind, document) + document.offset
        begin, end = document.offset, document.offset + len(document.data)
        mark = np.zeros(end - begin, bool)
        mark[found - begin] = True
        everywhere, total = everywhere + int(mark.sum()), total + len(mark)
        for first, last in coding.get(document.name, []):
            low = max(first, begin + (first - begin) % 3) if first < begin else first
            high = min(last, end)
            if high - low < 3:
                continue
            part = mark[low - begin : high - begin]
            for phase in range(3):
                hits[phase] += part[phase::3].sum()
                bases[phase] += len(part[phase::3])
    rates = (hits / np.maximum(bases, 1)).tolist()
    return {
        "bases": total,
        "coding_bases": int(bases.sum()),
        "bases_per_chunk": total / max(1, everywhere),
        "rate": everywhere / max(1, total),
        "rate_at_codon_position": {"1": rates[0], "2": rates[1], "3": rates[2]},
        "share_by_codon_position": (hits / max(1, hits.sum())).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gold", type=Path)
    parser.add_argument("--fasta", type=Path)
    parser.add_argument("--gff", type=Path)
    parser.add_argument("--limit", type=int, default=1_000_000, help="bytes, or bases of each record, to look at")
    wanted = parser.parse_args()
    model = hnet_cli.load(wanted.model)
    kind = modalities.get(model.modality or "text")
    if wanted.gold:
        result = gold_words(model, kind, wanted.gold, wanted.limit)
    else:
        result = codon_phase(model, kind, wanted.fasta, wanted.gff, wanted.limit)
    print(json.dumps({"model": wanted.model} | result))


if __name__ == "__main__":
    main()
