"""Records of a run folder: metrics, events, samples, and the run at a glance.

Read without torch, without holding the folder's lock, and while another process writes: a torn line is passed over, a
missing file is an empty one. Files may come from anywhere, so every value is checked for its type.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import os
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.config import sources
from hnet_cli.config.sources import DataSource, Sources
from hnet_cli.config.yaml import read
from hnet_cli.data.figures import named
from hnet_cli.errors import DamagedError, HNetError, StorageError
from hnet_cli.report.sources import SourceFigures, sources_of
from hnet_cli.report.stages import MOST as MOST_STAGES
from hnet_cli.report.stages import VALIDATION, StageFigures, budgets_of, number, stages_of
from hnet_cli.storage import shown
from hnet_cli.storage.jsonl import Spread, is_step, lines_of, record_of, records

Record = dict[str, Any]
EVENTS = "events.jsonl"
SMALL = 1 << 16
"""Bytes of the longest file of a few words."""
LONGEST_WORD = 2000
"""Characters of the longest text of a record or setting that is shown."""
MOST_KEYS, LONGEST_KEY = 4000, 4096
"""Entries of a record, and characters of a key, that are read: of 64 sources and 15 stages there are 1,300."""
MOST_EVENTS = 10_000
MOST_RECORDS = 1 << 14
"""Records of training, and of validations, that are kept: of more, as many evenly spread, the spikes among them."""
MOST_SAMPLES = 1 << 8
"""Samples that are kept, evenly spread."""
SPENT = "seconds until here"
"""Key that is added to records as they are read: seconds of training, which all records before have a part in, those
that are not kept too."""
SPIKE = 2
"""Times the gradient norm of its neighbour that a record stays for."""


def read_metrics(run: Path) -> list[Record]:
    """The records of `metrics.jsonl`, in order; `bytes` is a number in each. Validations of other bytes than the last
    one's are left out. Of more than `MOST_RECORDS`, some, the best validation and spikes of the gradient among them.

    None of what is no file, or larger than a run's can be: `glance` says so.
    """
    steps, scored, spent = Spread(MOST_RECORDS, _spike), Spread(MOST_RECORDS, _better), _Spent()
    with contextlib.suppress(DamagedError):
        for n, (_, record) in enumerate(records(run / "metrics.jsonl")):
            if _has_bytes(record):
                plain = _plain(record)
                plain.pop(SPENT, None)
                if spent.add(plain):
                    plain[SPENT] = spent.seconds
                (scored if "val_bpb" in record else steps).add((n, plain))
    return comparable([record for _, record in sorted(steps.items() + scored.items(), key=lambda item: item[0])])


def all_metrics(run: Path) -> list[Record]:
    """Every record of `metrics.jsonl` with a number of bytes, in order; none of what is no file of a run."""
    with contextlib.suppress(DamagedError):
        return [_plain(record) for _, record in records(run / "metrics.jsonl") if _has_bytes(record)]
    return []


Numbered = tuple[int, Record]


def _spike(first: Numbered, second: Numbered) -> Numbered:
    """The first, unless the gradient norm of the second is a spike beside it."""
    norm, beside = (number(record.get("grad_norm")) or 0.0 for _, record in (second, first))
    return second if norm > SPIKE * beside else first


def _better(first: Numbered, second: Numbered) -> Numbered:
    return min(first, second, key=lambda item: math.inf if (bits := number(item[1]["val_bpb"])) is None else bits)


def _has_bytes(record: Record) -> bool:
    return (count := number(record.get("bytes"))) is not None and count >= 0


def _last_events(run: Path, most: int) -> list[Record]:
    with contextlib.suppress(DamagedError):
        return [_plain(record) for _, record in deque(records(run / EVENTS), maxlen=most)]
    return []


def _plain(record: Record) -> Record:
    """A record without what none of ours holds: it would take memory for nothing."""
    entries = ((key, value) for key, value in record.items() if len(key) <= LONGEST_KEY and not isinstance(value, dict))
    return {key: value for key, value in islice(entries, MOST_KEYS) if _is_flat(value)}


def _is_flat(value: Any) -> bool:
    return not isinstance(value, list) or not (
        len(value) > MOST_EVENTS or any(isinstance(part, list | dict) for part in value)
    )


def _text(path: Path) -> str:
    """The content of a small file of words; empty where there is none or it is something else."""
    try:
        return storage.read_text(path, SMALL, errors="replace")
    except (FileNotFoundError, DamagedError):
        return ""


def step_of(record: Record) -> int:
    """The step of a record; 0 where it has none."""
    step = record.get("step", 0)
    return int(step) if is_step(step) else 0


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


class _Spent:
    """Seconds of training along the records of a run, from their speed."""

    def __init__(self) -> None:
        self.bytes, self.seconds = 0.0, 0.0

    def add(self, record: Record) -> bool:
        """Count a record in; True where it tells of time."""
        speed = number(record.get("bytes_per_s"))
        if not (speed and speed > 1e-9 and record["bytes"] > self.bytes):
            return False
        self.seconds += (record["bytes"] - self.bytes) / speed
        self.bytes = float(record["bytes"])
        return True


def clock(records: Sequence[Record]) -> Callable[[float], float]:
    """Seconds of training after a number of bytes, from the records' speed; validation and pauses do not count."""
    seen, spent, sums = [0.0], [0.0], _Spent()
    for record in records:
        if sums.add(record):
            spent.append(max(spent[-1], record.get(SPENT, sums.seconds)))
            seen.append(sums.bytes)

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
    if not os.path.lexists(run / EVENTS):
        return None
    steps, events = [step_of(record) for record in records], []
    for line in _last_events(run, MOST_EVENTS):
        documents, step = line.get("documents"), step_of(line)
        named = [str(number) for number in documents if is_step(number)] if isinstance(documents, list) else []
        which = f"documents {', '.join(named[:MOST_EVENTS])}" if named else ""
        at = min(bisect_left(steps, step), len(records) - 1)
        text = "; ".join(filter(None, (_word(line, "text") or "", which)))
        events.append(Event(_word(line, "kind") or "", step, float(records[at]["bytes"]) if records else 0.0, text))
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
    """The lines of `samples.jsonl` that can be read; of more than `MOST_SAMPLES`, some."""
    samples = Spread[Sample](MOST_SAMPLES)
    with contextlib.suppress(DamagedError):
        for _, line in records(run / "samples.jsonl"):
            probe, sample = _sketch(line.get("probe")), _sketch(line.get("sample"))
            if probe or sample:
                samples.add(Sample(step_of(line), number(line.get("bytes")) or 0.0, probe, sample))
    return samples.items()


