"""Checkpoints of a run: a model folder with `optimizer.safetensors`, `random.safetensors` and `state.json` beside."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from hnet_cli import storage
from hnet_cli.checkpoints.find import best_of, steps_of, verify
from hnet_cli.checkpoints.model_folder import (
    FLOATS,
    HEAD,
    Weights,
    read_json,
    read_tensors,
    save_model,
    weights_of,
    write_tensors,
)
from hnet_cli.checkpoints.safetensors_file import in_order
from hnet_cli.config.bounds import STRICT, typed
from hnet_cli.distributed.world import divided_like, whole
from hnet_cli.errors import BusyError, DamagedError, HNetError
from hnet_cli.model import HNetForCausalLM
from hnet_cli.storage import shown

SETTINGS = "config.yaml"
FORMAT = 1
"""Version of the checkpoint format."""
MOMENT_SETS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
"""State that AdamW and Muon keep of a parameter."""
MOMENTS = set().union(*MOMENT_SETS)
NEVER_NEGATIVE = ("step", "exp_avg_sq")
Count = Annotated[int, Field(ge=0, le=10**15)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]


@dataclass
class TrainingState:
    """Progress of a run, stored as `state.json` of a checkpoint. Bounds hold for what is read from there."""

    __pydantic_config__: ClassVar = STRICT

    step: Count = 0
    """Optimizer steps done."""
    bytes_seen: Count = 0
    best_bpb: Number | None = None
    best_step: Count | None = None
    skipped_steps: Count = 0
    """Steps without an update because the loss or a gradient was not finite."""
    skipped_in_a_row: Count = 0
    dataset: Annotated[str, Field(max_length=1 << 13)] = ""
    """`Mixture.key`: the fingerprint of the dataset; of a mixture those of all, with their weights."""
    probe_depth: Annotated[str, Field(max_length=1 << 16, pattern="^[0-9]*$")] = ""
    """`Decisions.depth` of the last evaluation, for comparison with the next."""
    watch: Annotated[dict[str, Number], Field(max_length=1000)] = field(default_factory=dict)
    """Memory of the rules of `Watch`."""


def _optimizer_tensors(model: HNetForCausalLM, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            yield f"{names[parameter]}|{key}", value.detach().contiguous()


def checkpoint_size(model: HNetForCausalLM) -> int:
    """Approximate bytes of a checkpoint: the weights, and AdamW's two moments of the trained ones."""
    return sum((3 if parameter.requires_grad else 1) * parameter.nbytes for parameter in model.parameters())


class _Gathering:
    """Gathers sharded tensors one at a time; all ranks ask, in the same order."""

    def __init__(self, *tensors: dict[str, torch.Tensor]) -> None:
        self.left = deque(each[name].detach() for each in tensors for name in in_order(each))

    def next(self, _: torch.Tensor) -> torch.Tensor:
        return whole(self.left.popleft())

    def rest(self) -> None:
        """For the ranks that write nothing, and the one whose writing failed."""
        while self.left:
            whole(self.left.popleft())


def save_checkpoint(
    run: Path,
    model: HNetForCausalLM,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    extra: Mapping[str, Any],
    target_ratios: list[float],
    keep: int,
    settings: str = "",
    is_main: bool = True,
    written: set[Path] | None = None,
) -> Path:
    """Write the checkpoint of `state.step`, point `latest` at it, and remove the ones no longer kept.

    `settings`: the run's configuration as YAML, sealed with it. `written`: the checkpoints that this process wrote,
    which this one is added to; where `checkpoints` is a link no others are removed or replaced, for they may be of
    another run. Of several ranks all call this, and the main one writes. Raises StorageError or BusyError (disk full,
    I/O, not writable, another run's); whatever was there before is whole then.
    """
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    own = (written or set()) if folder.parent.is_symlink() else None
    moments = dict(_optimizer_tensors(model, optimizer))
    gathering = _Gathering(weights_of(model), moments)
    try:
        if not is_main:
            return folder
        if os.path.lexists(folder):
            _make_way(folder, own)
        files: dict[str, dict[str, Any]] = {}
        manifest = {"kind": "checkpoint", "files": files}
        staging = storage.staged_folder(folder, overwrite=True, manifest=manifest)
        with staging as staged, storage.os_errors(folder, checkpoint_size(model)):
            files |= save_model(staged, model, dict(extra) | {"step": state.step}, target_ratios, gathering.next)
            files |= write_tensors(staged / "optimizer.safetensors", moments, None, gathering.next)
            files |= write_tensors(staged / "random.safetensors", {"torch": torch.get_rng_state()})
            storage.write_json(staged / "state.json", {"format": FORMAT} | vars(state))
            if settings:
                storage.write_text(staged / SETTINGS, settings)
    finally:
        gathering.rest()
    storage.write_text(run / "latest", folder.name + "\n")
    if state.best_step == state.step:
        storage.write_text(run / "best", folder.name + "\n")
    if written is not None:
        written.add(folder)
    _prune(run, keep, folder, own)
    return folder


