"""Resuming a run: from its newest whole checkpoint, if that fits the configuration and dataset."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from hnet_cli.checkpoints.find import has_any, missing_latest, newest
from hnet_cli.checkpoints.training_state import SETTINGS, TrainingState, load_checkpoint
from hnet_cli.config.run import FIXED, RunConfig, differences, resolve
from hnet_cli.data.mixture import Mixture
from hnet_cli.distributed.world import ALONE, World
from hnet_cli.errors import DamagedError, InputError, UsageError
from hnet_cli.model import HNetForCausalLM
from hnet_cli.storage import shown
from hnet_cli.training.events import Listener


def with_its_micro_batches(config: RunConfig, run: Path) -> RunConfig:
    """`config` with the number of micro-batches in the `config.yaml` of a run, if that can be read."""
    with contextlib.suppress(UsageError):
        pieces = resolve(str(run / "config.yaml")).train.micro_batches
        return replace(config, train=replace(config.train, micro_batches=pieces))
    return config


def restore(
    run: Path,
    config: RunConfig,
    mixture: Mixture,
    model: HNetForCausalLM,
    optimizer: torch.optim.Optimizer,
    listen: Listener,
    *,
    strict: bool = False,
    world: World = ALONE,
) -> TrainingState:
    """Load model, optimizer and random state from the newest whole checkpoint of `run`; a fresh state if it has none.

    `listen` receives "warning" for each checkpoint skipped, and "resume" with the step and the settings changed since
    it was written. Raises DamagedError (no checkpoint is whole, or with `strict` the newest is not), InputError
    (another dataset), UsageError (a setting or shares that a run cannot change).

    Rank 0 chooses and verifies; then all ranks read the same folder, however many ranks wrote it.
    """
    with world.together():
        folder = _newest(run, listen, strict) if world.is_main else None
    step = int(world.of_main(-1 if folder is None else int(folder.name[5:])))
    if step < 0:
        return TrainingState(dataset=mixture.key)
    folder = run / "checkpoints" / f"step-{step:08d}"
    with world.together():
        changed = _changes(folder, config)
        state = load_checkpoint(folder, model, optimizer)
        if state.dataset != mixture.key:
            raise _other_data(run, state.dataset, mixture)
    listen("resume", {"step": state.step, "folder": str(folder), "changed": changed})
    return state


def _other_data(run: Path, before: str, mixture: Mixture) -> InputError | UsageError:
    """The error for a run whose data had the key `before`."""
    known = {key.partition(":")[0]: key.partition(":")[2] for key in before.split()}
    here = {dataset.fingerprint: shown(dataset.path) for dataset in mixture.datasets}
    others = [path for fingerprint, path in here.items() if fingerprint not in known]
    if not others and len(here) == len(known):
        were = ", ".join(f"{path}:{known[key]}" for key, path in here.items()) if ":" in before else "their sizes"
        return UsageError(
            f"{run} cannot change the weights of its data, which were {were}",
            "leave --data out, or start another run with --run NAME",
        )
    message = f"{run} was trained on another dataset than {', '.join(others)}"
    if not others:
        message = f"{run} was trained on {len(known)} datasets; {', '.join(here.values())} alone are not all"
    return InputError(message, "give the same --data, or start another run with --run NAME")


def _newest(run: Path, listen: Listener, strict: bool) -> Path | None:
    """The newest checkpoint that is whole; None if there are none."""

    def skip(message: str) -> None:
        if strict:
            raise DamagedError(message.partition(";")[0], "without --strict the run goes on from the one before")
        listen("warning", {"message": message})

    if missing := missing_latest(run):
        skip(f"{missing} is missing; going back to the checkpoint before it")
    folder = newest(run, skip)
    if folder is None:
        if missing or has_any(run):
            raise DamagedError(f"no checkpoint of {run} is whole", "begin another run with --run NAME")
        listen("warning", {"message": f"{run} has no complete checkpoint; starting from the beginning"})
    return folder


def _changes(folder: Path, config: RunConfig) -> list[str]:
    """Settings changed since the checkpoint, as text. Raises UsageError for one that a run cannot change."""
    sealed = folder / SETTINGS
    if not sealed.exists():  # written by an early version
        return []
    changed = differences(resolve(str(sealed)), config)
    refused = {key: values for key, values in changed.items() if key.startswith(FIXED)}
    if refused:
        raise UsageError(
            f"a run cannot change {_diff(refused)}", "leave that as it was, or start another run with --run NAME"
        )
    return [_diff({key: values}) for key, values in changed.items()]


def _diff(changed: dict[str, tuple[object, object]]) -> str:
    return ", ".join(f"{key} from {before} to {now}" for key, (before, now) in changed.items())
