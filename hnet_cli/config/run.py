"""Presets and run configurations: typed, strict, resolved in one order. No torch in here.

A configuration is YAML with the sections of `RunConfig`. It is resolved as: defaults < `extends` < preset or file <
modality defaults chosen by name < `--set key=value`. An unknown key is an error that names the file, the line and the
nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from hnet_cli.config.train import TrainConfig
from hnet_cli.config.yaml import Dumper, parse
from hnet_cli.errors import UsageError
from hnet_cli.model.config import SWITCHES, HNetConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A fully resolved configuration: what `config.yaml` of a run holds."""

    description: str = ""
    """One line for `hnet presets`."""
    source: str = ""
    """Where the numbers come from: a table of the paper, or a measurement of ours."""
    model: HNetConfig
    """The official JSON fields, plus `chunker`: learned, characters, space, or fixed:k."""
    train: TrainConfig = field(default_factory=TrainConfig)
    kernels: Literal["auto", "reference", "fast"] = "auto"
    """Which implementations run: see `hnet doctor`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; the residual stream, the router and the smoothing are fp32 always."""
    tokenizer: str = ""
    """What the model reads: empty for bytes; `bpe:4096` for tokens of a byte-level BPE of so many ids, learned from the
    data; or the path of a tokenizer.json. `model.vocab_size` follows from it."""
    name: str = "run"
    """Of the preset this came from."""
    data: str = ""
    """The dataset folder of a run; empty in a preset."""

    def __post_init__(self) -> None:
        if self.tokenizer and self.model.num_stages:
            raise ValueError("tokenizer: a model of tokens has no chunking stages; arch_layout must be one stack")
        ratios, stages = self.train.target_ratios, self.model.num_stages
        if len(ratios) != stages:
            raise ValueError(f"train.target_ratios has {len(ratios)} entries, but the model has {stages} stages")
        multipliers = self.train.lr_multipliers
        if multipliers != "auto" and len(multipliers) != stages + 1:
            raise ValueError(f"train.lr_multipliers needs {stages + 1} entries, one per level, not {len(multipliers)}")
        parts = self.model.count_parameters()
        for part in self.train.frozen:
            if part not in parts:
                raise ValueError(f"train.frozen: the model has no part {part!r}; it has {', '.join(parts)}")
        if not any(number for part, number in parts.items() if part not in self.train.frozen):
            raise ValueError("train.frozen leaves nothing to train")
        if self.train.taught and not stages:
            raise ValueError("train.boundary_loss_weight: a model without stages has no boundaries")
        if self.train.embedding_loss_weight and not self.model.adapter_width:
            raise ValueError("train.embedding_loss_weight needs adapters: model.adapter_width")


