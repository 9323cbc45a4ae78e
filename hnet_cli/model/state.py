"""The state of generation: an object per layer, per level, and for the batch. Rows are independent documents."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hnet_cli.kernels import Kernels
from hnet_cli.kernels.packing import Packing
from hnet_cli.kernels.reference import Place, State, window_attention
from hnet_cli.model import rotary
from hnet_cli.model.config import HNetConfig
from hnet_cli.model.settings import Rotary


@dataclass(eq=False)
class MambaState:
    """Memory of one Mamba-2 mixer; its size does not depend on how much was read."""

    conv: Tensor
    """(B, K-1, D): the last inputs of the convolution, oldest first; zeros before the document."""
    ssm: State
    """Made by `Kernels.ssd_state`."""
    in_proj: Tensor
    out_proj: Tensor
    """The weights, as `Kernels.step_weight` gives them."""
    A: Tensor
    """(H,): -exp(A_log), kept so that a step need not compute it."""
    taps: Tensor
    """(K, D): the convolution's weight, transposed for the same reason."""
    norm: Tensor
    """The weight of the norm inside, float32 or wider like the next."""
    norms: list[Tensor] = field(default_factory=list)
    """The weights of the block's norms."""

    def select(self, rows: Tensor) -> None:
        self.conv = self.conv[rows]
        self.ssm.select(rows)