def _sketch(fields: Any) -> Sketch | None:
    try:
        data, prompt = (base64.b64decode(fields.get(key) or "", validate=True) for key in ("base64", "prompt"))
        depth = [d if type(d) is int and 0 <= d <= MOST_STAGES else 0 for d in fields.get("depth") or []][: len(data)]
        rows = list(fields.get("probability") or [])[:MOST_STAGES]
        probability = [[_share(p) for p in row[: len(data)]] for row in rows]
    except (AttributeError, TypeError, ValueError, binascii.Error):
        return None
    return Sketch(data, depth + [0] * (len(data) - len(depth)), probability, prompt) if data else None


def _share(value: Any) -> float | None:
    return share if (share := number(value)) is not None and 0 <= share <= 1 else None


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
    """The path of the dataset; of a mixture all, with their weights."""
    step: int
    steps: int | None
    bytes: float
    bpb_best: float | None
    bpb_last: float | None
    stages: list[StageFigures]
    """Figures of the last validation, else of the last logged step."""
    budgets: dict[float, float]
    """Bits per byte at each of `train.budgets`, measured at the last step; empty before, and for a run without."""
    sources: list[SourceFigures]
    """Figures of a mixture's sources at the last validation; none for a run on a single dataset."""
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
        stages = [
            {"bytes_per_chunk": s.bytes_per_chunk, "target": s.target_bytes_per_chunk, "worth": s.worth}
            for s in self.stages
        ]
        return vars(self) | {"path": str(self.path), "stages": stages, "sources": [vars(s) for s in self.sources]}


