"""`hnet segment`: the learned chunks of files."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from hnet_cli.cli import options
from hnet_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from hnet_cli.checkpoints.model_folder import LoadedModel
    from hnet_cli.data.prepare.rows import Field
    from hnet_cli.inference.intake import Intake
    from hnet_cli.inference.segment import Summary
    from hnet_cli.modality import Modality, Source
    from hnet_cli.storage import NewFile

SURE = 0.9
"""A file is of another modality than the model's if detection is at least this sure."""
TRACKS = ("bed", "bedgraph")
"""Formats that tabix indexes."""


def segment(
    files: options.Files,
    model: options.ModelForFiles = None,
    stage: Annotated[str, typer.Option(help="0 is the outermost; or all.")] = "all",
    format: Annotated[
        str | None,
        typer.Option(
            help="pretty, plain, jsonl, tsv, html, live (a page that cuts what is typed); for FASTA bed, bedgraph, "
            "bigwig, igv; or one of the modality's own. Default: pretty on a terminal, else plain."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write here instead of standard output.")] = None,
    overwrite: options.Overwrite = False,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many bytes. Default: all; html, igv: 1 MB; live: 2,000.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL2",
            help="Show another model's boundaries beside, on the page of --format html, or those of a tokenizer.json.",
        ),
    ] = None,
    annotation: Annotated[
        Path | None,
        typer.Option(help="GFF3, GTF or GenBank for a FASTA: its features as a track of --format html or igv."),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Begin bed or bedgraph with a track line of this name, as UCSC wants it."),
    ] = None,
    modality: options.ModalityName = None,
    field: options.Field = None,
    carry: Annotated[
        bool, typer.Option("--carry", help="Carry the model's state through a document instead of reading windows.")
    ] = False,
    threshold: options.Threshold = None,
    bytes_per_chunk: options.BytesPerChunk = None,
    workers: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes that compute; the output is that of one. A CPU only.")
    ] = 1,
    device: options.Device = None,
) -> None:
    """Print the chunks a model has learned, of files of any length."""
    from hnet_cli import storage
    from hnet_cli.checkpoints.find import load_any
    from hnet_cli.distributed.workers import Workers
    from hnet_cli.evaluation.material import file_source
    from hnet_cli.inference import browsers, render
    from hnet_cli.inference import segment as segmenting
    from hnet_cli.inference.intake import Intake
    from hnet_cli.modality import Modality
    from hnet_cli.storage import bigwig
    from hnet_cli.terminal.console import literal, progress, say, size

    compression = options.compression(threshold, bytes_per_chunk)
    if compare is not None and format != "html":
        raise UsageError("--compare is for a page", "add --format html --out FILE.html")
    if annotation is not None and format not in render.PAGES:
        raise UsageError("--annotation is for a page", "add --format html, or igv, and --out FILE.html")
    if track is not None and format not in TRACKS:
        raise UsageError("--track is for --format bed or bedgraph", "leave it out, or add one of them")
    if format == "bigwig":
        bigwig.library()
        if out is None or (out.exists() and not out.is_file()):
            raise UsageError("a bigWig is written to a file", "add --out FILE.bw")
    if format == "igv":
        browsers.igv_script()
    if compare is not None and "-" in files:
        raise UsageError("--compare reads the input twice, which standard input cannot be", "name a file")
    computed_on = options.device_name(device if device or workers == 1 else "cpu")
    if workers > 1 and (carry or computed_on != "cpu"):
        alone = "--carry, whose passes follow from each other" if carry else f"--device {computed_on}"
        raise UsageError(f"--workers {workers} does not go with {alone}", "leave one of them out")
    if out is not None:
        if out.is_dir():
            raise UsageError(f"--out {out} is a folder", "name a file")
        storage.refuse_output(out, overwrite, files)
        if out.suffix == ".gz" and format in TRACKS and track is None:
            storage.refuse_output(index_of(out), overwrite)
    loaded, plugin = model_for(files, model, modality, field, computed_on)
    format = format or ("pretty" if out is None and render.use_colour(sys.stdout) else "plain")
    features = None
    if annotation is not None:
        features = (plugin or Modality()).annotation(file_source(annotation))
    beside = None
    if compare is not None:
        other = load_any(compare, computed_on)
        read_again = partial(readable_sources, files, plugin, field, Intake(), silent=True)
        beside = segmenting.Beside(other, getattr(other, "label", compare), read_again)
    summary = segmenting.Summary(loaded.config, plugin)
    with Workers(workers) as processes:
        pieces = segmenting.segment(
            loaded,
            readable_sources(files, plugin, field, summary.intake),
            plugin,
            format=format,
            stage=stage,
            headings=len(files) > 1,
            summary=summary,
            max_bytes=max_bytes,
            title=title_of(files),
            label=loaded.label,
            annotation=features,
            beside=beside,
            carried=carry,
            compression=compression,
            workers=processes if workers > 1 else None,
        )
        options.say_applied(summary.intake.applied)
        if track is not None and format is not None:
            pieces = chain([browsers.track_line(track, format)], pieces)
        if out is None:
            write_text(pieces, sys.stdout)
        else:
            total = plain_bytes(files)
            limit = max_bytes or segmenting.PAGE_BYTES.get(format)
            total = min(total, limit) if total and limit else total
            with storage.output_file(out, overwrite, files) as binary, progress("segmenting", total) as task:
                summary.on_bytes = lambda count: task.update(count, note=size(count))
                if format == "bigwig":
                    with storage.spool(out) as waiting:
                        bigwig.write_bigwig(pieces, binary.name, waiting, lambda: summary.ends)
                else:
                    write_file(pieces, binary, compressed=out.suffix == ".gz")
    if out is not None:
        say(f"Wrote {literal(out)}.")
        if out.suffix == ".gz" and format in TRACKS and track is None and out.is_file():
            write_index(out)
    show_summary(summary)
    show_unused(summary.intake, "segmented")


