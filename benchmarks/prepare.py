"""Speed and peak memory of `hnet prepare` and of the loader.

    python benchmarks/prepare.py [--megabytes 256] [--text FILE...]

Text is made of the shuffled lines of real files (the sources of Python's standard library unless --text names some);
the genome is random. Rates are bytes per second of processor time, so that a busy machine disturbs them less; peak
memory is that of a process that does nothing else. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MB = 10**6


def write_text(path: Path, megabytes: float, sources: list[Path]) -> None:
    """About so many MB of the lines of `sources`, in a new order each time they repeat."""
    lines = [line for file in sources for line in file.read_bytes().splitlines(keepends=True)]
    lines = [line for line in lines if line.isascii()]
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        while file.tell() < megabytes * MB:
            order = rng.permutation(len(lines))
            for begin in range(0, len(order), 50_000):
                file.write(b"".join([lines[index] for index in order[begin : begin + 50_000]]))
                if file.tell() >= megabytes * MB:
                    break


def write_genome(path: Path, megabytes: float) -> None:
    """A FASTA file of ten records in lines of 60 bases."""
    rng = np.random.default_rng(0)
    rows = int(megabytes * MB / 61 / 10)
    with open(path, "wb") as file:
        for record in range(10):
            bases = np.full((rows, 61), ord("\n"), np.uint8)
            bases[:, :60] = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, (rows, 60))]
            file.write(f">chr{record + 1}\n".encode() + bases.tobytes())


def run_prepare(file: Path, modality: str, measure: bool) -> None:
    from hnet_cli import modality as modalities
    from hnet_cli.data.prepare.preparation import prepare

    prepare([file], modalities.get(modality), file.with_suffix(".dataset"), overwrite=True, measure=measure)


def run_loader(dataset: Path) -> int:
    from hnet_cli.data.dataset import Dataset
    from hnet_cli.data.loader import Batches

    batches = Batches(Dataset.open(dataset), sequence_length=256, rows=1024)
    return sum(len(batches.batch(step).targets) for step in range(400))


def run_biopython(file: Path) -> int:
    from Bio import SeqIO

    return sum(len(record.seq) for record in SeqIO.parse(file, "fasta"))


def _in_child(work: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    import Bio.SeqIO  # noqa: F401

    from hnet_cli import modality as modalities
    from hnet_cli.data.prepare.preparation import prepare  # noqa: F401

    for name in ("text", "dna"):  # imports are not what is measured, for nobody
        modalities.get(name)
    began, wall = time.process_time(), time.perf_counter()
    result = work(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((result, time.process_time() - began, time.perf_counter() - wall, peak))


def measured(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float, float]:
    """(result, processor seconds, wall seconds, peak MiB) of `work` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_in_child, args=(work, arguments, there))
    process.start()
    answer = here.recv()
    process.join()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=256)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    sources = options.text or sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    size = options.megabytes
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        large, small, genome = (Path(folder) / name for name in ("large.txt", "small.txt", "genome.fa"))
        write_text(large, size, sources)
        write_text(small, size / 4, sources)
        write_genome(genome, size / 2)
        _, cpu, wall, peak = measured(run_prepare, large, "text", False)
        figures["text_mb_per_s_per_core"] = size / cpu
        figures["text_mb_per_s_wall"] = size / wall
        _, _, _, small_peak = measured(run_prepare, small, "text", False)
        figures["peak_mib"], figures["peak_mib_at_quarter_size"] = peak, small_peak
        _, with_baselines, _, peak = measured(run_prepare, large, "text", True)
        figures["baselines_cpu_s"], figures["peak_mib_with_baselines"] = with_baselines - cpu, peak
        _, ours, _, _ = measured(run_prepare, genome, "dna", False)
        _, bare, _, _ = measured(run_biopython, genome)
        figures["fasta_of_bare_biopython"] = bare / ours
        figures["fasta_mb_per_s_per_core"] = size / 2 / ours
        count, cpu, _, _ = measured(run_loader, large.with_suffix(".dataset"))
        figures["loader_mb_per_s"] = count / MB / cpu
    for name, figure in figures.items():
        print(f"{name:28} {figure:10.2f}")
    print(json.dumps({"benchmark": "prepare", "megabytes": size, **{k: round(v, 3) for k, v in figures.items()}}))


if __name__ == "__main__":
    main()
