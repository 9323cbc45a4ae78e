"""Options that several commands share, and what every command does with them."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnet_cli.errors import HNetError, UsageError

if TYPE_CHECKING:
    from hnet_cli.inference.thresholds import Applied, Compression


@cache
def installed_modalities() -> str:
    """Names of the installed modalities, for `--help`: read from package metadata, no plugin is imported."""
    from hnet_cli import modality

    try:
        return ", ".join(modality.names())
    except HNetError:  # two packages with one name: said by the commands that need a modality
        return "see hnet doctor"


MODEL_HELP = "A run folder, a checkpoint, hf:OWNER/NAME, or starter:text, starter:chinese, starter:code, starter:dna. "
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help=MODEL_HELP + "Default: $HNET_MODEL, else the newest run, else starter:text."
    ),
]
ModelForFiles = Annotated[
    str | None,
    typer.Option(help=MODEL_HELP + "Default: $HNET_MODEL, else the newest run whose modality fits, else the starter."),
]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...", help="Files, folders, archives, or - for standard input; whatever `hnet prepare` reads."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps. Default: a CUDA GPU if there is one.")]
Field = Annotated[str | None, typer.Option(help="The text field of rows: JSON lines, a JSON list, parquet.")]
PromptField = Annotated[
    str | None, typer.Option(help="The field of rows that holds the prompt; goes with --completion-field.")
]
CompletionField = Annotated[
    str | None, typer.Option(help="The field of rows that holds the completion, which alone counts.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
ModalityName = Annotated[
    str | None, typer.Option(help=f"How to read the files: {installed_modalities()}. Default: detected.")
]
Overwrite = Annotated[bool, typer.Option(help="Replace the output if it exists.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.steps=2000; may be repeated."),
]
Threshold = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="P[,P...]",
        help="A chunk begins where its probability is above this, 0 to 1: one number, or one for each stage from the "
        "outermost. Lower is shorter chunks. Default: 0.5.",
    ),
]
BytesPerChunk = Annotated[
    str | None,
    typer.Option(
        "--bytes-per-chunk",
        metavar="X[,X...]",
        help="Instead of --threshold: the length that chunks shall have, of the innermost stage or of each. The "
        "threshold is found on a sample and said.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]


def row_field(field: str | None, prompt: str | None, completion: str | None) -> str | tuple[str, str] | None:
    """The choice that --field, --prompt-field and --completion-field make together. Raises UsageError."""
    if prompt is None and completion is None:
        return field
    if prompt is None or completion is None:
        raise UsageError("--prompt-field and --completion-field go together", "give both, or neither")
    if field is not None:
        raise UsageError("--field excludes --prompt-field and --completion-field", "leave one or the other out")
    if prompt == completion:
        raise UsageError(f"--prompt-field and --completion-field are both {prompt}", "name two fields")
    return prompt, completion


def is_model(argument: str) -> bool:
    """True if an argument names a model that is there, not a file or a folder of data, which may have a config.json."""
    if argument.startswith(("starter:", "hf:")):
        return True
    folder = Path(argument)
    if (folder / "checkpoints").exists() and any((folder / part).exists() for part in ("latest", "config.yaml")):
        return True
    if (folder / "config.json").exists():
        from hnet_cli.storage import read_json

        with suppress(HNetError, OSError):
            return "arch_layout" in read_json(folder / "config.json")
    return (folder / "model.safetensors").exists()


def print_json(data: Any) -> None:
    """Print one JSON document on a line of standard output; numbers that are not finite, which JSON lacks, as null."""
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(data), parse_constant=lambda name: None))
    print(text, flush=True)


def compression(threshold: str | None, bytes_per_chunk: str | None) -> Compression:
    """The choice of `--threshold` and `--bytes-per-chunk`. Raises UsageError."""
    from hnet_cli.inference.thresholds import Compression

    return Compression(_numbers("--threshold", threshold), _numbers("--bytes-per-chunk", bytes_per_chunk))


def say_applied(applied: Applied | None) -> None:
    """Say on standard error at which thresholds chunks are made, if they were chosen."""
    from hnet_cli.terminal.console import literal, say

    if applied is not None:
        say(f"Chunks at {literal(str(applied))}.")


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r} is no number and no list of numbers", "for example 3, or 3,9") from None


def device_name(wanted: str | None) -> str:
    """The device to compute on. Raises UsageError for an unknown one, EnvironmentLimit for one that is not there."""
    from hnet_cli.distributed.device import this_machine

    return this_machine(wanted).device
