"""Models and training states on disk: saving, finding the newest that verifies, and loading any kind of MODEL.

A model folder is `config.json` and `model.safetensors` (official names). A checkpoint is a model folder with
`optimizer.safetensors`, `random.safetensors` and `state.json` beside. Every folder has a `manifest.json` with sizes and
SHA-256 and appears under its name in one rename. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hnet_cli import storage
from hnet_cli.errors import DamagedError, HNetError, InputError
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.skeleton import skeleton

STARTERS = Path(__file__).parent / "starters"
FORMAT = 1


class LoadedModel(HNetForCausalLM):
    """An `HNetForCausalLM` that knows where it came from."""

    source: Path
    """The model folder."""

    @property
    def modality(self) -> str | None:
        """Name of the modality it was trained on; None if unknown (a converted official model)."""
        return self.config.extra.get("modality")

    def segment(self, data: bytes, stage: int = 0) -> list[bytes]:
        """The learned chunks of `data` at a stage (0 = outermost); joined they are `data`."""
        from hnet_cli.segment import segment_bytes

        return segment_bytes(self, data, stage)


def save_model(folder: Path, model: HNetForCausalLM, extra: Mapping[str, Any], target_ratios: list[float]) -> None:
    """Write `config.json` and `model.safetensors` into a folder being staged, within `storage.os_errors`."""
    config = model.config.to_dict()
    config["hnet"] = config.get("hnet", {}) | {"target_ratios": target_ratios} | dict(extra)
    storage.write_json(folder / "config.json", config)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise DamagedError(f"{path.parent} has no {path.name}", "the folder is not a complete model") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise DamagedError(f"{path} does not hold a JSON object")
    return data


def load_folder(folder: Path, device: str | torch.device = "cpu", kernels: str = "auto") -> LoadedModel:
    """The model in a model folder, float32, in evaluation mode. Raises DamagedError naming the file and the fault."""
    if (folder / "manifest.json").exists():
        storage.verify_folder(folder)
    try:
        config = HNetConfig.from_dict(_json(folder / "config.json"))
    except ValueError as error:
        raise DamagedError(f"{folder / 'config.json'}: {error}") from error
    tensors = _tensors(folder / "model.safetensors")
    model = skeleton(LoadedModel, config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_embeddings and "embeddings.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["embeddings.weight"])
    wrong = [name for name in sorted(wanted.keys() | tensors.keys())
             if name not in tensors or name not in wanted or tensors[name].shape != wanted[name]]  # fmt: skip
    if wrong:
        raise DamagedError(
            f"{folder / 'model.safetensors'} does not fit its config.json: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, first {wrong[0]}"
        )
    model = model.to_empty(device=device)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=False)
    if config.tie_embeddings:
        model.lm_head.weight = model.embeddings.weight
    model.backend = kernels
    model.source = folder
    return model.eval()


def _steps(run: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first; unfinished and deleted ones have other names."""
    return sorted((run / "checkpoints").glob("step-[0-9]*"), reverse=True)


def newest(run: Path, warn: Callable[[str], None] = warnings.warn) -> Path | None:
    """The newest checkpoint that verifies. A damaged one is passed over; `warn` is told which and why."""
    for folder in _steps(run):
        try:
            storage.verify_folder(folder)
            return folder
        except DamagedError as error:
            warn(f"{error}; going back to the checkpoint before it")
    return None


def _best(run: Path) -> Path | None:
    """The checkpoint that the file `best` of a run names, if it is there."""
    try:
        folder = run / "checkpoints" / (run / "best").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder if folder in _steps(run) else None


def find(reference: str | Path) -> Path:
    """The model folder that MODEL means: a run (its best checkpoint), a checkpoint, a converted model, `starter:NAME`.

    Raises InputError where nothing is there, DamagedError where something is there but is no model.
    """
    text = str(reference)
    if text.startswith("starter:"):
        if text not in starters():
            raise InputError(f"no starter model is called {text!r}", f"there are: {', '.join(starters()) or 'none'}")
        return STARTERS / text.removeprefix("starter:")
    folder = Path(reference)
    if not folder.exists():
        raise InputError(f"there is no model at {folder}", "give a run folder, a checkpoint, or starter:text")
    if (folder / "config.json").exists() or (folder / "model.safetensors").exists():
        return folder
    if (folder / "checkpoints").is_dir():
        if (found := _best(folder) or newest(folder)) is not None:
            return found
        raise DamagedError(f"{folder} has no complete checkpoint", "go on training it with --resume")
    raise DamagedError(f"{folder} is not a model: it has neither config.json nor checkpoints/")