def preset_names() -> list[str]:
    """Names of the presets that ship with the tool."""
    return sorted(p.name[:-5] for p in files("hnet_cli.presets").iterdir() if p.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML of a shipped preset. Raises UsageError with the nearest name."""
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"no preset is called {name!r}", f"{hint}`hnet presets` lists them; a file is given by its path"
        )
    return (files("hnet_cli.presets") / f"{name}.yaml").read_text(encoding="utf-8")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and (value is None or isinstance(value, Mapping)):
            value = _merge(old, value or {})  # a section of which every line is commented out is None
        merged[key] = value
    return merged


def _is_file(choice: str) -> bool:
    """Whether `choice` is a path rather than the name of a shipped preset."""
    path = Path(choice)
    return path.suffix in (".yaml", ".yml") or len(path.parts) > 1


def _read(choice: str, seen: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, str], str]:
    """Data of a preset or file with its `extends` merged in, where each key stands, and the preset's name.

    A file that `extends` names by path is looked for from the folder of the file that names it.
    """
    path = Path(choice)
    if _is_file(choice):
        where, name = str(path), path.stem
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text", "a configuration is YAML") from error
        except OSError as error:
            raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    else:
        where, name, text = f"presets/{choice}.yaml", choice, preset_text(choice)
    data, lines = parse(text, where)
    marks = {key: f"{where}:{line}" for key, line in lines.items()}
    parent = data.pop("extends", None)
    if parent is None:
        return data, marks, name
    if not isinstance(parent, str):
        raise UsageError(f"{marks['extends']}: extends: takes the name or path of one preset")
    if _is_file(parent):
        parent = os.path.normpath(path.parent / parent)
    if parent in (*seen, choice):
        raise UsageError(f"{marks['extends']}: extends goes in a circle: {' -> '.join((*seen, choice, parent))}")
    base, base_marks, _ = _read(parent, (*seen, choice))
    return _merge(base, data), base_marks | marks, name


def _chunker(value: Any) -> Any:
    """`learned`, `characters`, `space`, `fixed:6` or {fixed: 6} as the model's mapping; a list has one per stage."""
    if isinstance(value, list):
        return [_chunker(each) for each in value]
    if isinstance(value, Mapping) and set(value) == {"fixed"}:
        return {"kind": "fixed", "k": value["fixed"]}
    if isinstance(value, str):
        kind, _, k = value.replace(" ", "").partition(":")
        return {"kind": kind} | ({"k": int(k) if k.isdigit() else k} if k else {})
    return value


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`["train.lr=3e-4"]` as nested mappings; values are YAML."""
    data: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not all(path.split(".")):
            raise UsageError(f"--set {pair!r} is not of the form section.key=value", "for example --set train.lr=3e-4")
        value: Any = text
        if text.strip():
            value = parse(f"value: {text}", f"--set {path}")[0]["value"]
        *sections, key = path.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {path}: {section!r} has a value already")
        place[key] = value
    return data


def resolve(choice: str, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration called or stored at `choice`, with `settings` ("train.lr=3e-4") on top.

    Raises UsageError, naming file, line and nearest key, for anything unknown or inconsistent.
    """
    data, marks, name = _read(choice)
    data.setdefault("name", name)
    overrides = _settings(settings)
    data = _merge(data, overrides)
    for path in (pair.partition("=")[0] for pair in settings):
        parts = path.split(".")
        marks = {".".join(parts[:n]): f"--set {path}" for n in range(1, len(parts))} | marks | {path: f"--set {path}"}
    return _build(data, marks, choice)


LEAST_VOCABULARY = 257
"""Of a byte-level BPE: every byte, and the mark before a sequence."""


def _vocabulary(tokenizer: str, where: str) -> int | None:
    """Ids that `tokenizer` has, the mark before a sequence included; None for a file that is not there: a run keeps its
    own copy. Raises UsageError."""
    if tokenizer.partition(":")[0] == "bpe":
        size = tokenizer.partition(":")[2]
        if not size.isdecimal() or int(size) < LEAST_VOCABULARY:
            raise UsageError(f"{where}: tokenizer: {tokenizer!r} should be bpe:N with N of {LEAST_VOCABULARY} or more")
        return int(size)
    try:
        data = json.loads(Path(tokenizer).read_text(encoding="utf-8"))
        added = data.get("added_tokens") or []
        ids = {*data["model"]["vocab"].values(), *(token["id"] for token in added)}
        return max(ids) + (1 if any(token["special"] for token in added) else 2)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: tokenizer: {tokenizer} is no tokenizer.json") from error


def _build(data: dict[str, Any], marks: Mapping[str, str], choice: str) -> RunConfig:
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    def where(path: str) -> str:
        while path and path not in marks:
            path = path.rpartition(".")[0]
        return marks.get(path, choice)

    def where_said(message: str) -> str:
        """Where the first key stands that a message names."""
        for word in re.findall(r"(?:train\.)?[a-z_]+", message):
            for section in ("", "model.", "model.ssm_cfg.", "model.attn_cfg."):
                if section + word in marks:
                    return marks[section + word]
        return where("model")

    known = {f.name for f in fields(RunConfig)}
    for key in data:
        if key not in known:
            raise UsageError(f"{where(key)}: unknown section {key!r}", _nearest(key, sorted(known)))
    model = data.get("model")
    if not isinstance(model, dict):
        raise UsageError(f"{where('model')}: there is no model: section", "start from a preset with `extends: nano`")
    model = dict(model)
    if data.get("tokenizer") and (size := _vocabulary(str(data["tokenizer"]), where("tokenizer"))):
        model["vocab_size"] = size
    chunker = model.pop("chunker", "learned")
    if "hnet" in model:
        raise UsageError(f"{where('model.hnet')}: unknown key 'hnet' in model:", "it belongs to a model's config.json")
    switches = {name: model.pop(name) for name in SWITCHES if name in model}
    train = data["train"] = {} if data.get("train") is None else data["train"]
    if not isinstance(train, dict):
        raise UsageError(f"{where('train')}: train: must hold keys and values")
    known = {f.name for f in fields(TrainConfig)}
    for key in train:
        if key not in known:
            raise UsageError(
                f"{where(f'train.{key}')}: unknown key {key!r} in train:", _nearest(str(key), sorted(known))
            )
    strict = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
    try:
        checked = TypeAdapter(strict(_Sections)).validate_python({k: v for k, v in data.items() if k != "model"})
        model["hnet"] = switches | ({} if chunker == "learned" else {"chunker": _chunker(chunker)})
        return RunConfig(model=HNetConfig.from_dict(model), **vars(checked))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"][:2]))
        reason = str(first.get("ctx", {}).get("error", first["msg"]))
        if path in ("train.target_ratios", "train.ratio_loss_weight") and not reason.startswith("train."):
            each = "each of the list" if path == "train.target_ratios" else "it"
            reason = f"{each} must be a number, or a schedule of [share of the run, value] points"
        if reason.startswith("train."):
            raise UsageError(f"{where_said(reason)}: {reason}") from error
        raise UsageError(f"{where(path)}: {path}: {reason[:1].lower() + reason[1:]}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where_said(str(error))}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Sections:
    """`RunConfig` without the model, which checks itself: what pydantic converts by declared type."""

    description: str = ""
    source: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)
    kernels: Literal["auto", "reference", "fast"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tokenizer: str = ""
    name: str = "run"
    data: str = ""


FIXED = (
    *("model.", "tokenizer", "train.seed", "train.batch_bytes", "train.sequence_length"),
    *("train.init", "train.optimizer"),
)
"""What a run keeps for life: its weights and the order of its data follow from these."""


def differences(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the same, by dotted key: (before, now). Names, descriptions and paths do not count."""
    one, two = (dict(_flat(yaml.safe_load(to_yaml(config)))) for config in (before, now))
    keys = [key for key in one | two if key not in ("description", "source", "name", "data")]
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def to_yaml(config: RunConfig) -> str:
    """The configuration in full, readable by `resolve`; `resolve(to_yaml(c)) == c`."""
    return yaml.dump(to_data(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def to_data(config: RunConfig) -> dict[str, Any]:
    """The configuration in full as sections of keys and values."""
    data = dataclasses.asdict(config)
    model = config.model.to_dict()
    model.pop("hnet", None)  # chunkers and switches; all else under this key belongs to model folders
    chunkers = [f"{c.kind}:{c.k}" if c.k else c.kind for c in config.model.chunkers]
    model["chunker"] = chunkers[0] if len(set(chunkers)) == 1 else chunkers or "learned"
    data["model"] = model | config.model.switches()
    data["train"]["betas"] = list(config.train.betas)
    return data
