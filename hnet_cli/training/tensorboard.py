"""A run's records as TensorBoard event files, in `tensorboard/` of its folder: `tensorboard --logdir runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnet_cli.errors import EnvironmentLimit
from hnet_cli.report.stages import VALIDATION

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """A listener of `train` that writes scalars, histograms and warnings. Nothing is created before the first record,
    when the folder is the run's.

    Raises EnvironmentLimit where the package is missing.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EnvironmentLimit(
                "train.tensorboard needs the package tensorboard", "pip install 'hnet-cli[tensorboard]'"
            ) from error
        self.folder = run / "tensorboard"
        self._make: type[SummaryWriter] = SummaryWriter
        self._writer: SummaryWriter | None = None

    def hear(self, kind: str, record: dict[str, Any]) -> None:
        """Write a "log", "eval" or "warning" that has a step."""
        if kind not in ("log", "eval", "warning") or "step" not in record:
            return
        if self._writer is None:
            # Events beyond the checkpoint that a stopped run goes on from are void.
            self._writer = self._make(str(self.folder), purge_step=record["step"])
        self._write(self._writer, kind, record)

    def _write(self, writer: SummaryWriter, kind: str, record: dict[str, Any]) -> None:
        step = record["step"]
        if kind == "warning":
            writer.add_text(record.get("event", "warning"), record["message"], step)
            return
        for key, value in record.items():
            group = "validation" if key.startswith(VALIDATION) else "training"
            tag = f"{group}/{key.removeprefix(VALIDATION)}"
            if isinstance(value, list) and key.endswith("prob_histogram"):
                _histogram(writer, tag, value, step)
            elif isinstance(value, int | float) and key != "step":
                writer.add_scalar(tag, value, step)
        if kind == "eval":
            writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()


def _histogram(writer: SummaryWriter, tag: str, counts: list[int], step: int) -> None:
    """Counts over equal parts of [0, 1]; the places of values in their part are unknown, so its middle is taken."""
    parts = len(counts)
    middles = [(n + 0.5) / parts for n in range(parts)]
    writer.add_histogram_raw(
        tag,
        min=0.0,
        max=1.0,
        num=sum(counts),
        sum=sum(count * middle for count, middle in zip(counts, middles, strict=True)),
        sum_squares=sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
        bucket_limits=[(n + 1) / parts for n in range(parts)],
        bucket_counts=counts,
        global_step=step,
    )
