"""A comparison from plan to page: trainings that are ordinary runs in ordinary folders, measurements, results."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.checkpoints.find import has_any, verify
from hnet_cli.comparison import plan as planning
from hnet_cli.comparison import tables
from hnet_cli.comparison.measures import Exam, measured
from hnet_cli.comparison.page import page
from hnet_cli.comparison.plan import ComparisonPlan, ComparisonRequest, MemberRun
from hnet_cli.comparison.results import results
from hnet_cli.comparison.verdict import verdict
from hnet_cli.config.run import to_yaml
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.mixture import Mixture
from hnet_cli.distributed.threads import meter
from hnet_cli.errors import HNetError, InputError, NumericalError, Stopped
from hnet_cli.report import history
from hnet_cli.terminal.console import literal, progress, say
from hnet_cli.terminal.process import Stop, catch_signals
from hnet_cli.training import plan as training
from hnet_cli.training.progress import attend

JSON, PAGE = "compare.json", "compare.html"
POLL = 0.2
"""Seconds between two looks at the workers."""


def compare(
    request: ComparisonRequest, *, out: Path | None = None, overwrite: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Plan, train what is not trained, measure what is not measured, write `compare.json` and the page (to `out`).

    `overwrite`: whatever is at `out`, not only a page of hnet's.

    Returns what `compare.json` holds, or with `dry_run` the plan. Raises whatever a plan, a training or an evaluation
    raises; Stopped after a signal: all that is done is kept, and the same call continues.
    """
    if out is not None:
        storage.refuse_output(out, overwrite)
    plan = planning.choose(request)
    exam = Exam.of(plan)
    if plan.machine.device == "cpu" and (busy := meter.note()):
        say(f"[yellow]busy machine:[/] {literal(busy)}, so this takes longer")
    if dry_run:
        return tables.describe(plan, planning.seconds_per_byte(plan))
    with catch_signals() as stop, storage.FolderLock(plan.folder):
        if not (plan.folder / planning.NAME).exists():
            for name in (JSON, PAGE):
                storage.refuse_output(plan.folder / name)
        planning.write(plan, request)
        tables.describe(plan, {})
        failed = _train_all(plan, stop)
        figures = results(plan, exam, _measure_all(plan, exam, stop), failed)
        figures["verdict"] = verdict(figures)
        figures["definitions"] = tables.definitions(figures)
        storage.write_json(plan.folder / JSON, figures)
        where = out or plan.folder / PAGE
        storage.write_output(where, page(figures), overwrite or out is None)
    say(f"Wrote {literal(plan.folder / JSON)} and {literal(where)}.")
    return figures


def _measure_all(plan: ComparisonPlan, exam: Exam, stop: Stop) -> dict[str, dict[str, Any]]:
    """The measurement of every run that is trained, by name. Raises Stopped."""
    measurements = {}
    with progress("measuring", len(plan.runs)) as task:
        for number, run in enumerate(plan.runs):

            def note(what: str, number: int = number, name: str = run.name) -> None:
                _refuse_if_stopped(stop, plan)
                task.update(number, note=f"{name}: {what}")

            if (model := _last_checkpoint(run)) is not None:
                file = plan.folder / "measured" / f"{run.name}.json"
                measurements[run.name] = measured(file, model, exam, plan.machine.device, note)
    return measurements


def _last_checkpoint(run: MemberRun) -> Path | None:
    """The checkpoint of the last step; None where the training has not come so far."""
    try:
        return verify(run.folder / "checkpoints" / f"step-{run.config.train.steps:08d}")
    except HNetError:
        return None


def _train_all(plan: ComparisonPlan, stop: Stop) -> dict[str, str]:
    """Train what is not trained yet; the errors of those that failed, by run. Raises Stopped."""
    left = [run for run in plan.runs if _last_checkpoint(run) is None]
    if done := len(plan.runs) - len(left):
        say(f"{done:,} of {len(plan.runs)} trainings are done.")
    for run in left:
        storage.refuse_if_held(run.folder)  # by a worker whose comparison was killed
        training.refuse_what_cannot_fit(_training_plan(plan, run))
    return _side_by_side(plan, left, stop) if plan.gpus else _in_turn(plan, left, stop)


