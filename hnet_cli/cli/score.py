"""`hnet score`: bits of documents, chunks, windows and bytes."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options
from hnet_cli.cli.segment import (
    index_of,
    model_for,
    readable_sources,
    show_unused,
    write_file,
    write_index,
    write_text,
)
from hnet_cli.errors import UsageError


def score(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] FILE...",
            help="Files, folders, archives, or - for standard input; whatever `hnet prepare` reads. A model may come "
            "first.",
        ),
    ],
    model: options.ModelForFiles = None,
    per: Annotated[
        str | None,
        typer.Option(
            help="document (a file, a row of a table, a record of FASTA), chunk, window or byte: what a row is about. "
            "Default: document; byte in bedGraph; window with --window."
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="tsv, jsonl, or for FASTA bedgraph: means per base.")] = "tsv",
    window: Annotated[int | None, typer.Option(min=1, help="Bytes of a window. Default: 1000.")] = None,
    stage: Annotated[str | None, typer.Option(help="That of the chunks: 0, the outermost, or all. Default: 0.")] = None,
    both_strands: Annotated[
        bool,
        typer.Option("--both-strands", help="DNA: mean of a base's bits and those it has in the reverse complement."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write here instead of standard output; .gz in blocks.")] = None,
    overwrite: options.Overwrite = False,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Stop after this many bytes. Default: all.")] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Bytes that a byte is predicted from, at most; 0: all of its document before it. Default: as in eval.",
        ),
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Stride between windows. Default: --context.")] = None,
    modality: options.ModalityName = None,
    field: options.Field = None,
    prompt_field: options.PromptField = None,
    completion_field: options.CompletionField = None,
    threshold: options.Threshold = None,
    bytes_per_chunk: options.BytesPerChunk = None,
    device: options.Device = None,
) -> None:
    """Print the bits a model needs for each part of files.

    Bits are -log2 P; low ones are what the model expects. They add up to what `hnet eval` counts: of rows of prompt and
    completion, those of the completions. Memory does not grow with the files.
    """
    from hnet_cli import storage
    from hnet_cli.inference import score as scoring
    from hnet_cli.inference.intake import Intake
    from hnet_cli.inference.scoring import precision
    from hnet_cli.terminal.console import literal, progress, say, size

    compression = options.compression(threshold, bytes_per_chunk)
    fields = options.row_field(field, prompt_field, completion_field)
    request = scoring.ScoreRequest(per, format, stage, window, context, stride, both_strands)
    starter = files[0].startswith(("starter:", "hf:"))
    if model is None and (starter or (len(files) > 1 and options.is_model(files[0]))):
        model, *files = files
    if not files:
        raise UsageError(f"there is nothing to score with {model}", "name files, or - for standard input")
    compressed = out is not None and out.suffix == ".gz"
    if out is not None:
        if out.is_dir():
            raise UsageError(f"--out {out} is a folder", "name a file")
        storage.refuse_output(out, overwrite, files)
        if compressed and format == "bedgraph":
            storage.refuse_output(index_of(out), overwrite)
    loaded, plugin = model_for(files, model, modality, fields, options.device_name(device))
    request = request.fit(loaded, plugin)
    intake, totals, on_disk = Intake(), scoring.Totals(), disk_bytes(files)
    read = 0

    def advance(count: int) -> None:
        nonlocal read
        read += count

    shown = progress("scoring") if out is not None or not sys.stdout.isatty() else nullcontext()
    with shown as task:

        def update() -> None:
            """The total is estimated from what has been read of the files, which may be compressed."""
            if task is not None:
                total = intake.total * on_disk / read if on_disk and read else None
                total = min(total, max_bytes) if total and max_bytes else total
                task.update(totals.bytes, total, size(totals.bytes))

        sources = readable_sources(files, plugin, fields, intake, advance)
        pieces = scoring.score(loaded, sources, plugin, request, intake, totals, max_bytes, update, compression)
        options.say_applied(intake.applied)
        if out is None:
            write_text(pieces, sys.stdout)
        else:
            with storage.output_file(out, overwrite, files) as binary:
                write_file(pieces, binary, compressed)
    if out is not None:
        say(f"Wrote {literal(out)}.")
        if compressed and format == "bedgraph" and out.is_file():
            write_index(out)
    windows = f"context {request.context or 'all'}, stride {request.stride or request.context or 'none'}"
    say(
        f"{totals.bits / totals.bytes:.4f} bits per byte, {totals.bits:,.0f} bits of {totals.bytes:,} bytes"
        f"[dim] ({literal(windows)}, {literal(precision(loaded)[0])})[/]"
    )
    show_unused(intake, "scored")


def disk_bytes(files: list[str]) -> int | None:
    """Bytes of the files as they are stored, if that is known beforehand."""
    paths = [Path(file) for file in files]
    return sum(path.stat().st_size for path in paths) if all(path.is_file() for path in paths) else None
