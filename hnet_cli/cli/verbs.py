"""`hnet segment` and `hnet sample` on files and terminals: find model and modality, then write what they give."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from hnet_cli import modality as modalities
from hnet_cli import storage
from hnet_cli.checkpoints import checkpoint
from hnet_cli.checkpoints.checkpoint import LoadedModel
from hnet_cli.data.prepare import detection, named
from hnet_cli.errors import InputError, UsageError
from hnet_cli.inference import generate as sampling
from hnet_cli.inference import render
from hnet_cli.inference import segment as segmenting
from hnet_cli.modality import COMPRESSIONS, Modality, Refused, Source
from hnet_cli.storage.streams import open_input
from hnet_cli.terminal.console import literal, progress, say, show, size, table

SURE = 0.9
"""A file is of another modality than the model's if that one is at least this sure."""
TRACKS = ("bed", "bedgraph")
"""Formats that tabix indexes."""


def segment(
    files: list[str],
    model: str | None,
    stage: str,
    format: str | None,
    out: Path | None,
    modality: str | None,
    field: str | None,
    device: str,
    max_bytes: int | None = None,
    carried: bool = False,
) -> None:
    """Write the chunks of `files` to standard output or `out`, and a summary of them to standard error."""
    loaded, kind = _model_for(files, model, modality, field, device)
    if out is not None and out.exists() and out.is_dir():
        raise UsageError(f"--out {out} is a folder", "name a file")
    format = format or ("pretty" if out is None and render.use_colour(sys.stdout) else "plain")
    summary = segmenting.Summary(loaded.config, kind)
    pieces = segmenting.segment(
        loaded,
        _sources(files, kind, field),
        kind,
        format=format,
        stage=stage,
        headings=len(files) > 1,
        summary=summary,
        max_bytes=max_bytes,
        label=_label(loaded.source),
        carried=carried,
    )
    if out is None:
        _write(pieces, _stdout())
    else:
        total = _plain_bytes(files)
        total = min(total, max_bytes) if total and max_bytes else total
        with storage.staged_file(out) as binary, progress("segmenting", total) as task:
            told = _telling(pieces, lambda: task.update(summary.bytes, note=size(summary.bytes)))
            _write_file(told, binary, compressed=out.suffix == ".gz")
        say(f"Wrote {literal(out)}.")
        if out.suffix == ".gz" and format in TRACKS:
            _index(out)
    _report(summary)
    if summary.cut:
        say(f"There is more: this is the first {summary.bytes:,} bytes; --max-bytes says how many are wanted.")


def _plain_bytes(files: list[str]) -> int | None:
    """How many bytes there are to read, where that is known before."""
    paths = [Path(file) for file in files]
    known = all(path.is_file() and path.suffix.lower() not in (*COMPRESSIONS, ".tar", ".parquet") for path in paths)
    return sum(path.stat().st_size for path in paths) if known else None


def _telling(pieces: Iterable[str], tell: Callable[[], None]) -> Iterator[str]:
    for piece in pieces:
        yield piece
        tell()


def _label(folder: Path) -> str:
    """A model folder as a person would name it: starter:text, or a run and its step."""
    if folder.parent == checkpoint.STARTERS:
        return f"starter:{folder.name}"
    return f"{folder.parent.parent.name}, {folder.name}" if folder.parent.name == "checkpoints" else folder.name


def _model_for(
    files: list[str], model: str | None, modality: str | None, field: str | None, device: str
) -> tuple[LoadedModel, Modality | None]:
    """The model to use and the modality to read the files with. Raises InputError where the two do not go together."""
    detected, sure, why = modality, 1.0, ""
    if detected is None:
        try:
            detected, sure, why = detection.detect(files, field)
        except InputError:
            if model is None:
                raise
    else:
        modalities.get(detected)
    reference = model or checkpoint.default_model(detected or "text")
    loaded = checkpoint.load(reference, device)
    trained = loaded.modality
    if model is None:
        say(f"Model: [bold]{literal(reference)}[/] ({literal(', '.join(filter(None, (detected, why))))})")
    elif modality is None and trained and detected and detected != trained and sure >= SURE:
        raise InputError(
            f"{files[0]} looks like {detected}, but {reference} is a model of {trained}",
            f"leave out --model, or say --modality {trained} to read it so",
        )
    name = modality or trained or detected
    return loaded, modalities.get(name) if name else None


