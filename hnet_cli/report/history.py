"""What a run folder tells: configuration, records, events, samples, state.

Read without torch, without holding its lock, and while another process writes it: a torn line is passed over, a missing
file is an empty one.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.errors import StorageError

Record = dict[str, Any]


def read_metrics(run: Path) -> list[Record]:
    """The records of `metrics.jsonl`, in order; `bytes` is a number in each."""
    return [record for record in _lines(run / "metrics.jsonl") if _number(record.get("bytes")) is not None]


def _lines(path: Path) -> list[Record]:
    return [record for line in _text(path).splitlines() if (record := _object(line)) is not None]


def _object(text: str) -> Record | None:
    """A JSON object; None for anything else, such as a line torn by a kill or still being written."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def series(records: Iterable[Record], key: str) -> tuple[list[float], list[float]]:
    """Bytes and values of the records that have a number under `key`."""
    points = [(float(r["bytes"]), value) for r in records if (value := _number(r.get(key))) is not None]
    return [x for x, _ in points], [y for _, y in points]


def interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float | None:
    """The curve through the points at x; None outside them."""
    if not xs or not xs[0] <= x <= xs[-1]:
        return None
    n = max(1, bisect_left(xs, x))
    if len(xs) == 1 or xs[n] == xs[n - 1]:
        return ys[0] if len(xs) == 1 else ys[n]
    return ys[n - 1] + (x - xs[n - 1]) / (xs[n] - xs[n - 1]) * (ys[n] - ys[n - 1])


def stages_of(records: Sequence[Record]) -> int:
    """How many stages the records speak of."""
    keys = {key for record in (*records[:1], *records[-2:]) for key in record}
    stages = 0
    while any(f"{prefix}stage{stages}_bytes_per_chunk" in keys for prefix in ("", "val_")):
        stages += 1
    return stages


def clock(records: Sequence[Record]) -> Callable[[float], float]:
    """Seconds of training after a number of bytes, from the records' speed; validation and pauses do not count."""
    seen, spent = [0.0], [0.0]
    for record in records:
        speed = _number(record.get("bytes_per_s"))
        if speed and record["bytes"] > seen[-1]:
            spent.append(spent[-1] + (record["bytes"] - seen[-1]) / speed)
            seen.append(float(record["bytes"]))

    def seconds(count: float) -> float:
        n = min(max(1, bisect_left(seen, count)), len(seen) - 1)
        if n == 0 or count >= seen[-1]:
            return spent[-1]
        share = (count - seen[n - 1]) / (seen[n] - seen[n - 1])
        return spent[n - 1] + share * (spent[n] - spent[n - 1])

    return seconds


@dataclass(frozen=True)
class Event:
    """Something that happened on the way."""

    kind: str
    """"skipped", "warning", "resume", or the name of an event of `metrics.jsonl`."""
    step: int
    bytes: float
    text: str


def events(run: Path, records: Sequence[Record]) -> list[Event]:
    """Events of the records with what `log.txt` says about them, its other warnings and its resumes, by their place."""
    found, messages, step = list[Event](), dict[int, list[str]](), 0
    steps = [int(_number(record.get("step")) or 0) for record in records]

    def add(kind: str, step: int, text: str) -> None:
        at = min(bisect_left(steps, step), len(records) - 1)
        found.append(Event(kind, step, float(records[at]["bytes"]) if records else 0.0, text))

    for line in _text(run / "log.txt").splitlines():
        told = line[21:]  # after date and time
        if match := re.match(r"warning: step (\d+): (.*)", told):
            own = messages.setdefault(int(match[1]), [])
            own += [match[2]] * (match[2] not in own)
        elif match := re.match(r"step (\d+)  ", told):
            step = int(match[1])
        elif match := re.match(r"going on from step (\d+)(.*)", told):
            step = int(match[1])
            add("resume", step, f"went on from a checkpoint{match[2]}")
        elif told.startswith("warning: "):
            add("warning", step, told.removeprefix("warning: "))
    for record, step in zip(records, steps, strict=True):
        if name := record.get("event") or ("skipped" if record.get("skipped") else None):
            documents = record.get("documents")
            which = [f"documents {', '.join(map(str, documents))}"] if isinstance(documents, list) and documents else []
            found.append(Event(str(name), step, float(record["bytes"]), "; ".join(messages.pop(step, []) + which)))
    for step, own in messages.items():
        add("warning", step, "; ".join(own))
    return sorted(found, key=lambda event: (event.bytes, event.step))


@dataclass(frozen=True)
class Sketch:
    """A text with the chunks drawn into it."""

    data: bytes
    depth: list[int]
    """Per byte: of how many stages a chunk begins there."""
    probability: list[list[float | None]] = field(default_factory=list)
    """Per stage: p at each byte, None where the stage has no position; empty where nothing is known."""
    prompt: bytes = b""


@dataclass(frozen=True)
class Sample:
    """One line of `samples.jsonl`: the probe's chunks and a sample, at one evaluation."""

    step: int
    bytes: float
    probe: Sketch | None
    sample: Sketch | None


def read_samples(run: Path) -> list[Sample]:
    """What `samples.jsonl` holds, as far as it can be read."""
    found = []
    for line in _lines(run / "samples.jsonl"):
        probe, sample = _sketch(line.get("probe")), _sketch(line.get("sample"))
        if probe or sample:
            found.append(Sample(int(_number(line.get("step")) or 0), _number(line.get("bytes")) or 0.0, probe, sample))
    return found


