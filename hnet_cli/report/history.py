"""Records of a run folder: metrics, events, samples, and the run at a glance.

Read without torch, without holding the folder's lock, and while another process writes: a torn line is passed over, a
missing file is an empty one. Files may come from anywhere, so every value is checked for its type.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.data.figures import named
from hnet_cli.errors import StorageError
from hnet_cli.report.stages import VALIDATION, StageFigures, number, stages_of

Record = dict[str, Any]
EVENTS = "events.jsonl"


def read_metrics(run: Path) -> list[Record]:
    """The records of `metrics.jsonl`, in order; `bytes` is a number in each. Validations of other bytes than the last
    one's are left out."""
    return comparable([record for record in _lines(run / "metrics.jsonl") if number(record.get("bytes")) is not None])


def _lines(path: Path) -> list[Record]:
    return [record for line in _text(path).splitlines() if (record := _object(line)) is not None]


def _object(text: str) -> Record | None:
    """A JSON object; None for anything else, such as a line torn by a kill or still being written."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def step_of(record: Record) -> int:
    """The step of a record; 0 where it has none."""
    return int(number(record.get("step")) or 0)


def series(records: Iterable[Record], key: str) -> tuple[list[float], list[float]]:
    """Bytes and values of the records that have a number under `key`."""
    points = [(float(r["bytes"]), value) for r in records if (value := number(r.get(key))) is not None]
    return [x for x, _ in points], [y for _, y in points]


def interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float | None:
    """The curve through the points at x; None outside them."""
    if not xs or not xs[0] <= x <= xs[-1]:
        return None
    n = max(1, bisect_left(xs, x))
    if len(xs) == 1 or xs[n] == xs[n - 1]:
        return ys[0] if len(xs) == 1 else ys[n]
    return ys[n - 1] + (x - xs[n - 1]) / (xs[n] - xs[n - 1]) * (ys[n] - ys[n - 1])


def clock(records: Sequence[Record]) -> Callable[[float], float]:
    """Seconds of training after a number of bytes, from the records' speed; validation and pauses do not count."""
    seen, spent = [0.0], [0.0]
    for record in records:
        speed = number(record.get("bytes_per_s"))
        if speed and speed > 1e-9 and record["bytes"] > seen[-1]:
            spent.append(spent[-1] + (record["bytes"] - seen[-1]) / speed)
            seen.append(float(record["bytes"]))

    def seconds(count: float) -> float:
        inside = interpolated(seen, spent, count)
        return spent[-1] if inside is None else inside

    return seconds


@dataclass(frozen=True)
class Event:
    """A line of `events.jsonl`."""

    kind: str
    """"skipped", "resume", "shortened", "stopped", "failed", "warning" or the name of a warning such as "collapse"."""
    step: int
    bytes: float
    """Bytes of training data seen at this step."""
    text: str


def read_events(run: Path, records: Sequence[Record]) -> list[Event] | None:
    """The events of a run, ascending by step, placed by the `records` of its metrics; None for a run without the file,
    recorded before there was one."""
    if not (run / EVENTS).is_file():
        return None
    steps, events = [step_of(record) for record in records], []
    for line in _lines(run / EVENTS):
        documents, step = line.get("documents"), step_of(line)
        which = f"documents {', '.join(map(str, documents))}" if isinstance(documents, list) and documents else ""
        at = min(bisect_left(steps, step), len(records) - 1)
        text = "; ".join(filter(None, (str(line.get("text") or ""), which)))
        events.append(Event(str(line.get("kind")), step, float(records[at]["bytes"]) if records else 0.0, text))
    return sorted(events, key=lambda event: event.step)


@dataclass(frozen=True)
class Sketch:
    """A text with the chunks drawn into it."""

    data: bytes
    depth: list[int]
    """Per byte: the number of stages of which a chunk begins there."""
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
    """The lines of `samples.jsonl` that can be read."""
    samples = []
    for line in _lines(run / "samples.jsonl"):
        probe, sample = _sketch(line.get("probe")), _sketch(line.get("sample"))
        if probe or sample:
            samples.append(Sample(step_of(line), number(line.get("bytes")) or 0.0, probe, sample))
    return samples