@dataclass(eq=False)
class AttentionState:
    """Key-value cache of one attention mixer: position i lies in slot i, or i modulo (window + 1) with a window."""

    keys: Tensor
    """(B, S, H, P); S doubles as needed, up to window + 1."""
    values: Tensor
    window: int
    norms: list[Tensor] = field(default_factory=list)
    """The weights of the block's norms, float32 or wider."""

    def slot(self, position: Tensor) -> Tensor:
        """Slots of the keys of positions. int64 -> int64, same shape."""
        return position if self.window < 0 else position % (self.window + 1)

    def reserve(self, length: int) -> None:
        """Room for documents of `length` positions."""
        capacity = self.keys.shape[1]
        needed = length if self.window < 0 else min(length, self.window + 1)
        if needed > capacity:
            grown = max(needed, 2 * capacity, 16)
            grown = grown if self.window < 0 else min(grown, self.window + 1)
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_zeros(old.shape[0], grown, *old.shape[2:])
                new[:, :capacity] = old
                setattr(self, name, new)

    def store(self, keys: Tensor, values: Tensor, packing: Packing) -> None:
        """Keep what a packed pass computed, (T, H, P) each: of every document as much as the window can still see."""
        start = packing.start or [0] * packing.batch_size
        self.reserve(max(map(operator.add, start, packing.lengths)))
        document, position = packing.document, packing.absolute
        if 0 <= self.window < packing.max_length - 1:
            length = packing.cu_seqlens.diff().long()[document]
            late = torch.nonzero(packing.position >= length - (self.window + 1))[:, 0]
            document, position, keys, values = document[late], position[late], keys[late], values[late]
        rows = document if packing.row_index is None else packing.row_index[document]
        slot = self.slot(position)
        self.keys[rows, slot] = keys.to(self.keys.dtype)
        self.values[rows, slot] = values.to(self.values.dtype)

    def extend(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, kernels: Kernels) -> Tensor:
        """Causal attention of the packed positions to themselves and to what is stored, (T, H, P) each; stores them."""
        if packing.start is None:
            self.store(k, v, packing)
            return kernels.attention(q, k, v, packing, self.window)
        outs = []
        parts = (t.split(packing.lengths) for t in (q, k, v))
        for row, start, *new in zip(packing.rows or range(len(self.keys)), packing.start, *parts, strict=True):
            low = 0 if self.window < 0 else max(0, start - self.window)
            slots = self.slot(torch.arange(low, start, device=k.device))
            queries, keys, values = new
            keys = torch.cat([self.keys[row, slots].to(k.dtype), keys])
            values = torch.cat([self.values[row, slots].to(v.dtype), values])
            queries, keys, values = (t.transpose(0, 1)[None] for t in (queries, keys, values))
            outs.append(window_attention(queries, keys, values, self.window)[0].transpose(0, 1))
        self.store(k, v, packing)
        return torch.cat(outs)

    def select(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass(eq=False)
class Now:
    """One step at one level: which rows take part and where they are. Shared by the layers of the level."""

    host: list[int] | None
    """The R rows that take part; None: the whole batch, in order."""
    rows: Tensor | None
    """(R,) int64: the same on the device."""
    position: Tensor
    """(R,) int64: the position being read, counted from the start of the document."""
    longest: int
    """Positions of the longest row that takes part, this one included."""
    equal: bool
    """All rows that take part are at the same position."""
    tables: rotary.Tables
    current: rotary.Tables = field(default_factory=dict)
    once: Tensor | None = None
    """(R,) int64: `rows`, where these may repeat the first of them, with -1 for repetitions."""
    places: dict[int, Place] = field(default_factory=dict)
    """By window."""

    def place(self, window: int) -> Place:
        """Where the rows are in the caches of the level's attention with this window."""
        if window not in self.places:
            used = self.longest if window < 0 else min(self.longest, window + 1)
            at = self.longest - 1 if self.rows is None and self.equal else None
            self.places[window] = Place(self.position, window, used, self.rows, at)
        return self.places[window]

    def rotary(self, dim: int, dtype: torch.dtype, settings: Rotary) -> tuple[Tensor, Tensor]:
        """cos and sin (R, 1, 1, dim/2). The layers of a level have the same settings."""
        if dim not in self.current:
            table = self.tables.get(dim)
            if table is None or table[0].shape[0] < self.longest:
                size = max(64, 1 << (self.longest - 1).bit_length())
                position = torch.arange(size, device=self.position.device)
                table = self.tables[dim] = rotary.table(position, dim, dtype, settings)
            self.current[dim] = table[0][self.position], table[1][self.position]
        return self.current[dim]


LayerState = MambaState | AttentionState


@dataclass(eq=False)
class LevelState:
    """Memory of one level. What only a stage needs is empty on the innermost level."""

    layers: dict[str, list[LayerState]]
    """By stack: "encoder" and "decoder", or "main_network"."""
    seen: list[int]
    """Positions of this level each row has consumed, on the host."""
    position: Tensor
    """(B,) int64: the same on the device."""
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    """The router's operand for a row's next position: (B, D), the projected last encoder output, or for the
    `space` chunker (B,) bool, whether the last byte was space-like, or (B,) int64, the state of an automaton."""
    projection: Tensor = field(default_factory=lambda: torch.empty(0))
    """(2D, D): the routing projections, stacked so that a step needs one product."""
    smoothed: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, D) float32 or wider: the moving average over chunks so far, z of paper eq 5."""
    average: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, D) float32 or wider, for `smoothing: input`: the moving average over positions so far."""
    recent: Tensor = field(default_factory=lambda: torch.empty(0))
    """The newest bytes, at the outermost level alone; see `Embeddings.allocate`."""
    inner: LevelState | None = None
    tables: rotary.Tables = field(default_factory=dict)
    """Rotary cos and sin, long enough for the longest row."""

    def packing(self, lengths: list[int], rows: list[int] | None = None) -> Packing | None:
        """The next positions of some rows (None: of all), as many of each as `lengths` says; None if there are none."""
        rows = list(range(len(self.seen))) if rows is None else rows
        lengths, rows = ([a for a, n in zip(part, lengths, strict=True) if n] for part in (lengths, rows))
        if not rows:
            return None
        packing, start = Packing.of_lengths(lengths, self.position.device), [self.seen[row] for row in rows]
        packing.start = start if any(start) else None
        packing.rows = None if len(rows) == len(self.seen) else rows
        return packing

    def offsets(self, packing: Packing) -> Tensor:
        """`packing.cu_seqlens` with every row of the state as a document, (B+1,): of some there is nothing."""
        if packing.row_index is None:
            return packing.cu_seqlens
        lengths = packing.cu_seqlens.new_zeros(len(self.seen) + 1)
        lengths[packing.row_index + 1] = packing.cu_seqlens.diff()
        return lengths.cumsum(0, dtype=lengths.dtype)

    def advance(self, packing: Packing) -> None:
        """Count the positions of `packing` as read."""
        for row, length in zip(packing.rows or range(len(self.seen)), packing.lengths, strict=True):
            self.seen[row] += length
        lengths = packing.cu_seqlens.diff()
        if packing.row_index is None:
            self.position = self.position + lengths
        else:
            self.position[packing.row_index] += lengths

    def begin(self, host: list[int] | None, rows: Tensor | None = None) -> Now:
        """Counts one more position for the rows in `host` (None: all); `rows`: the same on the device, if at hand."""
        if host is None:
            self.seen, self.position = [n + 1 for n in self.seen], self.position + 1
        else:
            rows = torch.tensor(host, device=self.position.device) if rows is None else rows
            for row in host:
                self.seen[row] += 1
            self.position[rows] += 1
        return self.now(host, rows)

    def now(self, host: list[int] | None, rows: Tensor | None = None) -> Now:
        """The position that was counted last, as `begin`."""
        if host is None:
            seen, position = self.seen, self.position
        else:
            rows = torch.tensor(host, device=self.position.device) if rows is None else rows
            seen, position = [self.seen[row] for row in host], self.position[rows]
        longest = max(seen)
        return Now(host, rows, position - 1, longest, min(seen) == longest, self.tables)

    def select(self, rows: list[int], index: Tensor) -> None:
        """Keeps the given rows, in that order; `index` (R,) int64 has them on the device."""
        for stack in self.layers.values():
            for layer in stack:
                layer.select(index)
        self.seen = [self.seen[row] for row in rows]
        for name in ("position", "last", "smoothed", "average", "recent"):
            value = getattr(self, name)
            if len(value):
                setattr(self, name, value[index])
        if self.inner is not None:
            self.inner.select(rows, index)