def _sketch(told: Any) -> Sketch | None:
    try:
        data, prompt = (base64.b64decode(told.get(key) or "", validate=True) for key in ("base64", "prompt"))
        depth = [int(d) for d in told.get("depth") or []][: len(data)]
        probability = [[_number(p) for p in row] for row in told.get("probability") or []]
    except (AttributeError, TypeError, ValueError, binascii.Error):
        return None
    return Sketch(data, depth + [0] * (len(data) - len(depth)), probability, prompt) if data else None


# -- a run at a glance -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glance:
    """A run in one line. None where it is not known (yet)."""

    name: str
    path: Path
    state: str
    """"running", "finished", "stopped", "damaged"."""
    about: str
    """Who runs it, or what is damaged."""
    preset: str | None
    modality: str | None
    data: str | None
    step: int
    steps: int | None
    bytes: float
    bpb_best: float | None
    bpb_last: float | None
    stages: list[tuple[float, float | None]]
    """Per stage: bytes per chunk and the target."""
    bytes_per_s: float | None
    when: float
    """Seconds since the epoch: when the run was last written."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = [{"bytes_per_chunk": reached, "target": target} for reached, target in self.stages]
        return vars(self) | {"path": str(self.path), "stages": stages}


def is_run(path: Path) -> bool:
    """Whether a folder is one of a run; a model folder has a config too, but of another form."""
    return (path / "config.yaml").is_file() or (path / "metrics.jsonl").is_file()


def find(folder: Path) -> list[Path]:
    """The runs in a folder, by name."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror}") from error


def read_config(run: Path) -> dict[str, Any] | None:
    """`config.yaml` as it stands; None where it cannot be read."""
    import yaml

    try:
        config = yaml.load(_text(run / "config.yaml"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def dataset_of(run: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`dataset.json` of the data a run was trained on; empty where it is no longer there."""
    data = config.get("data")
    if not isinstance(data, str):
        return {}
    for base in (Path(), run.parent.parent):  # from where it was trained, or beside runs/
        if (found := _object(_text(base / data / "dataset.json"))) is not None:
            return found
    return {}


def baselines_of(dataset: dict[str, Any]) -> dict[str, float]:
    """The baselines of a dataset to draw beside a model, by name, in bits per byte."""
    told = dataset.get("baselines")
    told = told if isinstance(told, dict) else {}
    named = {"xz": told.get("xz"), f"order-{told.get('k')}": told.get("order_k")}
    return {name: value for name, given in named.items() if (value := _number(given))}


def glance(run: Path) -> Glance:
    """A run at a glance; only the lines of `metrics.jsonl` that are needed are parsed."""
    config = read_config(run)
    train = (config or {}).get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    text = _text(run / "metrics.jsonl")
    tail = [r for r in map(_object, text[-20_000:].splitlines()[-20:]) if r]
    logged = [r for r in tail if "bpb" in r][-1:]
    scored = [r for r in _lines_with(text, '"val_bpb"') if _number(r.get("val_bpb")) is not None]
    best = min((r["val_bpb"] for r in scored), default=None)
    last = max((*tail, *scored[-1:]), key=lambda r: _number(r.get("bytes")) or 0.0, default={})
    step, count = int(_number(last.get("step")) or 0), _number(last.get("bytes")) or 0.0
    chunks = [*logged, *({key.removeprefix("val_"): value for key, value in r.items()} for r in scored[-1:])]
    state, about = _state(run, config, step, steps)
    return Glance(
        name=run.resolve().name, path=run, state=state, about=about, preset=_word(config, "name"),
        modality=_modality(run, config or {}), data=_word(config, "data"), step=step,
        steps=steps if isinstance(steps, int) else None, bytes=count, bpb_best=best,
        bpb_last=scored[-1]["val_bpb"] if scored else None, stages=_reached(chunks[-1] if chunks else {}),
        bytes_per_s=_number(logged[0].get("bytes_per_s")) if logged else None, when=_written(run),
    )  # fmt: skip


def _lines_with(text: str, part: str) -> Iterator[Record]:
    at = text.find(part)
    while at >= 0:
        start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
        end = len(text) if end < 0 else end
        if record := _object(text[start:end]):
            yield record
        at = text.find(part, end)


def _reached(record: Record) -> list[tuple[float, float | None]]:
    found: list[tuple[float, float | None]] = []
    while (reached := _number(record.get(f"stage{len(found)}_bytes_per_chunk"))) is not None:
        found.append((reached, _number(record.get(f"stage{len(found)}_target_bytes_per_chunk"))))
    return found


def _word(config: dict[str, Any] | None, key: str) -> str | None:
    value = (config or {}).get(key)
    return str(value) if value else None


def _modality(run: Path, config: dict[str, Any]) -> str | None:
    if newest := _text(run / "latest").strip():
        own = (_object(_text(run / "checkpoints" / newest / "config.json")) or {}).get("hnet")
        if isinstance(own, dict) and isinstance(own.get("modality"), str):
            return str(own["modality"])
    return _word(dataset_of(run, config), "modality")


def _state(run: Path, config: dict[str, Any] | None, step: int, steps: Any) -> tuple[str, str]:
    if holder := storage.lock_holder(run):
        return "running", holder
    if config is None or not isinstance(steps, int):
        return "damaged", "config.yaml cannot be read"
    newest = _text(run / "latest").strip()
    if newest and not (run / "checkpoints" / newest / "model.safetensors").is_file():
        return "damaged", f"the checkpoint {newest} is missing"
    if newest and not step:
        return "damaged", "metrics.jsonl cannot be read"
    return ("finished" if step >= steps else "stopped"), ""


def _written(run: Path) -> float:
    times = [0.0]
    for name in ("metrics.jsonl", "config.yaml"):
        try:
            times.append((run / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)
