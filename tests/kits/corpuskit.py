"""A plugin of a document per line, small corpora, and datasets of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.modality import Document, Modality, Refused, Source


class Lines(Modality):
    """A document per line; lines that begin with # are refused."""

    name = "lines"
    summary = "for tests"

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        offset = 0
        with source.open() as stream:
            for line in stream.read().splitlines(keepends=True):
                if line.startswith(b"#"):
                    yield Refused("comment", f"{source.name}:{offset}", len(line))
                else:
                    yield Document(line, f"{source.name}@{offset}", source.name, source.group, offset)
                offset += len(line)


def text(seed: int, size: int = 3000) -> bytes:
    rng = np.random.default_rng(seed)
    return b"".join(b"%d %d\n" % (seed, n) for n in rng.integers(0, 10**6, size // 9))


def make(out: Path, *inputs: Path, **options: Any) -> tuple[Any, Dataset]:
    options.setdefault("measure", False)
    summary = prepare(list(inputs), Lines(), out, **options)
    return summary, Dataset.open(out)


def stored(dataset: Dataset) -> bytes:
    return dataset.shards.read(0, dataset.about["bytes"])


def bgzf(data: bytes, size: int = 1000) -> list[bytes]:
    """The blocks of BGZF, with the empty one that marks the end."""
    blocks = []
    for part in [*(data[at : at + size] for at in range(0, len(data), size)), b""]:
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(part) + packer.flush()
        extra = b"BC\x02\x00" + (len(packed) + 25).to_bytes(2, "little")
        blocks.append(b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00" + extra + packed)
        blocks[-1] += zlib.crc32(part).to_bytes(4, "little") + len(part).to_bytes(4, "little")
    return blocks


def tree(folder: Path, files: int = 30) -> Path:
    folder.mkdir()
    for index in range(files):
        (folder / f"{index:03d}.txt").write_bytes(text(index))
    return folder
