"""`hnet retrofit`: a Transformer over tokens into an H-Net over bytes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options


def retrofit(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder with config.json, model.safetensors and tokenizer.json of a Llama-style Transformer; or a "
            "run of ours that reads tokens.",
        ),
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The model folder to write.")],
    preset: Annotated[
        str, typer.Option(help="Encoder, decoder, adapters and training: a preset or YAML file.")
    ] = "retrofit-nano",
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Put a pretrained Transformer into an H-Net over bytes.

    It becomes the frozen main network; the layers around it are trained next.
    """
    from hnet_cli.terminal.console import count, literal, say
    from hnet_cli.training import retrofit as retrofitting

    result = retrofitting.retrofit(src, dst, preset, settings, overwrite)
    if as_json:
        options.print_json(vars(result))
    say(
        f"Wrote {literal(dst)}: {result.layers:,} frozen layers, {count(result.frozen)} parameters; "
        f"{count(result.parameters - result.frozen)} to be "
        f"trained. Next: hnet train --preset {literal(shlex.quote(result.preset))}"
    )
