"""The vectors that bytes enter with: each byte's own and, on request, those of the n-grams that end in it.

Hashed n-grams are the Byte Latent Transformer's (arXiv 2412.09871, section 3.2.1): sizes 3 to 8, a table for each, the
row by a hash of the bytes, all added to the byte's vector. Their tables begin at zero, so that a model begins as the
one without them. They cost memory and no product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnet_cli.kernels.continuing import pick, put
from hnet_cli.kernels.packing import Packing

SIZES = range(3, 9)
REACH = SIZES[-1] - 1
"""Bytes before the newest that matter."""
_FACTOR, _SPREAD, _LOW = 1_000_003, 0x9E3779B1, (1 << 31) - 1


class Embeddings(nn.Embedding):
    """(V, D) `weight`; `ngrams` (6 R, D) for R `rows` per size, None for 0."""

    def __init__(self, vocab_size: int, width: int, rows: int = 0) -> None:
        super().__init__(vocab_size, width)
        self.rows = rows
        self.ngrams = nn.Parameter(torch.zeros(len(SIZES) * rows, width)) if rows else None

    def allocate(self, batch_size: int) -> Tensor:
        """The newest bytes of documents that have not begun, for `packed` and `step` to carry.

        (B, REACH) int64, oldest first, byte + 1 or 0 for none; empty without n-grams.
        """
        return self.weight.new_zeros(batch_size if self.rows else 0, REACH, dtype=torch.int64)

    def packed(self, ids: Tensor, packing: Packing, recent: Tensor | None = None) -> Tensor:
        """ids (T,) -> (T, D). With `recent`, documents go on from it and it is brought to their ends."""
        if not self.rows:
            return self(ids)
        code, position = ids + 1, packing.position  # 0 stands for nothing: before the document
        before = [code]
        old = None if recent is None else pick(recent, packing.row_index)
        for back in range(1, REACH + 1):
            earlier = F.pad(code, (back, 0))[: len(ids)]
            outside = torch.zeros_like(code)
            if old is not None:
                outside = old[packing.document, (REACH - back + position).clamp_max(REACH - 1)]
            before.append(torch.where(position >= back, earlier, outside))
        columns = torch.stack(before, 1)
        if recent is not None:
            put(recent, packing.row_index, columns[packing.last, :REACH].flip(1))
        return self._sum(ids, columns)

    def step(self, tokens: Tensor, recent: Tensor, rows: Tensor | None = None) -> Tensor:
        """tokens (R,) of some rows (None: all) -> (R, D). Moves `recent` on."""
        if not self.rows:
            return self(tokens)
        columns = torch.cat([(tokens + 1)[:, None], pick(recent, rows).flip(1)], 1)
        put(recent, rows, columns[:, :REACH].flip(1))
        return self._sum(tokens, columns)

    def _sum(self, ids: Tensor, columns: Tensor) -> Tensor:
        """columns (T, REACH + 1): ids + 1, newest first, 0 where there is none."""
        code, found = columns[:, 0], list[Tensor]()
        for back in range(1, REACH + 1):
            code = (code * _FACTOR + columns[:, back]) & _LOW
            if back + 1 in SIZES:
                found.append(((code * _SPREAD) >> 15) % self.rows + self.rows * len(found))
        assert self.ngrams is not None
        return self(ids) + F.embedding_bag(torch.stack(found, 1), self.ngrams, mode="sum")