def _sketch(fields: Any) -> Sketch | None:
    try:
        data, prompt = (base64.b64decode(fields.get(key) or "", validate=True) for key in ("base64", "prompt"))
        depth = [int(d) for d in fields.get("depth") or []][: len(data)]
        probability = [[number(p) for p in row] for row in fields.get("probability") or []]
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
    """The process that runs it, the damage, or why it stopped."""
    preset: str | None
    modality: str | None
    data: str | None
    step: int
    steps: int | None
    bytes: float
    bpb_best: float | None
    bpb_last: float | None
    stages: list[StageFigures]
    """Figures of the last validation, else of the last logged step."""
    bytes_per_s: float | None
    held_out: str
    """The bytes that validations read, in words."""
    sample: str
    """A key that runs validated on the same bytes share."""
    made: dict[str, Any] | None
    """The versions, command and machine of the newest checkpoint: `provenance.made`."""
    when: float
    """Time of the last write, in seconds since the epoch."""

    @property
    def is_readable(self) -> bool:
        """False where not even a record of it is there."""
        return self.state != "damaged" or self.step > 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = [{"bytes_per_chunk": s.bytes_per_chunk, "target": s.target_bytes_per_chunk} for s in self.stages]
        return vars(self) | {"path": str(self.path), "stages": stages}


def is_run(path: Path) -> bool:
    """True for the folder of a run; a model folder has a config too, but of another form. So is one that nobody may
    look into: it is listed as damaged."""
    try:
        return (path / "config.yaml").is_file() or (path / "metrics.jsonl").is_file()
    except OSError:
        return True


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


def data_of(run: Path, data: object) -> Path | None:
    """The dataset that a run calls `data` in its configuration, from wherever it is looked for: relative to a folder
    that the run lies in, one of which it was trained from, or to the current one. None where it is no longer there."""
    if not isinstance(data, str) or not data or "\0" in data:
        return None
    above = dict.fromkeys((*Path(os.path.abspath(run)).parents, *run.resolve().parents))
    places = (base / data for base in (*above, Path()))
    return next((place for place in places if (place / "dataset.json").is_file()), None)


def stored_path(data: Path, run: Path) -> str:
    """The path of a dataset as the configuration of a run keeps it, for `data_of`: relative, so that a project can be
    moved, where the run lies below the current folder; else absolute."""
    here = Path.cwd() in Path(os.path.abspath(run)).parents
    return str(data) if here and ".." not in data.parts else str(data.absolute())


