"""The training loop around `train_step`.

A batch is a pure function of (datasets, seed, step), so a run that is stopped and resumed sees the same batches as one
that never stopped, and on CPU ends with the same bits. A thread prefetches the next batch while a step is computed; on
a GPU the metrics of a step are read while the next one runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hnet_cli import provenance, storage
from hnet_cli.checkpoints.find import begin_from, best_of, has_any, steps_of
from hnet_cli.checkpoints.model_folder import read_json
from hnet_cli.checkpoints.training_state import TrainingState, checkpoint_size, save_checkpoint
from hnet_cli.config.run import RunConfig, TrainConfig, resolve, to_yaml
from hnet_cli.config.sources import DataSource
from hnet_cli.data import baselines, tokens
from hnet_cli.data.baselines import TRAIN_LIMIT
from hnet_cli.data.loader import Batch
from hnet_cli.data.mixture import HeldOut, MixedBatches, Mixture
from hnet_cli.distributed.device import this_machine
from hnet_cli.distributed.world import ALONE, World, own
from hnet_cli.errors import BusyError, NumericalError, Stopped, StorageError
from hnet_cli.report.sources import source_key
from hnet_cli.report.stages import budget_key
from hnet_cli.storage.jsonl import RecordFile
from hnet_cli.terminal.process import Stop, catch_signals
from hnet_cli.training import budget
from hnet_cli.training.build import build_model, multiplies_in_bf16, precision_context
from hnet_cli.training.events import EventLog, Listener
from hnet_cli.training.health import all_finite
from hnet_cli.training.optim import build_optimizer, rate_multipliers, schedule
from hnet_cli.training.pace import Pace
from hnet_cli.training.probe import Probe
from hnet_cli.training.resume import restore, with_its_micro_batches
from hnet_cli.training.step import skips_on_device, train_step
from hnet_cli.training.teacher import Teacher, keep
from hnet_cli.training.validation import PIECE, pinned, validation
from hnet_cli.training.watch import Watch

OVERWRITTEN = ("metrics.jsonl", "samples.jsonl", "events.jsonl", "latest", "best", "report.html", tokens.FILE)
"""Files of a run that are not there before its `config.yaml`."""
MAX_SKIPPED = 3
"""Consecutive skipped steps after which the run ends."""
MAX_FAILED_SAVES = 3
"""Consecutive periodic checkpoints that cannot be written after which the run ends."""
FEWEST_WINDOWS = 16
"""Windows that a validation reads, however short the time."""
SAMPLE_SHARE = 0.01
"""Share of a limited time after which a sample is long enough."""
TRAIN_LIMIT_PER_SECOND = 20_000
"""Bytes that the order-k model is counted on per second of a run with limited time."""
BESIDE = ("xz", "order_k", "k", "uniform")
"""Baselines in the record of a validation."""
CONFIG_STRIDE = 10
"""Steps between updates of `config.yaml` while the number of steps of a run with limited time changes."""
MAX_DOCUMENTS = 100
"""Document indices in the record of a skipped step."""


Between = Callable[[str, int, int | None], None]
"""Called with what goes on between steps ("validation", "checkpoint", "baselines"; "" when steps go on), how much of it
is done, and the total where it is known."""


@dataclass
class Result:
    """A finished run."""

    run: Path
    state: TrainingState
    seconds: float
    last: dict[str, Any]
    """The last validation record."""

    def __repr__(self) -> str:
        bits = f", {self.last['val_bpb']:.3f} bits per byte" if "val_bpb" in self.last else ""
        return f"<{self.run}: {self.state.step:,} steps, {self.seconds:.0f} s{bits}>"


@dataclass
class _PendingStep:
    """A step whose metrics have not been read."""

    step: int
    bytes: int
    """Bytes of all steps so far."""
    pieces: list[Batch]
    train: TrainConfig
    """The schedule of this step."""
    record: Callable[[], dict[str, Any]]


def train(
    config: RunConfig,
    data: Path | Sequence[DataSource],
    run: Path,
    *,
    resume: bool = False,
    strict: bool = False,
    device: str = "cpu",
    seconds: float = math.inf,
    most: float = math.inf,
    listen: Listener = lambda kind, record: None,
    show: Between = lambda name, done, total: None,
    world: World = ALONE,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Train `config` on the dataset at `data`, or a mixture of several, in the folder `run`, to its last step.

    `resume`: continue from the newest checkpoint that is whole; with `strict` from the newest or not at all. Raises
    BusyError (folder in use, or holding a run without `resume`), DamagedError, InputError (dataset too small or
    another), NumericalError (three non-finite steps in a row), Stopped (a signal; the state is saved), StorageError,
    UsageError (a setting that a run cannot change).

    With `seconds` (of `clock`) the run ends in about that time: whenever the pace changes, the schedule is laid out
    anew over as many steps as fit, at most `most`. `config.yaml` has the current number. Validations are spread over
    the time, unless there are none before the last, and read so little that several fit. `show` gets what goes on
    between steps.

    With a `world` of several ranks each calls this. All see the same folders and rank 0 writes. An error on one rank,
    or a signal to it, is raised on all; EnvironmentLimit if a rank is gone.
    """
    events = EventLog(run, listen, silent=not world.is_main)
    with contextlib.ExitStack() as stack:
        pace = None if seconds == math.inf else Pace(seconds, most, clock(), config.train.steps)
        with world.together():
            mixture = Mixture.open(data)
            if resume and config.train.micro_batches == "auto":
                config = with_its_micro_batches(config, run)
            config = budget.settled(config, this_machine(device, world.local_size), world.size)
            if world.is_main:
                stack.enter_context(storage.FolderLock(run))
            stack.enter_context(events.until_the_end())
            stop = stack.enter_context(catch_signals())
            if world.is_main:
                refuse_what_is_there(run, resume)
            if world.local_rank == 0:
                mixture.verify()
        pieces = int(world.largest(config.train.pieces))  # ranks may have seen different amounts of memory
        config = replace(config, train=replace(config.train, micro_batches=pieces))
        trainer = _Trainer(config, mixture, run, torch.device(device), events, stop, world, clock, show)
        return trainer.go(resume, strict, pace)


