"""The `train:` section of a configuration. No torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from hnet_cli.config.schedules import Points, value_at, values
from hnet_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The `train:` section of a preset. Lengths and sizes are in bytes of the corpus."""

    steps: int = 1000
    """Optimizer steps of the whole run; the schedule is laid out over them."""
    batch_bytes: int = 2048
    """Bytes predicted per optimizer step, over all micro-batches and ranks."""
    sequence_length: int = 256
    """Bytes per row; documents are packed into rows and never see each other."""
    micro_batches: Literal["auto"] | int = 1
    """Pieces a batch is computed in: ranks share them, and one after the other they need less memory. Never fewer than
    ranks. `auto`: the fewest that fit into the memory of the device, chosen when a run begins: `budget.settled`."""
    shard: Literal["auto", "none", "full"] = "auto"
    """On several ranks: whether each holds a copy of the model (`none`) or its share (`full`, FSDP2). `auto`: a copy
    where it fits."""
    activation_checkpointing: Literal["none", "main", "all"] = "none"
    """Layers that keep only their input for the backward pass and are computed twice: those of the innermost stack, or
    of all. Saves memory, costs time, changes no number."""
    seed: int = 0
    """Of the initial weights and of the order of the data."""

    lr: float = 6.25e-4
    """Peak learning rate of the innermost level before multipliers."""
    lr_multipliers: Literal["auto"] | list[float] = "auto"
    """Per level, outermost first; `auto` is paper equation 11."""
    lr_bytes_per_token: float = 4.6
    """N^GPT of equation 11: bytes per token of the tokenizer the base learning rate was tuned for."""
    schedule: Literal["wsd", "constant"] = "wsd"
    """Warm-up, stable, decay (paper section 3)."""
    warmup: float = 0.1
    """Share of the steps with a linear warm-up."""
    decay: float = 0.2
    """Share of the steps at the end with decay."""
    decay_shape: Literal["inverse-sqrt", "linear"] = "inverse-sqrt"
    min_lr_ratio: float = 0.0
    """The learning rate at the last step as a share of the peak."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices of the main network's layers, AdamW for the rest."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    norm_weight_decay: bool = False
    """True decays norm weights and the SSM's A, D and dt as the official grouping does."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    init: Literal["official", "torch"] = "official"
    """Matrices from N(0, 0.02) as the release, or by PyTorch's defaults (better for very small models)."""
    start: str = ""
    """A model to begin with, of the same architecture: a run, a checkpoint, a model folder; none: random weights."""
    frozen: list[str] = field(default_factory=list)
    """Parts that keep the weights they begin with, such as level1.main_network; `hnet train --dry-run` names them."""

    target_ratios: list[float | Points] = field(default_factory=list)
    """N per stage: positions per chunk that the ratio loss aims at. Each a number, or `Points` over the run."""
    ratio_loss_weight: float | Points = 0.03
    """alpha of the ratio loss (paper equation 10). A number, or `Points` over the run."""
    ratio_loss_statistics: Literal["micro-batch", "global"] = "micro-batch"
    """Whether its F and G are of each micro-batch, as in the release, or of the batch: see `GlobalRatio`."""
    alignment_loss_weight: float = 0.0
    """Weight of a loss that draws boundaries of the outermost stage to where bytes are hard to predict."""
    alignment: Literal["confidence", "entropy"] = "confidence"
    """Which: SOMBRERO's confidence-alignment loss (arXiv 2601.22805), where the next byte is unlikely; or the T/N
    places where the prediction is most open (see `hnet_cli/training/losses.py`)."""
    boundary_loss_weight: float = 0.0
    """Of the cross-entropy of the outermost boundary probabilities with the first bytes of a teacher's tokens (paper,
    appendix F). The teacher is that of `start`, a folder of `hnet retrofit`."""
    embedding_loss_weight: float = 0.0
    """Of the distance between what the main network reads at a token's first byte and the teacher's embedding of the
    token before (paper, appendix F)."""

    log_every: int = 10
    """Steps between two records of metrics.jsonl."""
    eval_every: int = 250
    """Steps between two validations; 0 for only the last one."""
    eval_bytes: int = 262_144
    """At most this many validation bytes each time; the last validation too."""
    samples: bool = True
    """Whether every validation leaves its chunks of a few bytes and a continuation of them in samples.jsonl."""
    tensorboard: bool = False
    """Whether the records are also written as TensorBoard events."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay, besides the best."""

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "batch_bytes": 1,
            "sequence_length": 2,
            "log_every": 1,
            "eval_every": 0,
            "eval_bytes": 1,
            "checkpoint_every": 1,
            "keep_checkpoints": 1,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"train.{name} must be at least {low}, not {getattr(self, name)}")
        for name in ("lr", "eps", "lr_bytes_per_token"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} must be above 0, not {getattr(self, name)}")
        for name in (
            "ratio_loss_weight",
            "alignment_loss_weight",
            "boundary_loss_weight",
            "embedding_loss_weight",
            "weight_decay",
            "grad_clip",
        ):
            if not all(value >= 0 for value in values(name, getattr(self, name))):
                raise ValueError(f"train.{name} must not be negative, not {getattr(self, name)}")
        if not all(value > 1 for ratio in self.target_ratios for value in values("target_ratios", ratio)):
            raise ValueError(f"train.target_ratios must be above 1, not {self.target_ratios}")
        for name in ("warmup", "decay", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train.{name} is a share between 0 and 1, not {getattr(self, name)}")
        if self.warmup + self.decay > 1:
            raise ValueError("train.warmup and train.decay together exceed the whole run")
        each = 1 if self.micro_batches == "auto" else self.micro_batches
        if each < 1:
            raise ValueError(f"train.micro_batches must be auto or at least 1, not {each}")
        if self.batch_bytes % (self.sequence_length * each):
            raise ValueError(
                f"train.batch_bytes ({self.batch_bytes}) must be a multiple of train.sequence_length x "
                f"train.micro_batches ({self.sequence_length} x {each})"
            )

    def ratios(self, step: int | None = None) -> list[float]:
        """The target ratios N per stage when `step` steps are done; by default those the run ends with."""
        share = 1.0 if step is None else step / self.steps
        return [value_at(ratio, share) for ratio in self.target_ratios]

    def alpha(self, step: int) -> float:
        """The weight of the ratio loss when `step` steps are done."""
        return value_at(self.ratio_loss_weight, step / self.steps)

    @property
    def taught(self) -> bool:
        """Whether a loss needs a teacher."""
        return self.boundary_loss_weight > 0 or self.embedding_loss_weight > 0

    @property
    def rows(self) -> int:
        """Rows of `sequence_length` bytes in a batch."""
        return self.batch_bytes // self.sequence_length

    @property
    def pieces(self) -> int:
        """`micro_batches` as a number; while they are `auto` the most there can be, which need the least memory."""
        return self.rows if self.micro_batches == "auto" else self.micro_batches

    def shared_by(self, ranks: int) -> TrainConfig:
        """The same with as many micro-batches, of at most the same size, as `ranks` can share equally.

        Raises UsageError where a batch cannot be cut so.
        """
        pieces = math.ceil(self.pieces / ranks) * ranks
        if self.rows % pieces:
            raise UsageError(
                f"a batch of {self.rows} rows (train.batch_bytes / train.sequence_length) cannot be shared by {ranks} "
                f"ranks in {pieces} micro-batches",
                f"take a train.batch_bytes that is a multiple of {self.sequence_length * pieces}",
            )
        return replace(self, micro_batches=pieces)
