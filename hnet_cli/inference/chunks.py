"""From windows to chunks: a chunk ends where the next begins, perhaps many windows later."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hnet_cli.inference.windows import Stream, Window
    from hnet_cli.modality import Document


@dataclass(frozen=True, slots=True)
class Block:
    """The chunks of a stage that end in one window."""

    window: Window
    starts: list[int]
    """n + 1 positions in the document: chunk i is [starts[i], starts[i + 1])."""
    chunks: list[bytes]
    probability: np.ndarray
    """(n, S) as in `Window`: p at the start of each chunk, for all stages."""


class Assembler:
    """Puts the chunks of one stage together over the windows they span."""

    def __init__(self, stage: int) -> None:
        self.stage = stage
        self.data = b""  # of the chunk that is still open
        self.start = np.empty(0, dtype=np.int64)  # where it begins: (1,), or (0,) before the first
        self.probability = np.empty((0, 0), dtype=np.float32)

    def __call__(self, window: Window) -> Block:
        own = ~np.isnan(window.probability[:, self.stage])
        starts, probability, data = window.starts[own], window.probability[own], window.data
        if window.start:
            starts = np.concatenate([self.start, starts])
            probability = np.concatenate([self.probability, probability])
            data = self.data + data
        base = int(starts[0])
        if window.last:
            starts = np.concatenate([starts, [base + len(data)]])
        else:
            self.start, self.probability, self.data = starts[-1:], probability[-1:], data[int(starts[-1]) - base :]
            probability = probability[:-1]
        at = (starts - base).tolist()
        return Block(window, starts.tolist(), [data[a:b] for a, b in pairwise(at)], probability)


def record_of(document: Document | Stream) -> str | None:
    """The record a document is, where its source has several and offsets count from each record's start."""
    return None if document.name == document.source else document.name
