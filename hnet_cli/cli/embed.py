"""`hnet embed`: vectors of files, their chunks, or windows of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options
from hnet_cli.cli.segment import model_for, plain_bytes, readable_sources, show_unused, write_text


def embed(
    files: options.Files,
    model: options.ModelForFiles = None,
    per: Annotated[str, typer.Option(help="A vector per document, chunk, or window.")] = "document",
    stage: Annotated[int, typer.Option(min=0, help="The stage of --layer, and of chunks; 0 is the outermost.")] = 0,
    layer: Annotated[
        str,
        typer.Option(
            help="Whose output: decoder or encoder, at stage 0 a vector per byte, or main, the main network, one per "
            "chunk. The decoder of stage 0 is what the output layer reads."
        ),
    ] = "decoder",
    pool: Annotated[str, typer.Option(help="mean of the vectors that lie in each, or the last.")] = "mean",
    window: Annotated[
        int | None, typer.Option(help="Bytes of a window. Default: 1000; of FASTA, on a grid of the record.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Keep the text of chunks or windows beside the vectors.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="A .npz, .parquet or .jsonl file. Default: JSON lines on standard output.")
    ] = None,
    overwrite: options.Overwrite = False,
    modality: options.ModalityName = None,
    field: options.Field = None,
    carry: Annotated[
        bool, typer.Option("--carry", help="Carry the model's state through a document instead of reading windows.")
    ] = False,
    threshold: options.Threshold = None,
    bytes_per_chunk: options.BytesPerChunk = None,
    device: options.Device = None,
) -> None:
    """Write vectors of documents, chunks or windows.

    A vector of the main network is computed at the first byte of its chunk: it tells what came before, not what is in
    it. docs/embeddings.md compares the layers.
    """
    from hnet_cli import storage
    from hnet_cli.inference import vector_files
    from hnet_cli.inference.embed import Wanted
    from hnet_cli.inference.embed import embed as vectors_of
    from hnet_cli.inference.intake import Intake
    from hnet_cli.terminal.console import literal, progress, say, size

    compression = options.compression(threshold, bytes_per_chunk)
    vector_files.check(out)
    wanted = Wanted(per, stage, layer, pool, window, dtype)
    if out is not None:
        storage.refuse_output(out, overwrite, files)
    loaded, plugin = model_for(files, model, modality, field, options.device_name(device))
    chosen, intake = wanted.layer_of(loaded), Intake()
    sources = readable_sources(files, plugin, field, intake)
    blocks = vectors_of(
        loaded, sources, plugin, wanted, texts=text, intake=intake, carried=carry, compression=compression
    )
    options.say_applied(intake.applied)
    if out is None:
        write_text(vector_files.lines(blocks), sys.stdout)
    else:
        width = loaded.config.d_model[chosen.level]
        about = {"model": loaded.label, "per": per, "stage": chosen.stage, "layer": layer, "pool": pool, "carry": carry}
        if intake.applied is not None:
            about["compression"] = intake.applied.to_dict()
        count = 0
        with (
            vector_files.writer(out, width, dtype, text, about, overwrite, files) as add,
            progress("embedding", plain_bytes(files)) as task,
        ):
            for block in blocks:
                add(block)
                count += len(block.starts)
                task.update(intake.total, note=size(intake.total))
        say(f"Wrote {literal(out)}: {count:,} vectors of {width:,} numbers.")
    show_unused(intake, "embedded")
