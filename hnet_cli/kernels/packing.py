"""Ragged batches as one packed axis: documents laid end to end, and what the layers want to know about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Value = TypeVar("Value")


@dataclass(eq=False)
class Packing:
    """Layout of the documents of one level in a packed tensor (T, ...). Built once per level, shared by its layers.

    Every document has at least one position. `lengths` lives on the host, so that nothing later has to ask the device.
    """

    cu_seqlens: Tensor
    """(B+1,) int32 or int64: document b is the positions cu_seqlens[b] to cu_seqlens[b+1]."""
    lengths: list[int]
    """Lengths of the B documents; 0 only where `start` is given."""
    start: list[int] | None = None
    """Positions of each document that were read before and are not in the tensor; None: none of any."""
    rows: list[int] | None = None
    """Row of the state for each document, ascending; None: all rows in order."""
    _cache: dict[object, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of_lengths(cls, lengths: list[int], device: torch.device | str = "cpu") -> Packing:
        """Documents of these lengths, which are not checked, in this order."""
        return cls(send(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device), lengths)

    @classmethod
    def of_cu_seqlens(cls, cu_seqlens: Tensor, device: torch.device | None = None) -> Packing:
        """Reads the offsets on the host: one synchronisation if they are on an accelerator. `device`: where they are
        wanted, by default where they are. Raises ValueError if they are none."""
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or len(cu_seqlens) < 2:
            raise ValueError(
                f"cu_seqlens must be (B+1,) int32 or int64, got {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}"
            )
        offsets = cu_seqlens.tolist()
        lengths = [b - a for a, b in pairwise(offsets)]
        if offsets[0] != 0 or min(lengths) < 1:
            raise ValueError(
                f"cu_seqlens must start at 0 and every document needs at least one position, got {offsets[:8]}"
            )
        return cls(send(cu_seqlens, device or cu_seqlens.device), lengths)

    def groups(self, limit: int) -> Iterator[tuple[int, Packing]]:
        """Consecutive documents of at most `limit` positions together and where they start; one may be longer."""
        start, lengths = 0, list[int]()
        for length in self.lengths:
            if lengths and sum(lengths) + length > limit:
                yield start, Packing.of_lengths(lengths, self.device)
                start, lengths = start + sum(lengths), []
            lengths.append(length)
        yield start, Packing.of_lengths(lengths, self.device)

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.lengths)

    @cached_property
    def total(self) -> int:
        """T."""
        return sum(self.lengths)

    @cached_property
    def max_length(self) -> int:
        return max(self.lengths)

    @cached_property
    def equal_lengths(self) -> bool:
        return min(self.lengths) == self.max_length

    @cached_property
    def document(self) -> Tensor:
        """(T,) int64: index of the document of each position."""
        each = torch.arange(self.batch_size, device=self.device)
        if self.equal_lengths:
            return each.repeat_interleave(self.max_length)
        return each.repeat_interleave(self.cu_seqlens.diff(), output_size=self.total)

    @cached_property
    def position(self) -> Tensor:
        """(T,) int64: position within the document."""
        if self.equal_lengths:
            return torch.arange(self.max_length, device=self.device).repeat(self.batch_size)
        return torch.arange(self.total, device=self.device) - self.cu_seqlens[:-1].long()[self.document]

    @cached_property
    def absolute(self) -> Tensor:
        """(T,) int64: position counted from where the document truly begins, `start` included."""
        if self.start is None:
            return self.position
        return send(torch.tensor(self.start), self.device)[self.document] + self.position

    @cached_property
    def row_index(self) -> Tensor | None:
        """`rows` as (B,) int64 on the device."""
        return None if self.rows is None else send(torch.tensor(self.rows), self.device)

    @cached_property
    def first(self) -> Tensor:
        """(B,) int64: packed index of each document's first position."""
        return self.cu_seqlens[:-1].long()

    @cached_property
    def last(self) -> Tensor:
        """(B,) int64: packed index of each document's last position."""
        return self.cu_seqlens[1:].long() - 1

    @cached_property
    def begins(self) -> Tensor:
        """(b,) int64: `first` of the documents of which nothing was read before."""
        if self.start is None:
            return self.first
        fresh = [b for b, start in enumerate(self.start) if not start]
        return self.first[torch.tensor(fresh, dtype=torch.int64, device=self.device)]

    def tails(self, x: Tensor, count: int) -> Tensor:
        """The last `count` vectors of every document, oldest first, zeros before its start: (T, D) -> (B, count, D)."""
        back = torch.arange(count - 1, -1, -1, device=self.device)
        index = self.last[:, None] - back
        return x[index.clamp(min=0)] * (index >= self.first[:, None])[:, :, None].to(x.dtype)

    def cached(self, key: object, make: Callable[[], Value]) -> Value:
        """The result of `make`, computed once for each `key`."""
        if key not in self._cache:
            self._cache[key] = make()
        return cast(Value, self._cache[key])

    def blocks(self, size: int) -> Blocks:
        """The packed axis in blocks of `size` positions."""
        return self.cached(("blocks", size), lambda: Blocks.of(self, size))

    def buckets(self, waste: float = 0.25) -> list[Bucket]:
        """Documents grouped by similar length, for padded operations; at most `waste` of a row is padding."""
        return self.cached(("buckets", waste), lambda: Bucket.group(self, waste))


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`, without waiting for it: a copy of memory that is not pinned would."""
    cuda = torch.device(device).type == "cuda"  # elsewhere nothing keeps the memory until it has been read
    if tensor.device.type == "cpu" and cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=cuda)


def true_positions(mask: Tensor, count: int) -> Tensor:
    """Indices at which the flat `mask` is true, (count,) int64, ascending; a known `count` saves asking the device."""
    return mask.nonzero()[:, 0] if mask.device.type == "cpu" else scattered_positions(mask, count)


def scattered_positions(mask: Tensor, count: int) -> Tensor:
    """`true_positions` without asking the device."""
    slot = torch.where(mask, mask.cumsum(0) - 1, count)
    found = slot.new_empty(count + 1)  # all others write to the last element
    return found.scatter_(0, slot, torch.arange(len(mask), device=mask.device))[:count]


@dataclass(eq=False)
class Blocks:
    """The packed axis cut into n blocks of `size`, whatever the documents; the last one is padded.

    Masks say which positions may see which: a block may hold parts of several documents.
    """

    size: int
    count: int
    padding: int
    visible: Tensor
    """(n or 1, size, size) bool: j <= i and same document."""
    end: Tensor
    """(n,) int64: the document at each block's end."""
    previous: Tensor
    """(n,) int64: the document at the previous block's end; -1 for the first block."""
    from_before: Tensor
    """(n, size or 1) bool: this position's document began in an earlier block."""
    to_end: Tensor | None
    """(n, size) bool: this position's document is the one at the block's end; None: all are."""

    @classmethod
    def of(cls, packing: Packing, size: int) -> Blocks:
        """Blocks of `size` positions, the masks with them."""
        padding = -packing.total % size
        count = (packing.total + padding) // size
        causal = torch.ones(size, size, dtype=torch.bool, device=packing.device).tril()
        document = packing.document
        if padding:
            document = torch.cat([document, document[-1:].expand(padding)])
        document = document.view(count, size)
        end = document[:, -1]
        previous = torch.cat([end.new_full((1,), -1), end[:-1]])
        if packing.equal_lengths and packing.max_length % size == 0:
            return cls(size, count, padding, causal[None], end, previous, (previous == end)[:, None], None)
        visible = causal & (document[:, :, None] == document[:, None, :])
        return cls(
            size, count, padding, visible, end, previous, document == previous[:, None], document == end[:, None]
        )

    def keep(self, decay: Tensor) -> Tensor:
        """decay (n, H) over whole blocks, 0 for a block in which another document takes over."""
        return decay * (self.previous == self.end)[:, None]

    def split(self, x: Tensor) -> Tensor:
        """(T, ...) -> (n, size, ...), zeros at the end."""
        if self.padding:
            x = torch.cat([x, x.new_zeros(self.padding, *x.shape[1:])])
        return x.reshape(self.count, self.size, *x.shape[1:])

    def join(self, x: Tensor, total: int) -> Tensor:
        """(n, size, ...) -> (T, ...)."""
        return x.reshape(self.count * self.size, *x.shape[2:])[:total]


@dataclass(eq=False)
class Bucket:
    """Documents of similar length as rows of a padded batch."""

    rows: int
    length: int
    gather: Tensor | None
    """(rows * length,) int64 into the packed axis, padding repeats a valid position; None: the whole axis in order."""
    scatter: Tensor | None
    """(number of valid positions,) int64 into the padded batch, and"""
    target: Tensor | None
    """(the same,) int64: the packed positions they belong to."""

    @classmethod
    def group(cls, packing: Packing, waste: float) -> list[Bucket]:
        """See `Packing.buckets`. Every document is in exactly one."""
        if packing.equal_lengths:
            return [cls(packing.batch_size, packing.max_length, None, None, None)]
        order = sorted(range(packing.batch_size), key=packing.lengths.__getitem__, reverse=True)
        groups: list[list[int]] = []
        for b in order:
            # short documents may share whatever their waste: another operation costs more than 16 padded positions
            limit = max(16, int(packing.lengths[groups[-1][0]] * (1 - waste))) if groups else 0
            same = groups and (packing.lengths[b] >= limit or packing.lengths[groups[-1][0]] <= 16)
            groups[-1].append(b) if same else groups.append([b])
        starts = [0, *accumulate(packing.lengths)]
        return [cls._of([starts[b] for b in g], [packing.lengths[b] for b in g], packing.device) for g in groups]

    @classmethod
    def _of(cls, starts: list[int], lengths: list[int], device: torch.device) -> Bucket:
        longest = max(lengths)
        start, length = send(torch.tensor([starts, lengths]), device)[:, :, None]
        column = torch.arange(longest, device=device)
        gather = (start + torch.minimum(column, length - 1)).flatten()
        scatter = true_positions((column < length).flatten(), sum(lengths))
        return cls(len(lengths), longest, gather, scatter, gather[scatter])
