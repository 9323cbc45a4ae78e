"""The `train:` section of a configuration. No torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from hnet_cli.config.bounds import STRICT, Bounds, Points, Schedule, value_at
from hnet_cli.errors import UsageError

Count = Annotated[int, Bounds(least=1)]
Share = Annotated[float, Bounds(least=0, most=1)]
Weight = Annotated[float, Bounds(least=0)]
Positive = Annotated[float, Bounds(above=0)]


class SettingError(ValueError):
    """Settings that do not fit together. `keys` are their dotted keys, the most likely mistake first."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The `train:` section of a preset. Lengths and sizes are in bytes of the corpus.

    Bounds hold for what is read from a configuration; how settings fit together is checked always, by SettingError.
    """

    __pydantic_config__: ClassVar = STRICT

    steps: Count = 1000
    """Optimizer steps of the whole run; the schedule is laid out over them."""
    batch_bytes: Count = 2048
    """Bytes predicted per optimizer step, over all micro-batches and ranks."""
    sequence_length: Annotated[int, Bounds(least=2)] = 256
    """Bytes per row; documents are packed into rows and never see each other."""
    micro_batches: Literal["auto"] | Count = 1
    """Pieces a batch is computed in: ranks share them, and one after the other they need less memory. Never fewer than
    ranks. `auto`: the fewest that fit into the memory of the device, chosen when a run begins: `budget.settled`."""
    shard: Literal["auto", "none", "full"] = "auto"
    """On several ranks: whether each holds a copy of the model (`none`) or its share (`full`, FSDP2). `auto`: a copy
    where it fits."""
    activation_checkpointing: Literal["none", "main", "all"] = "none"
    """Layers that keep only their input for the backward pass and are computed twice: those of the innermost stack, or
    of all. Saves memory, costs time, changes no number."""
    seed: Annotated[int, Bounds(least=-(2**63), most=2**64 - 1)] = 0
    """Seed of the initial weights and of the order of the data."""

    lr: Positive = 6.25e-4
    """Peak learning rate of the innermost level before multipliers."""
    lr_multipliers: Literal["auto"] | list[Weight] = "auto"
    """Per level, outermost first; `auto` is paper equation 11."""
    lr_bytes_per_token: Positive = 4.6
    """N^GPT of equation 11: bytes per token of the tokenizer the base learning rate was tuned for."""
    schedule: Literal["wsd", "constant"] = "wsd"
    """Warm-up, stable, decay (paper section 3)."""
    warmup: Share = 0.1
    """Share of the steps with a linear warm-up."""
    decay: Share = 0.2
    """Share of the steps at the end with decay."""
    decay_shape: Literal["inverse-sqrt", "linear"] = "inverse-sqrt"
    """Shape of the learning rate's decay."""
    min_lr_ratio: Share = 0.0
    """The learning rate at the last step as a share of the peak."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices of the main network's layers, AdamW for the rest."""
    betas: tuple[Annotated[float, Bounds(least=0, below=1)], Annotated[float, Bounds(least=0, below=1)]] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    eps: Positive = 1e-8
    """Added to the denominator of AdamW's update."""
    weight_decay: Weight = 0.1
    """Decoupled weight decay, times the learning rate."""
    norm_weight_decay: bool = False
    """True decays norm weights and the SSM's A, D and dt as the official grouping does."""
    grad_clip: Weight = 1.0
    """Largest gradient norm; 0 for no clipping."""
    init: Literal["official", "torch"] = "official"
    """Matrices from N(0, 0.02) as the release, or by PyTorch's defaults (better for very small models)."""
    start: str = ""
    """A model to begin with, of the same architecture: a run, a checkpoint, a model folder; none: random weights."""
    frozen: list[str] = field(default_factory=list)
    """Parts that keep the weights they begin with, such as level1.main_network; `hnet train --dry-run` names them."""

    target_ratios: list[Annotated[float | Points, Schedule(above=1)]] = field(default_factory=list)
    """N per stage: positions per chunk that the ratio loss aims at. Each a number, or a schedule over the run."""
    ratio_loss_weight: Annotated[float | Points, Schedule(least=0)] = 0.03
    """alpha of the ratio loss (paper equation 10). A number, or a schedule over the run."""
    ratio_loss_statistics: Literal["micro-batch", "global"] = "micro-batch"
    """Extent of its F and G: each micro-batch, as in the release, or the whole batch, see `GlobalRatio`."""
    budgets: list[Positive] = field(default_factory=list)
    """Multiples of the bytes per chunk that `target_ratios` make, 1 among them, which one model is trained for:
    [0.5, 1, 2]. Each sequence of a batch draws one; `--bytes-per-chunk` chooses later. None: 1 alone."""
    alignment_loss_weight: Weight = 0.0
    """Weight of a loss that draws boundaries of the outermost stage to where bytes are hard to predict."""
    alignment: Literal["confidence", "entropy"] = "confidence"
    """Which: SOMBRERO's confidence-alignment loss (arXiv 2601.22805), where the next byte is unlikely; or the T/N
    places where the prediction is most open (see `hnet_cli/training/losses.py`)."""
    boundary_loss_weight: Weight = 0.0
    """Weight of the cross-entropy of the outermost boundary probabilities with the first bytes of a teacher's tokens
    (paper, appendix F). The teacher is that of `start`, a folder of `hnet retrofit`."""
    embedding_loss_weight: Weight = 0.0
    """Weight of the distance between what the main network reads at a token's first byte and the teacher's embedding of
    the token before (paper, appendix F)."""

    log_every: Count = 10
    """Steps between two records of metrics.jsonl."""
    eval_every: Annotated[int, Bounds(least=0)] = 250
    """Steps between two validations; 0 for only the last one."""
    eval_bytes: Count = 262_144
    """At most this many validation bytes each time, the same every time: all, or a sample spread over the split."""
    eval_window: Annotated[int, Bounds(least=0)] = 0
    """Bytes of the windows they are read in; a byte is predicted from those before it in its window, and one more. 0:
    train.sequence_length."""
    samples: bool = True
    """True if every validation leaves its chunks of a few bytes and a continuation of them in samples.jsonl."""
    tensorboard: bool = False
    """True if the records are also written as TensorBoard events: the same as `tensorboard` among `loggers`."""
    loggers: list[str] = field(default_factory=list)
    """Trackers that the records also go to: wandb, trackio, mlflow, tensorboard, or what another package offers."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints; the last step always has one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that stay, besides the best."""

    def __post_init__(self) -> None:
        if self.warmup + self.decay > 1:
            reason = "train.warmup and train.decay together exceed the whole run"
            raise SettingError(reason, "train.warmup", "train.decay")
        if self.budgets and (1 not in self.budgets or len(set(self.budgets)) < len(self.budgets)):
            reason = f"train.budgets {self.budgets} must be different numbers, 1 among them: what is wanted by default"
            raise SettingError(reason, "train.budgets")
        pieces = 1 if self.micro_batches == "auto" else self.micro_batches
        if self.batch_bytes % (self.sequence_length * pieces):
            raise SettingError(
                f"train.batch_bytes ({self.batch_bytes}) must be a multiple of train.sequence_length x "
                f"train.micro_batches ({self.sequence_length} x {pieces})",
                *("train.batch_bytes", "train.sequence_length", "train.micro_batches"),
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
        """True if a loss needs a teacher."""
        return self.boundary_loss_weight > 0 or self.embedding_loss_weight > 0

    @property
    def rows(self) -> int:
        """Rows of `sequence_length` bytes in a batch."""
        return self.batch_bytes // self.sequence_length

    @property
    def pieces(self) -> int:
        """`micro_batches` as a number; while they are `auto` the most there can be, which need the least memory."""
        return self.rows if self.micro_batches == "auto" else self.micro_batches

    def refuse_less(self, done: int, run: str) -> None:
        """Raise UsageError where these are fewer steps than the run has made."""
        if self.steps < done:
            message = f"train.steps={self.steps:,} is fewer than the {done:,} steps that {run} has made"
            raise UsageError(message, "leave it out, or give more")

    def shared_by(self, ranks: int) -> TrainConfig:
        """The same with as many micro-batches, of at most the same size, as `ranks` can share equally.

        Raises UsageError where a batch cannot be cut so.
        """
        pieces = math.ceil(self.pieces / ranks) * ranks
        if self.rows % pieces:
            can = [each for each in range(1, self.rows + 1) if self.rows % (math.ceil(self.pieces / each) * each) == 0]
            near = sorted(sorted(can, key=lambda each: abs(each - ranks))[:4])
            raise UsageError(
                f"a batch of {self.rows} rows (train.batch_bytes / train.sequence_length) cannot be shared by {ranks} "
                f"ranks in {pieces} micro-batches",
                f"{', '.join(map(str, near))} ranks can; or begin a run whose train.batch_bytes is a multiple of "
                f"{self.sequence_length * pieces}",
            )
        return replace(self, micro_batches=pieces)
