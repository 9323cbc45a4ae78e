"""`hnet convert`: official checkpoints in, models of ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options


def convert(
    src: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="An official .pt or .safetensors file, or a model folder of ours."),
    ],
    dst: Annotated[
        Path,
        typer.Argument(metavar="DST", help="The model folder to write; or a .pt or .safetensors file to go back."),
    ],
    config: Annotated[
        Path | None, typer.Option(help="The official JSON configuration, if it is not recognised.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Record the modality the model was trained on.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Store weights as fp32, bf16 or fp16. Default: as they are.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Bring an official checkpoint in, or a model of ours out.

    The pickle in a .pt file is read without ever being executed.
    """
    from hnet_cli.checkpoints import convert as conversion
    from hnet_cli.terminal.console import count, literal, say

    result = conversion.convert(src, dst, config=config, overwrite=overwrite, modality=modality, dtype=dtype)
    if as_json:
        options.print_json(
            {key: str(value) if isinstance(value, Path) else value for key, value in vars(result).items()}
        )
    say(f"Wrote {literal(dst)}: {literal(result.configuration)}, {count(result.parameters)} parameters.")