def _make_way(folder: Path, own: set[Path] | None) -> None:
    """Remove a damaged checkpoint that is about to be written anew. Raises BusyError for one of another run's."""
    if folder.is_symlink() or (own is not None and folder not in own):
        raise BusyError(
            f"{storage.shown(folder)} may be of another run, for it is behind a link: it is not replaced",
            "remove it, or the link",
        )
    if not _is_sound(folder):
        storage.remove_folder(folder)


def _prune(run: Path, keep: int, written: Path, own: set[Path] | None) -> None:
    """Remove all but the newest `keep` checkpoints that verify, what is newer than those, and the best.

    `written` has just been; a damaged one is no reason to remove a sound one. `own`: those that may be removed; None:
    all but links.
    """
    steps, best, sound = [step for step in steps_of(run) if own is None or step in own], best_of(run), 0
    for folder in steps if len(steps) > keep else ():
        if sound == keep:
            if folder != best and not folder.is_symlink():
                storage.remove_folder(folder)
        elif folder == written or _is_sound(folder):
            sound += 1


def _is_sound(folder: Path) -> bool:
    try:
        return bool(verify(folder))
    except HNetError:
        return False


def load_checkpoint(folder: Path, model: HNetForCausalLM, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Restore model, optimizer and random state from a verified checkpoint. Raises DamagedError."""
    state, own = _read_state(folder), model.state_dict()
    weights, moments, random = (
        read_tensors(folder / f"{name}.safetensors") for name in ("model", "optimizer", "random")
    )
    read = {}
    for name in weights.keys() & own.keys():
        if weights[name].shape == own[name].shape and weights[name].dtype in FLOATS:
            read[name] = divided_like(weights[name].read(), own[name])
    lacking = own.keys() - read.keys() - ({HEAD} if model.config.tie_embeddings else set())
    if unfit := sorted(lacking | weights.keys() - read.keys()):
        names = f"{len(unfit)} tensors are missing, unknown or of another shape, first {unfit[0][:100]!a}"
        raise DamagedError(f"{shown(folder / 'model.safetensors')} does not fit the configuration: {names}")
    model.load_state_dict(read, strict=not model.config.tie_embeddings)
    _restore_moments(folder / "optimizer.safetensors", moments, model, optimizer)
    try:
        torch.set_rng_state(random["torch"].read())
    except (KeyError, TypeError, RuntimeError) as error:
        raise DamagedError(f"{shown(folder / 'random.safetensors')} holds no random state") from error
    return state


def _read_state(folder: Path) -> TrainingState:
    file = folder / "state.json"
    stored = read_json(file)
    version = stored.pop("format", None)
    if version != FORMAT:
        what = f"has checkpoint format {version!r:.40}, this version reads {FORMAT}"
        raise DamagedError(f"{shown(folder)} {what}", "update hnet")
    return typed(TrainingState, stored, shown(file))


def _restore_moments(file: Path, moments: Weights, model: HNetForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    """Give every trained parameter its moments: those that the optimizer itself would keep, float32 numbers.

    Raises DamagedError for any that is missing, unknown, of another shape or dtype, or not finite.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, set[str]] = {}
    for key, stored in moments.items():
        name, _, kind = key.rpartition("|")
        parameter = trained.get(name)
        shape = () if kind == "step" else None if parameter is None else tuple(parameter.shape)
        if parameter is None or kind not in MOMENTS or stored.shape != shape or stored.dtype != torch.float32:
            raise DamagedError(f"{shown(file)} does not fit the model: {key[:100]!a}")
        value = stored.read()
        if not torch.isfinite(value).all() or (kind in NEVER_NEGATIVE and (value < 0).any()):
            raise DamagedError(f"{shown(file)} is damaged: {key[:100]!a} holds what no training leaves")
        found.setdefault(name, set()).add(kind)
        device = parameter.device  # of AdamW's count of steps too: it is fused
        optimizer.state[parameter][kind] = divided_like(value, parameter) if value.dim() else value.to(device)
    for name in trained if found else ():
        if found.get(name) not in MOMENT_SETS:
            raise DamagedError(f"{shown(file)} does not fit the model: {name[:100]!a} lacks a moment")
