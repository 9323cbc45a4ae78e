"""`hnet eval`: the parts that are asked for, their figures as one JSON-able object."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli import modality as modalities
from hnet_cli import provenance, storage
from hnet_cli.checkpoints.find import default_model, find, load
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.config.sources import Sources, words
from hnet_cli.data.mixture import Mixture
from hnet_cli.data.prepare.contents import files_of
from hnet_cli.data.prepare.rows import Field, option_of
from hnet_cli.distributed.device import this_machine
from hnet_cli.errors import InputError, UsageError
from hnet_cli.evaluation import compression, elastic, exact, gold, noise, probe, tasks, variants
from hnet_cli.evaluation.material import (
    Material,
    equal_shares,
    file_source,
    gather,
    is_dataset,
    leave_out,
    own_data,
    read_documents,
)
from hnet_cli.evaluation.resampling import FEWEST, mean_with_interval, share_interval, share_weighted, with_interval
from hnet_cli.inference import generate as sampling
from hnet_cli.inference.scoring import Scores, check_windows, default_context, precision, score
from hnet_cli.inference.thresholds import SAMPLE_BYTES as CALIBRATION_BYTES
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.modality import Document, Gold, Modality, Refused, Source
from hnet_cli.model.config import EOS
from hnet_cli.storage.streams import shown
from hnet_cli.terminal.console import literal, progress, say

UNITS_BYTES = 200_000
"""Bytes of the documents whose units (`Modality.units`) are compared with the boundaries; every one gives its share."""
WORTH_BYTES = 100_000
"""Bytes of the documents that are read again without what the chunks carry; every one gives its share, or every second,
every fourth, ..., so that a share is as long as the context."""
NOISE_BYTES = 100_000
"""Bytes of the documents that are distorted, in each of the ways; every document gives its share."""
SAMPLES, SAMPLE_BYTES = 32, 256
MOST_STRETCHES = 20_000
"""Stretches of gold files that are read: a minute of a CPU."""
CHEAP = 10**12
"""Bytes times parameters up to which samples are drawn unasked: a minute of a slow CPU."""


@dataclass(frozen=True)
class EvaluationRequest:
    """The options of `hnet eval`. Raises UsageError where two contradict each other."""

    data: Sequence[str] = ()
    """Files, or one dataset, whose held-out split is read. Default: the dataset the model was trained on."""
    modality: str | None = None
    """Default: the model's."""
    field: Field = None
    max_bytes: int = 2_000_000
    """0: all."""
    context: int | None = None
    """Bytes back; 0: the whole document. Default: `default_context`."""
    stride: int | None = None
    """Bytes between windows. Default: the context."""
    gold: Sequence[Path] = ()
    annotation: Path | None = None
    fasta: Path | None = None
    vcf: Path | None = None
    scores: Path | None = None
    """TSV that the variants' scores are written to."""
    overwrite: bool = False
    """Replace what is at `scores` or `page`."""
    label: str | None = None
    tasks: Sequence[Path] = ()
    limit: int | None = None
    """Items of each task, rows of `exact`."""
    exact: bool = False
    """Also answer rows of prompt and completion."""
    probe: Path | None = None
    """TSV of labels of documents or regions in `data`, which is then read for this alone."""
    group: str | None = None
    """Its column whose values are held out whole. That of the labels is `label`."""
    noise: bool = False
    compression: Compression = UNCHANGED
    """Thresholds, or the length of chunks that they make on a sample of the data."""
    elastic: bool = False
    """Also at other lengths of chunks."""
    page: Path | None = None
    """HTML page of these that is written."""
    samples: bool | None = None
    """Default: where they take no longer than the rest, see `worth_sampling`."""

    def __post_init__(self) -> None:
        if self.vcf and not self.fasta:
            raise UsageError("--vcf needs the sequence it is about", "give --fasta too")
        if self.vcf and self.context == 0:
            raise UsageError("--vcf reads parts of the context around a variant, and 0 has none", "give --context 2048")
        scored = self.needs_data or (self.data and not self.probe)
        for option, value, others, needed in (
            ("--scores", self.scores, "--vcf", self.vcf),
            ("--label", self.label, "--vcf or --probe", self.vcf or self.probe),
            ("--group", self.group, "--probe", self.probe),
            ("--probe", self.probe, "--group, the column whose values are held out whole", self.group),
            ("--probe", self.probe, "the files that its rows name", self.data),
            ("--fasta", self.fasta, "--vcf or --annotation", self.vcf or self.annotation),
            ("--limit", self.limit, "--task or --exact", self.tasks or self.exact),
            ("--page", self.page, "--elastic", self.elastic),
            ("--noise", self.noise or None, "data to evaluate on, or --task", scored or self.tasks),
            ("--samples", self.samples or None, "data to evaluate on", scored),
            ("--stride", self.stride, "data to evaluate on", scored),
        ):
            if value is not None and not needed:
                raise UsageError(f"{option} goes with {others}", "give both, or neither")

    @property
    def needs_data(self) -> bool:
        """No other input is named that could be evaluated on."""
        return not (self.data or self.gold or self.tasks or self.vcf or (self.annotation and self.fasta))


