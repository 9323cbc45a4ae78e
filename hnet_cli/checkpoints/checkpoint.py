"""Models and training states on disk: saving, finding the newest that verifies, and loading any kind of MODEL.

A model folder is `config.json` and `model.safetensors` (official names). A checkpoint is a model folder with
`optimizer.safetensors`, `random.safetensors` and `state.json` beside. Every folder has a `manifest.json` with sizes and
SHA-256 and appears under its name in one rename. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file

from hnet_cli import storage
from hnet_cli.checkpoints.safetensors_file import in_order, write_safetensors
from hnet_cli.data import tokens
from hnet_cli.distributed.world import divided_like, whole
from hnet_cli.errors import DamagedError, HNetError, InputError, StorageError, UsageError
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.init import skeleton, stays_float32
from hnet_cli.storage import shown

STARTERS = Path(__file__).parents[1] / "starters"
MODEL_FILES = ("config.json", "model.safetensors")
SETTINGS = "config.yaml"
MODEL_TYPE = "hnet"
"""In the config.json of a model folder, for the library `transformers`."""
FORMAT = 1
"""Of checkpoints."""
WIDENED = 1 << 29
"""Bytes of half-precision weights up to which a model is computed in float32: there it is exact, and memory is no
concern."""
T = TypeVar("T")
Read = Callable[[torch.Tensor], torch.Tensor]


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
        from hnet_cli.inference.segment import segment_bytes

        return segment_bytes(self, data, stage)


def save_model(folder: Path, model: HNetForCausalLM, extra: Mapping[str, Any], target_ratios: list[float],
               read: Read = lambda tensor: tensor) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Write `config.json` and `model.safetensors` into a folder being staged; gives the manifest entry of the last.

    `read` gives the whole of a tensor of the model's state when its turn has come.
    """
    config = model.config.to_dict() | {"model_type": MODEL_TYPE}
    config["hnet"] = config.get("hnet", {}) | {"target_ratios": target_ratios} | dict(extra)
    if model.tokenizer is not None:
        config["hnet"]["tokenizer"] = tokens.FILE
        storage.write_text(folder / tokens.FILE, model.tokenizer.text)
    storage.write_json(folder / "config.json", config)
    return _write_tensors(folder / "model.safetensors", _weights(model), {"format": "pt"}, read)


def _weights(model: HNetForCausalLM) -> dict[str, torch.Tensor]:
    tensors = model.state_dict()
    if model.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None,
                   read: Read = lambda tensor: tensor) -> dict[str, dict[str, Any]]:  # fmt: skip
    with storage.NewFile(path) as file:
        write_safetensors(file, tensors, read, metadata)
    return {path.name: file.entry}


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


