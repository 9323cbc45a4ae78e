"""The command line of `hnet eval`. No torch in here but inside the function."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hnet_cli.errors import UsageError


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [MODEL2] [FILE...]",
            help="A run folder, a checkpoint, or starter:NAME; two of them are compared. Files, or a dataset, are what "
            "they are evaluated on, as with --data. Default model: $HNET_MODEL, else the newest run, else "
            "starter:text.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A dataset (its held-out split) or a file; may be repeated. Default: the run's own dataset."),
    ] = None,
    gold: Annotated[
        list[Path] | None,
        typer.Option(help="Marked units: CoNLL-U, words set apart by spaces (SIGHAN), SIGMORPHON morphemes."),
    ] = None,
    annotation: Annotated[
        Path | None, typer.Option(help="GFF3, GTF or GenBank for the FASTA in --fasta or data.")
    ] = None,
    task: Annotated[
        list[Path] | None,
        typer.Option(help="Multiple choice or last words: HellaSwag, PIQA, ARC or LAMBADA as a local file."),
    ] = None,
    vcf: Annotated[Path | None, typer.Option(help="Variants to score in the FASTA of --fasta.")] = None,
    fasta: Annotated[Path | None, typer.Option(help="The sequence that --vcf or --annotation is about.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Write the variants' scores here, as TSV.")] = None,
    label: Annotated[
        str | None, typer.Option(help="INFO field of the VCF to compare scores with. Default: AF.")
    ] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="Also on distorted documents and tasks (fixed seeds).")
    ] = False,
    max_bytes: Annotated[int, typer.Option(min=0, help="Evaluate at most so many bytes; 0: all.")] = 2_000_000,
    context: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="A byte is predicted from at most so many before it; 0: all of its document, in blocks whose state "
            "is carried on. Default: 2048, or the training length if longer.",
        ),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Bytes between windows; smaller is dearer and kinder. Default: --context.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    samples: Annotated[
        bool | None,
        typer.Option(
            "--samples/--no-samples",
            help="Whether samples are legal. Default: yes, but for a large model and few bytes to score.",
        ),
    ] = None,
    modality: Annotated[str | None, typer.Option(help="How to read the files. Default: the model's.")] = None,
    field: Annotated[str | None, typer.Option(help="The text field of .jsonl and .parquet rows.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:N or mps. Default: a CUDA GPU if there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Say how good a model and its chunks are.

    Its bits per byte stand beside those of xz, zstd and order-k models. Bits per byte is the sum of -log2 P over all
    bytes, divided by their number. Every byte counts once, the first of a document too. Intervals are 95% by bootstrap
    over documents. docs/evaluation.md defines every figure.
    """
    from hnet_cli.checkpoints.find import default_model, find, load
    from hnet_cli.distributed.device import this_machine
    from hnet_cli.evaluation import material, tables
    from hnet_cli.evaluation.report import Request, default_context
    from hnet_cli.evaluation.report import evaluate as run
    from hnet_cli.terminal.console import literal, say, show_data

    names, files = _sorted(models or [])
    if len(names) > 2:
        raise UsageError(f"{len(names)} models are given, two can be compared", "give one or two")
    if not names:
        names = [default_model(modality)]
        say(f"Model: [bold]{literal(names[0])}[/]")
    if stride and context and stride > context:
        raise UsageError(f"--stride {stride} is longer than --context {context}: bytes would be left out")
    if vcf and not fasta:
        raise UsageError("--vcf needs the sequence it is about", "give --fasta too")
    if stride and context == 0:
        raise UsageError("--stride is of windows, and with --context 0 there are none", "leave one of them out")
    for option, given, of, wanted in (
        ("--scores", scores, "--vcf", vcf),
        ("--label", label, "--vcf", vcf),
        ("--fasta", fasta, "--vcf or --annotation", vcf or annotation),
        ("--limit", limit, "--task", task),
    ):
        if given is not None and not wanted:
            raise UsageError(f"{option} goes with {of}", "give both, or neither")
    request = Request(
        data=[*(data or []), *files], modality=modality, field=field, max_bytes=max_bytes or None, context=context,
        stride=stride, gold=gold or [], annotation=annotation, fasta=fasta, vcf=vcf, scores=scores, label=label,
        tasks=task or [], limit=limit, noise=noise, samples=samples,
    )  # fmt: skip
    asked = request.gold or request.tasks or vcf or (annotation and fasta)
    if not request.data and not asked:
        own = next(filter(None, map(material.own_dataset, names)), None)
        if own is None:
            find(names[0])  # there may be no such model
            raise UsageError(f"there is nothing to evaluate {names[0]} on", "give files, or a dataset with --data")
        say(f"Data: [bold]{literal(own)}[/]")
        request = replace(request, data=[str(own)])
    loaded = [load(name, this_machine(device).device) for name in names]
    if len({model.modality for model in loaded} - {None}) > 1 and not modality:
        raise UsageError(
            f"{names[0]} is a model of {loaded[0].modality}, {names[1]} of {loaded[1].modality}: they read files "
            "differently",
            "say --modality to have both read them so",
        )
    length = default_context(*(model.config for model in loaded)) if context is None else context
    if stride and length and stride > length:
        raise UsageError(f"--stride {stride} is longer than the context of {length}", "give --context too")
    done = [run(name, model, request, length) for name, model in zip(names, loaded, strict=True)]
    result: dict[str, Any] = done[0][0]
    if len(done) == 2:
        result = _compared(done)
    if as_json:
        print(json.dumps(result), flush=True)
        return
    for each in result.get("models", [result]):
        for shown in tables.tables(each):
            show_data(shown)
            print()
    if "difference" in result:
        for shown in tables.comparison(result):
            show_data(shown)


def _sorted(given: list[str]) -> tuple[list[str], list[str]]:
    """Which of the arguments are models, which data."""
    names: list[str] = []
    files: list[str] = []
    for each in given:
        folder = Path(each)
        parts = ("config.json", "model.safetensors", "checkpoints")
        is_model = each.startswith("starter:") or any((folder / part).exists() for part in parts)
        missing = not folder.exists() and not names  # the first that is not there was meant as a model
        (names if is_model or missing else files).append(each)
    return names, files


def _compared(done: list[Any]) -> dict[str, Any]:
    from hnet_cli.evaluation.compression import difference

    (first, before), (second, after) = done
    result: dict[str, Any] = {"models": [first, second]}
    if before is not None and after is not None:
        result["difference"] = difference(before, after)
    return result
