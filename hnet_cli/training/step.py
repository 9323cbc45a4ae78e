"""The training step: the gradient of a batch, one update of the optimizer, and the step's metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hnet_cli.config.run import RunConfig
from hnet_cli.data.loader import Batch
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.errors import is_out_of_memory
from hnet_cli.model import HNetForCausalLM
from hnet_cli.report.stages import stage_key
from hnet_cli.training.elastic import boundary_shares
from hnet_cli.training.health import Numbers, clip_gradient, routing_counts, stage_metrics
from hnet_cli.training.losses import GlobalRatio, Losses, losses
from hnet_cli.training.optim import rate_multipliers, set_learning_rate
from hnet_cli.training.validation import to_device

if TYPE_CHECKING:  # needs the packages that read weights, which a step without a teacher does without
    from hnet_cli.training.teacher import Teacher


def train_step(
    model: HNetForCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    step: int,
    config: RunConfig,
    autocast: Callable[[], AbstractContextManager[Any]],
    histograms: bool = True,
    world: World = ALONE,
    teacher: Teacher | None = None,
    ahead: bool = False,
) -> Callable[[], dict[str, Any]]:
    """Perform optimizer step `step` (0-based) on this rank's micro-batches of a batch. Returns a function that gives
    the step's `metrics.jsonl` record, over all ranks.

    If the loss or the gradient is not finite nothing changes and the record has `"skipped": 1`. All metrics come from
    the device in one transfer, `histograms` of boundary probabilities only if wanted. `"splits"` counts micro-batches
    that were halved because memory ran out. `ahead`, for an optimizer that `skips_on_device`: the device decides
    whether the step is skipped, and the host waits for it only when the record is asked for.
    """
    rate = set_learning_rate(optimizer, step, config.train)
    weight = sum(float(batch.weights.sum()) if batch.weights is not None else len(batch.targets) for batch in batches)
    sizes = (sum(batch.nbytes for batch in batches), sum(batch.counted for batch in batches))
    weight, nbytes, counted = world.sums(weight, *sizes)
    parts, counts, splits = accumulate(
        model, batches, weight or 1.0, step, config, autocast, histograms, world, teacher
    )
    norm, part_norms = clip_gradient(model, config.train.grad_clip, world)
    sums = {name: torch.stack([getattr(part, name) for part in parts]).sum(0) for name in vars(parts[0])}
    means = [sums[name] / config.train.pieces for name in ("ratio", "alignment", "lesson")]
    scalars = torch.stack([sums["total"], sums["nll_sum"], norm.new_full((), splits), *means[:2], *means[2]])
    scalars = world.gather(scalars).sum(0)
    rank_counts = world.gather(torch.stack(counts).sum(0))
    norms = torch.stack([norm, *part_norms.values()])
    numbers = Numbers(
        {"scalars": scalars, "norms": norms, "counts": rank_counts.sum(0), "chunks": rank_counts[..., 1:2]}
    )

    def record() -> dict[str, Any]:
        names, taught = list(part_norms), teacher is not None
        return _record(numbers.read(), names, rate, nbytes, counted, step, config, world.size, taught)

    if ahead:
        numbers.send()
        # GradScaler's protocol for a fused optimizer: where this is 1, weights, moments and step count stay
        finite = torch.isfinite(scalars[0]) & torch.isfinite(norm)
        optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
        return record
    metrics = record()
    if "skipped" not in metrics:
        optimizer.step()
    return lambda: metrics


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """True for an optimizer that can skip a step by a flag on the device: fused AdamW, but not Muon."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def accumulate(
    model: HNetForCausalLM,
    batches: list[Batch],
    weight_sum: float,
    step: int,
    config: RunConfig,
    autocast: Callable[[], AbstractContextManager[Any]],
    histograms: bool,
    world: World,
    teacher: Teacher | None = None,
) -> tuple[list[Losses], list[Tensor], int]:
    """Accumulate the gradient of a step in the parameters. Returns the losses and routing counts of each pass, and the
    number of splits.

    The number of chunks of a micro-batch, and so its memory, is known only once it is computed. One that does not fit
    is halved between documents, as often as needed: the byte loss stays the same, ratio and alignment loss become those
    of the pieces, weighted by their bytes. A failed backward pass leaves a partial gradient, so the step starts again.
    Raises the allocator's error if a single document does not fit, and if ranks synchronise within a pass: then all
    would have to split.
    """
    pieces, train = [(batch, 1.0) for batch in batches], config.train
    is_global = train.ratio_loss_statistics == "global"
    splittable = world.size == 1 or not (world.sharded or is_global)
    device = next(model.parameters()).device
    learned = [router.learned for router in model.routers]

    def differentiate(batch: Batch, share: float, last: bool, ratio: GlobalRatio | None) -> tuple[Losses, Tensor]:
        tensors = to_device(batch, device)
        lesson = teacher.lesson(batch, device) if teacher is not None else None
        shares = boundary_shares(batch, train, learned, step)
        with autocast():
            part, routing = losses(model, *tensors, weight_sum, train, step, share, lesson, ratio, shares)
        world.backward(part.total, last)
        part.total = part.total.detach()
        return part, routing_counts(routing, histograms)

    while True:
        model.zero_grad(set_to_none=True)
        done: list[tuple[Losses, Tensor]] = []
        ratio = GlobalRatio(world) if is_global else None
        try:
            with contextlib.nullcontext() if world.sharded else casts_kept():
                for batch, share in pieces:
                    done.append(differentiate(batch, share, len(done) == len(pieces) - 1, ratio))
        except RuntimeError as error:
            if not (is_out_of_memory(error) and splittable and len(pieces[len(done)][0].documents) > 1):
                raise
        else:
            world.finish()
            return [part for part, _ in done], [count for _, count in done], len(pieces) - len(batches)
        # Outside the except block, whose traceback would keep the failed attempt's tensors alive.
        batch, share = pieces[len(done)]
        halves = batch.halves()
        pieces[len(done) : len(done) + 1] = [(half, share * len(half.targets) / len(batch.targets)) for half in halves]
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def casts_kept() -> Iterator[None]:
    """In here autocast keeps its copies of weights from one context to the next: all micro-batches use the same. Not
    for shards, whose whole weights must not stay."""
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def _record(
    values: dict[str, list[float]],
    parts: list[str],
    rate: float,
    nbytes: float,
    counted: float,
    step: int,
    config: RunConfig,
    ranks: int,
    with_teacher: bool,
) -> dict[str, Any]:
    """The `metrics.jsonl` record of a step from the numbers read from the device. `parts`: names of the gradient norms
    after the first, which is the whole gradient's; `nbytes`: bytes of the batch, all ranks; `counted`: those that weigh
    anything."""
    train = config.train
    loss, nll, splits, ratio, alignment, *lesson = values["scalars"]
    norm, *part_norms = values["norms"]
    record = {
        "loss": loss,
        "bpb": nll / max(counted, 1) / math.log(2),
        "ratio_loss": ratio,
        "grad_norm": norm,
        "lr": rate,
    }
    if train.alignment_loss_weight:
        record["alignment_loss"] = alignment
    if with_teacher:
        record |= dict(zip(("boundary_loss", "embedding_loss", "boundary_accuracy"), lesson, strict=True))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        record["skipped"] = 1
    if splits:
        record["splits"] = int(splits)
    record |= {f"grad_norm_{part}": value for part, value in zip(parts, part_norms, strict=True)}
    multipliers = rate_multipliers(config)
    if len(set(multipliers)) > 1:
        record |= {f"lr_stage{s}": rate * multiplier for s, multiplier in enumerate(multipliers)}
    if isinstance(train.ratio_loss_weight, list):
        record["ratio_loss_weight"] = train.alpha(step)
    if ranks > 1:
        record |= imbalance(values["chunks"], ranks)
    return record | stage_metrics(values["counts"], nbytes, train.ratios(step))


def imbalance(chunks: list[float], ranks: int) -> dict[str, float]:
    """`stage{s}_imbalance`: chunks of the rank that has most over the mean, from the chunks of each rank at each stage.
    The other ranks wait for that rank in the level inside."""
    stages = len(chunks) // ranks
    per_stage = [chunks[s::stages] for s in range(stages)]
    return {stage_key(s, "imbalance"): max(counts) * ranks / sum(counts) for s, counts in enumerate(per_stage)}
