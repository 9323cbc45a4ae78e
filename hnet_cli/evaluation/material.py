"""What is evaluated: the documents of a dataset's held-out split, or of files, up to a number of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hnet_cli import modality as modalities
from hnet_cli.config.run import resolve
from hnet_cli.data.baselines import TRAIN_LIMIT, sample
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import shuffled
from hnet_cli.data.prepare.contents import sources_of
from hnet_cli.errors import HNetError, InputError, UsageError
from hnet_cli.modality import Document, Modality, Refused, Source
from hnet_cli.storage.streams import open_input, shown


@dataclass(frozen=True)
class Material:
    """Documents as stored, and how they were chosen."""

    documents: list[Document]
    chosen: str
    """In words, for the definition printed with the figures."""
    train: bytes | None = None
    """A sample of the training split, as the model reads it, for baselines that need one."""
    refused: dict[str, int] = field(default_factory=dict)
    """Items that were not used, by reason."""

    @property
    def bytes(self) -> int:
        return sum(len(document.data) for document in self.documents)


def is_dataset(path: Path) -> bool:
    return (path / "dataset.json").is_file()


def own_dataset(model: str) -> Path | None:
    """The dataset that a run was trained on, if MODEL is a run (or a checkpoint of one) and the dataset is there."""
    folder = Path(model)
    for place in (folder, folder.parent.parent):
        if (place / "config.yaml").is_file():
            try:
                data = resolve(str(place / "config.yaml")).data
            except HNetError:
                return None
            return Path(data) if data and is_dataset(Path(data)) else None
    return None


def gather(data: Sequence[str], modality: Modality | None, limit: int | None, field: str | None = None) -> Material:
    """The held-out split of one dataset, or the documents of files. Raises UsageError, InputError, DamagedError."""
    if len(data) == 1 and is_dataset(Path(data[0])):
        return _held_out(Dataset.open(Path(data[0])), modality, limit)
    for each in data:
        if is_dataset(Path(each)):
            raise UsageError(f"{each} is a dataset, and there is other data beside it", "evaluate one after the other")
    return _files(data, modality or modalities.Modality(), limit, field)


def _held_out(dataset: Dataset, modality: Modality | None, limit: int | None) -> Material:
    if modality is not None and modality.name != dataset.modality:
        raise InputError(
            f"{dataset.path} holds {dataset.modality}, the model is one of {modality.name}",
            f"to evaluate it so nevertheless, give the files themselves and --modality {modality.name}",
        )
    ranges = dataset.ranges("val")
    everything = limit is None or dataset.nbytes("val") <= limit
    # A split may be a few long documents after many short ones: a seeded order, not the first ones.
    order = np.arange(len(ranges))
    if not everything:
        order = np.argsort(shuffled(order, len(ranges), "eval"), kind="stable")
    documents: list[Document] = []
    left = limit if limit is not None else dataset.nbytes("val")
    for row in order:
        document, start, length = ranges[row].tolist()
        at = int(dataset.table[document, 0]) + start
        source, _, record = dataset.name(document).partition("\t")
        kept = dataset.shards.read(at, at + min(length, left))
        offset = int(dataset.table[document, 3]) + start
        documents.append(Document(kept, record or source, source, "", offset))
        left -= len(kept)
        if left <= 0:
            break
    part = "all" if everything else f"{limit:,} bytes of documents chosen by a fixed seed, of {dataset.nbytes('val'):,}"
    return Material(documents, f"held-out split of {dataset.path}: {part}", _train_sample(dataset))


def _train_sample(dataset: Dataset) -> bytes | None:
    if "train" not in dataset.splits or not dataset.nbytes("train"):
        return None
    ranges = dataset.ranges("train")
    starts = dataset.table[ranges[:, 0], 0] + ranges[:, 1]
    stored = sample(dataset.shards.read, [(starts, starts + ranges[:, 2])], dataset.nbytes("train"), TRAIN_LIMIT)
    return dataset.translate(np.frombuffer(stored, np.uint8)).tobytes()


def _files(data: Sequence[str], modality: Modality, limit: int | None, field: str | None) -> Material:
    documents: list[Document] = []
    refused: dict[str, int] = {}
    left = limit
    for item in read(data, modality, field, refused):
        kept = (
            item.data if left is None else item.data[: modality.cut(item.data, left) if len(item.data) > left else left]
        )
        if kept:
            documents.append(Document(kept, item.name, item.source, item.group, item.offset))
        left = None if left is None else left - len(item.data)
        if left is not None and left <= 0:
            break
    if not documents:
        why = f": {next(iter(refused))}" if refused else ": empty"
        raise InputError(f"nothing to evaluate in {', '.join(map(str, data))}{why}")
    part = "all" if left is None or left > 0 else f"the first {sum(len(each.data) for each in documents):,} bytes"
    return Material(documents, f"{', '.join(map(str, data))}: {part}", None, refused)


def read(data: Sequence[str], modality: Modality, field: str | None, refused: dict[str, int]) -> Iterator[Document]:
    """The documents of files; what is refused is counted by reason in `refused`."""
    for source in sources_of(data, modality, field):
        for item in [source] if isinstance(source, Refused) else documents_of(source, modality):
            if isinstance(item, Document):
                yield item
            else:
                refused[item.reason] = refused.get(item.reason, 0) + 1


def file_source(path: Path) -> Source:
    """One plain or compressed file."""
    return Source(shown(path), lambda: open_input(path))


def documents_of(source: Source, modality: Modality) -> Iterator[Document | Refused]:
    """The documents of a source; of no particular modality, the source as it is."""
    if type(modality) is Modality:
        with source.open() as stream:
            yield Document(stream.read(), source.name, source.name)
    else:
        yield from modality.documents(source)
