"""`hnet prepare` on a terminal: choose what the user left open, show progress, and say what became of the input."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hnet_cli import modality as modalities
from hnet_cli.data.prepare import detection, preparation
from hnet_cli.data.prepare.preparation import Summary
from hnet_cli.errors import UsageError
from hnet_cli.modality import COMPRESSIONS
from hnet_cli.terminal.console import literal, progress, say, show, size, table

FEW = 10_000
"""Held-out bytes below which no baseline is worth comparing with."""


def run(
    inputs: list[str],
    modality: str | None,
    out: Path | None,
    *,
    val: float | None,
    val_input: list[str],
    field: str | None,
    workers: int,
    part: str | None,
    join: bool,
    allow_skips: bool,
    overwrite: bool,
) -> Summary:
    """Prepare inputs, a part of them, or join parts."""
    options: dict[str, Any] = {"overwrite": overwrite, "tolerated": 1.0} if allow_skips else {"overwrite": overwrite}
    if join:
        if part or modality or val is not None or val_input or field:
            raise UsageError("--join takes part folders, and all else from them", "leave the other options out")
        with progress("joining") as task:
            whole = out or preparation.whole_folder(Path(inputs[0]))
            return preparation.join(inputs, whole, progress=task.update, **options)
    share = _part(part)
    if val is not None and val_input:
        raise UsageError("--val and --val-input exclude each other")
    val = 0.01 if val is None else val
    if not 0 < val < 1:
        raise UsageError(f"--val is a share between 0 and 1, not {val}")
    if modality is None:
        modality, _, why = detection.detect(inputs, field)
        say(f"These look like [bold]{modality}[/] ({literal(why)}); say --modality to choose another.")
    plugin, out = modalities.get(modality), out or Path("data") / stem(inputs[0])
    with progress("reading") as task:
        return preparation.prepare(
            inputs, plugin, out, val=val, val_inputs=val_input, field=field, workers=workers, part=share,
            progress=task.update, **options,
        )  # fmt: skip


def _part(text: str | None) -> tuple[int, int] | None:
    """ "3/8" as (3, 8)."""
    if text is None:
        return None
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split("/")]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise UsageError(f"--part is I/N such as 1/8, not {text!r}")
    return numbers[0], numbers[1]


def stem(first: str) -> str:
    """A name for the dataset of some inputs: that of the first without its extensions."""
    if "://" in first:
        first = first.partition("?")[0].replace("*", "all")
    path = Path("stdin" if first == "-" else first).resolve()
    if not path.is_dir():
        endings = {*COMPRESSIONS, ".tar"}
        while path.suffix.lower() in endings and path.stem:
            path = path.with_suffix("")
        path = path.with_suffix("") if path.name.strip(".") else path
    return path.name.lstrip(".") or "data"


def show_summary(summary: Summary) -> None:
    """The table, what was refused and where first, and what to do next; on standard error."""
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
    if bits := summary.baselines:
        say(f"[dim]Held out: {literal(summary.rule)}.[/]", verbose=True)
        say(f"To beat on the held-out bytes: xz [bold]{bits['xz']:.3f}[/] bits per byte, an order-{bits['k']} model "
            f"[bold]{bits['order_k']:.3f}[/].")  # fmt: skip
        if (held_out := summary.splits["val"]["bytes"]) < FEW:
            say(f"{held_out:,} held-out bytes are too few to compare by: what xz writes around them counts too. More "
                "data, or a larger --val.")  # fmt: skip
        following = f"hnet train --data {literal(shlex.quote(str(summary.path)))}"
    speed = summary.bytes / max(summary.seconds, 1e-9)
    say(f"Wrote {literal(summary.path)} ({size(summary.bytes)} in {summary.seconds:.1f} s, {size(speed)}/s). "
        f"Next: {following}")  # fmt: skip
