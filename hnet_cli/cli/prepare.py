"""`hnet prepare`: files to a dataset."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnet_cli.cli import options
from hnet_cli.errors import UsageError

if TYPE_CHECKING:
    from hnet_cli.data.prepare.preparation import Summary

FEW = 10_000
"""Held-out bytes below which no baseline is worth comparing with."""


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files, folders, archives, URLs, or - for standard input; plain, .gz, .bz2, .xz, .zst, tar, JSON "
            "lines or list, parquet; told by content.",
        ),
    ],
    modality: options.ModalityName = None,
    out: Annotated[
        Path | None, typer.Option(help="The dataset folder. Default: data/<name of the first input>.")
    ] = None,
    val: Annotated[
        float | None, typer.Option(help="Share of the bytes held out for validation. Default: 0.01.")
    ] = None,
    val_input: Annotated[list[str] | None, typer.Option(help="Hold out these files instead of a share.")] = None,
    field: options.Field = None,
    prompt_field: options.PromptField = None,
    completion_field: options.CompletionField = None,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes.")] = 1,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N shares, into OUT.part-I-of-N; then --join.")
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Make one dataset of the part folders given.")] = False,
    allow_skips: Annotated[
        bool, typer.Option("--allow-skips", help="Continue although more than 1% of the input is damaged.")
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Turn your files into a dataset, part of it held out.

    The summary says what was left out and why, and what a model has to beat. After an interruption, even a kill, the
    same command continues where it stopped.
    """
    from hnet_cli import api, provenance
    from hnet_cli.data.prepare import preparation
    from hnet_cli.terminal.console import progress

    fields = options.row_field(field, prompt_field, completion_field)
    if join:
        if part or modality or val is not None or val_input or fields is not None:
            raise UsageError("--join takes part folders, and all else from them", "leave the other options out")
        limits: dict[str, Any] = {"overwrite": overwrite, **({"tolerated": 1.0} if allow_skips else {})}
        with progress("joining") as task:
            whole = out or preparation.whole_folder(Path(inputs[0]))
            summary = preparation.join(inputs, whole, progress=api.reading(task), **limits)
        provenance.write(summary.path)
    else:
        summary = api.prepare(
            inputs,
            out,
            modality=modality,
            val=val,
            val_inputs=val_input or (),
            field=fields,
            workers=workers,
            part=parse_part(part),
            allow_skips=allow_skips,
            overwrite=overwrite,
        )
    if as_json:
        options.print_json(vars(summary) | {"path": str(summary.path)})
    else:
        show_summary(summary)


def parse_part(text: str | None) -> tuple[int, int] | None:
    """ "3/8" as (3, 8). Raises UsageError."""
    if text is None:
        return None
    numbers = [int(part) if part.isdecimal() and len(part) < 10 else 0 for part in text.split("/")]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise UsageError(f"--part is I/N such as 1/8, not {text[:40]!r}")
    return numbers[0], numbers[1]


def show_summary(summary: Summary) -> None:
    """Print the table, what was refused and where first, and what to do next, on standard error."""
    from hnet_cli.data.figures import named, to_beat
    from hnet_cli.terminal.console import literal, say, show, size, table

    rows = table("", "documents", "bytes")
    for split, part in (summary.splits or {"this part": vars(summary)}).items():
        rows.add_row(split, f"{part['documents']:,}", f"{part['bytes']:,}")
    for reason, refused in summary.refused.items():
        rows.add_row(literal(f"refused: {reason}"), f"{refused[0]:,}", f"{refused[1]:,}")
    show(rows)
    for reason, (_, _, where) in summary.refused.items():
        say(f"[dim]{literal(f'{reason}: first {where}')}[/]")
    for note, number in summary.notes.items():
        say(f"[dim]{literal(note)}: {number:,}[/]")
    following = "when all parts are there: hnet prepare --join PARTS..."
    if summary.rule:
        _show_held_out(summary)
    if bits := summary.baselines:
        held_out, measured = summary.splits["val"]["bytes"], bits["bytes"]
        figures = ", ".join(f"{name} {value:.3f}" for name, value in named(bits).items())
        best, lowest = to_beat(bits)
        on = f"all {held_out:,}" if measured == held_out else f"{measured:,} of {held_out:,}, spread over them"
        if summary.prompted:
            on = f"{measured:,} bytes of completions, the mark that ends each among them"
        say(
            f"To beat on the held-out bytes: {literal(figures)} bits per byte, so [bold]{lowest:.3f}[/] "
            f"({literal(best)}; measured on {literal(on)})."
        )
        if held_out < FEW and not summary.prompted:
            say(
                f"{held_out:,} held-out bytes are too few to compare by: xz has hardly begun to learn. More data, or a "
                "larger --val."
            )
        known = (Path(__file__).parents[1] / "starters" / summary.modality).is_dir()
        start = f"--start starter:{summary.modality if known else 'text'} " if summary.prompted else ""
        following = f"hnet train {start}--data {shlex.quote(str(summary.path))}"
    speed = summary.bytes / max(summary.seconds, 1e-9)
    say(
        f"Wrote {literal(summary.path)} ({size(summary.bytes)} in {summary.seconds:.1f} s, {size(speed)}/s). "
        f"Next: {literal(following)}"
    )


def _show_held_out(summary: Summary) -> None:
    """Name the first few held-out documents, and say what would make them worth little."""
    from hnet_cli.data.prepare.split import LEAST_GROUPS
    from hnet_cli.terminal.console import literal, say

    names = ", ".join(" ".join(name.split("\t")) for name in summary.held_out)
    why = ""
    if summary.rule == "the end of the corpus":
        few = "all documents are of one group" if summary.groups == 1 else f"there are only {summary.groups} groups"
        why = f", for {few if summary.groups < LEAST_GROUPS else 'no groups of documents are of the right size'}"
    more = "" if len(summary.held_out) == summary.splits["val"]["documents"] else ", ..."
    say(f"[dim]Held out: {literal(f'{summary.rule}{why}')}: {literal(names + more)}[/]")
    alike = summary.near_duplicates
    if alike["found"]:
        name, like = alike["first"][0]
        say(
            f"{alike['found']:,} of {alike['held_out']:,} held-out documents looked at are much like one to train on "
            f"({literal(name)} like {literal(like)}; {alike['trained_on']:,} looked at): scores on them say little."
        )