def evaluate(models: Sequence[str], request: EvaluationRequest, device: str | None = None) -> dict[str, Any]:
    """The figures of one model as `hnet eval --json` prints them; of two, {"models": [..], "difference": ..}.

    `models`: MODEL, as everywhere in hnet; none: the default model. Raises UsageError, InputError, DamagedError,
    NumericalError, EnvironmentLimit.
    """
    if len(models) > 2:
        raise UsageError(f"{len(models)} models are given, two can be compared", "give one or two")
    if request.scores is not None:
        if len(models) > 1:
            raise UsageError("--scores is one file, and two models are given", "give one, then the other")
        inputs = [path for path in (request.vcf, request.fasta) if path is not None]
        storage.refuse_output(request.scores, request.overwrite, inputs)
    if request.page is not None:
        storage.refuse_output(request.page, request.overwrite, request.data)
    if not models:
        models = [default_model(request.modality)]
    own = _trained_on(models) if request.needs_data else ()
    loaded = [load(name, this_machine(device).device) for name in models]
    context = default_context(*(model.config for model in loaded)) if request.context is None else request.context
    check_windows(context, request.stride)
    if len(loaded) > 1 and (own or request.data):
        _warn_of_long_windows(models, loaded, context)
    if len(own) > 1:
        if request.elastic:
            raise UsageError(
                "--elastic is of one dataset, and this is a mixture", "name one of its datasets with --data"
            )
        mixture, evaluate_one = Mixture.open(own), partial(_evaluate, models, loaded, context)
        applied = [
            _apply(request.compression, name, model, mixture) for name, model in zip(models, loaded, strict=True)
        ]
        return _mixed(mixture, replace(request, compression=UNCHANGED), evaluate_one, applied)
    return _evaluate(models, loaded, context, replace(request, data=[own[0].path]) if own else request)


def _evaluate(
    models: Sequence[str], loaded: Sequence[LoadedModel], context: int, request: EvaluationRequest
) -> dict[str, Any]:
    """The figures of loaded models on the data of a request."""
    kinds = {model.modality for model in loaded} - {None}
    if len(kinds) > 1 and not request.modality:
        differ = f"{models[0]} is a model of {loaded[0].modality}, {models[1]} of {loaded[1].modality}"
        raise UsageError(f"{differ}: they read files differently", "say --modality to have both read them so")
    if request.field is not None and not request.data:
        raise UsageError(f"{option_of(request.field)} applies to rows of files, and none are given", "leave it out")
    evaluations = [_Evaluation(name, model, request, context) for name, model in zip(models, loaded, strict=True)]
    material, baselines = None, dict[str, Any]()
    if request.data and not request.probe:
        material = gather(request.data, evaluations[0].modality, request.max_bytes or None, request.field, context)
    for evaluation in evaluations:
        evaluation.check(material)
    if material is not None:
        with progress("baselines"):
            baselines = evaluations[0].baselines(material)
    results = [evaluation.figures(material, baselines) for evaluation in evaluations]
    now = provenance.made(str(loaded[0].embeddings.weight.device), kernels=loaded[0].kernels().names)
    for result, _ in results:
        result["evaluated"] = now
    result = results[0][0]
    if len(results) > 1:
        (first, before), (second, after) = results
        compared = compression.difference(before, after) if before is not None and after is not None else None
        result = {"models": [first, second]} | ({"difference": compared} if compared else {})
    if request.page is not None:
        storage.write_output(request.page, elastic.page(result), request.overwrite)
        say(f"Wrote {literal(request.page)}.")
    return result


