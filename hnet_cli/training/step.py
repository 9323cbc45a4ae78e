"""The training step: losses, their gradient, one move of the optimizer; and the model and precision it runs with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnet_cli.config.run import RunConfig, TrainConfig
from hnet_cli.data.loader import Batch
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.errors import is_out_of_memory
from hnet_cli.model import HNetForCausalLM, RoutingOutput, ratio_loss
from hnet_cli.model.blocks import recompute
from hnet_cli.model.optimization import part_of
from hnet_cli.report.stages import stage_key
from hnet_cli.training import budget
from hnet_cli.training.health import Numbers, clip_gradient, routing_counts, stage_metrics
from hnet_cli.training.losses import confidence_alignment, entropy_alignment
from hnet_cli.training.optim import build_optimizer, rate_multipliers, set_learning_rate
from hnet_cli.training.validation import to_device

if TYPE_CHECKING:  # it reads files of weights; a step without a teacher runs where no package for these is
    from hnet_cli.training.teacher import Lesson, Teacher


@dataclass
class Losses:
    """The parts of the loss of one micro-batch; scalars."""

    total: Tensor
    """What is differentiated."""
    nll_sum: Tensor
    """Unweighted, in nats: what bits per byte are counted from."""
    ratio: Tensor
    """Sum over stages, before alpha, times the share of the micro-batch."""
    alignment: Tensor
    taught: Tensor
    """(3,): boundary loss, embedding loss and share of right boundaries, times the share of the micro-batch; zeros
    without a teacher."""


class GlobalRatio:
    """The ratio loss with F and G of the batch of a step, as far as they are known; made anew for every step.

    F has no gradient and the loss is linear in G, so the gradients of parts add up to that of the whole if each knows
    F. Over ranks F and G are exact. What a rank computes one after the other cannot wait for what is still to come:
    there F is of the micro-batches computed so far, on all ranks, and G the mean over micro-batches of their own. So
    with one micro-batch a rank the loss is that of the whole batch; with more, only the last of them knows its F.
    """

    def __init__(self, world: World) -> None:
        self.world, self.counted = world, list[Tensor]()

    def __call__(self, learned: list[tuple[RoutingOutput, float]]) -> Tensor:
        """The mean of this over ranks is the loss, the mean of its gradient over ranks the gradient."""
        masks = [routing.boundary_mask for routing, _ in learned]
        own = [torch.stack([mask.sum(), mask.new_full((), len(mask), dtype=torch.int64)]) for mask in masks]
        now = self.world.gather(torch.stack(own)).sum(0)
        self.counted.append(now)
        boundaries, positions = torch.stack(self.counted).sum(0).float().unbind(1)
        means = [r.boundary_prob.sum() * self.world.size / now[s, 1] for s, (r, _) in enumerate(learned)]
        fractions = boundaries / positions
        return torch.stack([ratio_loss(r, n, fractions[s], means[s]) for s, (r, n) in enumerate(learned)]).sum()


def losses(
    model: HNetForCausalLM,
    inputs: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    weights: Tensor | None,
    weight_sum: float,
    train: TrainConfig,
    step: int,
    share: float = 1.0,
    lesson: Lesson | None = None,
    global_ratio: GlobalRatio | None = None,
) -> tuple[Losses, list[RoutingOutput]]:
    """Next-byte loss + alpha x ratio loss (paper equation 10) + the alignment loss + those of a teacher's `lesson`
    (appendix F), for packed bytes (T,) int64.

    `weight_sum` normalises the next-byte loss: the weights of the whole batch, so that micro-batches add up to it.
    The ratio loss is per micro-batch, as in the official code, unless there is a `global_ratio`, and averaged over
    the micro-batches; `share`: how much of a micro-batch this is, 1 unless it had to be split.
    """
    out = model(inputs, cu_seqlens=cu_seqlens)
    nll = F.cross_entropy(out.logits.float(), targets, reduction="none")
    byte_loss = (nll if weights is None else nll * weights).sum() / weight_sum
    zero = nll.new_zeros(())
    learned = [(routing, n) for routing, n in zip(out.routing, train.ratios(step), strict=True) if routing.learned]
    if global_ratio is not None and learned:
        ratio = share * global_ratio(learned)
    else:
        ratio = share * sum((ratio_loss(routing, n) for routing, n in learned), zero)
    aligned = train.alignment_loss_weight > 0 and bool(out.routing) and out.routing[0].learned
    if not aligned:
        alignment = zero
    elif train.alignment == "entropy":
        alignment = share * entropy_alignment(out.logits, nll, out.routing[0], train.ratios(step)[0])
    else:
        alignment = share * confidence_alignment(nll, out.routing[0])
    extra = train.alpha(step) * ratio + train.alignment_loss_weight * alignment
    taught = nll.new_zeros(3) if lesson is None else share * lesson.losses(out.routing[0], out.embedding)
    if lesson is not None:
        extra = extra + train.boundary_loss_weight * taught[0] + train.embedding_loss_weight * taught[1]
    total = byte_loss + extra / train.pieces
    return Losses(total, nll.detach().sum(), ratio.detach(), alignment.detach(), taught.detach()), out.routing


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
    """Adds up the gradient of a step in the parameters. Returns losses and routing counts of each pass, and the splits.

    How many chunks a micro-batch has is known only once it is computed. One that does not fit into memory is halved
    between documents, as often as needed: the byte loss stays what it was, ratio and alignment loss become those of the
    pieces, weighted by their bytes. A backward pass that failed has left a part of its gradient, so the step begins
    afresh. Raises what the allocator raised where a single document does not fit, and where ranks meet within a pass:
    then all would have to split.
    """
    pieces, train = [(batch, 1.0) for batch in batches], config.train
    is_global = train.ratio_loss_statistics == "global"
    splittable = world.size == 1 or not (world.sharded or is_global)
    device = next(model.parameters()).device

    def differentiate(batch: Batch, share: float, last: bool, ratio: GlobalRatio | None) -> tuple[Losses, Tensor]:
        given = to_device(batch, device)
        lesson = teacher.lesson(batch, device) if teacher is not None else None
        with autocast():
            part, routing = losses(model, *given, weight_sum, train, step, share, lesson, ratio)
        world.backward(part.total, last)
        part.total = part.total.detach()
        return part, routing_counts(routing, histograms)

    while True:
        model.zero_grad(set_to_none=True)
        done: list[tuple[Losses, Tensor]] = []
        ratio = GlobalRatio(world) if is_global else None
        try:
            for batch, share in pieces:
                done.append(differentiate(batch, share, len(done) == len(pieces) - 1, ratio))
        except RuntimeError as error:
            if not (is_out_of_memory(error) and splittable and len(pieces[len(done)][0].documents) > 1):
                raise
        else:
            world.finish()
            return [part for part, _ in done], [count for _, count in done], len(pieces) - len(batches)
        # outside the handler: only here nothing of the failed attempt is alive
        batch, share = pieces[len(done)]
        halves = batch.halves()
        pieces[len(done) : len(done) + 1] = [(half, share * len(half.targets) / len(batch.targets)) for half in halves]
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


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
) -> dict[str, Any]:
    """One optimizer step, as `begin_step`, its numbers waited for."""
    return begin_step(model, optimizer, batches, step, config, autocast, histograms, world, teacher)()


def begin_step(
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
    """One optimizer step over a rank's micro-batches of a batch. Returns what gives the numbers of one `metrics.jsonl`
    record, which are those of all ranks.

    If the loss or the gradient is not finite nothing changes and the record has `"skipped": 1`. All numbers come from
    the device at once; `histograms` of boundary probabilities are left out where not wanted. `ahead`, of an optimizer
    that `skips_on_device`: the device decides, and the host waits for it only where the numbers are asked for.
    `"splits"`: how often a micro-batch had to be cut in two because memory ran out. `"stage{s}_imbalance"`, on several
    ranks: chunks of the rank that has most, over their mean.
    """
    train = config.train
    rate = set_learning_rate(optimizer, step, train)
    weight_sum = sum(float(b.weights.sum()) if b.weights is not None else len(b.targets) for b in batches)
    own_bytes = sum(batch.nbytes for batch in batches)
    weight_sum, total_bytes = world.sums(weight_sum, own_bytes)
    parts, counts, splits = accumulate(
        model, batches, weight_sum or 1.0, step, config, autocast, histograms, world, teacher
    )
    norm, norms = clip_gradient(model, train.grad_clip, world)

    def summed(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts]).sum(0)

    means = [
        *(summed(name) / train.pieces for name in ("ratio", "alignment")),
        *summed("taught") / train.pieces,
    ]
    scalars = torch.stack([summed("total"), summed("nll_sum"), norm.new_full((), splits), *means])
    scalars = world.gather(scalars).sum(0)
    of_ranks = world.gather(torch.stack(counts).sum(0))
    numbers = Numbers(
        {
            "scalars": scalars,
            "norms": torch.stack([norm, *norms.values()]),
            "counts": of_ranks.sum(0),
            "chunks": of_ranks[..., 1:2],
        }
    )

    def record() -> dict[str, Any]:
        values = numbers.read()
        loss, nll, all_splits, ratio, alignment, *lessons = values["scalars"]
        norm_read, *norms_read = values["norms"]
        record = {
            "loss": loss,
            "bpb": nll / total_bytes / math.log(2),
            "ratio_loss": ratio,
            "grad_norm": norm_read,
            "lr": rate,
        }
        if train.alignment_loss_weight:
            record["alignment_loss"] = alignment
        if teacher is not None:
            record |= dict(zip(("boundary_loss", "embedding_loss", "boundary_accuracy"), lessons, strict=True))
        if not (math.isfinite(loss) and math.isfinite(norm_read)):
            record["skipped"] = 1
        if all_splits:
            record["splits"] = int(all_splits)
        record |= {f"grad_norm_{part}": value for part, value in zip(norms, norms_read, strict=True)}
        multipliers = rate_multipliers(config)
        if len(set(multipliers)) > 1:
            record |= {f"lr_stage{s}": rate * multiplier for s, multiplier in enumerate(multipliers)}
        if isinstance(train.ratio_loss_weight, list):
            record["ratio_loss_weight"] = train.alpha(step)
        if world.size > 1:
            record |= imbalance(values["chunks"], world.size)
        return record | stage_metrics(values["counts"], total_bytes, train.ratios(step))

    if ahead:
        numbers.send()
        # as GradScaler tells a fused optimizer: where this is 1 it changes neither weights nor moments nor its count
        finite = torch.isfinite(scalars[0]) & torch.isfinite(norm)
        optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
        return record
    known = record()
    if "skipped" not in known:
        optimizer.step()
    return lambda: known


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer leaves out a step of which only the device knows that it must be: fused AdamW does, Muon
    does not."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def imbalance(chunks: list[float], ranks: int) -> dict[str, float]:
    """`stage{s}_imbalance` from the chunks of each rank at each stage: how much longer than the average the rank with
    most is at work in the level inside, while the others wait for it."""
    stages = len(chunks) // ranks
    of_stage = [chunks[s::stages] for s in range(stages)]
    return {stage_key(s, "imbalance"): max(each) * ranks / sum(each) for s, each in enumerate(of_stage)}


def precision_context(config: RunConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Autocast to bfloat16 where `multiplies_in_bf16`."""
    bf16 = multiplies_in_bf16(config, device)
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def multiplies_in_bf16(config: RunConfig, device: torch.device) -> bool:
    """Whether the configuration says so, or for `auto` whether the hardware does natively."""
    if config.precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return device.type == "cpu" and has_amx()
    return config.precision == "bf16"