def title_of(files: list[str]) -> str:
    """The name of a page about files."""
    first = "standard input" if files[0] == "-" else files[0]
    more = len(files) - 1
    return f"{first} and {more} more" if more else first


def model_for(
    files: list[str], model: str | None, modality: str | None, field: Field, device: str
) -> tuple[LoadedModel, Modality | None]:
    """The model to use and the modality to read the files with. Raises InputError where the two do not go together."""
    from hnet_cli import modality as modalities
    from hnet_cli.checkpoints.find import default_model, load
    from hnet_cli.data.prepare import detection

    detected, confidence, why = modality, 1.0, ""
    if detected is None:
        try:
            detected, confidence, why = detection.detect(files, field)
        except InputError:
            if model is None:
                raise
    else:
        modalities.get(detected)
    reference = model or default_model(detected or "text", why)
    loaded = load(reference, device)
    trained = loaded.modality
    if model is not None and modality is None and trained and detected and detected != trained and confidence >= SURE:
        raise InputError(
            f"{files[0]} looks like {detected}, but {reference} is a model of {trained}",
            f"leave out --model, or say --modality {trained} to read it so",
        )
    name = modality or trained or detected
    return loaded, modalities.get(name) if name else None


def readable_sources(
    files: list[str],
    modality: Modality | None,
    field: Field,
    intake: Intake,
    on_read: Callable[[int], None] = lambda count: None,
    silent: bool = False,
) -> Iterator[Source]:
    """The sources that the files hold. One that cannot be read is reported, unless `silent`, and left out. `on_read`
    gets the number of bytes read from files each time."""
    from hnet_cli.data.prepare.contents import sources_of
    from hnet_cli.modality import Modality, Refused
    from hnet_cli.terminal.console import literal, say

    for source in sources_of(files, modality or Modality(), field, intake.damaged.append, on_read):
        if not isinstance(source, Refused):
            yield source
        elif not silent:
            say(f"[yellow]left out:[/] {literal(source.where)}: {literal(source.reason)}")