def _warn_of_long_windows(models: Sequence[str], loaded: Sequence[LoadedModel], context: int) -> None:
    """Say which of compared models were trained on sequences shorter than `context` (0: whole documents). Mamba-2 reads
    on beyond its training length, a Transformer of ours hardly: in such windows the two change places (docs/results,
    "Code, 20 MB")."""
    lengths = [int(model.config.extra.get("sequence_length") or 0) for model in loaded]
    short = [length for length in lengths if length and (not context or length < context)]
    if not short:
        return
    windows = f"windows of {context:,} bytes" if context else "whole documents"
    trained = " and ".join(
        f"{name} was trained on sequences of {length:,} bytes"
        for name, length in zip(models, lengths, strict=True)
        if length in short
    )
    advice = f"{trained}, and {windows} are longer: --context {min(short)} compares the two within that"
    say(f"[yellow]{literal(advice)}.[/]")


def damaged_files(result: Mapping[str, Any]) -> list[str]:
    """Errors of the files that the figures of `evaluate` leave out as damaged."""
    figures = result.get("models", [result])
    parts = [part for one in figures for part in (one, one.get("gold", {}), one.get("probe", {}))]
    return list(dict.fromkeys(error for part in parts for error in part.get("damaged", [])))


def _trained_on(models: Sequence[str]) -> Sources:
    """The datasets that the first of the models that has some was trained on. Raises UsageError, or InputError for no
    such model or a dataset that is gone."""
    gone: list[InputError] = []
    for model in models:
        try:
            if data := own_data(model):
                say(f"Data: [bold]{literal(words(data))}[/]")
                return data
        except InputError as error:
            gone.append(error)
    if gone:
        raise gone[0]
    find(models[0])  # raises where there is no such model
    raise UsageError(f"there is nothing to evaluate {models[0]} on", "give files, or a dataset with --data")


def _apply(compression: Compression, name: str, model: LoadedModel, mixture: Mixture) -> dict[str, Any]:
    """Set the thresholds of a model that is evaluated on a mixture, found on a sample of all sources in their shares:
    {"compression": what was applied}, or nothing."""

    def sample() -> Iterator[bytes]:
        for dataset, share in zip(mixture.datasets, mixture.shares, strict=True):
            part = gather([str(dataset.path)], None, max(1, int(share * CALIBRATION_BYTES)))
            yield from (dataset.translate(np.frombuffer(each.data, np.uint8)).tobytes() for each in part.documents)

    with precision(model)[1]:
        applied = compression.apply(model, sample)
    if applied is None:
        return {}
    say(f"{literal(name)}: chunks at {literal(str(applied))}.")
    return {"compression": applied.to_dict()}


