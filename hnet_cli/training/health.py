"""Whether training is healthy: what the routers decide, and how the gradient is shared out over the network.

What is computed stays on the device until `Numbers` brings all of a step over at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnet_cli.distributed.world import ALONE, World, own
from hnet_cli.kernels.reference import exact
from hnet_cli.model import RoutingOutput

BINS = 20
"""Of the histogram of boundary probabilities: equal parts of [0, 1]."""
PARTS = {
    "routing_module": "routing",
    "residual_proj": "residual",
    "pad_dimension": "padding",
    "lm_head": "head",
    "adapter_in": "adapter",
    "adapter_out": "adapter",
}


class Numbers:
    """The elements of tensors of any shape, brought to the host in one transfer; what is empty may be on another device
    than the rest."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.sizes = {name: value.numel() for name, value in values.items()}
        parts = [value.detach().flatten() for value in values.values() if value.numel()]
        self.flat = torch.cat([part.to(exact(part.device)) for part in parts])
        self.arrived: torch.Event | None = None

    def send(self) -> None:
        """Begin the transfer from a GPU, which nothing waits for until the numbers are read."""
        if self.flat.is_cuda:
            pinned = torch.empty(self.flat.shape, dtype=self.flat.dtype, pin_memory=True)
            stream = torch.cuda.current_stream(self.flat.device)
            self.flat = pinned.copy_(self.flat, non_blocking=True)
            self.arrived = stream.record_event()

    def read(self) -> dict[str, list[float]]:
        """By name, flat."""
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
    """What one pass's routers decided, (S, 3 [+ BINS]) in `exact`: positions, boundaries, sum of p, positions per
    bin.

    Counts of several passes add up. A bin holds its lower edge; the last one also p = 1.
    """
    rows = []
    for stage in routing:
        prob = stage.boundary_prob
        dtype = exact(prob.device)
        positions = prob.new_full((), len(prob), dtype=dtype)
        row = [torch.stack([positions, stage.boundary_mask.sum(dtype=dtype), prob.sum(dtype=dtype)])]
        if histogram:
            edges = torch.arange(BINS, device=prob.device, dtype=prob.dtype) / BINS
            row.append(-F.pad((prob[:, None] >= edges).sum(0), (0, 1)).diff().to(dtype))
        rows.append(torch.cat(row))
    return torch.stack(rows) if rows else torch.zeros(0)


def stage_metrics(counts: list[float], total_bytes: float, targets: list[float]) -> dict[str, Any]:
    """Per stage, from summed `routing_counts` read row after row: boundary fraction F against 1/N, mean probability G,
    bytes per chunk against the product of the N; where there are histograms, these and the share of p near 0.5."""
    record: dict[str, Any] = {}
    wanted = 1.0
    for s, target in enumerate(targets):
        width = len(counts) // len(targets)
        positions, chunks, total, *histogram = counts[s * width : (s + 1) * width]
        wanted *= target
        record[f"stage{s}_boundary_fraction"] = chunks / positions
        record[f"stage{s}_target_fraction"] = 1 / target
        record[f"stage{s}_mean_boundary_prob"] = total / positions
        record[f"stage{s}_bytes_per_chunk"] = total_bytes / chunks
        record[f"stage{s}_target_bytes_per_chunk"] = wanted
        if histogram:
            record[f"stage{s}_prob_histogram"] = [int(count) for count in histogram]
            record[f"stage{s}_undecided"] = sum(histogram[BINS // 2 - 1 : BINS // 2 + 1]) / positions
    return record


def short_part(name: str) -> str:
    """What metrics call the part of the network a parameter belongs to: "embeddings", "encoder0", "routing0",
    "residual0", "decoder0", the same with 1 for the next level, "padding1" (`pad_dimension`), "adapter1" (both of
    them), "main" for the innermost stack, "head"."""
    top, *path = name.split(".")
    if top != "backbone":
        return PARTS.get(top, top)
    level = next(i for i, word in enumerate(path) if word != "main_network")
    word = PARTS.get(path[level], path[level])
    return f"{word}{level}" if word in ("encoder", "decoder", "routing", "residual", "padding", "adapter") else "main"


def clip_gradient(model: nn.Module, largest: float, world: World = ALONE) -> tuple[Tensor, dict[str, Tensor]]:
    """Scale the gradient to a norm of at most `largest` (0: leave it). Returns the norm before, and that of each part.

    The squares of the parts add up to the square of the whole. Nothing is read on the host. Ranks that divide the
    parameters find the very norm that one rank finds: they divide rows, and rows are added up in float64 (`exact`).
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
    """Whether every element of every tensor is finite, asked of the device at once."""
    return all(read({"each": torch.stack([torch.isfinite(tensor).all() for tensor in tensors])})["each"])