def refuse_what_is_there(run: Path, resume: bool) -> None:
    """Raise BusyError for a folder with a run, unless that is resumed, or with files of somebody's that a run has."""
    if (run / "config.yaml").exists() or has_any(run):
        if not resume:
            raise BusyError(f"{run} already holds a run", "add --resume to go on with it, or --run NAME for another")
    elif others := [name for name in OVERWRITTEN if os.path.lexists(run / name)]:
        raise BusyError(
            f"{run} holds no run, but a file {others[0]}, which would be overwritten",
            "move it away, or choose another folder with --run NAME",
        )


class _Trainer:
    def __init__(
        self,
        config: RunConfig,
        mixture: Mixture,
        run: Path,
        device: torch.device,
        events: EventLog,
        stop: Stop,
        world: World = ALONE,
        clock: Callable[[], float] = time.monotonic,
        show: Between = lambda name, done, total: None,
    ) -> None:
        train = config.train
        self.show = show
        self.config, self.mixture, self.run, self.device = config, mixture, run, device
        self.events, self.listen, self.stop, self.world = events, events.hear, stop, world
        self.clock = clock
        self.failed_saves = 0
        """Consecutive."""
        self.written = set[Path]()
        """Checkpoints of this process."""
        self.saved: Path | None = None
        """The last checkpoint."""
        self.good: Path | None = None
        """The last checkpoint after which a step had a finite loss."""
        self.moved = False
        """True if the weights are others than those of the checkpoint gone on from, or steps were skipped before it."""
        self.save_due = False
        """True while a periodic checkpoint waits for a step with a finite loss."""
        self.written_steps = train.steps
        """Number of steps in `config.yaml`; 0 where it has another, and is to be written."""
        self.durations = dict[str, float]()
        """Seconds of the last "validation", "checkpoint" and measuring of "baselines"."""
        self.pace: Pace | None = None
        self.is_over = False
        """True for a resumed run that has nothing left to do."""
        self.beside: dict[str, Any] | None = None
        """Baselines on the validation's bytes, once they are measured."""
        self.ended: tuple[int, float] | None = None
        """Last recorded step of a resumed run and its learning rate."""
        self.slices = world.slices(train.rows, train.pieces)
        with world.together():
            length = train.sequence_length
            self.batches = MixedBatches(mixture, sequence_length=length, rows=train.rows, seed=train.seed)
            self.probe = Probe(mixture)
            self._hold_out()
            sharded = budget.is_sharded(config, this_machine(str(device), world.local_size), world.size)
        self._build(sharded=bool(world.largest(sharded)))
        self.ahead = device.type == "cuda" and skips_on_device(self.optimizer)
        """True if a step is started before the metrics of the one before are read."""
        self.pending = deque[_PendingStep]()
        self.prefetched = dict[int, Future[list[Batch]]]()
        """The next step's micro-batches, by step."""
        self.state = TrainingState(dataset=mixture.key)
        self.made = self._made_with()

    def _made_with(self) -> dict[str, Any]:
        with self.autocast():
            names = self.model.kernels().names
        return provenance.made(str(self.device), this_machine(str(self.device), self.world.local_size).name, names)

    def _build(self, sharded: bool) -> None:
        """Make model and optimizer, from the run's seed."""
        config, world = self.config, self.world
        self.autocast = precision_context(config, self.device)
        torch.manual_seed(config.train.seed)
        self.model = build_model(config)
        world.spread(self.model, self.device, sharded, multiplies_in_bf16(config, self.device))
        if config.tokenizer:
            with world.together():
                self.model.tokenizer = tokens.of_run(self.run, config.tokenizer, self.mixture)
                tokens.check_size(self.model.tokenizer, config.model.vocab_size)
        self.optimizer = build_optimizer(self.model, config)

    def go(self, resume: bool, strict: bool = False, pace: Pace | None = None) -> Result:
        """Train to the last step, with records, validations and checkpoints when they are due."""
        start = self.clock()
        self.pace = pace
        self._start(resume, strict)
        self.unlogged_steps, self.log_start = 0, self.clock()
        with ThreadPoolExecutor(1) as self.executor:
            if self.state.step >= self.config.train.steps and not self.is_over:  # it was stopped where it is to end
                self._validate_now()
                self._between_steps("checkpoint", partial(self._save, False))
            while self.state.step < self.config.train.steps:
                self._begin_step()
                self._finish_steps(int(self.ahead))
                if pace is not None:
                    self._reschedule(pace)
                self._validate_and_save_if_due()
        with self.world.together():
            if self.world.is_main and not self.written_steps:
                self._write_config()
        return Result(self.run, self.state, self.clock() - start, self.last)

    # -- start ---------------------------------------------------------------------------------------------------------

    def _start(self, resume: bool, strict: bool) -> None:
        """Restore the newest checkpoint if `resume`, else begin from `train.start` if given, and open the records."""
        world, train = self.world, self.config.train
        if resume:
            self.state = restore(
                self.run, self.config, self.mixture, self.model, self.optimizer, self.listen, strict=strict, world=world
            )
        step = self.state.step
        self.moved = self.state.skipped_in_a_row > 0
        with world.together():
            if self.pace is None:
                train.refuse_less(step, str(self.run))
        self.saved = self.run / "checkpoints" / f"step-{step:08d}" if step else None
        if self.saved is not None and world.is_main:
            self.made = provenance.after(self.made, read_json(self.saved / "config.json").get("hnet"))
        with world.together():
            if not step and train.start:
                source = begin_from(train.start, self.model)
                self.made["start"] = provenance.start(train.start, source)
                if train.taught and world.is_main:
                    keep(source, self.run)
        with world.together():
            self.teacher = Teacher(self.run / "teacher") if train.taught else None
        learned = [chunker.learned for chunker in self.config.model.chunkers]
        self.watch = Watch(learned, round(train.warmup * train.steps), self.state.watch)
        with world.together():
            self._open_records()
            ended = world.is_main and self._has_ended()
        self.is_over = bool(world.of_main(ended))
        with world.together():
            if world.is_main and step and not self.is_over:
                self._write_config()
        if not self.is_over:
            self._compare_with_before()
        if self.pace is not None and train.steps <= step < self.pace.most:  # the time is for more steps
            self.config = replace(self.config, train=replace(train, steps=step + 1))

    def _open_records(self) -> None:
        if self.world.is_main:
            self._warn_of_little_space()
            self._say_what_is_a_link()
            if not self.state.step:
                self._write_config()
            if self.model.tokenizer is not None:
                storage.write_text(self.run / tokens.FILE, self.model.tokenizer.text)
        self.metrics, self.samples = (
            RecordFile(self.run / name, self.state.step, silent=not self.world.is_main)
            for name in ("metrics.jsonl", "samples.jsonl")
        )
        self.events.open(self.state.step)
        self.last: dict[str, Any] = self.metrics.last("val_bpb")

    def _has_ended(self) -> bool:
        """True if the checkpoint gone on from is that of the last step, by the plan of then and that of now."""
        step, train = self.state.step, self.config.train
        if self.saved is None or step < (train.steps if self.pace is None else self.pace.most):
            return False
        sealed = self.saved / "config.yaml"
        planned = resolve(str(sealed)).train.steps if sealed.exists() else train.steps
        return planned <= step and self.last.get("step") == step

    def _compare_with_before(self) -> None:
        """Begin the best anew where validations now read other bytes; remember the rate that the run ended with."""
        before, held_out = self.last.get("val_sample"), self.held_out
        whole = before is None and self.last.get("val_bytes") == held_out.bytes == held_out.total
        if self.world.of_main(bool(self.last) and before != held_out.key and not whole):
            self.state.best_bpb = self.state.best_step = None
            message = (
                f"validations read {held_out.bytes:,} of {held_out.total:,} held-out bytes from now on, other ones "
                "than before: earlier figures are no longer compared with, and the best begins anew"
            )
            self.listen("warning", {"message": message})
        logged = self.metrics.last("lr")
        self.ended = (logged["step"], logged["lr"]) if logged else None

    def _write_config(self) -> None:
        storage.write_text(self.run / "config.yaml", to_yaml(self.config))

    def _say_what_is_a_link(self) -> None:
        for folder in (self.run / "checkpoints", self.run / "tensorboard"):
            if folder.is_symlink():
                target = storage.shown(os.path.realpath(folder))
                message = (
                    f"{folder} is a link: {target} is written to, and only what this process wrote is removed there"
                )
                self.listen("warning", {"message": message})

    def _warn_of_little_space(self) -> None:
        """Warn at the start, not after hours, if the disk cannot hold the checkpoints to come."""
        size, free = checkpoint_size(self.model), storage.free_bytes(self.run)
        if free < 3 * size:
            message = f"{self.run}: {free:,} bytes free, but a checkpoint needs {size:,} and up to three are kept"
            self.listen("warning", {"message": message})

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        train, state = self.config.train, self.state
        with self.world.together():
            pieces = self._next_pieces(state.step)
        histograms = (state.step + 1) % train.log_every == 0 or state.step + 1 == train.steps
        record = train_step(
            self.model,
            self.optimizer,
            pieces,
            state.step,
            self.config,
            self.autocast,
            histograms,
            self.world,
            self.teacher,
            self.ahead,
        )
        state.step += 1
        state.bytes_seen += train.batch_bytes
        self.pending.append(_PendingStep(state.step, state.bytes_seen, pieces, train, record))

    def _next_pieces(self, step: int) -> list[Batch]:
        """This rank's micro-batches of step `step` (0-based). Starts to prefetch those of the next."""
        pieces = self.prefetched.pop(step, None) or self.executor.submit(self._pieces, step)
        self.prefetched = {step + 1: self.executor.submit(self._pieces, step + 1)}
        return pieces.result()

    def _pieces(self, step: int) -> list[Batch]:
        pieces = [self.batches.batch(step, rows) for rows in self.slices]
        if self.model.tokenizer is not None:
            pieces = [tokens.tokenised(piece, self.model.tokenizer) for piece in pieces]
        return [pinned(piece) for piece in pieces] if self.device.type == "cuda" else pieces

    def _finish_steps(self, pending: int = 0) -> None:
        """Read and report the metrics of all but the last `pending` steps. Raises NumericalError: see `_give_up`."""
        while len(self.pending) > pending:
            self._finish_step(self.pending.popleft())

    def _finish_step(self, done: _PendingStep) -> None:
        train, state = done.train, self.state
        record = {"step": done.step, "bytes": done.bytes} | done.record()
        sequences = round(self.world.sums(sum(len(piece.documents) for piece in done.pieces))[0])
        if "skipped" in record:
            state.skipped_steps += 1
            state.skipped_in_a_row += 1
            record["documents"] = self._documents(done.pieces)
            alerts = [("skipped", "the loss or gradient is not finite; step skipped")]
        else:
            state.skipped_in_a_row, self.good, self.moved = 0, self.saved, True
            alerts = self.watch.observe(record, train.batch_bytes, sequences, train.alpha(done.step - 1))
        if alerts:
            record["event"] = ", ".join(dict.fromkeys(name for name, _ in alerts))
        self._warn(done.step, alerts, {key: record[key] for key in ("documents",) if key in record})
        self._warn_of_higher_rate(done)
        self.listen("step", record)
        self.unlogged_steps += 1
        if alerts or done.step == train.steps or done.step % train.log_every == 0:
            self._log_step(record, train.batch_bytes)
        if state.skipped_in_a_row == MAX_SKIPPED:
            self._give_up(done.step)

    def _warn(self, step: int, alerts: list[tuple[str, str]], beside: dict[str, Any] | None = None) -> None:
        for name, message in alerts:
            self.listen("warning", {"step": step, "event": name, "message": f"step {step}: {message}"} | (beside or {}))

    def _warn_of_higher_rate(self, done: _PendingStep) -> None:
        """Say once that a run goes on with a higher learning rate than it ended with, the rise of a warm-up apart."""
        if self.ended is None or (self.pace is not None and not self.pace.is_known):
            return
        (before, rate), self.ended = self.ended, None
        now = done.train.lr * schedule(before - 1, done.train)
        if now > 1.01 * rate:
            goes_on = done.train.lr * schedule(done.step - 1, done.train)
            message = (
                f"the learning rate, {rate:.2g} at step {before}, goes on at {goes_on:.2g}, so the loss rises at first"
            )
            self._warn(done.step, [("higher rate", message)])

    def _log_step(self, record: dict[str, Any], batch_bytes: int) -> None:
        """Write a step's record, with the speed since the last one written."""
        now = self.clock()
        record["bytes_per_s"] = round(batch_bytes * self.unlogged_steps / max(now - self.log_start, 1e-9))
        self.unlogged_steps, self.log_start = 0, now
        self._write(self.metrics, record)
        self.listen("log", record)

    def _write(self, file: RecordFile, record: dict[str, Any]) -> None:
        """Write a record; if that fails now, it is written with the next one or before the next checkpoint."""
        try:
            file.write(record)
        except (StorageError, BusyError) as error:
            self.listen("warning", {"message": f"{error}; training goes on"})

    def _documents(self, pieces: list[Batch]) -> list[int]:
        """Document indices of the whole batch, the first `MAX_DOCUMENTS`."""
        local = sorted({document for piece in pieces for document in piece.documents.tolist()})[:MAX_DOCUMENTS]
        padded = local + [-1] * (MAX_DOCUMENTS - len(local))
        documents = {int(document) for rank in self.world.each(*padded) for document in rank if document >= 0}
        return sorted(documents)[:MAX_DOCUMENTS]

    def _give_up(self, step: int) -> None:
        """Raise NumericalError after `MAX_SKIPPED` skipped steps, the weights saved where they are new.

        With them `--resume` goes on past documents that spoil three steps. Weights that themselves give no finite loss
        stay so at any learning rate; the checkpoint before them is kept.
        """
        self._finish_steps()
        self.state.skipped_in_a_row = 0
        weights, again = f"no step since {self.saved or 'the start'} had one", "--resume makes the same steps again; "
        if self.moved:
            self._save(final=True, keep=self.config.train.keep_checkpoints + 1)
            weights = f"the weights before them are saved in {self.saved}"
            again = "--resume goes on behind these steps; if they stay so, "
        with self.world.together():
            raise self._not_finite(
                f"{MAX_SKIPPED} steps in a row without a finite loss, the last one {step}; {weights}", again
            )

    def _not_finite(self, message: str, again: str = "") -> NumericalError:
        """The error, its hint behind `again`: the way to begin from the last checkpoint known to be good."""
        proven = (folder for folder in (self.good, best_of(self.run)) if folder is not None and folder.exists())
        good, known = next(proven, None), "the last good checkpoint is"
        if good is None and not self.moved:
            earlier = (folder for folder in steps_of(self.run) if self.saved is not None and folder < self.saved)
            good, known = next(earlier, None), "the checkpoint before is"
        begin = f"hnet train --start {shlex.quote(str(good))} --run NEW" if good else "begin anew"
        where = f"{known} {good}" if good else "no earlier checkpoint is known to be good"
        return NumericalError(f"{message}; {where}", f"{again}{begin} with a lower train.lr, or precision=fp32")

    def _reschedule(self, pace: Pace) -> None:
        """Lay the schedule out over the steps that fit into the remaining time."""
        train, step = self.config.train, self.state.step
        now, fitting = self.clock(), self.held_out.bytes
        pace.note(now, step)
        late = now > pace.end - pace.seconds / 2
        if (pace.is_known or late) and not self.last:  # all validations read the same
            fitting = max(FEWEST_WINDOWS * self.held_out.length, pace.affordable(train.batch_bytes))
        fitting = int(self.world.of_main(fitting))
        if fitting < self.held_out.bytes:
            train = replace(train, eval_bytes=fitting)
            self.config, self.written_steps = replace(self.config, train=train), 0
            self._hold_out()
        cost = self._validation_cost(pace)
        last = 1 + sum(budget != 1 for budget in train.budgets)  # passes of the validation at the end
        closing = cost * (last + (pace.validations_left(now, cost) if train.eval_every else 0))
        steps = int(self.world.of_main(pace.total(now, step, closing)))
        if steps != train.steps:
            self.config = replace(self.config, train=replace(train, steps=steps))
            self.listen("shortened", {"step": step, "steps": steps})
        if steps != self.written_steps and (step % CONFIG_STRIDE == 0 or step == steps):
            failed = False
            with self.world.together():
                if self.world.is_main:
                    try:
                        self._write_config()
                    except (StorageError, BusyError) as error:
                        failed = True
                        self.listen("warning", {"message": f"{error}; training goes on"})
            self.written_steps = 0 if self.world.of_main(failed) else steps

    # -- validation and checkpoints ------------------------------------------------------------------------------------

    def _hold_out(self) -> None:
        """Choose the bytes of the validations. Raises InputError where there are none."""
        train = self.config.train
        self.held_out = HeldOut.choose(self.mixture, train.eval_window or train.sequence_length, train.eval_bytes)

    def _validation_cost(self, pace: Pace) -> float:
        """Seconds of a validation and the checkpoint after it."""
        # Before the first validation: a forward pass is about a third of a step.
        estimate = pace.seconds_per_step * self.held_out.bytes / self.config.train.batch_bytes / 3
        return self.durations.get("validation", estimate) + self.durations.get("checkpoint", 0.0)

    def _is_validation_due(self) -> bool:
        every, pace = self.config.train.eval_every, self.pace
        if not every or pace is None:
            return bool(every) and self.state.step % every == 0
        return bool(self.world.of_main(pace.is_due(self.clock(), self._validation_cost(pace))))

    def _validate_and_save_if_due(self) -> None:
        """Raises Stopped if a signal has arrived, the state saved."""
        train, state = self.config.train, self.state
        done = state.step == train.steps
        if done or self._is_validation_due():
            self._validate_now()
        stopping = self._stop_requested() and not done
        self.save_due |= state.step % train.checkpoint_every == 0
        if done or stopping or self.save_due or state.best_step == state.step:
            self._between_steps("checkpoint", partial(self._save, done or stopping))
        if stopping:
            with self.world.together():
                raise Stopped(
                    f"stopped by {self.stop.signal} after step {state.step} of {train.steps}; saved in {self.run}",
                    f"go on with: hnet train --run {shlex.quote(str(self.run))} --resume",
                )

    def _validate_now(self) -> None:
        if self.beside is None:
            self._between_steps("baselines", self._measure_beside)
        self._between_steps("validation", self._validate)

    def _stop_requested(self) -> bool:
        """True if any rank has received a signal; `self.stop` then has it on all."""
        number = int(self.world.largest(int(signal.Signals[self.stop.signal]) if self.stop.signal else 0))
        if number:
            self.stop.signal = signal.Signals(number).name
        return number > 0

    def _between_steps(self, name: str, act: Callable[[], None]) -> None:
        """Finish all steps, then act; its duration is noted, and left out of the steps' speed."""
        self._finish_steps()
        start = self.clock()
        self.show(name, 0, None)
        act()
        self.show("", 0, None)
        self.durations[name] = self.clock() - start
        self.log_start += self.durations[name]
        if self.pace is not None:
            self.pace.pause(self.durations[name])

    def _measure_beside(self) -> None:
        limit = TRAIN_LIMIT if self.pace is None else min(TRAIN_LIMIT, int(TRAIN_LIMIT_PER_SECOND * self.pace.seconds))
        with self.world.together():
            self.beside = self._beside(limit) if self.world.is_main else {}

    def _beside(self, limit: int) -> dict[str, Any]:
        """Baselines on the bytes of a validation. Of a mixture those of each source, who are told which it is, and
        their means in its shares."""
        held_out, each = self.held_out, [baselines.beside(part, limit) for part in self.held_out.parts]
        if len(each) == 1:
            return {name: value for name in BESIDE if (value := each[0].get(name)) is not None}
        figures = dict[str, Any]()
        for name in BESIDE:
            values = [found[name] for found in each if found.get(name) is not None]
            if len(values) == len(each):
                mean = sum(share * value for share, value in zip(held_out.shares, values, strict=True))
                figures[name] = mean if name != "k" else values[0] if len(set(values)) == 1 else "k"
        for source, found in zip(held_out.names, each, strict=True):
            figures |= {source_key(name, source): found[name] for name in BESIDE if found.get(name) is not None}
        return figures

    def _validate(self) -> None:
        train, state, sharded = self.config.train, self.state, self.world.sharded
        piece, ratios = min(PIECE, train.batch_bytes // train.pieces), train.ratios(state.step)
        with self.autocast():

            def validated(budget: float = 1) -> dict[str, Any]:
                def show(done: int) -> None:
                    self.show("validation", done, self.held_out.bytes)

                return validation(self.model, self.held_out, ratios, piece, self.world, show, budget)

            scores = validated()
            if state.step == train.steps:
                others = [budget for budget in train.budgets if budget != 1]
                scores |= {budget_key(budget): validated(budget)["bpb"] for budget in others}
            decisions = self.probe.decide(self.model, sharded) if self.world.is_main or sharded else None
        position = {"step": state.step, "bytes": state.bytes_seen}
        scores |= {"of": self.held_out.total, "sample": self.held_out.key} | (self.beside or {})
        scores |= {"completions": 1} if all(part.dataset.prompted for part in self.held_out.parts) else {}
        if len(self.held_out.parts) > 1:
            epochs = self.batches.epochs(state.step)
            sources = zip(self.held_out.names, self.held_out.shares, self.held_out.parts, epochs, strict=True)
            for source, share, part, times in sources:
                figures = {"share": share, "of": part.of, "epochs": times}
                scores |= {source_key(name, source): value for name, value in figures.items()}
        record = position | {f"val_{name}": value for name, value in scores.items()}
        if decisions is not None:
            if state.probe_depth:
                record |= self.probe.flips(state.probe_depth, decisions.depth, len(train.target_ratios))
            state.probe_depth = decisions.depth
            if train.samples:
                deadline = math.inf if self.pace is None else self.clock() + SAMPLE_SHARE * self.pace.seconds
                seed = None if sharded else state.step
                sample = self.probe.record(self.model, decisions, seed, lambda: self.clock() > deadline)
                self._write(self.samples, position | sample)
        self._write(self.metrics, record)
        self.last = record
        if math.isfinite(scores["bpb"]) and (state.best_bpb is None or scores["bpb"] < state.best_bpb):
            state.best_bpb, state.best_step = scores["bpb"], state.step
        self.listen("eval", record)
        self._warn(state.step, self.watch.validated(record))

    def _save(self, final: bool, keep: int | None = None) -> None:
        """Write a checkpoint. Raises NumericalError, and writes nothing, if weights or moments are not finite.

        A periodic checkpoint that cannot be written is a warning, the third in a row an error; so is a `final` one.
        A periodic one waits for the next step with a finite loss: until then its weights may be of no use.
        """
        if self.state.skipped_in_a_row and not final and self.state.best_step != self.state.step:
            return
        self.save_due = False
        moments = (value for values in self.optimizer.state.values() for value in values.values())
        finite = all_finite([own(tensor) for tensor in (*self.model.state_dict().values(), *moments)])
        broken = self.world.largest(not finite)
        with self.world.together():
            if broken:
                raise self._not_finite(f"after step {self.state.step} the weights or AdamW's moments are not finite")
        with self.world.together():
            try:
                self._write_checkpoint(keep or self.config.train.keep_checkpoints)
            except (StorageError, BusyError) as error:
                self.failed_saves += 1
                if final or self.failed_saves >= MAX_FAILED_SAVES:
                    raise
                self.listen("warning", {"message": f"{error}; training goes on"})

    def _write_checkpoint(self, keep: int) -> None:
        config, train = self.config, self.config.train
        error: Exception | None = None
        try:
            for records in (self.metrics, self.samples, self.events):
                records.sync()
        except Exception as raised:
            error = raised
        if self.world.largest(error is not None):  # no rank gathers weights that another does not send
            if error is not None:
                raise error
            return
        self.saved = save_checkpoint(
            self.run,
            self.model,
            self.optimizer,
            self.state,
            {
                "modality": self.mixture.modality,
                "sequence_length": train.sequence_length,
                "lr": train.lr,
                "lr_multipliers": rate_multipliers(config),
                "preset": config.name,
                "made": self.made,
            },
            train.ratios(),
            keep,
            to_yaml(config),
            self.world.is_main,
            self.written,
        )
        self.failed_saves = 0
        self.listen("checkpoint", {"step": self.state.step})
