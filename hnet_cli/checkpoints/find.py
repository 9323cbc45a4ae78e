"""MODEL as users name it: a run, a checkpoint, a folder, `starter:NAME`, `hf:OWNER/NAME`; checkpoints of a run."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from hnet_cli import storage
from hnet_cli.checkpoints import hub
from hnet_cli.checkpoints.model_folder import MODEL_FILES, STARTERS, LoadedModel, load_folder, read_json
from hnet_cli.config.run import resolve
from hnet_cli.data import tokens
from hnet_cli.distributed.world import divided_like
from hnet_cli.errors import DamagedError, HNetError, InputError, StorageError, UsageError
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.storage import shown
from hnet_cli.storage.jsonl import is_step
from hnet_cli.terminal.console import ago, literal, say

T = TypeVar("T")
MODELS = "give a run (runs/NAME), a checkpoint, a converted model, starter:text, or hf:OWNER/NAME"


def steps_of(run: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first; unfinished and deleted ones have other names."""
    named = (path for path in (run / "checkpoints").glob("step-*") if re.fullmatch("[0-9]{1,18}", path.name[5:]))
    found = {int(path.name[5:]): path for path in named}
    return [found[step] for step in sorted(found, reverse=True)]


def has_any(run: Path) -> bool:
    """True if a run has checkpoints, whole or not."""
    return bool(steps_of(run))


def missing_latest(run: Path) -> Path | None:
    """The checkpoint named by the file `latest` of a run if it is missing and no newer one is there."""
    named = _named(run, "latest")
    steps = steps_of(run)
    return named if named is not None and named not in steps and (not steps or named.name > steps[0].name) else None


def verify(folder: Path) -> Path:
    """Check that every file of a checkpoint is as written; returns `folder`. Raises DamagedError, StorageError."""
    storage.verify_folder(folder)
    step = read_json(folder / "state.json").get("step")
    if not is_step(step) or folder.name != f"step-{step:08d}":
        raise DamagedError(f"{folder} is not what it is called: it holds the checkpoint of step {step!r:.40}")
    return folder


def newest(run: Path, warn: Callable[[str], None] = warnings.warn) -> Path | None:
    """The newest checkpoint that verifies, or None. `warn` is called for each damaged one that is skipped."""
    return _first(lambda: steps_of(run), verify, warn)


def _first(candidates: Callable[[], list[Path]], use: Callable[[Path], T], warn: Callable[[str], None]) -> T | None:
    """`use(folder)` for the first checkpoint for which it does not raise DamagedError or StorageError, or None.

    A training may be running: if it has just removed a candidate, the list is read again.
    """
    gone = True
    while gone:
        gone = False
        for folder in candidates():
            try:
                return use(folder)
            except (DamagedError, StorageError) as error:
                if os.path.lexists(folder):
                    warn(f"{error}; going back to the checkpoint before it")
                else:
                    gone = True
    return None


def _named(run: Path, pointer: str) -> Path | None:
    """The checkpoint that the file `latest` or `best` of a run names, existing or not; None if it names none."""
    try:
        name = storage.read_text(run / pointer, 80).strip()
    except (OSError, HNetError):
        return None
    return run / "checkpoints" / name if re.fullmatch(r"step-\d{8,18}", name, re.ASCII) else None


def best_of(run: Path) -> Path | None:
    """The checkpoint that the file `best` of a run names, if it exists."""
    folder = _named(run, "best")
    return folder if folder in steps_of(run) else None


def _best_first(run: Path) -> list[Path]:
    best, steps = best_of(run), steps_of(run)
    return steps if best is None else [best, *(folder for folder in steps if folder != best)]


def find(reference: str | Path) -> Path:
    """The model folder that MODEL means: a run (its best checkpoint), a checkpoint, a converted model, `starter:NAME`.

    Raises InputError where nothing is there, DamagedError where something is there but is no model.
    """
    return _use(reference, Path, lambda folder: (folder, storage.verify_folder(folder, MODEL_FILES))[0])


def _use(reference: str | Path, one: Callable[[Path], T], of_run: Callable[[Path], T]) -> T:
    """`one(folder)` for the model folder that MODEL means; for a run, `of_run(folder)` for its best checkpoint, or if
    that is damaged for the newest that is not."""
    text = str(reference)
    if text.startswith("starter:"):
        if text not in starters():
            raise InputError(f"no starter model is called {text!r}", f"there are: {', '.join(starters()) or 'none'}")
        return one(STARTERS / text.removeprefix("starter:"))
    if text.startswith(hub.PREFIX):
        return one(hub.fetched(text))
    folder = Path(reference)
    if not folder.exists():
        raise InputError(f"there is no model at {folder}", MODELS)
    if (folder / "config.json").exists() or (folder / "model.safetensors").exists():
        return one(folder)
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").exists():
        if (found := _first(lambda: _best_first(folder), of_run, warnings.warn)) is not None:
            return found
        raise DamagedError(f"{folder} has no complete checkpoint", "go on training it with --resume")
    hint = "`hnet convert` makes a model of official weights" if folder.is_file() else MODELS
    raise DamagedError(f"{folder} is not a model: it has neither config.json nor checkpoints/", hint)