@dataclass(eq=False)
class GenerationState:
    """A batch of documents being continued: made by `HNetForCausalLM.allocate_state`, filled by `prefill`.

    It holds values derived from the weights: make a new one after the weights change.
    """

    config: HNetConfig
    batch_size: int
    max_length: int
    level: LevelState
    kernels: Kernels

    @property
    def lengths(self) -> list[int]:
        """Bytes consumed by each row, prompt included."""
        return list(self.level.seen)

    def select(self, rows: list[int] | Tensor) -> None:
        """Keeps the given rows, in that order (repeats allowed), and forgets the others. Raises IndexError."""
        kept = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        if any(not 0 <= row < self.batch_size for row in kept):
            raise IndexError(f"rows {kept} of a state with {self.batch_size} rows")
        self.level.select(kept, torch.tensor(kept, dtype=torch.int64, device=self.level.position.device))
        self.batch_size = len(kept)


@dataclass(eq=False)
class StepRouting:
    """Decisions of one stage in one step, for all B rows."""

    boundary_prob: Tensor
    """(B,) float32 or wider; not-a-number where the row did not reach this stage in this step."""
    boundary_mask: Tensor
    """(B,) bool; False where not reached."""
    reached: Tensor
    """(B,) bool: the row was at a boundary of every outer stage."""

    @classmethod
    def of(cls, prob: Tensor, mask: Tensor, rows: Tensor | None, batch_size: int) -> StepRouting:
        """From the (R,) values of the rows that reached the stage."""
        if rows is None:
            return cls(prob, mask, torch.ones_like(mask))
        whole = cls.none(batch_size, prob)
        whole.boundary_prob[rows], whole.boundary_mask[rows], whole.reached[rows] = prob, mask, True
        return whole

    @classmethod
    def none(cls, batch_size: int, like: Tensor) -> StepRouting:
        """A stage that no row reached."""
        nothing = torch.zeros(batch_size, dtype=torch.bool, device=like.device)
        return cls(like.new_full((batch_size,), torch.nan), nothing, nothing.clone())
