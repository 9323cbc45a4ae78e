"""Validation: bits per byte over held-out documents with exact byte counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.data.loader import Batch, Windows
from hnet_cli.data.tokens import tokenised
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.kernels.packing import send
from hnet_cli.kernels.reference import exact
from hnet_cli.model import HNetForCausalLM, HNetOutput
from hnet_cli.model.withholding import observed, withheld
from hnet_cli.report.stages import StageFigures
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
    held_out: Windows,
    target_ratios: list[float],
    piece: int | None = None,
    world: World = ALONE,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Score windows of the validation split.

    `piece`: bytes per forward pass; that of training takes no more memory than training. Every byte counts exactly
    once, the first of a document too (it is predicted from the document mark); a window that does not begin a document
    begins with the byte before it and knows nothing older. `progress` gets the bytes begun. Returns `bpb` (bits per
    byte, unweighted), `bytes`, and the figures of `stage_metrics` and `worths`. The ranks of a `world` take the passes
    in turn; the result is that of one rank.
    """
    was_training = model.training
    model.eval()
    passes = _Passes(model, held_out, piece or PIECE, world)
    nats, counts = list[Tensor](), list[Tensor]()
    for out, _, each in passes.results(progress):
        nats.append(each.sum(dtype=exact(each.device)))
        counts.append(routing_counts(out.routing))
    numbers = read({"nats": passes.total(nats), "counts": passes.total(counts)})
    bpb, total = numbers["nats"][0] / held_out.bytes / math.log(2), held_out.bytes
    figures = {"bpb": bpb, "bytes": total} | stage_metrics(numbers["counts"], total, target_ratios)
    for stage, worth in enumerate(worths(model, held_out, piece, world)):
        figures |= worth.flat(stage)
    model.train(was_training)
    return figures


@torch.no_grad()
def worths(
    model: HNetForCausalLM, held_out: Windows, piece: int | None = None, world: World = ALONE
) -> list[StageFigures]:
    """`worth` of every stage, as in `hnet eval`, on a share of the windows (at least `FEWEST`, or a quarter of all), and
    its interval where there are as many: 1.96 standard errors of the mean over windows to either side."""
    if not (stages := model.config.num_stages):
        return []
    number = len(held_out.table)
    wanted = max(1, number // WORTH_SHARE, min(FEWEST, number // 4))
    passes = _Passes(model, held_out.part(wanted), piece or PIECE, world)
    handed, whole = list[Tensor](), list[Tensor]()
    with observed(model) as sums:
        for _, offsets, nats in passes.results():
            handed.append(torch.cat(sums))
            whole.append(_per_window(nats, offsets))
            for each in sums:
                each.zero_()
    widths = [len(each) for each in sums]
    means, moments = passes.total(handed).split(widths), list[Tensor]()
    for stage in range(stages):
        found = list[Tensor]()
        with withheld(model, stage, means[stage]):
            for (_, offsets, nats), before in zip(passes.results(), whole, strict=True):
                lost, size = _per_window(nats, offsets) - before, offsets.diff().to(before)
                found.append(torch.stack([lost.sum(), size.sum(), lost @ lost, lost @ size, size @ size]))
        moments.append(passes.total(found))
    rows = read({"moments": torch.stack(moments)})["moments"]
    return [_worth(rows[5 * stage : 5 * stage + 5], len(passes.windows.table)) for stage in range(stages)]


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

    def __init__(self, model: HNetForCausalLM, windows: Windows, piece: int, world: World) -> None:
        self.model, self.windows, self.piece, self.world = model, windows, piece, world
        self.device = next(model.parameters()).device
        self.count = 0
        """Passes of all ranks."""

    def results(
        self, progress: Callable[[int], None] = lambda done: None
    ) -> Iterator[tuple[HNetOutput, Tensor, Tensor]]:
        """For each of this rank's passes the output, the offsets of the windows (B+1,) and -ln P of each target (T,).

        Every rank makes as many passes: one that has fewer makes its last a second time, which `total` does not count.
        """
        self.count = own = done = 0
        for batch in self.windows.batches(self.piece):
            if self.count % self.world.size == self.world.rank:
                yield self._result(batch)
                own += 1
            self.count, done = self.count + 1, done + batch.nbytes
            progress(done)
        if own * self.world.size < self.count:
            yield self._result(batch)

    def _result(self, batch: Batch) -> tuple[HNetOutput, Tensor, Tensor]:
        batch = batch if self.model.tokenizer is None else tokenised(batch, self.model.tokenizer)
        inputs, targets, cu_seqlens, _ = to_device(batch, self.device)
        out = self.model(inputs, cu_seqlens=cu_seqlens)
        nats = F.cross_entropy(out.logits.float(), targets, reduction="none")
        return out, cu_seqlens.long().to(self.device), nats

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
