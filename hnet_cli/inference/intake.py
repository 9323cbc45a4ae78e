"""Documents of the sources a user names, in order and in bounded memory, and the count of what is not used of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from hnet_cli.data.prepare.contents import documents_of
from hnet_cli.errors import InputError
from hnet_cli.inference.thresholds import Applied
from hnet_cli.inference.windows import READ_BYTES, Stream
from hnet_cli.modality import MARK_LEFT_OUT, Annotation, Document, Modality, Refused, Source

T = TypeVar("T")
Cut = Callable[[bytes, int], int]
"""`Modality.cut`."""


@dataclass
class Intake:
    """Reads documents; its counts grow while they are read."""

    total: int = 0
    """Bytes of the documents that were handed out, but for prompts."""
    refused: Counter[str] = field(default_factory=Counter)
    """Number of items that were not used, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """Number of documents by remark (`Document.notes`)."""
    cut: bool = False
    """True if there was more than `max_bytes`."""
    damaged: list[InputError] = field(default_factory=list)
    """One for each file that could not be read, or not to its end."""
    applied: Applied | None = None
    """The thresholds that were chosen for them."""
    stored: bool = False
    """True: rows of prompt and completion are read as `prepare` stores them (`documents_of`), those with a prompt
    whole."""
    _whole: int = 0
    """Sources that were read to their end."""
    _first: Refused | None = None

    def documents(
        self, sources: Iterable[Source], modality: Modality | None, max_bytes: int | None = None
    ) -> Iterator[Document | Stream]:
        """The documents of all sources; without a modality each is one, of raw bytes.

        After `max_bytes` of all together it ends, between characters where the modality knows any. A source that turns
        out to be damaged ends there, and the others follow.
        """
        left, cut = max_bytes, (modality or Modality()).cut
        for source in sources:
            before = len(self.damaged)
            marked = False  # a byte order mark was left out just now
            items = self._items(source, modality)
            for item in self._until_damaged(items):
                if isinstance(item, Refused):
                    marked = item.reason.endswith(MARK_LEFT_OUT)
                    self._first = self._first or item
                    self.refused[item.reason] += 1
                    continue
                if self.cut or left == 0:
                    self.cut = True
                    return
                began = self.total
                if isinstance(item, Stream):
                    yield dataclasses.replace(item, blocks=self._blocks(item.blocks, left, cut))
                else:
                    self.notes.update(item.notes)
                    notes = (*item.notes, *[MARK_LEFT_OUT] * marked)
                    most = None if item.prompt else left
                    data = self._taken(item.data, most, cut)
                    self.total -= item.prompt
                    yield item._replace(data=data, notes=notes)
                marked = False
                left = None if left is None else max(0, left - (self.total - began))
            self._whole += len(self.damaged) == before
            if self.cut:  # what follows is not even opened
                return

    def check(self, work: str) -> None:
        """Raise InputError if nothing was read, or no source to its end. `work`: "segment"."""
        if self.damaged and not self._whole and not self.cut:
            raise self.damaged[0]
        if not self.total:
            why = f"{self._first.where}: {self._first.reason}" if self._first else "empty"
            raise InputError(f"nothing to {work}: {why}")

    def _items(self, source: Source, modality: Modality | None) -> Iterable[Document | Stream | Refused]:
        if self.stored and source.completion is not None:
            return documents_of(source, modality.documents if modality else one_document)
        return modality.documents(source) if modality else [_raw(source)]

    def _until_damaged(self, items: Iterable[T]) -> Iterator[T]:
        try:
            yield from items
        except InputError as error:
            self.damaged.append(error)

    def _blocks(self, blocks: Iterable[bytes], left: int | None, cut: Cut) -> Iterator[bytes]:
        for block in self._until_damaged(blocks):
            if self.cut or left == 0:
                self.cut = True
                return
            taken = self._taken(block, left, cut)
            left = None if left is None else left - len(taken)
            yield taken

    def _taken(self, data: bytes, left: int | None, cut: Cut) -> bytes:
        if left is not None and len(data) > left:
            data, self.cut = data[: cut(data, left) or left], True
        self.total += len(data)
        return data


def _raw(source: Source) -> Stream:
    def blocks() -> Iterator[bytes]:
        with source.open() as stream:
            while block := stream.read(READ_BYTES):
                yield block

    return Stream(blocks(), source.name, source.name)


def one_document(source: Source) -> Iterator[Document | Refused]:
    """`documents` where there is no modality: the source, read whole."""
    with source.open() as stream:
        yield Document(stream.read(), source.name, source.name)


def few(names: Iterable[str], most: int = 3) -> str:
    """The first of some names, each once and no longer than 40 characters."""
    first = [name[:40] for name in islice(dict.fromkeys(names), most + 1)]
    return ", ".join(first[:most]) + ", ..." * (len(first) > most)


def unannotated(read: Iterable[str], annotation: Annotation) -> InputError:
    """The error of an annotation that is about none of the records that are read, by their names."""
    return InputError(
        f"no record that is read is annotated: the sequence has {few(read)}, the annotation {few(annotation.names())}",
        "names must be the same in both files",
    )
