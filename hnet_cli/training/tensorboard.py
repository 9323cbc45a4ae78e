"""A run's records as TensorBoard event files, in `tensorboard/` of its folder: `tensorboard --logdir runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnet_cli.errors import EnvironmentLimit
from hnet_cli.terminal.console import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes what a run tells its listener. Nothing is created before the first record, when the folder is the run's.

    Raises EnvironmentLimit where the package is missing. That events cannot be written must not end a run: it is said
    once, and no more are written.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EnvironmentLimit(
                "train.tensorboard needs the package tensorboard", "pip install 'hnet[tensorboard]'"
            ) from error
        self.folder = run / "tensorboard"
        self._make: type[SummaryWriter] | None = SummaryWriter
        self._writer: SummaryWriter | None = None

    def hear(self, kind: str, record: dict[str, Any]) -> None:
        """As a listener of `train`."""
        if kind not in ("log", "eval", "warning") or "step" not in record or self._make is None:
            return
        try:
            if self._writer is None:
                # What a run that was stopped wrote beyond the checkpoint it goes on from is void.
                self._writer = self._make(str(self.folder), purge_step=record["step"])
            self._write(self._writer, kind, record)
        except OSError as error:
            self._make = self._writer = None
            say(f"[yellow]warning:[/] TensorBoard's events cannot be written ({error.strerror}); training goes on")

    def _write(self, writer: SummaryWriter, kind: str, record: dict[str, Any]) -> None:
        step = record["step"]
        if kind == "warning":
            writer.add_text(record.get("event", "warning"), record["message"], step)
            return
        for key, value in record.items():
            group = "validation" if key.startswith("val_") else "training"
            tag = f"{group}/{key.removeprefix('val_')}"
            if isinstance(value, list) and key.endswith("_prob_histogram"):
                _histogram(writer, tag, value, step)
            elif isinstance(value, int | float) and key != "step":
                writer.add_scalar(tag, value, step)
        if kind == "eval":
            writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def _histogram(writer: SummaryWriter, tag: str, counts: list[int], step: int) -> None:
    """Counts over equal parts of [0, 1]; where in its part each value lies is not known, so the middle is taken."""
    total, width = sum(counts), 1 / len(counts)
    middles = [(n + 0.5) * width for n in range(len(counts))]
    sums = [sum(count * middle**power for count, middle in zip(counts, middles, strict=True)) for power in (1, 2)]
    limits = [(n + 1) * width for n in range(len(counts))]
    writer.add_histogram_raw(
        tag, min=0.0, max=1.0, num=total, sum=sums[0], sum_squares=sums[1], bucket_limits=limits, bucket_counts=counts,
        global_step=step,
    )  # fmt: skip
