"""Conversion of official checkpoints, `.pt` or safetensors, to model folders and back. Nothing is executed.

The parameter names are the same on both sides, so converting is reading safely, checking every name and shape against
the configuration, and writing whole. Tensors pass one at a time with the dtype they have; only a `.pt` to be written is
gathered in memory.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import torch

from hnet_cli import provenance, storage
from hnet_cli.checkpoints import hub
from hnet_cli.checkpoints.find import find
from hnet_cli.checkpoints.model_folder import EMBEDDING, FLOATS, HEAD, MODEL_TYPE, Weights, checked, expected_shapes
from hnet_cli.checkpoints.safetensors_file import elements, open_safetensors, write_safetensors
from hnet_cli.checkpoints.torch_file import Stored, read_torch_file
from hnet_cli.config.presets import preset_names
from hnet_cli.config.run import resolve
from hnet_cli.data import tokens
from hnet_cli.errors import BusyError, DamagedError, InputError, StorageError, UsageError
from hnet_cli.modality import names as modality_names
from hnet_cli.model import HNetConfig
from hnet_cli.storage import shown
from hnet_cli.terminal.console import progress

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Converted:
    """Summary of a conversion."""

    source: str
    target: str
    configuration: str
    """Its origin: a file, or "preset NAME" if the shapes were recognised."""
    parameters: int
    tensors: int
    bytes: int
    """Total of all tensors."""
    dtypes: dict[str, int]
    """Tensors per dtype."""
    modality: str | None


def convert(
    source: str | Path,
    target: Path,
    config: Path | None = None,
    overwrite: bool = False,
    modality: str | None = None,
    dtype: str | None = None,
) -> Converted:
    """Convert a model to the form that the name of `target` asks for.

    `source`: an official `.pt` or `.safetensors`, a folder with one, or a model of ours (run, checkpoint, starter...).
    `target`: `X.pt` or `X.safetensors` for the official form, with its configuration in `X.json`; else a model folder.
    `config`: file of the configuration; by default the one beside the source, else the preset whose shapes are these.
    `modality`: recorded in a model folder as the one the model was trained on. `dtype`: store weights as `fp32`,
    `bf16` or `fp16`; by default as they are.

    Raises InputError (not weights, or a pickle that asks for code), DamagedError (damaged, or not what the
    configuration describes), UsageError (no configuration, or one that the official code cannot express), BusyError,
    StorageError.
    """
    target = Path(target)
    if modality is not None and modality not in modality_names():
        raise UsageError(f"no modality is called {modality!r}", f"installed: {', '.join(modality_names())}")
    official = target.suffix in (".pt", ".safetensors")
    if official and modality is not None:
        raise UsageError("--modality is recorded in model folders only", "leave it out, or name a folder")
    if official:
        for path in (target, target.with_suffix(".json")):
            storage.refuse_output(path, overwrite)
    elif os.path.lexists(target) and not overwrite:
        raise BusyError(f"{shown(target)} exists already", "choose another name, or give --overwrite to replace it")
    files = weight_files(source)
    with _reading(files[0]):
        weights = _without_prefix({key: value for file in files for key, value in read_weights(file).items()})
        settings, origin = _configuration(weights, files[0], config)
        weights = checked(weights, settings, files[0], origin, "give the right one with --config")
    if dtype is not None:
        if dtype not in DTYPES:
            raise UsageError(f"--dtype {dtype!r} is not known", f"one of {', '.join(DTYPES)}")
        weights = {name: _cast(stored, DTYPES[dtype]) for name, stored in weights.items()}
    tokenizer = tokens.of_model(files[0].parent, settings.vocab_size).text if settings.extra.get("tokenizer") else None
    if modality is not None:
        settings = replace(settings, extra={**settings.extra, "modality": modality})
    size = sum(map(_size, weights.values()))
    with progress(f"converting {shown(files[0].name)}", size) as task:
        done, odd = 0, 0

        def count(stored: Stored) -> torch.Tensor:
            nonlocal done, odd
            with _reading(files[0]):
                tensor = stored.read()
            odd += not torch.isfinite(tensor).all()
            done += _size(stored)
            task.update(done)
            return tensor

        if official:
            _write_official(target, settings, weights, count, size, overwrite)
        else:
            _write_folder(target, settings, weights, count, tokenizer, overwrite)
    if odd:
        what = f"{odd} of the {len(weights)} tensors of {shown(files[0])} hold numbers that are not finite"
        warnings.warn(f"{what}: the model predicts nothing", stacklevel=2)
    return Converted(
        source=str(source),
        target=str(target),
        configuration=origin,
        parameters=settings.num_parameters,
        tensors=len(weights),
        bytes=size,
        dtypes=dict(Counter(str(stored.dtype).removeprefix("torch.") for stored in weights.values())),
        modality=settings.extra.get("modality"),
    )


def _cast(stored: Stored, dtype: torch.dtype) -> Stored:
    return Stored(stored.shape, dtype, lambda: stored.read().to(dtype))


def _size(stored: Stored) -> int:
    return math.prod(stored.shape) * stored.dtype.itemsize


# --- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot read {shown(path)}: {error.strerror or error}") from error


def weight_files(source: str | Path) -> list[Path]:
    """The files with the weights of `source`. Raises InputError, DamagedError (checksums of our own folders)."""
    path = Path(source)
    if path.is_file():
        return [path]
    if str(source).startswith(("starter:", hub.PREFIX)) or (path / "checkpoints").is_dir():
        path = find(source)
    if not path.exists():
        raise InputError(f"there is no model at {shown(path)}", "give a .pt or .safetensors file, or a model folder")
    if not path.is_dir():
        raise InputError(f"{shown(path)} is neither a file nor a folder")
    if (path / storage.MANIFEST).exists():
        entries = storage.read_manifest(path)["files"]
        for file in entries.keys() & {"config.json", "model.safetensors"}:
            storage.verify_file(path, file, entries[file])
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "*.safetensors", "*.pt", "*.bin"):
        found = sorted(path.glob(pattern))
        if len(found) == 1 or (found and "-of-" in pattern):
            return found
        if found:
            raise InputError(f"{shown(path)} holds {len(found)} files {pattern}", "name the one to convert")
    raise InputError(f"{shown(path)} holds no weights: neither .safetensors nor .pt", "name the file to convert")


def read_weights(path: Path) -> Weights:
    """The tensors of a file, not yet read; the format is recognised by its first bytes, not its name."""
    with storage.open_file(path) as file:
        head = file.read(16)
    if not head:
        raise InputError(f"{shown(path)} is empty")
    if head.startswith(b"PK\x03\x04"):
        return read_torch_file(path)
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise InputError(
            f"{shown(path)} is a bare pickle, the form torch.save had before version 1.6, and is not opened",
            "save it again with a newer torch, where you trust it",
        )
    if head[8:9] != b"{":
        raise InputError(f"{shown(path)} holds no weights: it is neither a .pt nor a .safetensors file")
    weights = open_safetensors(storage.HeldFile(path))
    if odd := next((name for name, stored in weights.items() if stored.dtype not in FLOATS), None):
        raise InputError(f"{shown(path)}: {odd!a} has dtype {weights[odd].dtype}, weights are floating-point numbers")
    return weights


def _without_prefix(weights: Weights) -> Weights:
    """Names without the prefixes that wrappers (DDP, torch.compile, Lightning) put before all of them."""
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): stored for name, stored in weights.items()}
    return weights


# --- which configuration, and do the weights fit it -------------------------------------------------------------------


def _configuration(weights: Weights, file: Path, given: Path | None) -> tuple[HNetConfig, str]:
    """The configuration and its origin."""
    beside = [file.with_suffix(".json"), file.parent / "config.json"]
    path = given or next((path for path in beside if path.is_file()), None)
    if path is None:
        return _recognised(weights, file)
    try:
        return HNetConfig.from_json(path), str(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no configuration at {shown(path)}") from error
    except (ValueError, TypeError, DamagedError) as error:
        kind = UsageError if given else DamagedError
        raise kind(f"{shown(path)}: {error}", "give the model's configuration with --config") from error


def _recognised(weights: Weights, file: Path) -> tuple[HNetConfig, str]:
    """The preset that has exactly these names and shapes."""
    shapes, parameters = {name: stored.shape for name, stored in weights.items()}, elements(weights)
    presets = {name: resolve(name) for name in preset_names()}
    found = {
        name: preset
        for name, preset in presets.items()
        if preset.model.num_parameters == parameters
        and expected_shapes(preset.model) == shapes
        # A file without a configuration comes from the official code, which has no other chunker and no choices.
        and all(chunker.kind == "learned" for chunker in preset.model.chunkers)
        and not (preset.model.switches() or preset.tokenizer)
    }
    if len({preset.model.to_json() for preset in found.values()}) == 1:
        name = min(found, key=len)  # those of the line-up that are the same have longer ones
        preset = found[name]
        return replace(preset.model, target_ratios=tuple(preset.train.ratios()) or None), f"preset {name}"
    many = f"presets {', '.join(found)} all have" if found else "no preset has"
    raise UsageError(
        f"{shown(file)}: {many} these shapes ({parameters:,} parameters)",
        "give its configuration with --config FILE.json",
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_folder(
    target: Path,
    settings: HNetConfig,
    weights: Weights,
    read: Callable[[Stored], torch.Tensor],
    tokenizer: str | None,
    overwrite: bool,
) -> None:
    """Write a model folder. `tokenizer`: the content of its tokenizer.json."""
    if target.is_file():
        raise BusyError(f"{shown(target)} is a file", "choose another name; official forms end in .pt or .safetensors")
    if settings.tie_embeddings:
        weights = {name: stored for name, stored in weights.items() if name != HEAD}
    with storage.staged_folder(target, overwrite=overwrite, manifest={"kind": "model"}) as folder:
        config = settings.to_dict() | {"model_type": MODEL_TYPE}
        ours = config.get("hnet", {})
        config["hnet"] = ours | {"made": provenance.without_places(provenance.after(provenance.made(), ours))}
        storage.write_json(folder / "config.json", config)
        if tokenizer is not None:
            storage.write_text(folder / tokens.FILE, tokenizer)
        with storage.NewFile(folder / "model.safetensors") as file:
            write_safetensors(file, weights, read, metadata={"format": "pt"})


def _write_official(
    target: Path,
    settings: HNetConfig,
    weights: Weights,
    read: Callable[[Stored], torch.Tensor],
    size: int,
    overwrite: bool,
) -> None:
    """Write one file of weights and the configuration beside it, in fields that the official code knows."""
    hint = "convert to a folder (a name without .pt or .safetensors) to keep it as it is"
    if any(chunker.kind != "learned" for chunker in settings.chunkers):
        raise UsageError("the official code knows only learned chunkers", hint)
    if settings.extra.get("tokenizer"):
        raise UsageError("the official code reads bytes, and this model tokens", hint)
    if settings.switches():
        raise UsageError(f"the official code does not know {', '.join(settings.switches())}", hint)
    fields = settings.to_dict()
    fields.pop("hnet", None)
    if "headdim" in fields["ssm_cfg"]:
        raise UsageError(f"the official code knows only ssm headdim 64, not {settings.ssm_cfg.headdim}", hint)
    with storage.output_file(target, overwrite, needed=size) as file:
        if target.suffix == ".pt":
            tensors = {name: read(stored) for name, stored in weights.items()}
            if settings.tie_embeddings:
                tensors[HEAD] = tensors[EMBEDDING]
            torch.save(tensors, cast(BinaryIO, file))
        else:
            write_safetensors(file, weights, read, metadata={"format": "pt"})
    storage.write_output(target.with_suffix(".json"), json.dumps(fields, indent=2) + "\n", overwrite)
