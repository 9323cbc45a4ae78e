"""Trainings of a comparison: ordinary runs in ordinary folders, one after another, or one per GPU at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hnet_cli import storage
from hnet_cli.checkpoints.find import has_any, verify
from hnet_cli.comparison.plan import Plan, Run
from hnet_cli.config.run import to_yaml
from hnet_cli.errors import HNetError, NumericalError, Stopped
from hnet_cli.terminal.console import literal, progress, say
from hnet_cli.terminal.signals import Stop
from hnet_cli.training import plan as planning
from hnet_cli.training.progress import attend

POLL = 0.2
"""Seconds between two looks at the workers."""


def last_checkpoint(run: Run) -> Path | None:
    """The checkpoint of the last step; None where the training has not come so far."""
    folder = run.folder / "checkpoints" / f"step-{run.config.train.steps:08d}"
    try:
        return verify(folder)
    except HNetError:
        return None


def train_all(plan: Plan, stop: Stop) -> dict[str, str]:
    """Train what is not trained yet; the errors of those that failed, by run. Raises Stopped; a later call goes on."""
    left = [run for run in plan.runs if last_checkpoint(run) is None]
    if done := len(plan.runs) - len(left):
        say(f"{done} of {len(plan.runs)} trainings are done.")
    for run in left:
        storage.refuse_if_held(run.folder)  # by a worker whose comparison was killed
        planning.refuse_what_cannot_fit(_plan_of(plan, run))
    return _side_by_side(plan, left, stop) if plan.gpus else _in_turn(plan, left, stop)


def _plan_of(plan: Plan, run: Run) -> planning.Plan:
    return planning.Plan(run.config, plan.data, plan.dataset.about, run.folder, plan.machine)


def _in_turn(plan: Plan, left: Sequence[Run], stop: Stop) -> dict[str, str]:
    failed = {}
    for n, run in enumerate(left, 1):
        refuse_if_stopped(stop, plan)
        try:
            attend(_plan_of(plan, run), label=f"{run.name} ({n} of {len(left)})", resume=_begun(run), brief=True)
        except Stopped as error:
            raise stopped(str(error), plan) from error
        except NumericalError as error:
            failed[run.name] = str(error)
            say(f"[yellow]warning:[/] {literal(run.name)} failed: {literal(str(error))}")
    return failed


def _begun(run: Run) -> bool:
    return (run.folder / "config.yaml").exists() or has_any(run.folder)


def stopped(message: str, plan: Plan) -> Stopped:
    """For a signal."""
    return Stopped(message, f"the same command goes on: hnet compare --run {shlex.quote(str(plan.folder))}")


def refuse_if_stopped(stop: Stop, plan: Plan) -> None:
    """Raises Stopped if a signal has come."""
    if stop.signal:
        raise stopped(f"stopped by {stop.signal}; all that is done is kept in {plan.folder}", plan)


# -- several GPUs ------------------------------------------------------------------------------------------------------


def _side_by_side(plan: Plan, left: Sequence[Run], stop: Stop) -> dict[str, str]:
    """One worker process per GPU: `hnet train` with only that GPU to see. Ctrl-C comes to this process alone."""
    waiting, failed = list(left), dict[str, str]()
    working: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    with progress("training", len(left)) as task:
        try:
            while working or (waiting and not stop.signal):
                for gpu in plan.gpus:
                    if gpu in working and working[gpu][1].poll() is not None:
                        run, worker = working.pop(gpu)
                        if last_checkpoint(run) is None and not stop.signal:
                            failed[run.name] = _last_line(run) or f"the worker ended with {worker.returncode}"
                            say(f"[yellow]warning:[/] {literal(run.name)} failed: {literal(failed[run.name])}")
                    if gpu not in working and waiting and not stop.signal:
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
    refuse_if_stopped(stop, plan)
    return failed


def _worker(plan: Plan, run: Run, gpu: int) -> subprocess.Popen[bytes]:
    storage.make_folder(run.folder)
    file = run.folder.parent / f"{run.name}.yaml"
    storage.write_text(file, to_yaml(dataclasses.replace(run.config, data=str(plan.data))))
    begun = _begun(run)
    arguments = ["--run", str(run.folder), "--data", str(plan.data), "--device", plan.machine.device.partition(":")[0]]
    command = [sys.executable, "-m", "hnet_cli", "train", "--preset", str(file), *arguments, *["--resume"] * begun]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def _last_line(run: Run) -> str:
    """Of the run's own log: what it ended with."""
    with contextlib.suppress(OSError):
        lines = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line[21:] for line in reversed(lines) if line.strip()), "")  # after date and time
    return ""