def _mixed(
    mixture: Mixture,
    request: EvaluationRequest,
    evaluate_one: Callable[[EvaluationRequest], dict[str, Any]],
    applied: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The figures of each source of a mixture, read in its own modality, as "sources"; and of all the mean in their
    shares. The bytes are divided equally among them; samples belong to the model, and are drawn with the first. Where
    only some are rows of prompt and completion, what is for rows, or for documents, is of these alone.
    """
    if request.modality not in (None, *{dataset.modality for dataset in mixture.datasets}):
        raise UsageError(
            f"each dataset of a mixture is read in its own modality, and none in {request.modality}", "leave it out"
        )
    of_rows = {dataset.prompted for dataset in mixture.datasets}
    sources, most = list[dict[str, Any]](), max(1, request.max_bytes // len(mixture.names)) if request.max_bytes else 0
    for name, share, dataset in zip(mixture.names, mixture.shares, mixture.datasets, strict=True):
        samples = False if sources else request.samples
        one = replace(request, data=[str(dataset.path)], modality=dataset.modality, max_bytes=most, samples=samples)
        if len(of_rows) > 1 and dataset.prompted:
            one = replace(one, noise=False, stride=None)
        elif len(of_rows) > 1:
            one = replace(one, exact=False, limit=None)
        sources.append({"name": name, "share": share} | evaluate_one(one))

    def whole(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        about = {key: figures[0][key] for key in ("model", "made", "evaluated") if key in figures[0]}
        return about | {"modality": mixture.modality} | share_weighted("bpb", figures, mixture.shares)

    each = [source.get("models", [source]) for source in sources]
    wholes = [whole(of_model) | chosen for of_model, chosen in zip(zip(*each, strict=True), applied, strict=True)]
    for model in (model for models in each[1:] for model in models):
        model.pop("made"), model.pop("evaluated")  # said once
    if len(wholes) == 1:
        return wholes[0] | {"sources": sources}
    compared = share_weighted("bpb", [source["difference"] for source in sources], mixture.shares)
    return {"models": wholes, "difference": compared, "sources": sources}


class _Evaluation:
    """One model under a request. `context`: bytes, 0 for the whole document."""

    def __init__(self, name: str, model: LoadedModel, request: EvaluationRequest, context: int) -> None:
        """Read the annotation and the tasks. Raises UsageError, InputError."""
        self.name, self.model, self.request, self.context = name, model, request, context
        kind = request.modality or model.modality
        self.modality = modalities.get(kind) if kind else None
        self.annotation = self._known.annotation(file_source(request.annotation)) if request.annotation else None
        self.annotated: Material | None = None
        """Documents that the annotation is about."""
        self.calls: variants.Calls | None = None
        self.rows: list[exact.Row] = []
        """Rows to answer."""
        request.compression.check(model)
        if request.elastic:
            elastic.check(model)
        alike = Counter(path.name for path in set(request.tasks))
        names = {path: shown(path) if alike[path.name] > 1 else path.name for path in request.tasks}
        self.items = {name: tasks.read_items(path)[: request.limit] for path, name in names.items()}
        self.labels: list[probe.Label] = []
        if request.probe and request.group:
            self.labels = probe.read_labels(request.probe, request.group, request.label or "label")

    @property
    def _known(self) -> Modality:
        if self.modality is None:
            raise UsageError("it is not known what this model reads", "say --modality")
        return self.modality

    @property
    def table(self) -> bytes | None:
        return self.modality.input_table if self.modality else None

    def read(self, material: Material) -> list[bytes]:
        """The documents as the model reads them."""
        return [document.data.translate(self.table) for document in material.documents]

    def sample(self, material: Material | None) -> list[bytes]:
        """The beginnings of all documents, as the model reads them, for thresholds to be found on: of those that are
        scored, else of the files of a probe or the --fasta, else of the tasks. Raises UsageError without any."""
        files = list(self.request.data) or [str(path) for path in [self.request.fasta] if path]
        if material is None and files:
            material = gather(files, self.modality, CALIBRATION_BYTES, self.request.field)
        documents = [] if material is None else material.documents
        if material is None:
            items = (item for items in self.items.values() for item in items)
            documents = [Document(f"{item.text} {item.endings[item.answer]}".encode(), "", "") for item in items]
        if not documents:
            raise UsageError("--bytes-per-chunk needs data to find the threshold on", "give --data, or --threshold")
        return [each.data.translate(self.table) for each in equal_shares(documents, CALIBRATION_BYTES)]

    def baselines(self, material: Material) -> dict[str, Any]:
        """Figures without a neural network on the same documents."""
        letters = self.modality.letters() if self.modality else b""
        documents, counting = self.read(material), None
        if any(prompts := material.prompts):
            marks = (bytes(n) + b"\1" * (len(data) - n) for data, n in zip(documents, prompts, strict=True))
            counting = material.train_counts, b"".join(marks)
        return compression.baselines(documents, material.train, letters, counting)

    def score(
        self,
        documents: Sequence[bytes],
        update: Callable[[int], None] = lambda done: None,
        prompts: Sequence[int] = (),
    ) -> Scores:
        """The scores of documents as the model reads them; `prompts`: bytes at the beginning that do not count."""
        return score(self.model, documents, self.context or None, self.request.stride, update, prompts=prompts)

    def check(self, material: Material | None) -> None:
        """Read what goes with others and see that it fits, before anything is scored. Raises UsageError, InputError."""
        request = self.request
        if (request.gold or request.annotation) and not self.model.config.num_stages:
            option = "--gold" if request.gold else "--annotation"
            raise UsageError(f"{option} is about chunks, and {self.name} has no chunking stages", "take an H-Net")
        if request.probe and any(is_dataset(Path(name)) for name in request.data):
            raise UsageError(
                "--probe reads files by their names, and this is a dataset", "give the files it is made of"
            )
        rows = "and these are rows of prompt and completion"
        if material is not None and any(material.prompts):
            if request.noise:
                raise UsageError(f"--noise distorts documents, {rows}", "leave it out")
            if request.stride is not None:
                raise UsageError(f"--stride is of documents, {rows}, each read once", "leave it out")
        if request.exact:
            if material is None:
                raise UsageError("--exact needs rows of prompt and completion", "give their dataset or file too")
            if self.model.tokenizer is not None:
                raise UsageError(
                    "--exact continues prompts byte by byte, and this is a model of tokens", "leave it out"
                )
            self.rows = exact.rows_of(material.documents, self.table, request.limit)
        if request.elastic and material is None:
            raise UsageError("--elastic needs data to evaluate on", "give files, or a dataset with --data")
        if self.annotation is not None:
            self.annotated = material
            if request.fasta:
                self.annotated = gather([str(request.fasta)], self.modality, request.max_bytes or None)
            if self.annotated is None:
                raise UsageError("--annotation needs the sequence it is about", "give the FASTA file too")
            gold.annotated(self.annotated.documents, self.annotation)
        if request.vcf and request.fasta:
            self.calls = variants.read(self._known, request.vcf, request.fasta, request.label)

    def figures(self, material: Material | None, baselines: Mapping[str, Any]) -> tuple[dict[str, Any], Scores | None]:
        """The result object, and the scores on the documents where there are any."""
        request, context = self.request, self.context
        name, autocast = precision(self.model)
        with autocast:
            applied = request.compression.apply(self.model, lambda: self.sample(material))
        stride = min(request.stride or context, context)
        result: dict[str, Any] = {
            "model": self.name,
            "modality": self.modality.name if self.modality else None,
            "made": self.model.config.extra.get("made"),
            "definition": {"context": context or None, "stride": stride or None, "precision": name},
        }
        if applied is not None:
            say(f"{literal(self.name)}: chunks at {literal(str(applied))}.")
            result["compression"] = applied.to_dict()
        scores = None
        with autocast:
            if material is not None:
                scores = self._add_documents(result, material, baselines)
            if self.rows:
                with progress("answering", len(self.rows)) as bar:
                    result["exact"] = exact.figures(self.model, self.rows, self.modality, bar.update)
            if request.gold:
                result["gold"] = self._gold()
            if self.annotation is not None and self.annotated is not None:
                with progress("annotation"):
                    documents = self.annotated.documents
                    result["annotation"] = gold.by_region(self.model, self._known, documents, self.annotation)
            if self.items:
                result["tasks"] = {name: self._task(name, items) for name, items in self.items.items()}
            if self.labels:
                result["probe"] = self._probe()
            if self.calls is not None:
                result["variants"] = variants.score(self.model, self.calls, context, request.scores, request.overwrite)
        return result, scores

    def _add_documents(self, result: dict[str, Any], material: Material, baselines: Mapping[str, Any]) -> Scores:
        started = time.perf_counter()
        with progress("scoring", material.bytes) as bar:
            each = self.score(self.read(material), bar.update, material.prompts)
        scores = each.grouped(material.owners)
        seconds = time.perf_counter() - started
        result["definition"] |= {"bytes_counted": material.chosen, "uncertainty": f"bootstrap over {scores.unit}s"}
        result["definition"] |= {"completions": True} if any(material.prompts) else {}
        result |= compression.figures(scores)
        result["baselines"] = dict(baselines)
        result["stages"] = compression.stages(scores, self.model.config)
        if self.request.elastic:
            documents, size = self.read(material), material.bytes
            with progress("other lengths of chunks", (len(elastic.FACTORS) - 1) * size) as bar:

                def again(times: int) -> Scores:
                    passed = self.score(documents, lambda done: bar.update(times * size + done), material.prompts)
                    return passed.grouped(material.owners)

                result["elastic"] = elastic.sweep(self.model, scores, again, self.sample(material))
        if self.model.config.num_stages:
            self._add_worth(result, material)
        if self.modality is not None:
            self._add_by_modality(result, self.modality, material, each)
        if material.refused:
            result["left_out"] = material.refused
        if material.damaged:
            result["damaged"] = list(map(str, material.damaged))
        result["speed"] = {"bytes_per_s": result["bytes"] / seconds, "seconds": seconds}
        return scores

    def _add_worth(self, result: dict[str, Any], material: Material) -> None:
        least = min(self.context or WORTH_BYTES, WORTH_BYTES // (4 * FEWEST))
        share = material.shares(WORTH_BYTES, least)
        documents, size = self.read(share), share.bytes
        with progress("worth of the chunks", (1 + len(result["stages"])) * size) as bar:

            def score() -> Scores:
                before = bar.done
                passed = self.score(documents, lambda done: bar.update(before + done), share.prompts)
                return passed.grouped(share.owners)

            for stage, figures in zip(result["stages"], compression.worth(self.model, score), strict=True):
                stage |= figures
        result["definition"]["worth_bytes"] = size

    def _add_by_modality(self, result: dict[str, Any], modality: Modality, material: Material, each: Scores) -> None:
        """Add edges of known units, the other strand, samples and noise. `each`: by item of the material."""
        if self.model.config.num_stages:
            plain = [document._replace(data=document.data.removesuffix(exact.END)) for document in material.documents]
            units = gold.known_units(modality, equal_shares(plain, UNITS_BYTES), UNITS_BYTES)
            found = gold.against_gold(self.model, modality, units)
            for number, stage in enumerate(result["stages"]):
                stage["edges"] = {kind: rows[number] for kind, rows in found["kinds"].items()}
            result["definition"]["edges_bytes"] = found["bytes"]
        mirrored = [None if any(material.prompts) else modality.mirror(data) for data in self.read(material)]
        other_strand = [data for data in mirrored if data is not None]
        if len(other_strand) == len(mirrored):
            with progress("other strand", material.bytes) as bar:
                result["strands"] = _strands(each, self.score(other_strand, bar.update), material.owners)
        if self.request.samples is not False and self.model.tokenizer is None:
            drawn = self.request.samples or worth_sampling(self.model, result["bytes"])
            result["validity"] = validity(self.model, modality, any(material.prompts)) if drawn else None
        if self.request.noise:
            share = material.shares(NOISE_BYTES)
            result["noise"] = noise.robustness(
                lambda stored: self.score([data.translate(self.table) for data in stored]),
                [document.data for document in share.documents],
                modality.perturbations(),
                share.owners,
            )

    def _gold(self) -> dict[str, Any]:
        """Figures of the innermost kind of unit at the outermost stage on top, everything below."""
        refused: list[Refused] = []
        damaged: list[InputError] = []

        def stretches() -> Iterator[Gold]:
            left, number = self.request.max_bytes or 1 << 62, 0
            for file in files_of(self.request.gold, self._known):
                found, known = list[Gold](), len(refused)
                try:
                    for item in self._stretches(file):
                        if isinstance(item, Refused):
                            refused.append(item)
                            continue
                        if left <= 0 or number + len(found) == MOST_STRETCHES:
                            break
                        left -= len(item.data)
                        found.append(item)
                except InputError as error:  # as in `gather`, nothing of it is kept
                    left += sum(len(item.data) for item in found)
                    del found[:], refused[known:]
                    damaged.append(error)
                    leave_out(error)
                yield from found
                number += len(found)
                if left <= 0 or number == MOST_STRETCHES:
                    say(f"Gold: the first {number:,} stretches.", verbose=number < MOST_STRETCHES)
                    return
            if damaged and not number:
                raise damaged[0]

        with progress("gold"):
            found = gold.against_gold(self.model, self._known, stretches())
        first: dict[str, Any] = next(iter(found["kinds"].values()))[0] if found["kinds"] else {}
        if refused:
            first_place = f"first {refused[0].where}: {refused[0].reason}"
            lines = f"{len(refused):,} line{'s' * (len(refused) != 1)}, {first_place}"
            say(f"[yellow]left out of the gold file:[/] {literal(lines)}")
        whole = {**first, **found, "left_out": len(refused)}
        return whole | ({"damaged": list(map(str, damaged))} if damaged else {})

    def _stretches(self, file: Iterable[Source | Refused]) -> Iterator[Gold | Refused]:
        for source in file:
            yield from [source] if isinstance(source, Refused) else self._known.gold(source)

    def _probe(self) -> dict[str, Any]:
        request, refused, damaged = self.request, Counter[str](), list[InputError]()
        modality = self.modality or Modality()
        with progress("reading"):
            documents = read_documents(request.data, modality, request.field, refused, damaged)
            items = probe.collect(self.labels, documents, self.table, request.max_bytes or None)
        letters = modality.letters() if self.modality else b""
        with progress("vectors", sum(map(len, items.data))) as bar:
            found = probe.probe(self.model, items, letters, bar.update)
        about = {"labels": str(request.probe), "group": request.group, "target": request.label or "label", **found}
        about |= {"documents_left_out": dict(refused)} if refused else {}
        return about | ({"damaged": list(map(str, damaged))} if damaged else {})

    def _task(self, name: str, items: Sequence[tasks.Item]) -> dict[str, Any]:
        with progress(name, len(items)) as bar:
            clean = tasks.score_items(self.model, items, self.table, bar.update)
        result = tasks.figures(clean)
        perturbations = self.modality.perturbations() if self.modality else {}
        if self.request.noise and perturbations:
            scored = self._known.scored_noise
            result["robustness"] = tasks.robustness(self.model, items, perturbations, clean, self.table, name, scored)
        return result


def _strands(one: Scores, other: Scores, owners: Sequence[int] | None = None) -> dict[str, Any]:
    """bpb of both strands, and of the mean of their log-likelihoods."""
    # The first window of one strand lies where the last of the other does.
    turned = np.lexsort((-np.arange(len(other.owner)), other.owner))
    other = Scores(other.owner, other.bytes[turned], other.nats[turned], other.stages[turned])
    one, other = one.grouped(owners), other.grouped(owners)
    forward, reverse = (scores.units(scores.bits, scores.bytes) for scores in (one, other))
    both = with_interval("forward", forward) | with_interval("reverse", reverse)
    return both | with_interval("mean", forward + reverse)


def worth_sampling(model: LoadedModel, scored: int) -> bool:
    """Samples take no longer than what was scored, `scored` bytes, or are cheap: each of their steps reads all weights,
    which takes minutes for a large model on a CPU."""
    drawn = SAMPLES * SAMPLE_BYTES
    return drawn <= scored or drawn * sum(weight.numel() for weight in model.parameters()) <= CHEAP


def validity(model: LoadedModel, modality: Modality, end: bool = False) -> dict[str, Any]:
    """Samples without a rule or prompt at temperature 1, seed 0: the share that are legal for the modality (apart from
    a unit cut off at the end), and the share of their length that is. `end`: one ends where the model draws the
    end, which it knows from rows of prompt and completion; elsewhere that byte is illegal."""
    automaton = modality.automaton()
    texts = [bytearray() for _ in range(SAMPLES)]
    with progress("samples"):
        for drawn in sampling.generate(
            model, [b""] * SAMPLES, max_bytes=SAMPLE_BYTES, temperature=1.0, eos=EOS if end else None, seed=0
        ):
            texts[drawn.row].append(drawn.byte)
    legal = []
    for text in texts:
        state, length = automaton.start, 0
        while length < len(text) and (state := automaton.transitions[state][text[length]]) >= 0:
            length += 1
        legal.append([length == len(text), length / len(text) if text else 1])
    wholly, prefix = np.array(legal, float).T
    return {
        "samples": SAMPLES,
        "bytes_each": SAMPLE_BYTES,
        "end": end,
        "valid": float(wholly.mean()),
        "valid_ci95": share_interval(wholly.sum(), SAMPLES),
        **mean_with_interval("valid_prefix", prefix),
    }
