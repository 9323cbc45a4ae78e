"""`hnet eval`: the figures of one model, or of two on the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hnet_cli.cli import options
from hnet_cli.errors import InputError


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [MODEL2] [FILE...]",
            help=options.MODEL_HELP + "Two are compared. Files, or a dataset, are what they are evaluated on, as with "
            "--data. Default model: $HNET_MODEL, else the newest run, else starter:text.",
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
        str | None,
        typer.Option(
            help="INFO field of the VCF to compare scores with, default AF; or the column of --probe to predict, "
            "default label."
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            help="A TSV of labels: name of a document, perhaps start and end in it, label, and the --group. A linear "
            "model is fitted on the vectors; the files are read for this alone."
        ),
    ] = None,
    group: Annotated[str | None, typer.Option(help="The column of --probe whose values are held out whole.")] = None,
    noise: Annotated[bool, typer.Option("--noise", help="Also distort documents and tasks (fixed seeds).")] = False,
    max_bytes: Annotated[int, typer.Option(min=0, help="Evaluate at most this many bytes; 0: all.")] = 2_000_000,
    context: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Bytes that a byte is predicted from, at most; 0: all of its document before it. Default: 2048, or "
            "the training length if longer.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stride between windows; smaller costs more and lowers bits per byte. Default: --context."
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Also continue the prompts of rows of prompt and completion greedily, at most 1,000 or --limit, and "
            "count those that give the completion.",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only this many items of each task, the first; rows of --exact.")
    ] = None,
    samples: Annotated[
        bool | None,
        typer.Option(
            "--samples/--no-samples",
            help="Draw samples and count legal ones. Default: yes, except for a large model and few bytes to score.",
        ),
    ] = None,
    elastic: Annotated[
        bool,
        typer.Option("--elastic", help="Also with shorter and longer chunks: bits per byte against their length."),
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Write the curve of --elastic here, as an HTML page.")] = None,
    threshold: options.Threshold = None,
    bytes_per_chunk: options.BytesPerChunk = None,
    modality: Annotated[str | None, typer.Option(help="How to read the files. Default: the model's.")] = None,
    field: options.Field = None,
    prompt_field: options.PromptField = None,
    completion_field: options.CompletionField = None,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Measure how good a model and its chunks are.

    Its bits per byte stand beside those of xz, zstd and order-k models. Bits per byte is the sum of -log2 P over all
    bytes, divided by their number. Every byte counts once, the first of a document too. Intervals are 95% by bootstrap
    over documents. docs/evaluation.md defines every figure.
    """
    from hnet_cli.evaluation import report
    from hnet_cli.evaluation.tables import tables
    from hnet_cli.terminal.console import show_data

    names, files = _models_and_files(models or [])
    request = report.EvaluationRequest(
        data=[*(data or []), *files],
        gold=gold or [],
        annotation=annotation,
        tasks=task or [],
        vcf=vcf,
        fasta=fasta,
        scores=scores,
        overwrite=overwrite,
        label=label,
        noise=noise,
        max_bytes=max_bytes,
        context=context,
        stride=stride,
        limit=limit,
        exact=exact,
        probe=probe,
        group=group,
        elastic=elastic,
        page=page,
        compression=options.compression(threshold, bytes_per_chunk),
        samples=samples,
        modality=modality,
        field=options.row_field(field, prompt_field, completion_field),
    )
    result = report.evaluate(names, request, device)
    if as_json:
        options.print_json(result)
    else:
        for part in tables(result, charts=sys.stdout.isatty()):
            show_data(part)
            print()
    if damaged := report.damaged_files(result):
        raise InputError(f"{damaged[0]}; the rest is evaluated", "get the damaged files again")


def _models_and_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments; the first that does not exist, and is neither - nor a URL, was meant as a model."""
    models: list[str] = []
    files: list[str] = []
    for argument in arguments:
        missing = not models and argument != "-" and "://" not in argument and not Path(argument).exists()
        (models if options.is_model(argument) or missing else files).append(argument)
    return models, files
