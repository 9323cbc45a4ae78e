"""All of `hnet eval`: which parts are asked for, their figures as one JSON object, and the tables for people."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hnet_cli import modality as modalities
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.data.prepare.named import sources_of
from hnet_cli.errors import UsageError
from hnet_cli.evaluation import compression, gold, noise, tasks
from hnet_cli.evaluation.material import Material, file_source, gather
from hnet_cli.evaluation.resampling import of_share, with_interval
from hnet_cli.evaluation.scoring import Scores, score
from hnet_cli.evaluation.variants import score_variants
from hnet_cli.inference import generate as sampling
from hnet_cli.inference.windows import window_of
from hnet_cli.modality import Annotation, Document, Gold, Modality, Refused
from hnet_cli.model import HNetConfig
from hnet_cli.terminal.console import progress, say

UNITS_BYTES = 200_000
"""Of the documents, bytes whose units (`Modality.units`) are compared with the boundaries."""
NOISE_BYTES = 100_000
"""Of the documents, bytes that are distorted, each of the ways; every document gives its share."""
LEAST = 64
"""Bytes of a document from which on there is something to distort."""
PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SAMPLES, SAMPLE_BYTES = 32, 256
QUICK = 10**12
"""Samples are cheap up to this many bytes times parameters: a minute of a slow CPU."""


@dataclass(frozen=True)
class Request:
    """What the user asks for; the options of `hnet eval`."""

    data: Sequence[str] = ()
    modality: str | None = None
    field: str | None = None
    max_bytes: int | None = None
    context: int | None = None
    """Bytes back; None: see `default_context`; 0: the whole document."""
    stride: int | None = None
    gold: Sequence[Path] = ()
    annotation: Path | None = None
    fasta: Path | None = None
    vcf: Path | None = None
    scores: Path | None = None
    label: str | None = None
    tasks: Sequence[Path] = ()
    limit: int | None = None
    noise: bool = False
    samples: bool | None = None
    """None: where they take no longer than the rest, see `_worth_sampling`."""
    seen: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Filled on the way: the material, shared by two models."""


def default_context(*configs: HNetConfig) -> int:
    """2,048 bytes, or the training length if that is longer; of several models the longest."""
    return max(window_of(config)[0] for config in configs)


def precision(model: LoadedModel) -> tuple[str, Any]:
    """That of the weights; with CUDA bf16 by autocast, as in training."""
    weight, device = model.embeddings.weight, model.embeddings.weight.device.type
    if device != "cuda":
        return PRECISIONS[weight.dtype], nullcontext()
    return "bf16", torch.autocast(device, torch.bfloat16)


def evaluate(name: str, model: LoadedModel, request: Request, context: int) -> tuple[dict[str, Any], Scores | None]:
    """The figures of one model, and its scores on the documents if there are any."""
    kind = _modality(model, request)
    annotation = _needed(kind).annotation(file_source(request.annotation)) if request.annotation else None
    items = {path: tasks.read(path) for path in request.tasks}
    dtype, autocast = precision(model)
    whole = context == 0
    result: dict[str, Any] = {
        "model": name,
        "modality": kind.name if kind else None,
        "definition": {
            "context": None if whole else context,
            "stride": None if whole else min(request.stride or context, context),
            "precision": dtype,
        },
    }
    scores = None
    with autocast:
        if request.data:
            scores = _documents(result, model, kind, request, context or None)
        if request.gold:
            result["gold"] = _gold(model, _needed(kind), request)
        if annotation is not None:
            result["annotation"] = _annotation(model, _needed(kind), annotation, request)
        if items:
            result["tasks"] = {path.name: _task(model, kind, path.name, each, request) for path, each in items.items()}
        if request.vcf:
            assert request.fasta is not None
            with progress("variants") as bar:
                result["variants"] = score_variants(
                    model,
                    _needed(kind),
                    request.vcf,
                    request.fasta,
                    context or 2048,
                    request.scores,
                    bar.update,
                    request.label,
                )
    return result, scores


def _modality(model: LoadedModel, request: Request) -> Modality | None:
    name = request.modality or model.modality
    return modalities.get(name) if name else None


