"""Training: the loop around `train_step`.

A batch is a pure function of (dataset, seed, step), so a run that is stopped and resumed sees what the run never
stopped would have seen, and on CPU ends with the same bits. While a step is computed a thread makes the next batch; on
a GPU the numbers of a step are read while the next one runs.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hnet_cli import storage
from hnet_cli.checkpoints.find import begin_from, has_any
from hnet_cli.checkpoints.training_state import TrainingState, checkpoint_size, save_checkpoint
from hnet_cli.config.run import RunConfig, TrainConfig, to_yaml
from hnet_cli.data import tokens
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batch, Batches
from hnet_cli.distributed.world import ALONE, World, own
from hnet_cli.errors import BusyError, NumericalError, Stopped, StorageError
from hnet_cli.storage.jsonl import RecordFile
from hnet_cli.terminal.process import Stop, catch_signals
from hnet_cli.training import budget
from hnet_cli.training.events import EventLog, Listener
from hnet_cli.training.health import all_finite
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.pace import Pace
from hnet_cli.training.probe import Probe
from hnet_cli.training.resume import restore, with_its_micro_batches
from hnet_cli.training.step import begin_step, build_model, multiplies_in_bf16, precision_context, skips_on_device
from hnet_cli.training.teacher import Teacher, keep
from hnet_cli.training.validation import PIECE, pinned, validation
from hnet_cli.training.watch import Watch

MAX_SKIPPED = 3
"""Steps in a row with a loss or gradient that is not finite before the run gives up."""
SHOWN = 10
"""Steps between two updates of `config.yaml` while the number of steps of a run with limited time changes."""
MOST_DOCUMENTS = 100
"""In the record of a skipped step."""


@dataclass
class Result:
    """What a finished run came to."""

    run: Path
    state: TrainingState
    seconds: float
    last: dict[str, Any]
    """The last validation record."""


@dataclass
class _Begun:
    """A step whose numbers have not been read."""

    step: int
    bytes: int
    """Of all steps so far."""
    pieces: list[Batch]
    train: TrainConfig
    """The schedule that the step went by."""
    numbers: Callable[[], dict[str, Any]]


def train(
    config: RunConfig,
    data: Path,
    run: Path,
    *,
    resume: bool = False,
    strict: bool = False,
    device: str = "cpu",
    seconds: float = math.inf,
    listen: Listener = lambda kind, record: None,
    world: World = ALONE,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Train `config` on the dataset at `data` in the folder `run`, to its last step.

    `resume`: go on from the newest checkpoint that is whole; with `strict` from the newest or not at all. Raises
    BusyError (folder in use, or holding a run without `resume`), DamagedError, InputError (dataset too small or
    another), NumericalError (three non-finite steps in a row), Stopped (a signal; the state is saved), StorageError,
    UsageError (a setting that a run cannot change).

    Where `seconds` (of `clock`) are given the run ends in about that time: the schedule is laid out anew over as many
    steps as fit, at most those of `config`, whenever the pace changes. `config.yaml` then says how many these are.

    With a `world` of several ranks each calls this: all see the same folders, rank 0 writes, and what one rank raises
    (or a signal that it gets) all raise. EnvironmentLimit where one is gone.
    """
    events = EventLog(run, listen, silent=not world.is_main)
    with contextlib.ExitStack() as held:
        pace = None if seconds == math.inf else Pace(seconds, config.train.steps, clock())
        with world.together():
            dataset = Dataset.open(data)
            if resume and config.train.micro_batches == "auto":
                config = with_its_micro_batches(config, run)
            config = budget.settled(config, budget.machine(device, world.local_size), world.size)
            if world.is_main:
                held.enter_context(storage.FolderLock(run))
            held.enter_context(events.until_the_end())
            stop = held.enter_context(catch_signals())
            if world.is_main and not resume and ((run / "config.yaml").exists() or has_any(run)):
                raise BusyError(
                    f"{run} already holds a run", "add --resume to go on with it, or --run NAME for another"
                )
            if world.local_rank == 0:
                dataset.verify()
        pieces = int(world.largest(config.train.pieces))  # ranks may have seen different amounts of memory
        config = replace(config, train=replace(config.train, micro_batches=pieces))
        trainer = _Trainer(config, dataset, run, torch.device(device), events, stop, world, clock)
        return trainer.go(resume, strict, pace)