def dataset_of(run: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`dataset.json` of the data a run was trained on; empty where it is no longer there."""
    data = data_of(run, config.get("data"))
    return (_object(_text(data / "dataset.json")) if data else None) or {}


def bytes_of(record: Mapping[str, Any]) -> str:
    """The held-out bytes that a validation has read, in words."""
    read, whole = (number(record.get(VALIDATION + key)) for key in ("bytes", "of"))
    if read is None:
        return "unknown bytes"
    if whole is None:  # by an early version
        return f"{read:,.0f} bytes"
    return f"all {read:,.0f} bytes" if read == whole else f"{read:,.0f} of {whole:,.0f} bytes"


def beside(record: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, float]:
    """Baselines on the same bytes as a validation, by name, in bits per byte.

    Those of the record; else those of the `dataset` (its `dataset.json`) where both are of all held-out bytes.
    """
    measured = {key: record.get(VALIDATION + key) for key in ("xz", "order_k", "k", "uniform")}
    if found := named(measured):
        return found
    known, splits = dataset.get("baselines"), dataset.get("splits")
    val = splits.get("val") if isinstance(splits, dict) else None
    whole = val.get("bytes") if isinstance(val, dict) else None
    if isinstance(known, dict) and record.get(VALIDATION + "bytes") == known.get("bytes") == whole is not None:
        return named(known)
    return {}


def last_validation(records: Iterable[Record]) -> Record:
    """The last record of a validation; empty where there is none."""
    return next((r for r in reversed(list(records)) if number(r.get("val_bpb")) is not None), {})


def comparable(records: Sequence[Record]) -> list[Record]:
    """The records without validations of other bytes than the last one's: a run can go on with another sample."""
    last = last_validation(records)
    whole = last.get("val_bytes") == last.get("val_of")

    def fits(record: Record) -> bool:
        early = whole and "val_sample" not in record and record.get("val_bytes") == last.get("val_bytes")
        return early or sample_of(record) == sample_of(last)

    return [record for record in records if "val_bpb" not in record or fits(record)]


def sample_of(record: Mapping[str, Any]) -> str:
    """A key that validations of the same bytes share; of an early version, the number of bytes."""
    return str(record.get("val_sample") or record.get("val_bytes"))[:100]


def glance(run: Path) -> Glance:
    """A run at a glance. One that cannot be read, whatever is wrong with it, is damaged: the others are still shown."""
    try:
        return _glance(run)
    except Exception as error:
        about = str(error) or type(error).__name__
        nothing: dict[str, Any] = dict.fromkeys(
            ("preset", "modality", "data", "steps", "bpb_best", "bpb_last", "bytes_per_s", "made")
        )
        numbers: dict[str, Any] = {"step": 0, "bytes": 0.0, "stages": [], "when": 0.0, "held_out": "", "sample": ""}
        return Glance(run.name, run, "damaged", about, **numbers, **nothing)


def _glance(run: Path) -> Glance:
    """Only the lines of `metrics.jsonl` that are needed are parsed."""
    config = read_config(run)
    train = (config or {}).get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    files = run / "metrics.jsonl", run / "config.yaml"
    lines = _text(files[0]).splitlines()
    tail = [record for line in lines[-20:] if (record := _object(line))]
    logged = [record for record in tail if "bpb" in record][-1:]
    validations = (_object(line) or {} for line in lines if '"val_bpb"' in line)
    scored = comparable([record for record in validations if number(record.get("val_bpb")) is not None])
    last = max((*tail, *scored[-1:]), key=lambda r: number(r.get("bytes")) or 0.0, default={})
    stages = [stages_of(r) for r in logged] + [stages_of(r, VALIDATION) for r in scored[-1:]]
    state, about = _state(run, config, step_of(last), steps)
    about_model, made = _about(run), None
    if isinstance(about_model.get("made"), dict):
        made = about_model["made"]
    return Glance(
        name=run.resolve().name,
        path=run,
        state=state,
        about=about,
        preset=_word(config, "name"),
        modality=_word(about_model, "modality") or _word(dataset_of(run, config or {}), "modality"),
        data=_word(config, "data"),
        step=step_of(last),
        steps=steps if isinstance(steps, int) else None,
        bytes=number(last.get("bytes")) or 0.0,
        bpb_best=min((r["val_bpb"] for r in scored), default=None),
        bpb_last=scored[-1]["val_bpb"] if scored else None,
        stages=[stage for stage in stages[-1] if stage.bytes_per_chunk is not None] if stages else [],
        bytes_per_s=number(logged[0].get("bytes_per_s")) if logged else None,
        held_out=bytes_of(scored[-1]) if scored else "",
        sample=_sample(scored[-1], _word(config, "data")) if scored else "",
        made=made,
        when=max((file.stat().st_mtime for file in files if file.exists()), default=0.0),
    )


def _sample(record: Record, data: str | None) -> str:
    """The key of a run's sample; of an early version, whose records have none, with the name of the data."""
    return sample_of(record) if record.get("val_sample") else f"{data}: {sample_of(record)}"


def _word(config: dict[str, Any] | None, key: str) -> str | None:
    value = (config or {}).get(key)
    return str(value) if value else None


def _about(run: Path) -> dict[str, Any]:
    """The `hnet` entry of the newest checkpoint's `config.json`; empty where there is none."""
    newest = _text(run / "latest").strip()
    extra = (_object(_text(run / "checkpoints" / newest / "config.json")) or {}).get("hnet") if newest else None
    return extra if isinstance(extra, dict) else {}


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
    return ("finished", "") if step >= steps else ("stopped", ending(run))


def ending(run: Path) -> str:
    """Return the reason a run stopped before its last step, from its last event; "" if none is recorded."""
    last = (_lines(run / EVENTS) or [{}])[-1]
    return str(last.get("text") or "") if last.get("kind") in ("stopped", "failed") else ""