def _needed(kind: Modality | None) -> Modality:
    if kind is None:
        raise UsageError("it is not known what this model reads", "say --modality")
    return kind


def _table(kind: Modality | None) -> bytes | None:
    return kind.input_table if kind else None


def _documents(
    result: dict[str, Any], model: LoadedModel, kind: Modality | None, request: Request, context: int | None
) -> Scores:
    material: Material = request.seen.get("material") or gather(request.data, kind, request.max_bytes, request.field)
    request.seen["material"] = material
    read = [document.data.translate(_table(kind)) for document in material.documents]
    with progress("scoring", material.bytes) as bar:
        started = time.perf_counter()
        scores = score(model, read, context, request.stride, bar.update)
        seconds = time.perf_counter() - started
    result["definition"] |= {"bytes_counted": material.chosen, "uncertainty": f"bootstrap over {scores.unit}s"}
    result |= compression.figures(scores)
    if "baselines" not in request.seen:
        with progress("baselines"):
            request.seen["baselines"] = compression.baselines(read, material.train)
    result["baselines"] = request.seen["baselines"] | _uniform(kind)
    result["stages"] = compression.stages(scores, model.config)
    if kind is not None:
        _beyond_bytes(result, model, kind, request, material, context, scores)
    if material.refused:
        result["left_out"] = material.refused
    result["speed"] = {"bytes_per_s": float(scores.bytes.sum()) / seconds, "seconds": seconds}
    return scores


def _beyond_bytes(
    result: dict[str, Any],
    model: LoadedModel,
    kind: Modality,
    request: Request,
    material: Material,
    context: int | None,
    scores: Scores,
) -> None:
    """What needs to know the modality: units, strands, samples, noise."""
    if model.config.num_stages:
        known = gold.against(model, kind, gold.of_units(kind, material.documents, UNITS_BYTES))
        for stage, own in enumerate(result["stages"]):
            own["edges"] = {name: rows[stage] for name, rows in known["kinds"].items()}
        result["definition"]["edges_bytes"] = known["bytes"]
    mirrored = [kind.mirror(document.data.translate(kind.input_table)) for document in material.documents]
    if all(each is not None for each in mirrored):
        with progress("other strand", material.bytes) as bar:
            other = score(model, [each or b"" for each in mirrored], context, request.stride, bar.update)
        result["strands"] = _strands(scores, other)
    if request.samples is not False and model.tokenizer is None:
        drawn = request.samples or _worth_sampling(model, result["bytes"])
        result["validity"] = validity(model, kind) if drawn else None
    if request.noise:
        with progress("noise", 1 + len(kind.perturbations())) as task:
            result["noise"] = noise.robustness(
                model,
                [document.data for document in share(material.documents, NOISE_BYTES)],
                kind.perturbations(),
                context,
                request.stride,
                kind.input_table,
                progress=lambda done, what: task.update(done, note=what),
            )


def _strands(one: Scores, other: Scores) -> dict[str, Any]:
    """bpb of the other strand, and of the mean of both log-likelihoods."""
    columns = [each.units(each.nats / np.log(2), each.bytes) for each in (one, other)]
    result: dict[str, Any] = {}
    for name, units in (("forward", columns[0]), ("reverse", columns[1])):
        result |= with_interval(name, units)
    if one.unit == "window":  # the first of one strand lies where the last of the other does
        columns[1] = columns[1][np.lexsort((-np.arange(len(other.owner)), other.owner))]
    return result | with_interval("mean", columns[0] + columns[1])


def _uniform(kind: Modality | None) -> dict[str, float]:
    """log2 of the number of letters, where the modality is an alphabet."""
    if kind is None or len(kind.automaton().transitions) != 1:
        return {}
    return {"uniform": float(np.log2(sum(state >= 0 for state in kind.automaton().transitions[0])))}


