"""Data parallelism: replicas whose gradients are summed, or sharded parameters (FSDP2)."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.hnet import HNet

BUCKET = 32 << 20
"""Bytes of gradient that travel together: enough for the bandwidth, few enough to begin early."""
UNSHARDED = ("routing_module", "residual_proj", "lm_head")
"""Matrices that belong to their level, which is gathered as a whole: they stay float32 under autocast."""


class GradientSum:
    """Sums the gradients of replicas, bucket by bucket, during the last backward pass of a step.

    Our own instead of DDP, because a failed micro-batch is tried again in smaller pieces. Ranks may differ in number
    of chunks and even of passes; buckets are the same on all ranks and leave in the same order, so none waits for what
    another does not send. Two ranks give bit for bit what one rank accumulates over two passes.
    """

    def __init__(self, model: nn.Module) -> None:
        assert isinstance(model, HNetForCausalLM)
        self.buckets: list[list[nn.Parameter]] = [[]]
        """Approximately in the order in which their gradients are complete."""
        room = BUCKET
        for parameter in reversed([each for each in _in_forward_order(model) if each.requires_grad]):
            if self.buckets[-1] and (parameter.nbytes > room or parameter.dtype != self.buckets[-1][0].dtype):
                self.buckets.append([])
                room = BUCKET
            self.buckets[-1].append(parameter)
            room -= parameter.nbytes
        self.bucket_of = {parameter: i for i, bucket in enumerate(self.buckets) for parameter in bucket}
        self.missing: list[int] = []
        """Gradients that each bucket still waits for in this pass; empty while nothing is to be sent."""
        self.sent: list[tuple[Tensor, dist.Work]] = []
        for parameter in self.bucket_of:
            parameter.register_post_accumulate_grad_hook(self._complete)

    def begin(self, last: bool) -> None:
        """Announce a backward pass; the `last` of a step completes the gradients. It may begin again after a failure:
        buckets already sent were complete, and stay."""
        self.missing = [len(bucket) for bucket in self.buckets] if last else []

    def finish(self) -> None:
        """Send the remaining buckets and put the sums into `grad`. A parameter without gradient counts as zero."""
        while len(self.sent) < len(self.buckets):
            self._send()
        self.missing = []
        for bucket, (flat, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            for parameter, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)
        self.sent = []

    def _complete(self, parameter: nn.Parameter) -> None:
        if not self.missing:
            return
        self.missing[self.bucket_of[parameter]] -= 1
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self.buckets[len(self.sent)]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in bucket])
        for parameter in bucket:
            parameter.grad = None
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self.sent.append((flat, work))


def _in_forward_order(model: HNetForCausalLM) -> list[nn.Parameter]:
    """The trainable parameters, each once, in the order of the forward pass; unknown ones first."""
    found: list[nn.Parameter] = list(model.embeddings.parameters())
    decoders: list[nn.Parameter] = []
    level: nn.Module = model.backbone
    while isinstance(level, HNet):
        if level.pad_dimension is not None:
            found.append(level.pad_dimension)
        if not level.is_innermost:
            for part in (level.encoder, level.routing_module, level.residual_proj):
                found += part.parameters() if part is not None else ()
            decoders = [*level.decoder.parameters(), *decoders]
        level = level.main_network
    found += [*level.parameters(), *decoders, *model.lm_head.parameters()]
    known = dict.fromkeys(found)
    others = [parameter for parameter in model.parameters() if parameter not in known]
    return [parameter for parameter in (*others, *known) if parameter.requires_grad]


def shard(model: nn.Module, device: torch.device, ranks: int, bf16: bool) -> nn.Module:
    """Apply FSDP2 in place: each matrix of a layer is a unit, the rest of a level another, the ends of the model one.

    `bf16`: matrices are gathered in the dtype to which autocast would cast them; the numbers are those of a replica.
    Without it autocast would keep a full bfloat16 copy of each for the backward pass. Gradients are summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing is written into it
    mesh = init_device_mesh(device.type, (ranks,))
    gathered = torch.bfloat16 if bf16 else None
    products = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and not any(part in name for part in UNSHARDED):
            fully_shard(module, mesh=mesh, mp_policy=products)
        elif isinstance(module, HNet):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