def has_amx() -> bool:
    """Whether this CPU has bfloat16 matrix units; without them bfloat16 is slower than float32."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


def build_model(config: RunConfig) -> HNetForCausalLM:
    """A fresh model, initialised as `train.init` says from torch's current random state."""
    model = HNetForCausalLM(config.model, backend=config.kernels)
    if config.train.init == "torch":
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "routing_module" not in name and "residual_proj" not in name:
                module.reset_parameters()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name, config.model.num_stages) not in config.train.frozen)
    recompute(model, config.train.activation_checkpointing)
    return model


AGREE = 0.1
"""Two successive times that differ by less, as a share of the longer, are believed."""


def seconds_per_byte(
    config: RunConfig, device: str, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
) -> float:
    """Time to train one byte on this machine, of steps of one micro-batch of random bytes.

    The first step, which may compile, counts for nothing. Steps are made until two successive times agree or `seconds`
    (of `clock`) have passed since then, but at least one.
    """
    config = budget.settled(config, budget.machine(device))
    train, length = config.train, config.train.sequence_length
    rows = train.rows // train.pieces
    model = build_model(config).to(device)
    optimizer = build_optimizer(model, config)
    data = np.random.default_rng(0).integers(97, 123, rows * length + 1, dtype=np.uint8)
    cu_seqlens = np.arange(0, rows * length + 1, length, dtype=np.int32)
    batch = Batch(data[:-1], data[1:], None, cu_seqlens, np.zeros(rows, np.int64), np.zeros(rows, np.int64))
    autocast = precision_context(config, torch.device(device))

    def step() -> float:
        train_step(model, optimizer, [batch], 0, config, autocast)
        if device != "cpu":
            torch.cuda.synchronize(device)  # the weights change after the numbers have come
        return clock()

    at = [step()]
    while len(at) < 2 or at[-1] < at[0] + seconds:
        at.append(step())
        last = [after - before for before, after in pairwise(at[-3:])]
        if len(last) == 2 and max(last) - min(last) <= AGREE * max(last):
            break
    return min(last) / (rows * length)
