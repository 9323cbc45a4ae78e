"""Run configurations: typed, strict, resolved in one order. No torch in here, and pydantic only to check.

A configuration is YAML with the sections of `RunConfig`. It is resolved as: defaults < `extends` < preset or file <
modality defaults chosen by name < `--set key=value`. An unknown key is an error that names the file, the line and the
nearest known key.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml

from hnet_cli import storage
from hnet_cli.config.bounds import STRICT
from hnet_cli.config.presets import merge, nearest, preset
from hnet_cli.config.sources import DataSource, Sources, check, sources_of
from hnet_cli.config.train import SettingError, TrainConfig
from hnet_cli.config.yaml import Dumper, parse, read_text
from hnet_cli.errors import DamagedError, HNetError, UsageError
from hnet_cli.model.config import SWITCHES, HNetConfig
from hnet_cli.model.settings import OPERANDS
from hnet_cli.storage import shown
from hnet_cli.storage.reading import reason

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A fully resolved configuration: what `config.yaml` of a run holds. Raises SettingError."""

    __pydantic_config__: ClassVar = STRICT

    description: str = ""
    """One line for `hnet presets`."""
    source: str = ""
    """Source of the numbers: a table of the paper, or a measurement of ours."""
    model: HNetConfig
    """The official JSON fields, plus `chunker`: learned, characters, space, fixed:k, regex:PATTERN or bpe:FILE."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Settings of training."""
    kernels: Literal["auto", "reference", "fast"] = "auto"
    """Set of kernels: `hnet doctor` says which this machine has."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of matrix products; the residual stream, the router and the smoothing are fp32 always."""
    tokenizer: str = ""
    """Input of the model: empty for bytes; `bpe:4096` for tokens of a byte-level BPE of so many ids, learned from the
    data, `bpe:4096@2000000` from so many bytes of them; or the path of a tokenizer.json. `model.vocab_size` follows
    from it."""
    name: str = "run"
    """Name of the preset this came from."""
    data: str | list[DataSource] = ""
    """The dataset folder of a run, or several as a list of {path, weight}: see docs/data.md; empty in a preset."""

    def __post_init__(self) -> None:
        train, stages, parts = self.train, self.model.num_stages, self.model.count_parameters()

        def refuse_if(wrong: object, key: str, reason: str, *others: str) -> None:
            if wrong:
                raise SettingError(f"{key}{reason}", key, *others)

        tokens = ": a model of tokens has no chunking stages; arch_layout must be one stack"
        refuse_if(self.tokenizer and stages, "tokenizer", tokens, "model.arch_layout")
        entries = f" has {len(train.target_ratios)} entries, but the model has {stages} stages"
        refuse_if(len(train.target_ratios) != stages, "train.target_ratios", entries, "model.arch_layout")
        learned = [n for n, chunker in zip(train.target_ratios, self.model.chunkers, strict=True) if chunker.learned]
        refuse_if(train.budgets and not learned, "train.budgets", ": the model learns no boundaries", "model.chunker")
        if train.budgets:
            values = [value for n in learned for value in ([point[1] for point in n] if isinstance(n, list) else [n])]
            least, shortest = min(train.budgets), min(values) * min(train.budgets) ** (1 / len(learned))
            short = f": with {least:g} the chunks of a stage would have {shortest:.2f} positions, not more than 1"
            refuse_if(shortest <= 1, "train.budgets", short, "train.target_ratios")
        if train.lr_multipliers != "auto":
            entries = f" needs {stages + 1} entries, one per level, not {len(train.lr_multipliers)}"
            wrong = len(train.lr_multipliers) != stages + 1
            refuse_if(wrong, "train.lr_multipliers", entries, "model.arch_layout")
        unknown = next((part for part in train.frozen if part not in parts), None)
        has = f": the model has no part {unknown!r}; it has {', '.join(parts)}"
        refuse_if(unknown is not None, "train.frozen", has)
        tied = self.model.tie_embeddings and "lm_head" in train.frozen
        refuse_if(tied, "train.frozen", ": lm_head is tied to the embeddings: name embeddings", "model.tie_embeddings")
        trained = sum(number for part, number in parts.items() if part not in train.frozen)
        refuse_if(not trained, "train.frozen", " leaves nothing to train")
        refuse_if(
            train.taught and not stages, "train.boundary_loss_weight", ": a model without stages has no boundaries"
        )
        lacking = train.embedding_loss_weight and not self.model.adapter_width
        refuse_if(lacking, "train.embedding_loss_weight", " needs adapters: model.adapter_width", "model.adapter_width")
        try:
            check(self.sources)
        except ValueError as error:
            raise SettingError(f"data {error}", "data") from error

    @property
    def sources(self) -> Sources:
        """The datasets of `data`."""
        return sources_of(self.data)


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunConfig)


