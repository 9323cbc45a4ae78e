"""`hnet sample`: a prompt, continued."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hnet_cli.cli import options
from hnet_cli.errors import UsageError


def sample(
    model: options.Model = None,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="Read the prompt from a file, or - for standard input.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, max=1 << 40, help="Bytes to write at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest byte.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Choose among the k likeliest bytes.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Choose among the likeliest bytes that together have this probability."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    number: Annotated[int, typer.Option("-n", min=1, max=1000, help="Number of continuations.")] = 1,
    show_chunks: Annotated[
        bool, typer.Option("--show-chunks", help='Mark where chunks begin; with --json: "boundaries".')
    ] = False,
    threshold: options.Threshold = None,
    bytes_per_chunk: options.BytesPerChunk = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print bytes as they come, valid or not.")] = False,
    device: options.Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per continuation.")] = False,
) -> None:
    """Continue a prompt, byte by byte.

    The output is always valid for the modality: UTF-8, or A, C, G and T.
    """
    if raw and show_chunks and not as_json:
        raise UsageError("--raw and --show-chunks exclude each other", "marks are no bytes; --json has both")
    prompts = [read_prompt(prompt, prompt_file)]
    compression = options.compression(threshold, bytes_per_chunk)

    from hnet_cli.checkpoints.find import default_model, load
    from hnet_cli.inference import generate, render
    from hnet_cli.inference.windows import own_modality
    from hnet_cli.model.config import EOS

    if model is None:
        model = default_model()
    loaded = load(model, options.device_name(device))
    modality = own_modality(loaded)
    compression.check(loaded)
    applied = compression.apply(loaded, lambda: generate.typical(loaded, prompts[0], modality, raw))
    options.say_applied(applied)
    choice: dict[str, Any] = {
        "n": number,
        "max_bytes": max_bytes,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "eos": EOS,
    }
    if as_json:
        if raw:
            choice["automaton"] = None
        for record in generate.sample_records(loaded, prompts, modality, show_chunks=show_chunks, **choice):
            if applied is not None:
                record["compression"] = applied.to_dict()
            print(render.json_line(record), flush=True)
    elif raw:
        input_table = modality.input_table if modality else None
        for piece in generate.sample_bytes(loaded, prompts, input_table=input_table, **choice):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    else:
        stream = sys.stdout
        colour = render.use_colour(stream)
        for text in generate.sample(loaded, prompts, modality, show_chunks=show_chunks, colour=colour, **choice):
            stream.write(text)
            stream.flush()


def read_prompt(prompt: str | None, prompt_file: str | None) -> bytes:
    """The bytes of `--prompt`, of `--prompt-file`, or none. Raises UsageError if both are given."""
    from hnet_cli.modality import begin_text
    from hnet_cli.storage.streams import open_input

    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt and --prompt-file exclude each other")
    if prompt_file is None:
        return (prompt or "").encode("utf-8", "surrogateescape")
    if prompt_file == "-":
        return begin_text(io.BufferedReader(io.BytesIO(sys.stdin.buffer.read())), "the prompt").read()
    with contextlib.closing(open_input(Path(prompt_file))) as file:
        return begin_text(file, prompt_file).read()