def load_folder(
    folder: Path, device: str | torch.device = "cpu", kernels: str = "auto", dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model in a model folder, in evaluation mode. Raises DamagedError naming the file and the fault.

    `dtype` of the weights: by default float32, and bfloat16 for what is larger than `WIDENED`; the residual projections
    and Mamba's D are float32, as in the release. On a CPU what is stored in that dtype is not copied but mapped from
    the file: pages are read when they are needed, and the system may drop them.
    """
    if os.path.lexists(folder / storage.MANIFEST):
        storage.verify_folder(folder, (*MODEL_FILES, tokens.FILE))
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
    if dtype is None:
        halves = sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype.itemsize == 2)
        dtype = torch.bfloat16 if halves > WIDENED else torch.float32
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(device, torch.float32 if stays_float32(name) else dtype)
    model.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embeddings.weight
    model.backend = kernels
    model.source = folder
    if config.extra.get("tokenizer"):
        model.tokenizer = tokens.of_model(folder, config.vocab_size)
    return model.eval()


def _steps(run: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first; unfinished and deleted ones have other names."""
    found = {int(path.name[5:]): path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdecimal()}
    return [found[step] for step in sorted(found, reverse=True)]


def has_any(run: Path) -> bool:
    """Whether a run has checkpoints, whole or not."""
    return bool(_steps(run))


def missing_latest(run: Path) -> Path | None:
    """The checkpoint that the file `latest` of a run names, where it is not there and no newer one is."""
    named = _named(run, "latest")
    steps = _steps(run)
    return named if named is not None and named not in steps and (not steps or named.name > steps[0].name) else None


def verify(folder: Path) -> Path:
    """The checkpoint `folder`, every file of which is as it was written. Raises DamagedError or StorageError."""
    storage.verify_folder(folder)
    step = _json(folder / "state.json").get("step")
    if not isinstance(step, int) or folder.name != f"step-{step:08d}":
        raise DamagedError(f"{folder} is not what it is called: it holds the checkpoint of step {step}")
    return folder


def newest(run: Path, warn: Callable[[str], None] = warnings.warn) -> Path | None:
    """The newest checkpoint that verifies. A damaged one is passed over; `warn` is told which and why."""
    return _first(lambda: _steps(run), verify, warn)


def _first(candidates: Callable[[], list[Path]], use: Callable[[Path], T], warn: Callable[[str], None]) -> T | None:
    """`use` of the first checkpoint that it raises no DamagedError or StorageError for; None if there is none.

    The training may go on meanwhile: where it has just removed what was to be used there are newer ones.
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
    """The checkpoint that the file `latest` or `best` of a run names, there or not; None if it names none."""
    try:
        name = (run / pointer).read_bytes()[:80].decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return run / "checkpoints" / name if re.fullmatch(r"step-\d{8,}", name) else None


def _best(run: Path) -> Path | None:
    """The checkpoint that the file `best` of a run names, if it is there."""
    folder = _named(run, "best")
    return folder if folder in _steps(run) else None


def _best_first(run: Path) -> list[Path]:
    best, steps = _best(run), _steps(run)
    return steps if best is None else [best, *(folder for folder in steps if folder != best)]


def find(reference: str | Path) -> Path:
    """The model folder that MODEL means: a run (its best checkpoint), a checkpoint, a converted model, `starter:NAME`.

    Raises InputError where nothing is there, DamagedError where something is there but is no model.
    """
    return _use(reference, Path, lambda folder: (folder, storage.verify_folder(folder, MODEL_FILES))[0])


def _use(reference: str | Path, one: Callable[[Path], T], of_run: Callable[[Path], T]) -> T:
    """`one` of the model folder that MODEL means; for a run, `of_run` of its best checkpoint, or if that is damaged of
    the newest that is not."""
    text = str(reference)
    if text.startswith("starter:"):
        if text not in starters():
            raise InputError(f"no starter model is called {text!r}", f"there are: {', '.join(starters()) or 'none'}")
        return one(STARTERS / text.removeprefix("starter:"))
    folder = Path(reference)
    if not folder.exists():
        raise InputError(f"there is no model at {folder}", "give a run (runs/NAME), a checkpoint, or starter:text")
    if (folder / "config.json").exists() or (folder / "model.safetensors").exists():
        return one(folder)
    if (folder / "checkpoints").is_dir() or (folder / SETTINGS).exists():
        if (found := _first(lambda: _best_first(folder), of_run, warnings.warn)) is not None:
            return found
        raise DamagedError(f"{folder} has no complete checkpoint", "go on training it with --resume")
    raise DamagedError(f"{folder} is not a model: it has neither config.json nor checkpoints/")


def starters() -> list[str]:
    """Names of the starter models that ship with the tool, such as "starter:text"."""
    return sorted(f"starter:{p.parent.name}" for p in STARTERS.glob("*/config.json"))


def load(
    reference: str | Path, device: str | torch.device = "cpu", kernels: str = "auto", dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model that MODEL means (see `find`), ready to use. `dtype` as in `load_folder`."""
    return _use(reference, *2 * (lambda folder: load_folder(folder, device, kernels, dtype),))


def begin_from(reference: str | Path, model: HNetForCausalLM) -> Path:
    """Give `model` the weights of the model that `reference` means (see `find`); returns that model's folder.

    Raises UsageError where it is of another architecture; else as `load`.
    """
    other = load(reference, dtype=torch.float32)
    theirs, ours = (vars(each.config) | {"target_ratios": None, "extra": None} for each in (other, model))
    if unlike := [f"{name} is {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]:
        raise UsageError(
            f"train.start: {shown(reference)} is another model: {'; '.join(unlike)}",
            "begin with a model of the architecture that is to be trained",
        )
    if len({getattr(each.tokenizer, "text", None) for each in (other, model)}) > 1:
        raise UsageError(
            f"train.start: {shown(reference)} reads other tokens", f"give its tokenizer: {other.source / tokens.FILE}"
        )
    own = model.state_dict()
    model.load_state_dict({name: divided_like(value, own[name]) for name, value in other.state_dict().items()})
    return other.source


def modality_of(folder: Path) -> str | None:
    """The modality of a run or model folder, read from its configuration only."""
    try:
        config = _use(folder, *2 * (lambda folder: _json(folder / "config.json"),))
        return config.get("hnet", {}).get("modality")
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
    skipped_in_a_row: int = 0
    dataset: str = ""
    """Fingerprint of the dataset."""
    probe_depth: str = ""
    """`Decisions.depth` of the last evaluation, which the next one is compared with."""
    watch: dict[str, float] = field(default_factory=dict)
    """What the rules of `Watch` remember."""


def _optimizer_tensors(model: HNetForCausalLM, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            yield f"{names[parameter]}|{key}", value.detach().contiguous()


def size(model: HNetForCausalLM) -> int:
    """Bytes of a checkpoint, about: the weights, and the two moments of AdamW of those that are trained."""
    return sum((3 if parameter.requires_grad else 1) * parameter.nbytes for parameter in model.parameters())


class _Gathering:
    """The whole of tensors that may be divided among ranks, one after the other: all ranks ask, in the same order."""

    def __init__(self, *tensors: dict[str, torch.Tensor]) -> None:
        self.left = deque(each[name].detach() for each in tensors for name in in_order(each))

    def next(self, _: torch.Tensor) -> torch.Tensor:
        return whole(self.left.popleft())

    def rest(self) -> None:
        """For the ranks that write nothing, and the one whose writing failed."""
        while self.left:
            whole(self.left.popleft())


def save_checkpoint(run: Path, model: HNetForCausalLM, optimizer: torch.optim.Optimizer, state: TrainingState,
                    extra: Mapping[str, Any], target_ratios: list[float], keep: int, settings: str = "",
                    is_main: bool = True) -> Path:  # fmt: skip
    """Write the checkpoint of `state.step`, point `latest` at it, and remove the ones no longer kept.

    `settings`: the run's configuration as YAML, sealed with it. Of several ranks all call this, and the main one
    writes. Raises StorageError or BusyError (disk full, I/O, not writable); whatever was there before is whole then.
    """
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    moments = dict(_optimizer_tensors(model, optimizer))
    gathering = _Gathering(_weights(model), moments)
    try:
        if not is_main:
            return folder
        files: dict[str, dict[str, Any]] = {}
        manifest = {"kind": "checkpoint", "files": files}
        staging = storage.staged_folder(folder, overwrite=True, manifest=manifest)
        with staging as staged, storage.os_errors(folder, size(model)):
            files |= save_model(staged, model, dict(extra) | {"step": state.step}, target_ratios, gathering.next)
            files |= _write_tensors(staged / "optimizer.safetensors", moments, None, gathering.next)
            files |= _write_tensors(staged / "random.safetensors", {"torch": torch.get_rng_state()})
            storage.write_json(staged / "state.json", {"format": FORMAT} | vars(state))
            if settings:
                storage.write_text(staged / SETTINGS, settings)
    finally:
        gathering.rest()
    storage.write_text(run / "latest", folder.name + "\n")
    if state.best_step == state.step:
        storage.write_text(run / "best", folder.name + "\n")
    _prune(run, keep, folder)
    return folder


def _prune(run: Path, keep: int, written: Path) -> None:
    """Remove all but the newest `keep` checkpoints that verify, what is newer than those, and the best.

    `written` has just been; a damaged one is no reason to remove a sound one.
    """
    steps, best, sound = _steps(run), _best(run), 0
    for folder in steps if len(steps) > keep else ():
        if sound == keep:
            if folder != best:
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
    stored = _json(folder / "state.json")
    version = stored.pop("format", None)
    if version != FORMAT:
        raise DamagedError(f"{folder} has checkpoint format {version}, this version reads {FORMAT}", "update hnet")
    try:
        state = TypeAdapter(TrainingState).validate_python(TrainingState(**stored), strict=True)
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{folder / 'state.json'} is not the state of a run: {error}") from error
    weights, moments = _tensors(folder / "model.safetensors"), _tensors(folder / "optimizer.safetensors")
    random, own = _tensors(folder / "random.safetensors"), model.state_dict()
    for name in weights.keys() & own.keys():
        if weights[name].shape == own[name].shape:
            weights[name] = divided_like(weights[name], own[name])
    try:
        model.load_state_dict(weights, strict=not model.config.tie_embeddings)
    except RuntimeError as error:
        raise DamagedError(f"{folder / 'model.safetensors'} does not fit the configuration: {error}") from error
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        name, _, kind = key.rpartition("|")
        parameter = parameters.get(name)
        if parameter is None or value.shape not in (parameter.shape, torch.Size()):
            raise DamagedError(f"{folder / 'optimizer.safetensors'} does not fit the model: {key[:100]!a}")
        device = parameter.device  # of AdamW's count of steps too: it is fused
        optimizer.state[parameter][kind] = divided_like(value, parameter) if value.dim() else value.to(device)
    try:
        torch.set_rng_state(random["torch"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise DamagedError(f"{folder / 'random.safetensors'} holds no random state") from error
    return state