def share(documents: Sequence[Document], limit: int) -> list[Document]:
    """The first bytes of each document, the same number of each as far as they go, at most `limit` in all. Of so many
    that this would be less than `LEAST` of each, it is every second document, every fourth, ..."""
    lengths = np.sort([len(document.data) for document in documents])
    reached = np.concatenate([[0], np.cumsum(lengths)[:-1]]) + lengths * np.arange(len(lengths), 0, -1)
    fits = int(np.searchsorted(reached, limit, side="right"))
    if fits == len(lengths):
        return list(documents)
    cap = int((limit - lengths[:fits].sum()) // (len(lengths) - fits))
    if cap < LEAST and len(documents) > 1:
        return share(documents[::2], limit)
    return [
        Document(each.data[:cap], each.name, each.source, each.group, each.offset)
        for each in documents
        if each.data[:cap]
    ]


def _worth_sampling(model: LoadedModel, scored: int) -> bool:
    """Each of the `SAMPLE_BYTES` steps reads all weights of a large model, which may take minutes on a CPU."""
    drawn = SAMPLES * SAMPLE_BYTES
    return drawn <= scored or drawn * sum(each.numel() for each in model.parameters()) <= QUICK


def validity(model: LoadedModel, kind: Modality) -> dict[str, Any]:
    """Samples drawn with no rule and no prompt at temperature 1, seed 0: the share that are legal for the modality (a
    unit that is cut off at the end aside), and how far they are legal."""
    automaton = kind.automaton()
    texts = [bytearray() for _ in range(SAMPLES)]
    with progress("samples"):
        for each in sampling.generate(model, [b""] * SAMPLES, max_bytes=SAMPLE_BYTES, temperature=1.0, seed=0):
            texts[each.row].append(each.byte)
    legal = []
    for text in texts:
        state, length = automaton.start, 0
        while length < len(text) and (state := automaton.transitions[state][text[length]]) >= 0:
            length += 1
        legal.append([length == len(text), length / len(text), 1])
    rows = np.array(legal, float)
    return {
        "samples": SAMPLES,
        "bytes_each": SAMPLE_BYTES,
        "valid": float(rows[:, 0].mean()),
        "valid_ci95": of_share(rows[:, 0].sum(), SAMPLES),
        **with_interval("valid_prefix", rows[:, [1, 2]]),
    }


def _gold(model: LoadedModel, kind: Modality, request: Request) -> dict[str, Any]:
    """Figures of the innermost kind of unit at the outermost stage on top, everything below."""
    refused: list[Refused] = []

    def stretches() -> Iterator[Gold]:
        left = request.max_bytes if request.max_bytes is not None else 1 << 62
        for source in sources_of(request.gold, kind):
            for item in [source] if isinstance(source, Refused) else kind.gold(source):
                if isinstance(item, Refused):
                    refused.append(item)
                elif left > 0:
                    left -= len(item.data)
                    yield item

    with progress("gold"):
        found = gold.against(model, kind, stretches())
    first: dict[str, Any] = next(iter(found["kinds"].values()))[0] if found["kinds"] else {}
    if refused:
        lines = f"{len(refused):,} line{'s' * (len(refused) != 1)}"
        say(f"[yellow]left out of the gold file:[/] {lines}, first {refused[0].where}: {refused[0].reason}")
    return {**first, **found, "left_out": len(refused)}


def _annotation(model: LoadedModel, kind: Modality, known: Annotation, request: Request) -> dict[str, Any]:
    named = [str(request.fasta)] if request.fasta else list(request.data)
    if not named:
        raise UsageError("--annotation needs the sequence it is about", "give the FASTA file too")
    material = request.seen.get("material") if not request.fasta else None
    material = material or gather(named, kind, request.max_bytes, request.field)
    with progress("annotation"):
        return gold.by_region(model, kind, material.documents, known)


def _task(
    model: LoadedModel, kind: Modality | None, name: str, items: list[tasks.Item], request: Request
) -> dict[str, Any]:
    items = items[: request.limit] if request.limit else items
    table = _table(kind)
    with progress(name, len(items)) as bar:
        clean = tasks.run(model, items, table, bar.update)
    result = tasks.figures(clean)
    if request.noise and kind is not None and kind.perturbations():
        kinds = dict(kind.perturbations())
        with progress(f"{name}, distorted", len(tasks.PLACES) * len(kinds) * len(items)) as noisy:
            note: Callable[[int, str], None] = lambda done, what: noisy.update(done, note=what)  # noqa: E731
            result["robustness"] = tasks.robustness(model, items, kinds, clean, table, note)
    return result