def starters() -> list[str]:
    """Names of the starter models that ship with the tool, such as "starter:text"."""
    return sorted(f"starter:{p.parent.name}" for p in STARTERS.glob("*/config.json"))


def load(reference: str | Path, device: str | torch.device = "cpu", kernels: str = "auto") -> LoadedModel:
    """The model that MODEL means (see `find`), ready to use."""
    return load_folder(find(reference), device, kernels)


def modality_of(folder: Path) -> str | None:
    """The modality of a run or model folder, read from its configuration only."""
    try:
        return _json(find(folder) / "config.json").get("hnet", {}).get("modality")
    except (HNetError, AttributeError):
        return None


def default_model(modality: str | None = None) -> str:
    """$HNET_MODEL, else the newest run under `runs/` of this modality (None: of any), else its starter model (text's).

    Raises InputError where there is none.
    """
    if chosen := os.environ.get("HNET_MODEL"):
        return chosen
    saved = sorted(Path("runs").glob("*/latest"), key=lambda path: path.stat().st_mtime, reverse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in (path.parent for path in saved):
            found = modality_of(run)
            if found is not None and found == (modality or found):
                return str(run)
    name = f"starter:{modality or 'text'}"
    if name in starters():
        return name
    raise InputError(f"there is no model{f' for {modality}' if modality else ''} yet", "train one (hnet prepare, hnet "
                     "train), or name one that you have")  # fmt: skip


@dataclass
class TrainingState:
    """Where a run stands: what `state.json` of a checkpoint holds."""

    step: int = 0
    """Optimizer steps done."""
    bytes_seen: int = 0
    best_bpb: float | None = None
    best_step: int | None = None
    skipped_steps: int = 0
    """Steps not taken because the loss or a gradient was not finite."""
    dataset: str = ""
    """Fingerprint of the dataset."""
    probe_depth: str = ""
    """`Decisions.depth` of the last evaluation, which the next one is compared with."""


def _optimizer_tensors(model: HNetForCausalLM, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            yield f"{names[parameter]}|{key}", value.detach().contiguous()


def save_checkpoint(run: Path, model: HNetForCausalLM, optimizer: torch.optim.Optimizer, state: TrainingState,
                    extra: Mapping[str, Any], target_ratios: list[float], keep: int) -> Path:  # fmt: skip
    """Write the checkpoint of `state.step`, point `latest` at it, and remove the ones no longer kept.

    Raises StorageError (disk full, I/O); whatever was there before is whole then.
    """
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    moments = dict(_optimizer_tensors(model, optimizer))
    needed = sum(tensor.nbytes for tensor in (*model.state_dict().values(), *moments.values()))
    staging = storage.staged_folder(folder, overwrite=True, manifest={"kind": "checkpoint", "version": FORMAT})
    with staging as staged, storage.os_errors(folder, needed):
        save_model(staged, model, dict(extra) | {"step": state.step}, target_ratios)
        save_file(moments, staged / "optimizer.safetensors")
        save_file({"torch": torch.get_rng_state()}, staged / "random.safetensors")
        storage.write_json(staged / "state.json", {"format": FORMAT} | vars(state))
    storage.write_text(run / "latest", folder.name + "\n")
    if state.best_step == state.step:
        storage.write_text(run / "best", folder.name + "\n")
    best = _best(run)
    for old in _steps(run)[keep:]:
        if old != best:
            storage.remove_folder(old)
    return folder


def load_checkpoint(folder: Path, model: HNetForCausalLM, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Restore model, optimizer and random state from a verified checkpoint. Raises DamagedError."""
    stored = _json(folder / "state.json")
    version = stored.pop("format", None)
    if version != FORMAT:
        raise DamagedError(f"{folder} has checkpoint format {version}, this version reads {FORMAT}", "update hnet")
    try:
        state = TrainingState(**stored)
    except TypeError as error:
        raise DamagedError(f"{folder / 'state.json'}: {error}") from error
    try:
        model.load_state_dict(_tensors(folder / "model.safetensors"), strict=not model.config.tie_embeddings)
    except RuntimeError as error:
        raise DamagedError(f"{folder / 'model.safetensors'} does not fit the configuration: {error}") from error
    saved = _tensors(folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        keys = [key for key in saved if key.rpartition("|")[0] == name]
        if keys:
            optimizer.state[parameter] = {
                key.rpartition("|")[2]: saved[key].to(parameter.device if saved[key].dim() else "cpu") for key in keys
            }
    torch.set_rng_state(_tensors(folder / "random.safetensors")["torch"])
    return state
