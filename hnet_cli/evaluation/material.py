"""Documents to evaluate on: the held-out split of a dataset, or files, up to a number of bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hnet_cli.config.run import resolve
from hnet_cli.config.sources import Sources
from hnet_cli.data.baselines import train_sample
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.data.prepare.contents import documents_of, files_of
from hnet_cli.data.prepare.rows import Field, option_of
from hnet_cli.errors import HNetError, InputError, UsageError
from hnet_cli.inference.intake import one_document
from hnet_cli.modality import Document, Modality, Refused, Source, begin_text
from hnet_cli.report.history import data_of, find_sources
from hnet_cli.storage.streams import open_input, shown
from hnet_cli.terminal.console import literal, say

LEAST_SHARE = 64
"""Bytes of a document below which distorting it says nothing."""
COMPLETIONS = "; of rows of prompt and completion, the completions and the mark that ends each"
STRETCHES, LONGEST_STRETCH = 64, 1 << 16
"""Stretches that a sample of a split has at least if they are longer than the context, and their most bytes."""


@dataclass(frozen=True)
class Material:
    """Documents as stored, and how they were chosen."""

    documents: list[Document]
    chosen: str
    """In words, for the definition printed with the figures."""
    train: bytes | None = None
    """A sample of the training split, translated as the model reads it, for baselines that need one."""
    refused: dict[str, int] = field(default_factory=dict)
    """Number of items left out, by reason."""
    damaged: Sequence[InputError] = ()
    """One for each file that could not be read to its end, of which nothing is kept."""
    owners: Sequence[int] | None = None
    """Index of the document that each item of `documents`, a stretch of one, is sampled from. None: each is its own."""
    train_counts: bytes = b""
    """`dataset.counting` of `train`, if there are prompts."""

    @property
    def bytes(self) -> int:
        """Bytes that count."""
        return sum(len(document.data) for document in self.documents) - sum(self.prompts)

    @property
    def prompts(self) -> list[int]:
        """`prompts_of` the documents."""
        return prompts_of(self.documents)

    def shares(self, limit: int, least: int = LEAST_SHARE) -> Material:
        """`equal_shares` of the documents, with their owners."""
        shares, owners = _shares(self.documents, limit, least), None
        if self.owners is not None:
            owners = np.unique([self.owners[number] for number, _ in shares], return_inverse=True)[1].tolist()
        return replace(self, documents=[document for _, document in shares], owners=owners)


def prompts_of(documents: Iterable[Document]) -> list[int]:
    """Bytes at the beginning of each document that are a prompt and do not count."""
    return [document.prompt for document in documents]


def is_dataset(path: Path) -> bool:
    return (path / "dataset.json").is_file()


def own_data(model: str) -> Sources | None:
    """The datasets a run was trained on, where MODEL is a run or a checkpoint of one.

    Raises InputError, naming the first, where one of them is no longer there.
    """
    folder = Path(model)
    for run in (folder, folder.parent.parent):
        if (run / "config.yaml").is_file():
            try:
                sources = resolve(str(run / "config.yaml")).sources
            except HNetError:
                return None
            if gone := [source.path for source in sources if data_of(run, source.path) is None]:
                message = f"{shown(gone[0])}, which {model} was trained on, is no longer there"
                raise InputError(message, "give files, or a dataset with --data")
            return find_sources(run, sources)
    return None


def gather(
    data: Sequence[str], modality: Modality | None, limit: int | None, field: Field = None, context: int = 2048
) -> Material:
    """The held-out split of one dataset, or the documents of files. Raises UsageError, InputError, DamagedError.

    A split of more than `limit` bytes is sampled in stretches of documents, whole windows of `context` bytes (0: whole
    documents), spread over all of it; rows of prompt and completion stay whole.
    """
    if len(data) == 1 and is_dataset(Path(data[0])):
        if field is not None:
            raise UsageError(f"{data[0]} is a dataset: it has no rows, to which {option_of(field)} could apply")
        return _held_out(Dataset.open(Path(data[0])), modality, limit, context)
    for name in data:
        if is_dataset(Path(name)):
            raise UsageError(f"{name} is a dataset, and there is other data beside it", "evaluate one after the other")
    return _files(data, modality or Modality(), limit, field)


def _held_out(dataset: Dataset, modality: Modality | None, limit: int | None, context: int) -> Material:
    if modality is not None and modality.name != dataset.modality:
        raise InputError(
            f"{dataset.path} holds {dataset.modality}, the model reads {modality.name}",
            f"to evaluate it all the same, give the files themselves and --modality {modality.name}",
        )
    total, part, owners = dataset.nbytes("val"), "all", None
    length = max(total, 1)
    if limit is not None and total > limit and not dataset.prompted:
        length = LONGEST_STRETCH
        if context:
            length = max(context, min(length, limit // STRETCHES) // context * context)
    chosen = Windows(dataset, "val", length, limit)
    if chosen.bytes < chosen.of:
        kind = f"stretches of at most {length:,} bytes spread over it, each read as if a document began there"
        part = f"{chosen.bytes:,} of its {chosen.of:,} bytes, {'whole rows' if dataset.prompted else kind}"
        owners = np.unique(chosen.table[:, 0], return_inverse=True)[1].tolist()
    documents: list[Document] = []
    for document, _, start, size in chosen.table.tolist():
        at = int(dataset.table[document, 0]) + start
        source, _, record = dataset.name(document).partition("\t")
        data = dataset.shards.read(at, at + size)
        documents.append(Document(data, record or source, source, "", int(dataset.table[document, 3]) + start))
    counts = train_sample(dataset, read=dataset.counting) if dataset.prompted else b""
    part += COMPLETIONS * dataset.prompted
    chosen_by = f"held-out split of {dataset.path}: {part}"
    return Material(documents, chosen_by, train_sample(dataset), owners=owners, train_counts=counts)


def _files(data: Sequence[str], modality: Modality, limit: int | None, field: Field) -> Material:
    documents: list[Document] = []
    refused: Counter[str] = Counter()
    damaged: list[InputError] = []
    left = limit
    for file in files_of(data, modality, field):
        before = len(documents), left, refused.copy()
        try:
            for document in _documents(file, modality, refused):
                whole = left is None or len(document.data) <= left or document.prompt > 0
                part = document if whole else beginning(document, modality.cut(document.data, left or 0))
                documents += [part] * bool(part.data)
                if left is not None and (left := left - len(document.data) + document.prompt) <= 0:
                    break
        except InputError as error:
            # What stands before the damage is not known to be sound, since checksums come last.
            kept, left, refused = before
            del documents[kept:]
            damaged.append(error)
            leave_out(error)
        if left is not None and left <= 0:
            break
    names = ", ".join(map(str, data))
    if not documents:
        raise damaged[0] if damaged else InputError(f"nothing to evaluate in {names}: {next(iter(refused), 'empty')}")
    material = Material(documents, f"{names}: all", None, dict(refused), damaged)
    if left is not None and left <= 0:
        material = replace(material, chosen=f"{names}: the first {material.bytes:,} bytes")
    counts = {"damaged": len(damaged), "left out": refused.total()}
    without = " and ".join(f"{number:,} {kind}" for kind, number in counts.items() if number)
    chosen = material.chosen + (f" but {without}" if without else "")
    return replace(material, chosen=chosen + COMPLETIONS * any(material.prompts))


def leave_out(error: InputError) -> None:
    """Say that a damaged file is left out, while the others are evaluated."""
    say(f"[yellow]left out:[/] {literal(error)}")


def read_documents(
    data: Sequence[str], modality: Modality, field: Field, refused: Counter[str], damaged: list[InputError]
) -> Iterator[Document]:
    """The documents of files, one after the other; those left out are counted by reason in `refused`. A file that turns
    out to be `damaged` ends there, and the others follow."""
    for file in files_of(data, modality, field):
        try:
            yield from _documents(file, modality, refused)
        except InputError as error:
            damaged.append(error)
            leave_out(error)


def _documents(file: Iterable[Source | Refused], modality: Modality, refused: Counter[str]) -> Iterator[Document]:
    """The documents of a file; those left out are counted by reason in `refused`."""
    read = one_document if type(modality) is Modality else modality.documents
    for source in file:
        for item in [source] if isinstance(source, Refused) else documents_of(source, read):
            if isinstance(item, Document):
                yield item
            else:
                refused[item.reason] += 1


def file_source(path: Path) -> Source:
    """One plain or compressed file."""
    return Source(shown(path), lambda: begin_text(open_input(path), shown(path)))


def beginning(document: Document, length: int) -> Document:
    """The first `length` bytes of a document."""
    return document._replace(data=document.data[:length])


def equal_shares(documents: Sequence[Document], limit: int, least: int = LEAST_SHARE) -> list[Document]:
    """The beginnings of the documents, equally long as far as they go, at most `limit` bytes in all. Where that is less
    than `least` bytes of each, of every second document, of every fourth, ... Rows of prompt and completion stay whole:
    some of them, evenly spread."""
    return [document for _, document in _shares(documents, limit, least)]


def _shares(documents: Sequence[Document], limit: int, least: int) -> list[tuple[int, Document]]:
    """`equal_shares`, each with the number of its document."""
    lengths = np.sort([len(document.data) for document in documents])
    numbered = list(enumerate(documents))
    if any(prompts_of(documents)):
        return numbered[:: max(1, -(-int(lengths.sum()) // limit))]
    reached = np.concatenate([[0], np.cumsum(lengths)[:-1]]) + lengths * np.arange(len(lengths), 0, -1)
    fits = int(np.searchsorted(reached, limit, side="right"))
    if fits == len(lengths):
        return numbered
    longest = int((limit - lengths[:fits].sum()) // (len(lengths) - fits))
    if longest < least and len(documents) > 1:
        return [(2 * number, document) for number, document in _shares(documents[::2], limit, least)]
    shares = [(number, beginning(document, longest)) for number, document in numbered]
    return [(number, document) for number, document in shares if document.data]