def _sources(files: list[str], modality: Modality | None, field: str | None) -> Iterator[Source]:
    """What the files hold; what cannot be read is said, and the rest goes on."""
    for found in named.sources_of(files, modality or Modality(), field):
        if isinstance(found, Refused):
            say(f"[yellow]left out:[/] {literal(found.where)}: {literal(found.reason)}")
        else:
            yield found


def _stdout() -> TextIO:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    return sys.stdout


def _write(pieces: Iterable[str], target: TextIO) -> None:
    for piece in pieces:
        target.write(piece)
    target.flush()
    if target is not sys.stdout:
        target.detach()  # type: ignore[attr-defined]


def _write_file(pieces: Iterable[str], binary: storage.NewFile, compressed: bool) -> None:
    """UTF-8; compressed as BGZF, which is gzip in blocks: what indexes of genome browsers need."""
    if not compressed:
        _write(pieces, io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline=""))
        return
    from Bio import bgzf

    blocks = bgzf.BgzfWriter(fileobj=binary)
    for piece in pieces:
        blocks.write(piece.encode("utf-8", "backslashreplace"))
    blocks.flush()
    blocks.flush()  # an empty block says that the file is whole


def _index(track: Path) -> None:
    """The tabix index beside a compressed track, where pysam is there."""
    try:
        import pysam
    except ImportError:
        say("[dim]No index: pip install 'hnet\\[tabix]' writes one beside it.[/]")
        return
    try:
        pysam.tabix_index(str(track), preset="bed", force=True)
    except OSError as error:  # a sequence in two files is in two places, which no index allows
        say(f"[yellow]No index:[/] {literal(str(error))}; give files whose sequences have names of their own.")
        return
    say(f"Wrote {literal(track)}.tbi.")


def _report(summary: segmenting.Summary) -> None:
    rows = table("stage", "chunks", "bytes/chunk", "target", "boundaries on", "share", "chance")
    for s, stage in enumerate(summary.stages()):
        target = f"{stage['target']:.1f}" if stage["target"] else "-"
        cells = [str(s), f"{stage['chunks']:,}", f"{stage['bytes_per_chunk']:.2f}", target]
        edges: dict[str, Any] = stage["edges"]
        for kind, score in edges.items() or {"": None}.items():
            found = [kind, f"{score['precision']:.0%}", f"{score['chance']:.0%}"] if score else ["", "", ""]
            rows.add_row(*cells, *found)
            cells = [""] * 4
    show(rows)
    for reason, number in summary.refused.items():
        say(f"[dim]left out: {number:,} x {literal(reason)}[/]")
    for note, number in summary.notes.items():
        say(f"[dim]{literal(note)}: {number:,}[/]")
    say(
        f"[dim]{size(summary.bytes)} in {summary.documents:,} document{'s' * (summary.documents != 1)}[/]", verbose=True
    )


def sample(
    model: str | None,
    prompt: str | None,
    prompt_file: str | None,
    *,
    number: int,
    show_chunks: bool,
    raw: bool,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Write `number` continuations of the prompt to standard output while they come."""
    if raw and show_chunks and not as_json:
        raise UsageError("--raw and --show-chunks exclude each other", "marks are no bytes; --json has both")
    start = _prompt(prompt, prompt_file)
    if model is None:
        model = checkpoint.default_model()
        say(f"Model: [bold]{literal(model)}[/]")
    loaded = checkpoint.load(model, device)
    kind = modalities.get(loaded.modality) if loaded.modality else None
    if kind is None:
        options["eos"] = sampling.EOS
    if as_json:
        options |= {"automaton": None} if raw else {}
        for record in sampling.sample_records(loaded, [start], kind, n=number, show_chunks=show_chunks, **options):
            print(json.dumps(record, ensure_ascii=False), flush=True)
    elif raw:
        table_in = kind.input_table if kind else None
        for piece in sampling.sample_bytes(loaded, [start], n=number, input_table=table_in, **options):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    else:
        stream = _stdout()
        colour = render.use_colour(stream)
        for text in sampling.sample(loaded, [start], kind, n=number, show_chunks=show_chunks, colour=colour, **options):
            stream.write(text)
            stream.flush()


def _prompt(prompt: str | None, prompt_file: str | None) -> bytes:
    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt and --prompt-file exclude each other")
    if prompt_file is None:
        return (prompt or "").encode("utf-8", "surrogateescape")
    if prompt_file == "-":
        return sys.stdin.buffer.read()
    with contextlib.closing(open_input(Path(prompt_file))) as file:
        return file.read()