# -- reading -----------------------------------------------------------------------------------------------------------


def resolve(choice: str, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration called or stored at `choice`, with `settings` ("train.lr=3e-4") on top.

    Raises UsageError, naming file, line and nearest key, for anything unknown or inconsistent.
    """
    data, marks, name = _read(choice)
    return resolve_data({"name": name} | data, choice, settings, marks)


def resolve_data(
    data: Mapping[str, Any], origin: str, settings: Sequence[str] = (), marks: Mapping[str, str] | None = None
) -> RunConfig:
    """The configuration of sections of keys and values, with `settings` on top. `origin`: where they are from, `marks`:
    where each dotted key stands, for messages. Raises UsageError."""
    data, marks = merge(data, _overrides(settings)), dict(marks or {})
    for path in (pair.partition("=")[0] for pair in settings):
        parts = path.split(".")
        marks = {".".join(parts[:n]): f"--set {path}" for n in range(1, len(parts))} | marks | {path: f"--set {path}"}
    return _build(data, {"": origin} | marks)


def _is_file(choice: str) -> bool:
    """True if `choice` is a path rather than the name of a shipped preset."""
    path = Path(choice)
    return path.suffix in (".yaml", ".yml") or len(path.parts) > 1


def _read(choice: str, seen: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, str], str]:
    """Data of a preset or file with its `extends` merged in, where each key stands, and the preset's name.

    A file that `extends` names by path is looked for from the folder of the file that names it.
    """
    path, name = Path(choice), choice
    if _is_file(choice):
        data, lines = parse(read_text(path, "configuration"), choice)
        marks, name = {key: f"{choice}:{line}" for key, line in lines.items()}, path.stem
    else:
        data, marks = dict(preset(choice).data), dict(preset(choice).marks)
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
    return merge(base, data), base_marks | marks, name


def _overrides(settings: Sequence[str]) -> dict[str, Any]:
    """`["train.lr=3e-4"]` as nested mappings; values are YAML."""
    data: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not all(path.split(".")):
            raise UsageError(
                f"--set {setting!r} is not of the form section.key=value", "for example --set train.lr=3e-4"
            )
        value = parse(f"value: {text}", f"--set {path}")[0]["value"] if text.strip() else text
        *sections, key = path.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {path}: {section!r} has a value already")
        place[key] = value
    return data


LEAST_VOCABULARY = 257
"""Least ids of a byte-level BPE: every byte, and the mark before a sequence."""
MOST_VOCABULARY = 1 << 24
"""Most ids of a tokenizer."""


def _vocabulary(tokenizer: str, where: str) -> int | None:
    """Ids that `tokenizer` has, the mark before a sequence included; None for a file that is not there: a run keeps its
    own copy. Raises UsageError."""
    if tokenizer.partition(":")[0] == "bpe":
        learned = bpe_of(tokenizer)
        if learned is None or not LEAST_VOCABULARY <= learned[0] <= MOST_VOCABULARY or learned[1] == 0:
            reason = f"bpe:N or bpe:N@BYTES with N from {LEAST_VOCABULARY} to {MOST_VOCABULARY}"
            raise UsageError(f"{where}: tokenizer: {tokenizer!r} should be {reason}")
        return learned[0]
    if "\0" not in tokenizer and not Path(tokenizer).exists():
        return None
    try:
        added, ids = ids_of(storage.read_json(tokenizer, storage.TOKENIZER))
        return max(ids) + (1 if any(token["special"] for token in added) else 2)
    except (OSError, DamagedError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{shown(tokenizer)} is no tokenizer.json: {error}"
        raise UsageError(f"{where}: tokenizer: {reason}") from error


def bpe_of(tokenizer: str) -> tuple[int, int | None] | None:
    """Ids of `bpe:4096`, and the bytes of `bpe:4096@2000000` or None; None for what is written otherwise."""
    found = re.fullmatch("bpe:([0-9]{3,8})(?:@([0-9]{1,12}))?", tokenizer)
    return found and (int(found[1]), None if found[2] is None else int(found[2]))


def ids_of(data: dict[str, Any]) -> tuple[list[dict[str, Any]], set[int]]:
    """The added tokens of a parsed tokenizer.json, and all ids. Raises ValueError and others for what is none."""
    added = data.get("added_tokens") or []
    ids = {*data["model"]["vocab"].values(), *(token["id"] for token in added)}
    if not ids or not all(type(number) is int and 0 <= number < MOST_VOCABULARY for number in ids):
        raise ValueError(f"ids of tokens are integers from 0 to {MOST_VOCABULARY - 1}")
    return added, ids


def _build(data: dict[str, Any], marks: Mapping[str, str]) -> RunConfig:
    """The typed configuration. `marks`: where each dotted key stands, for messages."""

    def where(*keys: str) -> str:
        """Place of the mistake: the first of the keys that `--set` has, else the first that a file has."""
        places = [marks[key] for key in keys if key in marks]
        if not places:
            return where(*(key.rpartition(".")[0] for key in keys))
        return next((place for place in places if place.startswith("--set")), places[0])

    if not isinstance(data.get("model"), dict):
        raise UsageError(f"{where('model')}: there is no model: section", "start from a preset with `extends: nano`")
    model = dict(data["model"])
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, str) and tokenizer and (size := _vocabulary(tokenizer, where("tokenizer"))):
        given = model.get("vocab_size")
        if bpe_of(tokenizer) or type(given) is not int or given < size:  # a model may have more than its file needs
            model["vocab_size"] = size
    try:
        architecture = _architecture(model)
    except (ValueError, TypeError) as error:
        words = [part for word in re.findall(r"[a-z_.]+", str(error)) for part in (word, word.partition(".")[0])]
        keys = [section + word for word in words for section in ("model.", "model.ssm_cfg.", "model.attn_cfg.")]
        raise UsageError(f"{where(*keys, 'model')}: {error}") from error
    from pydantic import ValidationError

    data = {key: value for key, value in data.items() if value is not None}  # a section without a line says nothing
    try:
        return _adapter().validate_python(data | {"model": architecture})
    except ValidationError as error:
        raise _refusal(error, where) from error


def _architecture(model: dict[str, Any]) -> HNetConfig:
    """The model of a `model:` section, whose keys are the official fields, `chunker` and the switches."""
    if "hnet" in model:
        raise ValueError("unknown key 'hnet' in model: it belongs to a model's config.json")
    chunker = model.pop("chunker", "learned")
    ours = {name: model.pop(name) for name in SWITCHES if name in model}
    if chunker != "learned":
        ours["chunker"] = _chunker(chunker)
    return HNetConfig.from_dict(model | {"hnet": ours})


def _chunker(value: Any) -> Any:
    """`learned`, `characters`, `space`, `fixed:6` or {fixed: 6}, `regex:PATTERN`, `bpe:FILE` as the model's
    mapping; a list has one per stage."""
    if isinstance(value, list):
        return [_chunker(each) for each in value]
    if isinstance(value, Mapping) and set(value) == {"fixed"}:
        return {"kind": "fixed", "k": value["fixed"]}
    if not isinstance(value, str):
        return value
    kind, _, operand = value.partition(":")
    kind, operand = kind.strip(), operand if kind.strip() == "regex" else operand.strip()
    if kind == "bpe" and operand:
        return {"kind": kind, "tokens": _tokens(operand)}
    number: Any = int(operand) if re.fullmatch("[0-9]{1,9}", operand) else operand
    return {"kind": kind} | ({OPERANDS.get(kind, "k"): operand if kind == "regex" else number} if operand else {})


def _tokens(path: str) -> str:
    """The vocabulary of a tokenizer.json without its special tokens, as `Chunker.tokens`. Raises ValueError."""
    from hnet_cli.model.automaton import byte_letters  # needs numpy, which most commands begin without

    try:
        data = storage.read_json(path)
        model, (added, _) = data["model"], ids_of(data)
        given = set(model["vocab"]) if model["type"] == "BPE" else set()
        given -= {token["content"] for token in added if token["special"]}
    except (OSError, HNetError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the chunker's tokenizer {path!r:.100} cannot be read: {reason(error)}") from error
    letters = set(byte_letters())
    tokens = sorted(token for token in given if token and letters >= set(token))
    if not tokens:
        raise ValueError(f"the chunker's tokenizer {path!r:.100} is not a byte-level BPE")
    return " ".join(tokens)


def _refusal(error: ValidationError, where: Callable[..., str]) -> UsageError:
    """The first key that pydantic refuses: where it stands, and why."""
    problems = error.errors(include_url=False)
    key = problems[0]["loc"][: 2 if problems[0]["loc"][:1] == ("train",) else 1]
    path = ".".join(map(str, key))
    if problems[0]["type"] == "unexpected_keyword_argument":
        *section, name = map(str, key)
        known = sorted(f.name for f in fields(TrainConfig if section else RunConfig))
        kind = "key {name!r} in train:" if section else "section {name!r}"
        return UsageError(f"{where(path)}: unknown {kind.format(name=name)}", nearest(name, known))
    cause = problems[0].get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return UsageError(f"{where(*cause.keys)}: {cause}")
    problems = [problem for problem in problems if problem["loc"][: len(key)] == key]
    depth = max(len(problem["loc"]) for problem in problems)  # of a union, what came nearest
    reasons = (_reason(problem) for problem in problems if len(problem["loc"]) == depth)
    example = "data: PATH, or data: [{path: a, weight: 8}, {path: b, weight: 1}]" if path == "data" else ""
    return UsageError(f"{where(path)}: {path} {' or '.join(dict.fromkeys(reasons))}", example)


def _reason(problem: Mapping[str, Any]) -> str:
    ours = {
        "dataclass_type": "must hold keys and values",
        "missing": "has too few entries",
        "unexpected_keyword_argument": f"has an unknown key {str(problem['loc'][-1])!r}",
    }
    said = str(problem.get("ctx", {}).get("error", problem["msg"]))
    return ours.get(problem["type"], said.removeprefix("Input "))


# -- comparing and writing ---------------------------------------------------------------------------------------------

FIXED = (
    *("model.", "tokenizer", "train.seed", "train.batch_bytes", "train.sequence_length"),
    *("train.init", "train.start", "train.optimizer", "train.frozen"),
)
"""Settings that a run keeps for life: its weights, its optimizer's state and the order of its data follow from them."""


def differences(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the same, by dotted key: (before, now). Names, descriptions and paths do not count."""
    one, two = (dict(flat(yaml.safe_load(to_yaml(config)))) for config in (before, now))
    keys = [key for key in one | two if key not in ("description", "source", "name", "data")]
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def to_yaml(config: RunConfig) -> str:
    """The configuration in full, readable by `resolve`; `resolve(to_yaml(c)) == c`."""
    return yaml.dump(to_data(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def to_data(config: RunConfig) -> dict[str, Any]:
    """The configuration in full as sections of keys and values."""
    data = dataclasses.asdict(config)
    data["model"] = model_data(config.model)
    data["train"]["betas"] = list(config.train.betas)
    return data


def model_data(config: HNetConfig) -> dict[str, Any]:
    """The `model:` section."""
    model = config.to_dict()
    model.pop("hnet", None)  # chunkers and switches; all else under this key belongs to model folders
    chunkers = [
        c.to_dict() if c.tokens else ":".join(str(part) for part in (c.kind, c.k, c.pattern) if part is not None)
        for c in config.chunkers
    ]
    model["chunker"] = chunkers[0] if len(set(config.chunkers)) == 1 else chunkers or "learned"
    return model | config.switches()
