"""The screen of a training: a bar with ETA on a terminal, plain lines elsewhere; `log.txt` and the report."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
import traceback
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from hnet_cli import provenance, storage
from hnet_cli.distributed.threads import Meter, meter
from hnet_cli.distributed.world import ALONE, OtherRank, World
from hnet_cli.errors import BusyError, HNetError
from hnet_cli.report import history, run_page
from hnet_cli.report.sources import sources_of, times
from hnet_cli.report.stages import VALIDATION, budgets_of, stage_key, stages_of
from hnet_cli.terminal.console import Task, duration, literal, progress, say, show, size, spark, table
from hnet_cli.training.loggers import Loggers
from hnet_cli.training.loop import Result, train
from hnet_cli.training.plan import Plan
from hnet_cli.training.timing import settle_threads


def follow(
    plan: Plan,
    *,
    resume: bool = False,
    strict: bool = False,
    seconds: float = math.inf,
    most: float = math.inf,
    world: World = ALONE,
) -> Result:
    """Train a plan, if `seconds` are given for about so long and at most `most` steps, and show it; end with a table,
    the report and what to do next."""
    began = time.monotonic()
    if plan.machine.device == "cpu" and 60 <= seconds < math.inf and not resume and world.size == 1:
        settle_threads(plan.config, seconds / 20)
        seconds -= time.monotonic() - began
    result = attend(plan, resume=resume, strict=strict, seconds=seconds, most=most, world=world)
    if world.is_main:
        finish(plan, result)
    return result


def attend(
    plan: Plan,
    *,
    resume: bool = False,
    strict: bool = False,
    seconds: float = math.inf,
    most: float = math.inf,
    world: World = ALONE,
    label: str = "training",
    brief: bool = False,
) -> Result:
    """Train a plan and show it; `brief`: validations in `log.txt` alone.

    Messages are kept in the run's `log.txt`, the traceback of an error too. Of several ranks the main one speaks.
    """
    run = partial(
        train,
        plan.config,
        plan.mixture.sources,
        plan.run,
        resume=resume,
        strict=strict,
        device=plan.machine.device,
        seconds=seconds,
        most=most,
        world=world,
    )
    if not world.is_main:
        return run()
    with contextlib.ExitStack() as held:
        names = [*plan.config.train.loggers, *(["tensorboard"] if plan.config.train.tensorboard else [])]
        loggers = held.enter_context(contextlib.closing(Loggers(names, plan.run, plan.config)))
        limited = seconds < math.inf
        task = held.enter_context(progress(label, total=seconds if limited else plan.config.train.steps))
        screen = _Screen(task, plan.run / "log.txt", loggers, brief, limited, plan.config.train.steps)
        screen.wait(f"made with {provenance.line(provenance.made(plan.machine.device, plan.machine.name))}")
        if plan.machine.device == "cpu" and world.size == 1:
            screen.meter = Meter()
            if busy := meter.note():
                screen.say_busy(busy)
        try:
            return run(listen=screen.hear, show=screen.show_part)
        except BusyError:
            raise  # the log is another process's
        except BaseException as error:
            message = "another rank failed" if isinstance(error, OtherRank) else str(error)
            screen.log(message if isinstance(error, HNetError) else traceback.format_exc())
            if not isinstance(error, KeyboardInterrupt):  # the second: somebody is in a hurry
                with contextlib.suppress(HNetError, MemoryError):
                    run_page.write(plan.run)  # which says that the run has ended, and follows it no more
            raise


class _Screen:
    """The listener of a training: bar, messages, `log.txt`, report and TensorBoard."""

    MOST_UNWRITTEN = 1000
    """Lines of the log that are kept for a disk that takes them again."""
    WINDOW = 30.0
    """Seconds over which the other work on the CPUs is measured."""
    REPORTING, NEXT_REPORT = 0.01, 10.0
    """Share of the time that may go into keeping the report up to date, and seconds between two at the least."""

    def __init__(
        self,
        task: Task,
        log: Path,
        loggers: Loggers | None,
        brief: bool = False,
        limited: bool = False,
        steps: int | None = None,
    ) -> None:
        """`limited`: the bar is of the time that there is, not of the steps, `steps` of them."""
        self.task, self.path, self.note, self.loggers, self.brief = task, log, "", loggers, brief
        self.limited, self.steps, self.began = limited, steps, time.monotonic()
        self.part: Task | None = None
        """Work between steps, shown instead of the steps."""
        self.report_due, self.reporting = 0.0, self.NEXT_REPORT
        """When the report is written next, on the monotonic clock, and seconds from one to the next."""
        self.fitting = 0
        """Steps that a run with limited time was last said to have in the log."""
        self.unwritten: list[str] = []
        self.meter: Meter | None = None
        """Of the other work on the CPUs, until it is said."""

    def hear(self, kind: str, record: dict[str, Any]) -> None:
        """Show and log what `train` reports."""
        if self.loggers is not None:
            self.loggers.hear(kind, record)
        if kind == "step":
            self._move(record["step"])
            if self.meter is not None and self.meter.seconds > self.WINDOW:
                if busy := self.meter.note(computing=True):
                    self.say_busy(busy)
                else:
                    self.meter = Meter()
        elif kind == "log":
            self.note = _line(record)
            self._move(record["step"])
            self.log(f"step {record['step']}  {self.note}")
            self.report()
        elif kind == "eval":
            bits, chunks = f"{record['val_bpb']:.3f}", _chunks(record, VALIDATION)
            on = history.bytes_of(record)
            if not self.brief:
                say(
                    f"step {record['step']:>6d}  validation [bold]{literal(bits)}[/] bits per byte "
                    f"on {literal(on)}  {literal(chunks)}"
                )
            self.log(f"step {record['step']}  validation {bits} bits per byte on {on}  {chunks}")
            if each := ", ".join(f"{source.name} {source.bpb:.3f}" for source in sources_of(record)):
                if not self.brief:
                    say(f"             of these {literal(each)}")
                self.log(f"step {record['step']}  of these {each}")
            self.report()
        elif kind == "shortened":
            self.steps = record["steps"]
            if abs(record["steps"] - self.fitting) > record["steps"] / 10:
                self.fitting = record["steps"]
                self.log(f"step {record['step']}  {record['steps']} steps fit into the time")
        elif kind == "checkpoint":
            self.log(f"step {record['step']}  saved")
        elif kind == "resume":
            changed = "".join(f"; {change}" for change in record["changed"])
            say(f"Going on from step {record['step']:d} ({literal(record['folder'] + changed)}).")
            self.log(f"going on from step {record['step']}{changed}")
            if not self.limited and self.steps is not None and record["step"] >= self.steps:
                done = f"all {record['step']:,} steps are done"
                idle = ", for which other settings are" if record["changed"] else ""
                say(f"It is finished: {literal(done)}. --set train.steps=N goes further{literal(idle)}.")
        elif kind == "warning":
            say(f"[yellow]warning:[/] {literal(record['message'])}")
            self.log(f"warning: {record['message']}")

    def say_busy(self, busy: str) -> None:
        """Say once what else the CPUs have to do, and what to do about it."""
        self.meter = None
        self.log(f"busy machine: {busy}")
        if not self.brief:
            say(
                f"[yellow]busy machine:[/] {literal(busy)}, so this takes longer. End the other work, wait for it, or "
                "go on elsewhere: a stopped run goes on with --resume"
            )

    def _move(self, step: int) -> None:
        """Bring the bar to a step, or to the time."""
        if not self.limited:
            self.task.update(step, note=self.note)
            return
        spent = min(time.monotonic() - self.began, 0.99 * (self.task.total or 0.0))
        of = f" of about {self.steps:,}" if self.fitting and self.steps else ""
        self.task.update(spent, note=f"step {step:,}{of}  {self.note}")

    def show_part(self, name: str, done: int, total: int | None) -> None:
        """Show the validation or saving that begins, its progress, or the steps again."""
        if self.part is not None and self.part.label != name:
            self.part.close()
            self.part = None
        if name and self.part is None:
            self.part = self.task.part(name, total)
        if self.part is not None:
            self.part.update(done, total=total)

    def report(self) -> None:
        """Bring `report.html` up to date, unless that was done just now; that it cannot be must not end a run."""
        began = time.monotonic()
        if began >= self.report_due:
            with contextlib.suppress(HNetError):
                run_page.write(self.path.parent, self.reporting)
            self.reporting = max(self.NEXT_REPORT, (time.monotonic() - began) / self.REPORTING)
            self.report_due = time.monotonic() + self.reporting

    def wait(self, text: str) -> None:
        """A line for `log.txt`, written with the next."""
        self.unwritten = [*self.unwritten, f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n"][-self.MOST_UNWRITTEN :]

    def log(self, text: str) -> None:
        """A line for `log.txt`. One that cannot be written now does not end a run: it is written with the next."""
        self.wait(text)
        with contextlib.suppress(HNetError):
            storage.append_text(self.path, "".join(self.unwritten))
            self.unwritten = []


def _chunks(record: dict[str, Any], prefix: str = "") -> str:
    return ", ".join(
        f"{stage.bytes_per_chunk:.2f} bytes/chunk (target {stage.target_bytes_per_chunk:.1f})"
        + ("" if stage.worth is None else f" worth {stage.worth:.3f} bits")
        for stage in stages_of(record, prefix)
        if stage.bytes_per_chunk
    )


def _line(record: dict[str, Any]) -> str:
    speed = f"{size(record['bytes_per_s'])}/s" if "bytes_per_s" in record else ""
    return f"{record['bpb']:.3f} bpb  {_chunks(record)}  {speed}"


def finish(plan: Plan, result: Result) -> None:
    """The end of a run: validation against the baselines, chunks against target, the report."""
    with progress("writing the report"):
        page = run_page.write(plan.run)
    records = history.read_metrics(plan.run)
    _, losses = history.series(records, "bpb")
    say(f"bits per byte    {spark(losses)}  {losses[-1] if losses else 0:.3f} in training")
    _, ratios = history.series(records, stage_key(0, "bytes_per_chunk"))
    if ratios:
        say(f"bytes per chunk  {spark(ratios)}  {ratios[-1]:.2f}")
    sources = sources_of(result.last)
    beside = history.beside(result.last, plan.mixture.about)
    title = f"on {history.bytes_of(result.last)} held out"
    rows = table(title, "bits per byte", *(literal(source.name) for source in sources))
    own = f"[bold]{result.last['val_bpb']:.3f}[/]" if "val_bpb" in result.last else "not measured"
    rows.add_row(f"this model, {result.state.step} steps", own, *(f"{source.bpb:.3f}" for source in sources))
    for budget, value in budgets_of(result.last).items():
        if budget != 1:
            rows.add_row(f"with chunks {budget:g} times as long", f"{value:.3f}")
    for name, value in beside.items():
        kind = "order-k" if name.startswith("order-") else name
        of_each = (source.baselines.get(kind) for source in sources)
        rows.add_row(name, f"{value:.3f}", *("" if bits is None else f"{bits:.3f}" for bits in of_each))
    if sources:
        rows.add_row("share of the bytes read", "", *(f"{source.share or 0:.1%}" for source in sources))
        rows.add_row("training split read", "", *(times(source.epochs or 0) for source in sources))
    show(rows)
    run = shlex.quote(str(plan.run))
    say(f"Done in {duration(result.seconds)}. Report: {literal(page)}")
    if plan.config.tokenizer:
        say(f"Next: hnet eval {literal(run)}")  # tokens are neither sampled byte by byte nor learned chunks
    else:
        say(f"Next: hnet sample {literal(run)}    hnet segment --model {literal(run)} FILE")