class _Trainer:
    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        run: Path,
        device: torch.device,
        events: EventLog,
        stop: Stop,
        world: World = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        train = config.train
        self.config, self.dataset, self.run, self.device = config, dataset, run, device
        self.events, self.listen, self.stop, self.world = events, events.hear, stop, world
        self.clock = clock
        self.failed_saves = 0
        """In a row."""
        self.saved: Path | None = None
        """The last checkpoint, and the last of which a step with a finite loss has shown that it is good."""
        self.good: Path | None = None
        self.shown = train.steps
        """Steps of the run that `config.yaml` speaks of."""
        self.took = dict[str, float]()
        """Seconds of the last validation ("eval") and of the last checkpoint ("checkpoint")."""
        self.slices = world.slices(train.rows, train.pieces)
        with world.together():
            self.batches = Batches(dataset, sequence_length=train.sequence_length, rows=train.rows, seed=train.seed)
            self.probe = Probe(dataset)
            here = budget.machine(str(device), world.local_size)
            sharded = budget.is_sharded(config, here, world.size)
        sharded = bool(world.largest(sharded))
        self.autocast = precision_context(config, device)
        torch.manual_seed(train.seed)
        self.model = build_model(config)
        world.spread(self.model, device, sharded, multiplies_in_bf16(config, device))
        if config.tokenizer:
            with world.together():
                self.model.tokenizer = tokens.of_run(run, config.tokenizer, dataset)
                tokens.check_size(self.model.tokenizer, config.model.vocab_size)
        self.optimizer = build_optimizer(self.model, config)
        self.ahead = device.type == "cuda" and skips_on_device(self.optimizer)
        """Whether a step begins before the numbers of the one before it are read."""
        self.begun = deque[_Begun]()
        self.making = dict[int, Future[list[Batch]]]()
        """The next batch."""
        self.state = TrainingState(dataset=dataset.fingerprint)
        self.extra = {"modality": dataset.modality, "sequence_length": train.sequence_length, "preset": config.name}

    def go(self, resume: bool, strict: bool = False, pace: Pace | None = None) -> Result:
        """Steps to the last one, with records, validations and checkpoints where they are due."""
        began = self.clock()
        if resume:
            self.state = restore(
                self.run,
                self.config,
                self.dataset,
                self.model,
                self.optimizer,
                self.listen,
                strict=strict,
                world=self.world,
            )
        self.teacher = self._begin()
        train, state = self.config.train, self.state
        self.saved = self.run / "checkpoints" / f"step-{state.step:08d}" if state.step else None
        learned = [chunker.learned for chunker in self.config.model.chunkers]
        self.watch = Watch(learned, round(train.warmup * train.steps), state.watch)
        with self.world.together():
            self._open_records()
        self.timed, self.since = 0, self.clock()
        with ThreadPoolExecutor(1) as self.maker:
            while state.step < self.config.train.steps:
                self._begin_step()
                self._finish_steps(int(self.ahead))
                if pace is not None:
                    self._fit(pace)
                self._do_what_is_due()
        return Result(self.run, state, self.clock() - began, self.last)

    def _do_what_is_due(self) -> None:
        """Validation and checkpoint after a step. Raises Stopped, the state saved."""
        train, state = self.config.train, self.state
        done = state.step == train.steps
        if done or (train.eval_every and state.step % train.eval_every == 0):
            self._timed("eval", self._validate)
        stopping = self._is_asked_to_stop() and not done
        if done or stopping or state.step % train.checkpoint_every == 0 or state.best_step == state.step:
            self._timed("checkpoint", partial(self._save, done or stopping))
        if stopping:
            with self.world.together():
                raise Stopped(
                    f"stopped by {self.stop.signal} after step {state.step} of {train.steps}; saved in {self.run}",
                    f"go on with: hnet train --run {shlex.quote(str(self.run))} --resume",
                )

    def _timed(self, what: str, act: Callable[[], None]) -> None:
        """What needs the numbers of all steps, and is no part of their speed."""
        self._finish_steps()
        began = self.clock()
        act()
        self.took[what] = self.clock() - began
        self.since += self.took[what]

    def _open_records(self) -> None:
        if self.world.is_main:
            self._warn_of_little_space()
            storage.write_text(self.run / "config.yaml", to_yaml(self.config))
            if self.model.tokenizer is not None:
                storage.write_text(self.run / tokens.FILE, self.model.tokenizer.text)
        self.metrics, self.samples = (
            RecordFile(self.run / name, self.state.step, silent=not self.world.is_main)
            for name in ("metrics.jsonl", "samples.jsonl")
        )
        self.events.open(self.state.step)
        self.last: dict[str, Any] = next((record for record in reversed(self.metrics.kept) if "val_bpb" in record), {})

    def _is_asked_to_stop(self) -> bool:
        """Whether a signal has come, to any rank."""
        heard = int(signal.Signals[self.stop.signal]) if self.stop.signal else 0
        if heard := int(self.world.largest(heard)):
            self.stop.signal = signal.Signals(heard).name
        return heard > 0

    def _begin(self) -> Teacher | None:
        """What a run begins with, and the teacher that it keeps for life."""
        train = self.config.train
        with self.world.together():
            if not self.state.step and train.start:
                source = begin_from(train.start, self.model)
                if train.taught and self.world.is_main:
                    keep(source, self.run)
        with self.world.together():
            return Teacher(self.run / "teacher") if train.taught else None

    def _begin_step(self) -> None:
        train, state = self.config.train, self.state
        with self.world.together():
            pieces = self._pieces(state.step)
        logged = (state.step + 1) % train.log_every == 0 or state.step + 1 == train.steps
        numbers = begin_step(
            self.model,
            self.optimizer,
            pieces,
            state.step,
            self.config,
            self.autocast,
            logged,
            self.world,
            self.teacher,
            self.ahead,
        )
        state.step += 1
        state.bytes_seen += train.batch_bytes
        self.begun.append(_Begun(state.step, state.bytes_seen, pieces, train, numbers))

    def _finish_steps(self, but: int = 0) -> None:
        """Read and tell the numbers of all steps begun, `but` the last ones. Raises NumericalError, the state saved."""
        while len(self.begun) > but:
            self._finish(self.begun.popleft())

    def _finish(self, begun: _Begun) -> None:
        train, state = begun.train, self.state
        record = {"step": begun.step, "bytes": begun.bytes} | begun.numbers()
        sequences = round(self.world.sums(sum(len(piece.documents) for piece in begun.pieces))[0])
        if "skipped" in record:
            state.skipped_steps += 1
            state.skipped_in_a_row += 1
            record["documents"] = self._documents(begun.pieces)
            told = [("skipped", "the loss or gradient is not finite; step skipped")]
        else:
            state.skipped_in_a_row, self.good = 0, self.saved
            told = self.watch.observe(record, train.batch_bytes, sequences, train.alpha(begun.step - 1))
        if told:
            record["event"] = ", ".join(dict.fromkeys(name for name, _ in told))
        for name, message in told:
            warning = {"step": begun.step, "event": name, "message": f"step {begun.step}: {message}"}
            self.listen("warning", warning | {key: record[key] for key in ("documents",) if key in record})
        self.listen("step", record)
        self.timed += 1
        if begun.step == train.steps or begun.step % train.log_every == 0 or told:
            now = self.clock()
            record["bytes_per_s"] = round(train.batch_bytes * self.timed / max(now - self.since, 1e-9))
            self.timed, self.since = 0, now
            self._record(self.metrics, record)
            self.listen("log", record)
        if state.skipped_in_a_row == MAX_SKIPPED:
            self._give_up(begun.step)

    def _documents(self, pieces: list[Batch]) -> list[int]:
        """Those of the batch, at most `MOST_DOCUMENTS`."""
        own_ones = sorted({document for piece in pieces for document in piece.documents.tolist()})[:MOST_DOCUMENTS]
        padded = own_ones + [-1] * (MOST_DOCUMENTS - len(own_ones))
        found = {int(document) for each in self.world.each(*padded) for document in each if document >= 0}
        return sorted(found)[:MOST_DOCUMENTS]

    def _pieces(self, step: int) -> list[Batch]:
        """This rank's micro-batches of the batch after `step` steps; those of the next are begun."""
        this = self.making.pop(step, None) or self.maker.submit(self._make, step)
        self.making = {step + 1: self.maker.submit(self._make, step + 1)}
        return this.result()

    def _make(self, step: int) -> list[Batch]:
        pieces = [self.batches.batch(step, rows) for rows in self.slices]
        if self.model.tokenizer is not None:
            pieces = [tokens.tokenised(piece, self.model.tokenizer) for piece in pieces]
        return [pinned(piece) for piece in pieces] if self.device.type == "cuda" else pieces

    def _fit(self, pace: Pace) -> None:
        """Lay the schedule out over the steps that the time left allows."""
        train, step = self.config.train, self.state.step
        # a forward pass is about a third of a step; nobody has timed the last validation before the first
        validating = pace.seconds_per_step * min(train.eval_bytes, self.dataset.nbytes("val")) / train.batch_bytes / 3
        closing = self.took.get("eval", validating) + self.took.get("checkpoint", 0.0)
        steps = int(self.world.of_main(pace.total(self.clock(), step, closing)))
        if steps != train.steps:
            self.config = replace(self.config, train=replace(train, steps=steps))
            self.listen("shortened", {"step": step, "steps": steps})
        if steps != self.shown and (step % SHOWN == 0 or step == steps):
            self.shown = steps
            with self.world.together():
                if self.world.is_main:
                    storage.write_text(self.run / "config.yaml", to_yaml(self.config))

    def _warn_of_little_space(self) -> None:
        """A disk that cannot hold the checkpoints to come is better known now than after hours."""
        size, free = checkpoint_size(self.model), storage.free_bytes(self.run)
        if free < 3 * size:
            message = f"{self.run}: {free:,} bytes free, but a checkpoint needs {size:,} and up to three are kept"
            self.listen("warning", {"message": message})

    def _record(self, journal: RecordFile, record: dict[str, Any]) -> None:
        """What cannot be written now is written with what comes next, or before the next checkpoint."""
        try:
            journal.write(record)
        except (StorageError, BusyError) as error:
            self.listen("warning", {"message": f"{error}; training goes on"})

    def _give_up(self, step: int) -> None:
        self._finish_steps()
        self.state.skipped_in_a_row = 0
        self._save(final=True)
        with self.world.together():
            raise self._not_finite(
                f"{MAX_SKIPPED} steps in a row without a finite loss, the last one {step}; the weights "
                f"before them are saved in {self.saved}"
            )

    def _not_finite(self, message: str) -> NumericalError:
        good = self.good if self.good and self.good.exists() else None
        known = f"the last good checkpoint is {good}" if good else "no earlier checkpoint is known to be good"
        return NumericalError(f"{message}; {known}", "try a lower train.lr, or precision=fp32")

    def _validate(self) -> None:
        train, state = self.config.train, self.state
        piece = min(PIECE, train.batch_bytes // train.pieces)
        with self.autocast():
            scored = validation(
                self.model,
                self.dataset,
                train.sequence_length,
                train.eval_bytes,
                train.ratios(state.step),
                piece,
                self.world,
            )
            sharded = self.world.sharded
            decisions = self.probe.decide(self.model, sharded) if self.world.is_main or sharded else None
        at = {"step": state.step, "bytes": state.bytes_seen}
        record = at | {f"val_{k}": v for k, v in scored.items()}
        if decisions is not None:
            if state.probe_depth:
                record |= self.probe.flips(state.probe_depth, decisions.depth, len(train.target_ratios))
            state.probe_depth = decisions.depth
            if train.samples:
                sample = self.probe.record(self.model, decisions, None if sharded else state.step)
                self._record(self.samples, at | sample)
        self._record(self.metrics, record)
        self.last = record
        if math.isfinite(scored["bpb"]) and (state.best_bpb is None or scored["bpb"] < state.best_bpb):
            state.best_bpb, state.best_step = scored["bpb"], state.step
        self.listen("eval", record)

    def _save(self, final: bool) -> None:
        """A failed periodic save must not kill the run: warn, train on, try again; only the third in a row counts.

        Nothing that is not finite is saved: NumericalError.
        """
        moments = (value for values in self.optimizer.state.values() for value in values.values())
        finite = all_finite([own(tensor) for tensor in (*self.model.state_dict().values(), *moments)])
        with self.world.together():
            if self.world.largest(not finite):
                raise self._not_finite(f"after step {self.state.step} the weights or AdamW's moments are not finite")
        with self.world.together():
            self._write_checkpoint(final)

    def _write_checkpoint(self, final: bool) -> None:
        train = self.config.train
        try:
            self.metrics.sync()
            self.samples.sync()
            self.events.sync()
            self.saved = save_checkpoint(
                self.run,
                self.model,
                self.optimizer,
                self.state,
                self.extra,
                train.ratios(),
                train.keep_checkpoints,
                to_yaml(self.config),
                self.world.is_main,
            )
            self.failed_saves = 0
            self.listen("checkpoint", {"step": self.state.step})
        except (StorageError, BusyError) as error:
            self.failed_saves += 1
            if final or self.failed_saves >= 3:
                raise
            self.listen("warning", {"message": f"{error}; training goes on"})