def starters() -> list[str]:
    """Names of the starter models that ship with the tool, such as "starter:text"."""
    return sorted(f"starter:{p.parent.name}" for p in STARTERS.glob("*/config.json"))


def load(
    reference: str | Path, device: str | torch.device = "cpu", kernels: str = "auto", dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model that MODEL means (see `find`), ready to use. `dtype` as in `load_folder`."""
    return _use(reference, *2 * (lambda folder: load_folder(folder, device, kernels, dtype),))


def load_any(reference: str, device: str = "cpu") -> LoadedModel | tokens.Tokenizer:
    """`load`; or the tokenizer of a file. Raises InputError for a file that is none."""
    if Path(reference).is_file():
        try:
            text = storage.read_text(reference, storage.TOKENIZER)
        except DamagedError as error:
            raise InputError(
                f"{shown(reference)} is no tokenizer.json: {error}", "name a model, or such a file"
            ) from error
        return tokens.Tokenizer(text, reference)
    return load(reference, device)


def begin_from(reference: str | Path, model: HNetForCausalLM) -> Path:
    """Copy the weights of the model that `reference` means (see `find`) into `model`; returns its folder.

    The two may differ in what no weight depends on: target ratios, attention windows, and whether a routing module may
    cut a character. Raises UsageError if they differ in more; else as `load`.
    """
    try:
        other = load(reference, dtype=torch.float32)
    except InputError as error:
        raise InputError(f"train.start: {error}", f"--start says where it lies now: {MODELS}") from error
    theirs, ours = (_architecture(each.config) for each in (other, model))
    if unlike := [f"{name} is {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]:
        raise UsageError(
            f"train.start: {shown(reference)} is another model: {'; '.join(unlike)}",
            "leave --preset out and name it with --start: then its architecture is taken",
        )
    if len({getattr(each.tokenizer, "text", None) for each in (other, model)}) > 1:
        raise UsageError(
            f"train.start: {shown(reference)} reads other tokens", f"give its tokenizer: {other.source / tokens.FILE}"
        )
    current = model.state_dict()
    model.load_state_dict({name: divided_like(value, current[name]) for name, value in other.state_dict().items()})
    return other.source


def _architecture(config: HNetConfig) -> dict[str, Any]:
    """Fields of `config` that a model and the one it begins from must share."""
    kinds = tuple("learned" if each.learned else each for each in config.chunkers)
    attention = dataclasses.asdict(config.attn_cfg)
    del attention["window_size"]
    rest = {name: value for name, value in vars(config).items() if name not in ("target_ratios", "extra")}
    return rest | {"chunkers": kinds, "attn_cfg": attention}


def modality_of(folder: Path) -> str | None:
    """The modality of a run or model folder, read from its configuration only."""
    try:
        config = _use(folder, *2 * (lambda folder: read_json(folder / "config.json"),))
        return config.get("hnet", {}).get("modality")
    except (HNetError, AttributeError, OSError, ValueError):
        return None


def default_model(modality: str | None = None, why: str = "") -> str:
    """$HNET_MODEL, else the newest run under `runs/` of this modality (None: of any), a finished one if there is any,
    else its starter model (text's).

    The choice is printed, with `why` it is this modality, and with the state and age of a run. Raises InputError where
    there is none.
    """
    kind = [" ".join(filter(None, (modality, why)))] if modality else []
    if chosen := os.environ.get("HNET_MODEL"):
        return _said(chosen, *kind, "$HNET_MODEL")
    runs = sorted((path.parent for path in Path("runs").glob("*/latest")), key=_age_order)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in runs:
            found = modality_of(run)
            if found is not None and found == (modality or found):
                state = "finished" if _is_finished(run) else "not finished, saved"
                return _said(str(run), *(kind or [found]), f"{state} {ago(_saved(run))}")
    name = f"starter:{modality or 'text'}"
    if name in starters():
        return _said(name, *kind, "comes with hnet, as there is no run for it")
    wanted = f" for {modality}" if modality else ""
    raise InputError(
        f"there is no model{wanted} yet", "train one (hnet prepare, hnet train), or name one that you have"
    )


def _said(model: str, *reasons: str) -> str:
    say(f"Model: [bold]{literal(model)}[/] ({literal('; '.join(reasons))})")
    return model


def _age_order(run: Path) -> tuple[bool, float]:
    return not _is_finished(run), -_saved(run)


def _saved(run: Path) -> float:
    """Time of a run's last checkpoint, in seconds since the epoch; 0 if it is gone."""
    try:
        return (run / "latest").lstat().st_mtime
    except OSError:
        return 0.0


def _is_finished(run: Path) -> bool:
    """True if the checkpoint that `latest` names is the last one its configuration asks for."""
    try:
        folder = _named(run, "latest")
        return folder is not None and int(folder.name[5:]) >= resolve(str(folder / "config.yaml")).train.steps
    except (HNetError, OSError):
        return False