def _training_plan(plan: ComparisonPlan, run: MemberRun) -> training.Plan:
    return training.Plan(run.config, Mixture([plan.dataset]), run.folder, plan.machine)


def _in_turn(plan: ComparisonPlan, left: Sequence[MemberRun], stop: Stop) -> dict[str, str]:
    failed: dict[str, str] = {}
    for n, run in enumerate(left, 1):
        _refuse_if_stopped(stop, plan)
        _refuse_other_data(plan)
        try:
            label = f"{run.name} ({n} of {len(left)})"
            attend(_training_plan(plan, run), label=label, resume=_has_begun(run), brief=True)
        except Stopped as error:
            raise _stopped(str(error), plan) from error
        except NumericalError as error:
            _fail(failed, run, str(error))
    return failed


def _has_begun(run: MemberRun) -> bool:
    return (run.folder / "config.yaml").exists() or has_any(run.folder)


def _fail(failed: dict[str, str], run: MemberRun, reason: str) -> None:
    failed[run.name] = reason
    say(f"[yellow]warning:[/] {literal(run.name)} failed: {literal(reason)}")


def _stopped(message: str, plan: ComparisonPlan) -> Stopped:
    return Stopped(message, f"the same command goes on: hnet compare --run {shlex.quote(str(plan.folder))}")


def _refuse_if_stopped(stop: Stop, plan: ComparisonPlan) -> None:
    """Raise Stopped if a signal has come."""
    if stop.signal:
        raise _stopped(f"stopped by {stop.signal}; all that is done is kept in {plan.folder}", plan)


def _refuse_other_data(plan: ComparisonPlan) -> None:
    """Raise InputError where another dataset has taken the name since the comparison began."""
    if Dataset.open(plan.data).fingerprint != plan.dataset.fingerprint:
        raise InputError(
            f"{plan.data} was made anew while the comparison ran, so the rest would be trained on other data",
            "restore it, or begin another comparison with --run",
        )


def _side_by_side(plan: ComparisonPlan, left: Sequence[MemberRun], stop: Stop) -> dict[str, str]:
    """One worker process per GPU: `hnet train` with only that GPU visible. Ctrl-C comes to this process alone."""
    waiting, failed = list(left), dict[str, str]()
    working: dict[int, tuple[MemberRun, subprocess.Popen[bytes]]] = {}
    with progress("training", len(left)) as task:
        try:
            while working or (waiting and not stop.signal):
                for gpu in plan.gpus:
                    if gpu in working and working[gpu][1].poll() is not None:
                        run, worker = working.pop(gpu)
                        if _last_checkpoint(run) is None and not stop.signal:
                            _fail(
                                failed, run, history.ending(run.folder) or f"the worker ended with {worker.returncode}"
                            )
                    if gpu not in working and waiting and not stop.signal:
                        _refuse_other_data(plan)
                        run = waiting.pop(0)
                        working[gpu] = run, _worker(plan, run, gpu)
                if stop.signal:
                    for _, worker in working.values():
                        worker.terminate()  # once more is no harm: it is saving
                busy = ", ".join(f"{run.name} on {gpu}" for gpu, (run, _) in sorted(working.items()))
                task.update(len(left) - len(waiting) - len(working), note=busy)
                time.sleep(POLL)
        finally:
            for _, worker in working.values():
                worker.terminate()
            for _, worker in working.values():
                worker.wait()
    _refuse_if_stopped(stop, plan)
    return failed


def _worker(plan: ComparisonPlan, run: MemberRun, gpu: int) -> subprocess.Popen[bytes]:
    storage.make_folder(run.folder)
    file = run.folder.parent / f"{run.name}.yaml"
    storage.write_text(file, to_yaml(replace(run.config, data=str(plan.data))))
    arguments = ["--run", str(run.folder), "--data", str(plan.data), "--device", plan.machine.device.partition(":")[0]]
    arguments += ["--resume"] * _has_begun(run)
    return subprocess.Popen(
        [sys.executable, "-m", "hnet_cli", "train", "--preset", str(file), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)},
        start_new_session=True,
    )
