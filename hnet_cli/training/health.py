"""Figures of a training step: the routers' decisions, and the gradient norm of every part of the network.

Values stay on the device until `Numbers` copies all of a step to the host at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnet_cli.distributed.world import ALONE, World, own
from hnet_cli.kernels.reference import exact
from hnet_cli.model import RoutingOutput
from hnet_cli.report.stages import StageFigures

BINS = 20
"""Equal parts of [0, 1] in the histogram of boundary probabilities."""
PARTS = {
    "routing_module": "routing",
    "residual_proj": "residual",
    "pad_dimension": "padding",
    "lm_head": "head",
    "adapter_in": "adapter",
    "adapter_out": "adapter",
}


class Numbers:
    """The elements of tensors of any shape, copied to the host in one transfer; empty tensors may be on another device
    than the rest."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.sizes = {name: value.numel() for name, value in values.items()}
        parts = [value.detach().flatten() for value in values.values() if value.numel()]
        self.flat = torch.cat([part.to(exact(part.device)) for part in parts])
        self.arrived: torch.Event | None = None

    def send(self) -> None:
        """Begin an asynchronous copy from a GPU."""
        if self.flat.is_cuda:
            pinned = torch.empty(self.flat.shape, dtype=self.flat.dtype, pin_memory=True)
            stream = torch.cuda.current_stream(self.flat.device)
            self.flat = pinned.copy_(self.flat, non_blocking=True)
            self.arrived = stream.record_event()

    def read(self) -> dict[str, list[float]]:
        """The elements of each tensor, by name; waits for the copy."""
        if self.arrived is not None:
            self.arrived.synchronize()  # not the stream, in which the next step may be queued
        flat, result, at = self.flat.tolist(), {}, 0
        for name, size in self.sizes.items():
            result[name] = flat[at : at + size]
            at += size
        return result


def read(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """The elements of tensors, waited for; see `Numbers`."""
    return Numbers(values).read()


@torch.no_grad()
def routing_counts(routing: list[RoutingOutput], histogram: bool = True) -> Tensor:
    """Counts of one pass at S stages, (S, 3 [+ BINS]) in `exact`: positions, boundaries, sum of p, positions per bin.

    Counts of several passes add up. A bin includes its lower edge; the last one also p = 1.
    """
    rows = []
    for stage in routing:
        prob = stage.boundary_prob
        dtype = exact(prob.device)
        positions = prob.new_full((), len(prob), dtype=dtype)
        row = [torch.stack([positions, stage.by_threshold.sum(dtype=dtype), prob.sum(dtype=dtype)])]
        if histogram:
            edges = torch.arange(BINS, device=prob.device, dtype=prob.dtype) / BINS
            row.append(-F.pad((prob[:, None] >= edges).sum(0), (0, 1)).diff().to(dtype))
        rows.append(torch.cat(row))
    return torch.stack(rows) if rows else torch.zeros(0)


def stage_metrics(counts: list[float], total_bytes: float, targets: list[float]) -> dict[str, Any]:
    """The stages' entries of a record (`StageFigures`), from summed `routing_counts` read row after row, over
    `total_bytes` with target ratios N. Histogram and undecided share are left out where `counts` has no histograms."""
    record: dict[str, Any] = {}
    width = len(counts) // max(1, len(targets))
    for s, target in enumerate(targets):
        positions, chunks, probability, *histogram = counts[s * width : (s + 1) * width]
        middle = histogram[BINS // 2 - 1 : BINS // 2 + 1]
        record |= StageFigures(
            boundary_fraction=chunks / positions,
            target_fraction=1 / target,
            mean_boundary_prob=probability / positions,
            bytes_per_chunk=total_bytes / chunks,
            target_bytes_per_chunk=math.prod(targets[: s + 1], start=1.0),
            prob_histogram=[int(count) for count in histogram] or None,
            undecided=sum(middle) / positions if histogram else None,
        ).flat(s)
    return record


def short_part(name: str) -> str:
    """The part of the network that a parameter belongs to, as metrics name it: "embeddings", "encoder0", "routing0",
    "residual0", "decoder0", the same with 1 for the next level, "padding1" (`pad_dimension`), "adapter1" (both
    adapters), "main" for the innermost stack, "head"."""
    top, *path = name.split(".")
    if top != "backbone":
        return PARTS.get(top, top)
    level = next(i for i, word in enumerate(path) if word != "main_network")
    word = PARTS.get(path[level], path[level])
    return f"{word}{level}" if word in ("encoder", "decoder", "routing", "residual", "padding", "adapter") else "main"


def clip_gradient(model: nn.Module, largest: float, world: World = ALONE) -> tuple[Tensor, dict[str, Tensor]]:
    """Scale the gradient to a norm of at most `largest` (0: leave it). Returns the norm before, and that of each part.

    The squares of the parts add up to the square of the whole. Nothing is read on the host. Ranks that share the
    parameters get exactly the norm of a single rank: each holds whole rows, and rows are summed in `exact`.
    """
    gradients: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = own(parameter.grad)
            rows = torch.linalg.vector_norm(gradient, dim=-1) if gradient.ndim > 1 else gradient
            gradients.append(gradient)
            parts.setdefault(short_part(name), []).append(rows.flatten())
    squares = torch.stack([torch.cat(rows).to(exact(rows[0].device)).square_().sum() for rows in parts.values()])
    if world.sharded:
        squares = world.gather(squares).sum(0)
    norm, norms = squares.sum().sqrt().float(), squares.sqrt().float()
    if largest:
        torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm, dict(zip(parts, norms, strict=True))


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """True if every element of every tensor is finite; one transfer from the device."""
    return all(read({"finite": torch.stack([torch.isfinite(tensor).all() for tensor in tensors])})["finite"])
