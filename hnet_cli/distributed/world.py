"""The process group of a run: ranks that train one model together, a GPU each (NCCL), or on CPUs (gloo).

`torchrun`, or anything else that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, starts them; without
those there is one rank and no process group. The loop is the same for both: collectives of a `World` of one rank return
its own values. Ranks exchange numbers, over gloo on the host or as tensors; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hnet_cli.errors import EnvironmentLimit, HNetError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from hnet_cli.distributed.parallel import GradientSum

JOIN_SECONDS = 300.0
"""Seconds that ranks wait for each other at the start."""
WAIT_SECONDS = 1800.0
"""Seconds that a collective may take later: as long as the slowest checkpoint, or check of a dataset."""
TIMEOUT = "HNET_RANK_TIMEOUT"
"""Environment variable: seconds, in place of both."""
GONE = re.compile(r"[Cc]onnection (closed|reset|refused)|[Tt]im(ed|e) ?out|gloo|NCCL|Broken pipe|[Ss]ocket")
"""Part of torch's messages when another rank has died."""


class OtherRank(HNetError):
    """Another rank failed and reports it; this one ends with the same code, silently."""

    def __init__(self, code: int) -> None:
        super().__init__("")
        self.exit_code = code


@dataclass
class World:
    """The process group of a run, seen from one rank. `World()` is a single rank without a group."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank within this machine."""
    local_size: int = 1
    sharded: bool = False
    """True if parameters, gradients and moments are sharded over the ranks; see `spread`."""
    _gradients: GradientSum | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """True for the rank that writes the run folder and prints."""
        return self.rank == 0

    def device(self, wanted: str | None) -> str | None:
        """The device of this rank: the GPU of its local rank. Raises UsageError if one is named by number, which would
        be every rank's, EnvironmentLimit if there are fewer GPUs than ranks."""
        if self.size > 1 and re.fullmatch(r"cuda:\d+|mps", wanted or ""):
            raise UsageError(
                f"--device {wanted} would be that of all {self.size} ranks",
                "leave it out; CUDA_VISIBLE_DEVICES chooses among CUDA's GPUs",
            )
        if self.size == 1 or wanted not in (None, "cuda"):
            return wanted
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not gpus and wanted is None:
            return None
        if self.local_rank >= gpus:
            raise EnvironmentLimit(
                f"rank {self.rank} would use GPU {self.local_rank}, but this machine has {gpus}",
                "give torchrun --nproc-per-node as many, or --device cpu",
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def slices(self, rows: int, pieces: int) -> list[tuple[int, int]]:
        """Rows [start, stop) of each of this rank's micro-batches, of a batch of `rows` rows in `pieces` micro-batches.

        The micro-batches of all ranks, in order, are the batch.
        """
        each, own = rows // pieces, pieces // self.size
        return [(i * each, (i + 1) * each) for i in range(self.rank * own, (self.rank + 1) * own)]

    # -- numbers of the host -------------------------------------------------------------------------------------------

    def each(self, *numbers: float) -> list[list[float]]:
        """All-gather of as many numbers from every rank: (ranks, numbers)."""
        if self.size == 1:
            return [list(numbers)]
        import torch
        import torch.distributed as dist

        own = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return [each.tolist() for each in found]

    def sums(self, *numbers: float) -> list[float]:
        """Sums over ranks, added in the order of the ranks."""
        return [sum(column) for column in zip(*self.each(*numbers), strict=True)]

    def largest(self, number: float) -> float:
        """Maximum over ranks; none may be NaN, which no comparison finds."""
        return max(each[0] for each in self.each(number))

    def of_main(self, number: float) -> float:
        """Broadcast of rank 0's number."""
        return self.each(number)[0][0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make an error of any rank in this block end all ranks, with its exit code; the first that failed reports it.

        The block must contain no collective.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        code = 0 if error is None else getattr(error, "exit_code", 1)
        codes = [int(each[0]) for each in self.each(code)]
        first = next((rank for rank, code in enumerate(codes) if code), None)
        if first == self.rank and error is not None:
            raise error
        if first is not None:
            raise OtherRank(codes[first]) from error

    # -- tensors -------------------------------------------------------------------------------------------------------

    def gather(self, tensor: Tensor) -> Tensor:
        """All-gather: (...) -> (ranks, ...), without gradient."""
        if self.size == 1:
            return tensor[None]
        import torch
        import torch.distributed as dist

        own = tensor.detach().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return torch.stack(found)

    def spread(self, model: nn.Module, device: torch.device, sharded: bool, bf16: bool = False) -> nn.Module:
        """Move a model, equal on all ranks, to `device`, and prepare it for `backward` and `finish` to sum gradients.

        `sharded`: FSDP2. Every rank keeps a shard of each parameter (a `DTensor`, rows divided) with its gradient and
        moments; a matrix is gathered when its turn comes, in bfloat16 if `bf16`. In place: names stay the same.
        """
        self.sharded = sharded and self.size > 1
        if self.size == 1:
            return model.to(device)
        from hnet_cli.distributed.parallel import GradientSum, shard

        if self.sharded:
            return shard(model, device, self.size, bf16)
        model.to(device)
        self._gradients = GradientSum(model)
        return model

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Backward pass of this rank's part of the loss; in the `last` of a step gradients are reduced meanwhile."""
        if self.sharded:
            loss = loss * self.size  # FSDP averages over ranks
        elif self._gradients is not None:
            self._gradients.begin(last)
        loss.backward()

    def finish(self) -> None:
        """Complete the reduction after the last `backward` of a step: each rank has the summed gradient (its shard)."""
        if self._gradients is not None:
            self._gradients.finish()


ALONE = World()


def place() -> World:
    """The process group described by the environment, not yet joined. Raises UsageError if it makes no sense."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    texts = {name: os.environ[name] for name in names if os.environ.get(name)}
    if texts.get("WORLD_SIZE", "1") == "1":
        return ALONE
    try:
        rank, size = int(texts["RANK"]), int(texts["WORLD_SIZE"])
        local = int(texts.get("LOCAL_RANK", rank))
        world = World(rank, size, local, int(texts.get("LOCAL_WORLD_SIZE", size)))
        if not (0 <= rank < size and local >= 0):
            raise ValueError
    except (KeyError, ValueError) as error:
        values = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        raise UsageError(f"the environment names no rank: {values}", "start with torchrun, or unset these") from error
    return world


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[World]:
    """Join the process group of this run. A rank that dies or never comes raises EnvironmentLimit after a timeout."""
    world = place()
    if world.size == 1:
        yield world
        return
    import torch
    import torch.distributed as dist

    gpu = device != "cpu" and torch.cuda.is_available()
    seconds = os.environ.get(TIMEOUT, "")
    wait = float(seconds) if re.fullmatch(r"\d+(\.\d+)?", seconds) else 0.0
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=wait or JOIN_SECONDS),
        )
    except (RuntimeError, ValueError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise EnvironmentLimit(
            f"rank {world.rank} of {world.size} did not meet the others at {where}: {first[:200]}",
            "MASTER_ADDR and MASTER_PORT must be those of rank 0, and every rank must be started",
        ) from error
    _set_timeout(timedelta(seconds=wait or WAIT_SECONDS))
    try:
        with _lost_ranks_reported(world):
            yield world
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _set_timeout(timeout: timedelta) -> None:
    from torch.distributed import distributed_c10d

    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        distributed_c10d._set_pg_timeout(timeout)


@contextlib.contextmanager
def _lost_ranks_reported(world: World) -> Iterator[None]:
    """Turn torch's errors about a lost rank into one line. Raises EnvironmentLimit."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, HNetError) or not GONE.search(f"{type(error).__name__} {error}"):
            raise
        raise EnvironmentLimit(
            f"rank {world.rank} of {world.size} lost touch with another rank, which died or cannot be reached",
            "its own message, or the system's, says why; then continue with --resume",
        ) from error


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded; all ranks must call."""
    full: Callable[[], Any] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def own(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor that may be sharded."""
    local: Callable[[], Any] | None = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def divided_like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, the full tensor, on the device of `parameter` and sharded as that is."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    placements: Sequence[Any] = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