def plain_bytes(files: list[str]) -> int | None:
    """Bytes there are to read, if that is known beforehand."""
    from hnet_cli.modality import COMPRESSIONS

    paths = [Path(file) for file in files]
    packed = (*COMPRESSIONS, ".tar", ".parquet")
    known = all(path.is_file() and path.suffix.lower() not in packed for path in paths)
    return sum(path.stat().st_size for path in paths) if known else None


def write_text(pieces: Iterable[str], target: TextIO) -> None:
    """Write and flush the pieces; a wrapper of a binary file is detached from it, so that it stays open."""
    for piece in pieces:
        target.write(piece)
    target.flush()
    if target is not sys.stdout:
        target.detach()  # type: ignore[attr-defined]


def write_file(pieces: Iterable[str], binary: NewFile, compressed: bool) -> None:
    """Write UTF-8; compressed as BGZF, gzip in blocks, which indexes of genome browsers need."""
    if not compressed:
        write_text(pieces, io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline=""))
        return
    from Bio import bgzf

    blocks = bgzf.BgzfWriter(fileobj=binary)
    for piece in pieces:
        blocks.write(piece.encode("utf-8", "backslashreplace"))
    blocks.flush()
    blocks.flush()  # an empty block marks the end of a whole file


def index_of(track: Path) -> Path:
    """The tabix index beside a track."""
    return track.with_name(f"{track.name}.tbi")


def write_index(track: Path) -> None:
    """Write the tabix index beside a compressed track, if pysam is installed."""
    from hnet_cli.terminal.console import literal, say

    try:
        import pysam
    except ImportError:
        say("[dim]No index: pip install 'hnet-cli\\[tabix]' writes one beside it.[/]")
        return
    try:
        pysam.tabix_index(str(track), preset="bed", force=True)
    except OSError as error:  # a sequence in two files is in two places, which no index allows
        say(f"[yellow]No index:[/] {literal(str(error))}; give files whose sequences have names of their own.")
        return
    say(f"Wrote {literal(index_of(track))}.")


def show_summary(summary: Summary) -> None:
    """Print chunks per stage and agreement with reference edges, on standard error."""
    from hnet_cli.terminal.console import literal, say, show, size, table

    unit = summary.modality.unit if summary.modality else "byte"
    rows = table("stage", "chunks", f"{unit}s/chunk", "target", "boundaries on", "share", "chance")
    for number, stage in enumerate(summary.stages()):
        target = f"{stage['target']:.1f}" if stage["target"] else "-"
        cells = [str(number), f"{stage['chunks']:,}", f"{stage['bytes_per_chunk']:.2f}", target]
        edges: dict[str, Any] = stage["edges"]
        for kind, score in edges.items() or {"": None}.items():
            scores = [kind, f"{score['precision']:.0%}", f"{score['chance']:.0%}"] if score else ["", "", ""]
            rows.add_row(*cells, *scores)
            cells = [""] * 4
    show(rows)
    documents = f"{summary.documents:,} document{'s' * (summary.documents != 1)}"
    say(f"[dim]{size(summary.bytes)} in {literal(documents)}[/]", verbose=True)


def show_unused(intake: Intake, done: str) -> None:
    """Print what was left out or has a note, on standard error. Raises InputError where a file was damaged; `done`:
    what was done with the others."""
    from hnet_cli.terminal.console import literal, say

    for reason, count in intake.refused.items():
        say(f"[dim]left out: {count:,} x {literal(reason)}[/]")
    for note, count in intake.notes.items():
        say(f"[dim]{literal(note)}: {count:,}[/]")
    if intake.cut:
        say(f"There is more: this is the first {intake.total:,} bytes; --max-bytes says how many are wanted.")
    if damaged := intake.damaged:
        for error in damaged[1:]:
            say(f"[yellow]left out:[/] {literal(error)}")
        raise InputError(f"{damaged[0]}; the rest is {done}", damaged[0].hint)