def is_run(path: Path) -> bool:
    """True for the folder of a run; a model folder has a config too, but of another form. So is one that nobody may
    look into: it is listed as damaged."""
    try:
        os.lstat(path / "config.yaml")
        return True
    except (FileNotFoundError, NotADirectoryError):
        return os.path.lexists(path / "metrics.jsonl")
    except OSError:
        return True


def find(folder: Path) -> list[Path]:
    """The runs in a folder, by name."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if is_run(Path(entry.path)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {shown(folder)}: {error.strerror}") from error


def read_config(run: Path) -> dict[str, Any] | None:
    """`config.yaml` as it stands; None where it cannot be read."""
    try:
        return read(run / "config.yaml", "configuration")
    except HNetError:
        return None


def has_budgets(config: Mapping[str, Any] | None) -> bool:
    """True where a run trains for several lengths of chunks, of all of which its training figures are then."""
    train = (config or {}).get("train")
    return isinstance(train, dict) and bool(train.get("budgets"))


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


def sources_in(config: Mapping[str, Any]) -> Sources:
    """The datasets that a configuration, as it stands, names; what cannot be read is left out."""
    data = config.get("data")
    entries = data[: sources.MOST] if isinstance(data, list) else [{"path": data}]
    known = [(entry.get("path"), number(entry.get("weight"))) for entry in entries if isinstance(entry, dict)]
    return tuple(DataSource(path=path, weight=weight) for path, weight in known if isinstance(path, str) and path)


def find_sources(run: Path, data: Sources) -> Sources | None:
    """The datasets that a run names where they are now, by `data_of`; None where one is no longer there."""
    found = [(source, data_of(run, source.path)) for source in data]
    there = tuple(replace(source, path=str(path)) for source, path in found if path is not None)
    return there if there and len(there) == len(data) else None


def dataset_of(run: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`dataset.json` of the data a run was trained on, of a mixture the first; empty where it is no longer there."""
    named = sources_in(config)
    if named and (data := data_of(run, named[0].path)) is not None:
        with contextlib.suppress(FileNotFoundError, DamagedError):
            return storage.read_json(data / "dataset.json", storage.LARGE)
    return {}


def bytes_of(record: Mapping[str, Any]) -> str:
    """The held-out bytes that a validation has read, in words."""
    read, whole = (number(record.get(VALIDATION + key)) for key in ("bytes", "of"))
    if read is None:
        return "unknown bytes"
    kind = " of completions" if record.get(VALIDATION + "completions") else ""
    if whole is None:  # by an early version
        return f"{read:,.0f} bytes"
    return f"all {read:,.0f} bytes{kind}" if read == whole else f"{read:,.0f} of {whole:,.0f} bytes{kind}"


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
        try:
            return _glance(run, lines_of(run / "metrics.jsonl"))
        except DamagedError as error:
            return replace(_glance(run, ()), state="damaged", about=str(error))
    except Exception as error:
        about = str(error) or type(error).__name__
        nothing: dict[str, Any] = dict.fromkeys(
            ("preset", "modality", "data", "steps", "bpb_best", "bpb_last", "bytes_per_s", "made")
        )
        numbers: dict[str, Any] = {"step": 0, "bytes": 0.0, "stages": [], "sources": [], "budgets": {}, "when": 0.0}
        numbers |= {"held_out": "", "sample": ""}
        return Glance(run.name, run, "damaged", about, **numbers, **nothing)


