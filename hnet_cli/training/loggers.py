"""Trackers of experiments that a run's records also go to: `train.loggers`, by name from the group `hnet.loggers`.

A package offers one as an entry point: a callable (run folder, settings) -> `Logger`, which begins nothing before its
first record. That a tracker fails ends no run: it is said once, and it gets no more records.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from hnet_cli import storage
from hnet_cli.config.run import RunConfig, flat, to_data
from hnet_cli.errors import DamagedError, EnvironmentLimit, HNetError, UsageError
from hnet_cli.report.stages import VALIDATION
from hnet_cli.terminal.console import literal, say
from hnet_cli.training.tensorboard import Board

GROUP = "hnet.loggers"
Record = dict[str, Any]


class Logger(Protocol):
    """A listener of `train` that has an end."""

    def hear(self, kind: str, record: Record) -> None:
        """Take a "log" (of a step), an "eval" (of a validation), a "warning" or another record; see `Listener`."""

    def close(self) -> None:
        """End the tracking."""


Factory = Callable[[Path, Mapping[str, Any]], Logger]


def numbers(record: Record) -> dict[str, float]:
    """The figures of a record, "training/bpb" or "validation/bpb"; lists and texts are left out."""
    return {
        f"{'validation' if key.startswith(VALIDATION) else 'training'}/{key.removeprefix(VALIDATION)}": value
        for key, value in record.items()
        if isinstance(value, int | float) and key != "step"
    }


class Loggers:
    """The trackers of a run as one listener; their faults are said once each."""

    def __init__(self, names: Sequence[str], run: Path, config: RunConfig) -> None:
        """Raises UsageError for a name that nothing installed offers, EnvironmentLimit where a package is missing."""
        known = {point.name: point for point in entry_points(group=GROUP)}
        self._loggers: dict[str, Logger] = {}
        for name in dict.fromkeys(names):
            if name not in known:
                raise UsageError(f"train.loggers: there is no {name!r}", f"installed: {', '.join(sorted(known))}")
            with _explained(name):
                self._loggers[name] = known[name].load()(run, dict(flat(to_data(config))))

    def hear(self, kind: str, record: Record) -> None:
        """Pass a record on."""
        self._each(lambda logger: logger.hear(kind, record))

    def close(self) -> None:
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:
                del self._loggers[name]
                about = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                say(f"[yellow]warning:[/] {literal(name)} gets no more records ({literal(about)}); training goes on")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except HNetError:
        raise
    except ImportError as error:
        raise EnvironmentLimit(f"train.loggers: {name} needs a package: {error}", f"pip install {name}") from error
    except Exception as error:
        raise EnvironmentLimit(f"train.loggers: {name} cannot be loaded: {type(error).__name__}: {error}") from error


class Tracker:
    """weights-and-biases and trackio, whose functions are the same: a run of the project "hnet".

    A resumed run goes on under the id in the run's folder; a step that is taken again is written again.
    """

    def __init__(self, package: str, run: Path, settings: Mapping[str, Any]) -> None:
        self.package, self.run, self.settings, self._begun = package, run, settings, False
        self._library: Any = importlib.import_module(package)

    def _begin(self) -> None:
        file = self.run / f"{self.package}.id"
        number = _id(file) or secrets.token_hex(4)
        storage.write_text(file, number)
        name = f"{self.run.resolve().name}-{number}"
        options: dict[str, Any] = {"dir": str(self.run), "id": name} if self.package == "wandb" else {}
        self._library.init(project="hnet", name=name, config=dict(self.settings), resume="allow", **options)
        self._begun = True

    def hear(self, kind: str, record: Record) -> None:
        if kind in ("log", "eval") and "step" in record:
            if not self._begun:
                self._begin()
            self._library.log({"steps": record["step"], **numbers(record)})  # trackio keeps "step" for itself

    def close(self) -> None:
        if self._begun:
            self._library.finish()


class MLflow:
    """A run of MLflow's experiment "hnet", at the tracking URI of the environment."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self.run, self.settings = run, settings
        self._library: Any = importlib.import_module("mlflow")
        self._begun = False

    def _begin(self) -> None:
        mlflow, file = self._library, self.run / "mlflow.id"
        mlflow.set_experiment("hnet")
        number = _id(file)
        started = mlflow.start_run(run_id=number, run_name=None if number else self.run.resolve().name)
        if number is None:
            storage.write_text(file, started.info.run_id)
            mlflow.log_params({key: str(value)[:500] for key, value in self.settings.items()})
        self._begun = True

    def hear(self, kind: str, record: Record) -> None:
        if kind in ("log", "eval") and "step" in record:
            if not self._begun:
                self._begin()
            self._library.log_metrics(numbers(record), step=record["step"])

    def close(self) -> None:
        if self._begun:
            self._library.end_run()


def _id(file: Path) -> str | None:
    """The id that a tracker knows a resumed run by; None of a new one."""
    try:
        text = storage.read_text(file, 64).strip()
    except (FileNotFoundError, DamagedError):
        return None
    return text if re.fullmatch("[0-9a-f]{8,64}", text) else None


def tensorboard(run: Path, settings: Mapping[str, Any]) -> Logger:
    return Board(run)


def wandb(run: Path, settings: Mapping[str, Any]) -> Logger:
    return Tracker("wandb", run, settings)


def trackio(run: Path, settings: Mapping[str, Any]) -> Logger:
    return Tracker("trackio", run, settings)
