"""Validation: bits per byte over held-out documents with exact byte counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.data.loader import Batch, Windows
from hnet_cli.data.mixture import HeldOut
from hnet_cli.data.tokens import tokenised
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.kernels.packing import send
from hnet_cli.kernels.reference import exact
from hnet_cli.model import HNetForCausalLM, HNetOutput
from hnet_cli.model.withholding import observed, withheld
from hnet_cli.report.sources import source_key
from hnet_cli.report.stages import StageFigures, stage_key
from hnet_cli.training.elastic import shares_of
from hnet_cli.training.health import read, routing_counts, stage_metrics

PIECE = 32_768
"""Bytes per forward pass where the caller asks for no smaller size."""
WORTH_SHARE = 16
"""One of so many windows is read again for the worth of the chunks."""
FEWEST = 8
"""Fewest windows that an interval is given for."""


@torch.no_grad()
def validation(
    model: HNetForCausalLM,
    held_out: Windows | HeldOut,
    target_ratios: list[float],
    piece: int | None = None,
    world: World = ALONE,
    progress: Callable[[int], None] = lambda done: None,
    budget: float = 1,
) -> dict[str, Any]:
    """Score windows of the validation split, or those of each source of a mixture.

    A mixture's figures are those of a text that consists of its sources in their shares, `bpb` being the mean of the
    sources' in these weights; beside them stand `bpb`, `bytes` and bytes per chunk of each source, by `source_key`.

    `piece`: bytes per forward pass; that of training takes no more memory than training. Every byte counts exactly
    once, the first of a document too (it is predicted from the document mark); a window that does not begin a document
    begins with the byte before it and knows nothing older. Bytes of weight 0 (prompts) do not count, the others count
    alike. `progress` gets the bytes begun. Returns `bpb` (bits per byte), `bytes`, and the figures of `stage_metrics`,
    which are of prompts too, and of `worths`. The ranks of a `world` take the passes in turn; the result is that of one
    rank. `budget`: one of `train.budgets` for all windows, which has no `worths`, and figures of the stages that are
    not its own; boundaries are ranked within a pass, so that its passes are of `PIECE` bytes whatever `piece` is, and
    the figure does not depend on micro-batches and ranks.
    """
    was_training, before = model.training, 0
    model.eval()
    learned = [router.learned for router in model.routers]
    asked = None if budget == 1 else [each for (each,) in shares_of([budget], target_ratios, learned)]
    piece = piece if asked is None else PIECE
    held_out, sums = HeldOut.of(held_out), list[tuple[float, np.ndarray, int, int]]()
    for part in held_out.parts:
        sums.append(_scored(_Passes(model, part, piece or PIECE, world, asked), partial(_add, progress, before)))
        before += part.bytes
    total, passed = sum(size for _, _, size, _ in sums), sum(size for _, _, _, size in sums)
    shares = list(zip(held_out.shares, sums, strict=True))
    nats = math.fsum(share * total / size * part for share, (part, _, size, _) in shares)
    counts = sum(share * passed / size * part for share, (_, part, _, size) in shares)
    record = {"bpb": nats / total / math.log(2), "bytes": total}
    record |= stage_metrics(np.asarray(counts).tolist(), passed, target_ratios)
    for name, (own, routed, size, all_bytes) in zip(held_out.names, sums, strict=True) if len(sums) > 1 else ():
        figures = {"bpb": own / size / math.log(2), "bytes": size}
        stages, key = stage_metrics(routed.tolist(), all_bytes, target_ratios), stage_key(0, "bytes_per_chunk")
        figures |= {key: stages[key]} if stages else {}
        record |= {source_key(key, name): value for key, value in figures.items()}
    for stage, worth in enumerate(worths(model, held_out, piece, world) if budget == 1 else ()):
        record |= worth.flat(stage)
    model.train(was_training)
    return record


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _scored(passes: _Passes, progress: Callable[[int], None]) -> tuple[float, np.ndarray, int, int]:
    """Nats, `routing_counts` read row after row, bytes that count and all bytes of some windows, summed over the passes
    of all ranks."""
    nats, counts = list[Tensor](), list[Tensor]()
    for out, _, each, _ in passes.results(progress):
        nats.append(each.sum(dtype=exact(each.device)))
        counts.append(routing_counts(out.routing))
    numbers = read({"nats": passes.total(nats), "counts": passes.total(counts)})
    windows = passes.windows
    return numbers["nats"][0], np.array(numbers["counts"]), windows.bytes, int(windows.table[:, 3].sum())


@torch.no_grad()
def worths(
    model: HNetForCausalLM, held_out: HeldOut | Windows, piece: int | None = None, world: World = ALONE
) -> list[StageFigures]:
    """`worth` of every stage, as in `hnet eval`, on a sixteenth of the windows of each source (at least `FEWEST`, or a
    quarter of all), and its interval where there are as many: 1.96 standard errors over windows to either side."""
    if not (stages := model.config.num_stages):
        return []
    held_out, parts = HeldOut.of(held_out), list[_Passes]()
    for part in held_out.parts:
        wanted = max(1, len(part.table) // WORTH_SHARE, min(FEWEST, len(part.table) // 4))
        parts.append(_Passes(model, part.part(wanted), piece or PIECE, world))
    weights = [share / passes.windows.bytes for share, passes in zip(held_out.shares, parts, strict=True)]
    handed, whole = list[Tensor](), list[list[Tensor]]()
    with observed(model) as sums:
        for passes in parts:
            found, before = list[Tensor](), list[Tensor]()
            for _, offsets, nats, _ in passes.results():
                found.append(torch.cat(sums))
                before.append(_per_window(nats, offsets))
                for each in sums:
                    each.zero_()
            handed.append(passes.total(found))
            whole.append(before)
    means, moments = torch.stack(handed).sum(0).split([len(each) for each in sums]), list[Tensor]()
    for stage in range(stages):
        with withheld(model, stage, means[stage]):
            for passes, before, weight in zip(parts, whole, weights, strict=True):
                found = []
                for (_, offsets, nats, sizes), clean in zip(passes.results(), before, strict=True):
                    lost, size = (_per_window(nats, offsets) - clean) * weight, sizes.to(clean) * weight
                    found.append(torch.stack([lost.sum(), size.sum(), lost @ lost, lost @ size, size @ size]))
                moments.append(passes.total(found))
    rows = torch.stack(moments).unflatten(0, (stages, len(parts))).sum(1)
    numbers, windows = read({"moments": rows})["moments"], sum(len(passes.windows.table) for passes in parts)
    return [_worth(numbers[5 * stage : 5 * stage + 5], windows) for stage in range(stages)]


def _worth(moments: list[float], windows: int) -> StageFigures:
    """The figures from sums over windows: nats lost, bytes, and the products of these two."""
    lost, size, squares, mixed, sizes = moments
    mean = lost / size
    if windows < FEWEST:
        return StageFigures(worth=mean / math.log(2))
    variance = max(0.0, squares - 2 * mean * mixed + mean * mean * sizes) * windows / (windows - 1)
    error = 1.96 * math.sqrt(variance) / size
    worth, low, high = ((mean + sign * error) / math.log(2) for sign in (0, -1, 1))
    return StageFigures(worth=worth, worth_low=low, worth_high=high)


def _per_window(nats: Tensor, offsets: Tensor) -> Tensor:
    """Sums of nats (T,) between offsets (B+1,): (B,) in `exact`."""
    return F.pad(nats.cumsum(0, dtype=exact(nats.device)), (1, 0))[offsets].diff()


class _Passes:
    """Forward passes over windows, which the ranks of a world take in turn."""

    def __init__(
        self,
        model: HNetForCausalLM,
        windows: Windows,
        piece: int,
        world: World,
        shares: Sequence[float | None] | None = None,
    ) -> None:
        """`shares`: of boundaries at each stage, of every window."""
        self.model, self.windows, self.piece, self.world, self.shares = model, windows, piece, world, shares
        self.device = next(model.parameters()).device
        self.count = 0
        """Passes of all ranks."""

    def results(
        self, progress: Callable[[int], None] = lambda done: None
    ) -> Iterator[tuple[HNetOutput, Tensor, Tensor, Tensor]]:
        """For each of this rank's passes the output, the offsets of the windows (B+1,), -ln P of each target (T,), 0
        where it does not count, and the targets of each window that count (B,).

        Every rank makes as many passes: one that has fewer makes its last a second time, which `total` does not count.
        """
        self.count = own = done = 0
        for batch in self.windows.batches(self.piece):
            if self.count % self.world.size == self.world.rank:
                yield self._result(batch)
                own += 1
            self.count, done = self.count + 1, done + batch.counted
            progress(done)
        if own * self.world.size < self.count:
            yield self._result(batch)

    def _result(self, batch: Batch) -> tuple[HNetOutput, Tensor, Tensor, Tensor]:
        batch = batch if self.model.tokenizer is None else tokenised(batch, self.model.tokenizer)
        inputs, targets, cu_seqlens, weights = to_device(batch, self.device)
        shares = None if self.shares is None else [[share] * len(batch.documents) for share in self.shares]
        out = self.model(inputs, cu_seqlens=cu_seqlens, shares=shares)
        nats = F.cross_entropy(out.logits.float(), targets, reduction="none")
        offsets = cu_seqlens.long().to(self.device)
        if weights is None:
            return out, offsets, nats, offsets.diff()
        return out, offsets, nats * (weights > 0), _per_window((weights > 0).float(), offsets)

    def total(self, values: list[Tensor]) -> Tensor:
        """The sum over the passes of all ranks, in their order, of the values that this rank has for its own."""
        return self.world.gather(torch.stack(values)).transpose(0, 1).flatten(0, 1)[: self.count].sum(0)


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """inputs (T,) int64, targets (T,) int64, cu_seqlens (B+1,) int32, weights (T,) float32 or None.

    The offsets stay on the host, where the model reads them; the rest is copied asynchronously.
    """
    weights = None if batch.weights is None else send(torch.from_numpy(batch.weights), device)
    inputs, targets = (send(torch.from_numpy(array), device).long() for array in (batch.inputs, batch.targets))
    return inputs, targets, torch.from_numpy(batch.cu_seqlens), weights


def pinned(batch: Batch) -> Batch:
    """The same in pinned memory, out of which a GPU copies while the host goes on."""

    def pin(array: np.ndarray) -> np.ndarray:
        return torch.from_numpy(array).pin_memory().numpy()

    weights = None if batch.weights is None else pin(batch.weights)
    return replace(batch, inputs=pin(batch.inputs), targets=pin(batch.targets), weights=weights)