def _glance(run: Path, lines: Iterable[str]) -> Glance:
    """Only the lines of `metrics.jsonl` that are needed are parsed."""
    ends, found = deque[str](maxlen=20), Spread(MOST_RECORDS, _better)
    for n, line in enumerate(lines):
        ends.append(line)
        if '"val_bpb"' in line and (entry := _plain(record_of(line) or {})).keys() >= {"val_bpb", "bytes"}:
            found.add((n, entry))
    config = read_config(run)
    train = (config or {}).get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    files = run / "metrics.jsonl", run / "config.yaml"
    tail = [_plain(record) for line in ends if (record := record_of(line))]
    logged = [record for record in tail if number(record.get("bpb")) is not None][-1:]
    validations = [record for _, record in found.items() if number(record["val_bpb"]) is not None]
    scored = comparable([record for record in validations if _has_bytes(record)])
    last = max((*tail, *scored[-1:]), key=lambda r: number(r.get("bytes")) or 0.0, default={})
    stages = [stages_of(r) for r in logged] + [stages_of(r, VALIDATION) for r in scored[-1:]]
    state, about = _state(run, config, step_of(last), steps)
    about_model, made, data = _about(run), None, sources.words(sources_in(config or {}))[:LONGEST_WORD] or None
    if isinstance(about_model.get("made"), dict):
        made = about_model["made"]
    return Glance(
        name=os.path.basename(os.path.realpath(run)),
        path=run,
        state=state,
        about=about,
        preset=_word(config, "name"),
        modality=_word(about_model, "modality") or _word(dataset_of(run, config or {}), "modality"),
        data=data,
        step=step_of(last),
        steps=steps if is_step(steps) else None,
        bytes=number(last.get("bytes")) or 0.0,
        bpb_best=min((float(r["val_bpb"]) for r in scored), default=None),
        bpb_last=float(scored[-1]["val_bpb"]) if scored else None,
        stages=[stage for stage in stages[-1] if stage.bytes_per_chunk is not None] if stages else [],
        budgets=budgets_of(scored[-1]) if scored else {},
        sources=sources_of(scored[-1]) if scored else [],
        bytes_per_s=number(logged[0].get("bytes_per_s")) if logged else None,
        held_out=bytes_of(scored[-1]) if scored else "",
        sample=_sample(scored[-1], data) if scored else "",
        made=made,
        when=max(map(_changed, files)),
    )


def _sample(record: Record, data: str | None) -> str:
    """The key of a run's sample; of an early version, whose records have none, with the name of the data."""
    return sample_of(record) if record.get("val_sample") else f"{data}: {sample_of(record)}"


def _changed(file: Path) -> float:
    """When a file was written last; 0 where there is none, or never in our time."""
    try:
        when = file.stat().st_mtime
    except (OSError, ValueError):
        return 0.0
    return when if 0 <= when < 1e11 else 0.0


def _word(config: dict[str, Any] | None, key: str) -> str | None:
    value = (config or {}).get(key)
    return value[:LONGEST_WORD] if value and isinstance(value, str) else None


def newest(run: Path) -> str:
    """The checkpoint that `latest` names; empty where it names none."""
    return match[0] if (match := re.match(r"step-[0-9]{8,18}(?=\s*$)", _text(run / "latest"))) else ""


def _about(run: Path) -> dict[str, Any]:
    """The `hnet` entry of the newest checkpoint's `config.json`; empty where there is none."""
    if checkpoint := newest(run):
        with contextlib.suppress(FileNotFoundError, DamagedError):
            extra = storage.read_json(run / "checkpoints" / checkpoint / "config.json").get("hnet")
            return extra if isinstance(extra, dict) else {}
    return {}


def _state(run: Path, config: dict[str, Any] | None, step: int, steps: Any) -> tuple[str, str]:
    if holder := storage.lock_holder(run):
        return "running", holder
    if config is None or not is_step(steps):
        return "damaged", "config.yaml cannot be read"
    checkpoint = newest(run)
    if checkpoint and not (run / "checkpoints" / checkpoint / "model.safetensors").is_file():
        return "damaged", f"the checkpoint {checkpoint} is missing"
    if not checkpoint and os.path.lexists(run / "latest"):
        return "damaged", "latest names no checkpoint"
    if checkpoint and not step:
        return "damaged", "metrics.jsonl cannot be read"
    return ("finished", "") if step >= steps else ("stopped", ending(run))


def ending(run: Path) -> str:
    """Return the reason a run stopped before its last step, from its last event; "" if none is recorded."""
    last = (_last_events(run, 1) or [{}])[-1]
    return (_word(last, "text") or "") if last.get("kind") in ("stopped", "failed") else ""
