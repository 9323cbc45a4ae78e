"""Many ranks: processes that train one model together, a GPU each (NCCL), or on CPUs (gloo).

`torchrun`, or whatever else sets its variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, starts them;
without those there is one rank and no process group. The loop is the same for both: a `World` of one rank adds, gathers
and agrees with itself. What ranks tell each other are numbers, over gloo on the host or as tensors; nothing is pickled.
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
"""That ranks wait for each other at the start."""
WAIT_SECONDS = 1800.0
"""That a rank waits for the others later: as long as the slowest checkpoint, or check of a dataset, may take."""
TIMEOUT = "HNET_RANK_TIMEOUT"
"""Environment variable: seconds, in place of both."""
GONE = re.compile(r"[Cc]onnection (closed|reset|refused)|[Tt]im(ed|e) ?out|gloo|NCCL|Broken pipe|[Ss]ocket")
"""In what torch says when another rank has died."""


class OtherRank(HNetError):
    """Another rank failed and says why; this one ends with the same code and says nothing."""

    def __init__(self, code: int) -> None:
        super().__init__("")
        self.exit_code = code


@dataclass
class World:
    """The ranks of a run, as one of them sees them. `World()` is the only rank there is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine."""
    local_size: int = 1
    sharded: bool = False
    """Whether parameters, gradients and moments are divided among the ranks; see `spread`."""
    _gradients: GradientSum | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this rank holds the run folder: it alone writes and speaks."""
        return self.rank == 0

    def device(self, wanted: str | None) -> str | None:
        """The device of this rank: GPUs in the order of the ranks. Raises UsageError where one is named by number,
        for that would be every rank's, EnvironmentLimit where there are fewer than ranks."""
        if self.size > 1 and re.fullmatch(r"cuda:\d+", wanted or ""):
            raise UsageError(
                f"--device {wanted} would be that of all {self.size} ranks",
                "leave it out; CUDA_VISIBLE_DEVICES chooses among GPUs",
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
        """The rows [start, stop) of each piece that this rank computes, of a batch of `rows` rows in `pieces` pieces.

        A function of its arguments and the number of ranks alone: all pieces of all ranks, in order, are the batch.
        """
        each, own = rows // pieces, pieces // self.size
        return [(i * each, (i + 1) * each) for i in range(self.rank * own, (self.rank + 1) * own)]

    # -- numbers of the host -------------------------------------------------------------------------------------------

    def each(self, *numbers: float) -> list[list[float]]:
        """What every rank gave, in the order of the ranks. All give as many."""
        if self.size == 1:
            return [list(numbers)]
        import torch
        import torch.distributed as dist

        own = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return [each.tolist() for each in found]

    def sums(self, *numbers: float) -> list[float]:
        """Of what the ranks gave, added in their order."""
        return [sum(column) for column in zip(*self.each(*numbers), strict=True)]

    def largest(self, number: float) -> float:
        """Of what the ranks gave; none may be not-a-number, which no comparison finds."""
        return max(each[0] for each in self.each(number))

    def of_main(self, number: float) -> float:
        """The number of rank 0."""
        return self.each(number)[0][0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails in this block on one rank fails on all, with the same exit code; the first that failed says why.

        Nothing in the block may wait for other ranks. An error that has been agreed on passes through.
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
        """(...) -> (ranks, ...): that of every rank. Carries no gradient."""
        if self.size == 1:
            return tensor[None]
        import torch
        import torch.distributed as dist

        own = tensor.detach().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return torch.stack(found)

    def spread(self, model: nn.Module, device: torch.device, sharded: bool, bf16: bool = False) -> nn.Module:
        """Bring a model that is the same on all ranks to `device`, so that `backward` and `finish` add gradients up.

        `sharded`: FSDP2. Every rank keeps its share of each parameter (a `DTensor`, rows divided), and of gradients and
        moments with it; a matrix is gathered when its turn comes, in bfloat16 if it is multiplied so. In place: names
        stay as they are.
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
        """The gradient of this rank's part of the loss; of the `last` piece of a step, gradients travel meanwhile."""
        if self.sharded:
            loss = loss * self.size  # FSDP averages over ranks
        elif self._gradients is not None:
            self._gradients.begin(last)
        loss.backward()

    def finish(self) -> None:
        """After the last `backward` of a step: every rank has the sum of all gradients (of its share, if sharded)."""
        if self._gradients is not None:
            self._gradients.finish()


ALONE = World()


def place() -> World:
    """The ranks as the environment tells of them; nobody is called. Raises UsageError for what makes no sense."""
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
        told = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        raise UsageError(f"the environment names no rank: {told}", "start with torchrun, or unset these") from error
    return world


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[World]:
    """The ranks of this run, met and connected; one that leaves, or never comes, is an EnvironmentLimit, not a wait."""
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
            "cpu:gloo,cuda:nccl" if gpu else "gloo", rank=world.rank, world_size=world.size,
            timeout=timedelta(seconds=wait or JOIN_SECONDS),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise EnvironmentLimit(
            f"rank {world.rank} of {world.size} did not meet the others at {where}: {first[:200]}",
            "MASTER_ADDR and MASTER_PORT must be those of rank 0, and every rank must be started",
        ) from error
    _set_timeout(timedelta(seconds=wait or WAIT_SECONDS))
    try:
        with _telling_of_loss(world):
            yield world
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _set_timeout(timeout: timedelta) -> None:
    from torch.distributed import distributed_c10d

    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        distributed_c10d._set_pg_timeout(timeout)


@contextlib.contextmanager
def _telling_of_loss(world: World) -> Iterator[None]:
    """What torch says when another rank is gone, in a line; the first to hear of it may have heard of a third's end."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, HNetError) or not GONE.search(f"{type(error).__name__} {error}"):
            raise
        raise EnvironmentLimit(
            f"rank {world.rank} of {world.size} lost touch with another rank, which died or cannot be reached",
            "its own message, or the system's, says why; then go on with --resume",
        ) from error


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided among the ranks, who must all ask."""
    full: Callable[[], Any] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def own(tensor: Tensor) -> Tensor:
    """This rank's share of a tensor that may be divided among the ranks."""
    local: Callable[[], Any] | None = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def divided_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's view of a whole `value`, on the device of `parameter` and divided as that is."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    placements: Sequence[Any] = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
