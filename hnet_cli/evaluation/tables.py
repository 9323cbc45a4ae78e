"""The figures of `hnet eval` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from hnet_cli.evaluation.tasks import PLACES
from hnet_cli.terminal.console import literal, size, table

UNITS = {"dna": "base"}


def tables(result: Mapping[str, Any]) -> Iterator[Table | str]:
    """Tables and lines, in order: the definition first, so that no figure stands without what it means."""
    byte = UNITS.get(result.get("modality") or "", "byte")
    yield f"[bold]{literal(result['model'])}[/]"
    if "bpb" in result:
        yield from _compression(result, byte)
        yield _stages(result, byte)
        yield from _edges(result, byte)
    if "validity" in result and result["validity"] is None:
        yield ("[dim]No samples were drawn: for a model of this size they take longer than what was scored. --samples "
               "draws them.[/]")  # fmt: skip
    elif "validity" in result:
        valid = result["validity"]
        yield (f"Samples drawn without rules ({valid['samples']} of {valid['bytes_each']} bytes): "
               f"{_share(valid, 'valid')} wholly legal, legal for {_share(valid, 'valid_prefix')} of their "
               "length.")  # fmt: skip
    if "noise" in result:
        yield _noise(result["noise"], byte)
    if "gold" in result:
        yield from _gold(result["gold"], byte)
    if "annotation" in result:
        yield from _annotation(result["annotation"], byte)
    for name, task in result.get("tasks", {}).items():
        yield from _task(name, task)
    if "variants" in result:
        yield from _variants(result["variants"])
    if "speed" in result:
        speed = result["speed"]
        yield (f"[dim]{size(speed['bytes_per_s'])}/s in {result['definition']['precision']} (scoring, not "
               "generation).[/]")  # fmt: skip


def comparison(result: Mapping[str, Any]) -> Iterator[Table | str]:
    """The difference of two models."""
    models = result["models"]
    first, second = (literal(model["model"]) for model in models)
    difference = result["difference"]
    yield f"[bold]{second} minus {first}[/]"
    yield f"[dim]The same {difference['unit']}s, drawn together.[/]"
    byte = UNITS.get(models[0].get("modality") or "", "byte")
    rows = table(f"bits per {byte}", "", "95%")
    for name, model in zip((first, second), models, strict=True):
        rows.add_row(name, f"{model['bpb']:.4f}", _interval(model, "bpb"))
    rows.add_row("difference", f"{difference['bpb']:+.4f}", _interval(difference, "bpb", "+.4f"))
    rows.add_row("relative", f"{difference['relative']:+.2%}", _interval(difference, "relative", "+.2%"))
    share = difference["share_of_draws_second_better"]
    if share is not None:
        rows.add_row(f"draws in which {second} is better", f"{share:.1%}", "")
    yield rows


def _compression(result: Mapping[str, Any], byte: str) -> Iterator[Table | str]:
    about = result["definition"]
    context, stride = about["context"], about["stride"]
    if context is None:
        window = f"every {byte} is predicted from all of its document before it"
    else:
        least = f"windows of {stride:,} that do not overlap (--stride)"
        if stride < context:
            least = f"at least {context - stride + 1:,} where there are as many (stride {stride:,})"
        window = f"a {byte} is predicted from at most {context:,} {byte}s before it in its document, {least}"
    documents = "1 document" if result["documents"] == 1 else f"{result['documents']:,} documents"
    sure = f"95%, {about['uncertainty']}" if result["bpb_ci95"] else "none, for fewer than 8 documents or windows"
    yield (
        f"[dim]{result['bytes']:,} {byte}s, each counted once, of {documents}; {literal(about['bytes_counted'])}. "
        f"Context: {window}. The first {byte} of a document is predicted too, from the mark before it. "
        f"Intervals: {sure}.[/]"
    )
    rows = table(f"bits per {byte}", "", "95%")
    rows.add_row("[bold]model[/]", f"[bold]{result['bpb']:.4f}[/]", _interval(result, "bpb"))
    several = result["documents"] > 1
    if several:
        rows.add_row("model, mean over documents", f"{result['bpb_per_document']:.4f}",
                     _interval(result, "bpb_per_document"))  # fmt: skip
    if "strands" in result:
        strands = result["strands"]
        rows.add_row("model, other strand", f"{strands['reverse']:.4f}", _interval(strands, "reverse"))
        rows.add_row("model, mean of both strands", f"{strands['mean']:.4f}", _interval(strands, "mean"))
    rows.add_row(f"nats per {byte}", f"{result['nats_per_byte']:.4f}", _interval(result, "nats_per_byte"))
    rows.add_row(f"perplexity per {byte}", f"{result['perplexity']:.4f}", _interval(result, "perplexity"))
    known = result["baselines"]
    counted = size(known.get("order_k_train_bytes", 0))
    names = {
        "uniform": "uniform over the letters",
        "xz": "xz -9e" + ", all as one stream" * several,
        "xz_each_document": "xz -9e, each document",
        "zstd": "zstd -19 --long" + ", all as one stream" * several,
        "zstd_each_document": "zstd -19, each document",
        "order_k_adaptive": f"order-{known.get('k_adaptive')} {byte} model, learning as it reads",
        "order_k": f"order-{known.get('k')} {byte} model of {counted} of training data",
    }
    for name, shown in names.items():
        if name in known and (several or not name.endswith("each_document")):
            rows.add_row(shown, f"{known[name]:.4f}", _interval(known, name))
    yield rows


def _stages(result: Mapping[str, Any], byte: str) -> Table:
    rows = table("stage", f"{byte}s/chunk", "95%", "target", "boundaries", "mean p", "surprisal after one", "at one")
    for number, stage in enumerate(result["stages"]):
        target = f"{stage['target']:.2f}" if stage["target"] else "-"
        rows.add_row(
            *(str(number), f"{stage['bytes_per_chunk']:.3f}", _interval(stage, "bytes_per_chunk", ".3f"), target),
            *(f"{stage['boundary_fraction']:.1%}", f"{stage['mean_boundary_prob']:.3f}"),
            *(f"{stage['enrichment']:.2f} x", f"{stage['enrichment_first']:.2f} x"),
        )
    return rows


def _edges(result: Mapping[str, Any], byte: str) -> Iterator[Table | str]:
    """Boundaries against units that are known without gold, by kind."""
    stages = [stage["edges"] for stage in result["stages"] if "edges" in stage]
    kinds = {kind: [edges[kind] for edges in stages] for kind in (stages[0] if stages else {})}
    if kinds:
        yield (f"[dim]Boundaries against units known without gold, on {result['definition']['edges_bytes']:,} {byte}s. "
               f"{READ}[/]")  # fmt: skip
        yield from _scores(kinds, byte)


READ = (
    'A boundary inside a character is read at the next character, in white space at the next word ("as they stand": '
    'not so); "units right": F1 of whole units. Below the stages, rules that have learned nothing: a boundary at every '
    "place, in white space, at a fixed stride and at random, the last two as many as the model has."
)


def _scores(kinds: Mapping[str, Any], byte: str) -> Iterator[Table]:
    """A table per kind of edge: each stage, then the trivial rules."""
    for kind, stages in kinds.items():
        columns = ("precision", "recall", "F1", "95%", "units right", "as they stand", "chance")
        rows = table(f"{literal(kind)}, stage", *columns)
        for number, score in enumerate(stages):
            _add_scores(rows, str(number), score)
        for name, score in _rules(stages, byte):
            _add_scores(rows, name, score)
        yield rows


def _rules(stages: Sequence[Mapping[str, Any]], byte: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What needs no model, once; what is as frequent as a stage's boundaries, for every stage."""
    always = stages[0]["trivial"]
    yield f"every {'base' if byte == 'base' else 'character'}", always["every_character"]
    if always["whitespace"]["recall"]:
        yield "whitespace", always["whitespace"]
    for name in ("fixed_stride", "random"):
        for number, score in enumerate(stages):
            yield name.replace("_", " ") + (f", as stage {number}" if len(stages) > 1 else ""), score["trivial"][name]


def _add_scores(rows: Table, name: str, score: Mapping[str, Any]) -> None:
    exact = f"{score['precision_exact']:.3f}" if "precision_exact" in score else ""
    rows.add_row(
        *(name, f"{score['precision']:.3f}", f"{score['recall']:.3f}", f"[bold]{score['f1']:.3f}[/]"),
        *(_interval(score, "f1", ".3f"), f"{score['unit_f1']:.3f}", exact, f"{score['chance']:.3f}"),
    )


def _gold(gold: Mapping[str, Any], byte: str) -> Iterator[Table | str]:
    yield (f"[dim]Gold: {gold['bytes']:,} bytes in {gold['stretches']:,} stretches; the first position of each counts "
           f"for nothing. {READ}[/]")  # fmt: skip
    yield from _scores(gold["kinds"], byte)


def _annotation(found: Mapping[str, Any], byte: str) -> Iterator[Table | str]:
    levels = len(next(iter(found["regions"].values()))["stages"]) if found["regions"] else 0
    columns = [name for s in range(levels) for name in (f"stage {s}", "over all", "95%")]
    beside = f" ({found['left_out']:,} more are of records that are not annotated)" if found["left_out"] else ""
    yield (f"[dim]Boundaries on {found['bases']:,} bases{beside} by the kind of place, and over those of all bases, "
           "then against edges of features. Intervals: 95%, bootstrap over stretches of 10,000 bases, if there are 8. "
           '"Units right": F1 of what lies between two edges.[/]')  # fmt: skip
    rows = table("boundaries per base", "bases", *columns)
    for kind, region in found["regions"].items():
        cells = []
        for stage in region["stages"]:
            cells += [f"{stage['rate']:.4f}", f"{stage['enrichment']:.3f}", _interval(stage, "enrichment", ".3f")]
        rows.add_row(literal(kind), f"{region['positions']:,}", *cells)
    yield rows
    yield from _scores(found["edges"], byte)


def _noise(noise: Mapping[str, Any], byte: str) -> Table:
    rows = table("distorted", f"bits per {byte}", f"per clean {byte}", "over clean", "95%")
    for name, each in noise.items():
        if name == "clean":
            rows.add_row("clean", f"{each['bpb']:.4f}", f"{each['bpb']:.4f}", "1", "")
        else:
            rows.add_row(literal(name), f"{each['bpb']:.4f}", f"{each['bits_per_clean_byte']:.4f}",
                         f"{each['ratio']:.3f}", _interval(each, "ratio", ".3f"))  # fmt: skip
    return rows


def _task(name: str, task: Mapping[str, Any]) -> Iterator[Table | str]:
    rows = table(literal(name), "", "95%")
    rows.add_row("items", f"{task['items']:,}", "")
    for figure in ("acc", "acc_norm", "perplexity"):
        if figure in task:
            rows.add_row(figure, f"{task[figure]:.4f}", _interval(task, figure))
    rows.add_row("chance", f"{task['chance']:.4f}", "")
    rows.add_row("bits per byte of the right ending", f"{task['answer_bpb']:.4f}", _interval(task, "answer_bpb"))
    yield rows
    if "robustness" in task:
        yield from _robustness(task)


def _robustness(task: Mapping[str, Any]) -> Iterator[Table | str]:
    noisy = task["robustness"]
    figure = "acc_norm" if "acc_norm" in task else "acc"
    rows = table("distorted", figure, "95%", *(f"in {place}" for place in PLACES), "bits per byte, right ending", "95%")
    for kind, each in noisy["perturbations"].items():
        rows.add_row(literal(kind), f"{each['acc']:.4f}", _interval(each, "acc"),
                     *(f"{each[place]:.4f}" for place in PLACES),
                     f"{each['answer_bpb']:.4f}", _interval(each, "answer_bpb"))  # fmt: skip
    yield rows
    score, sure = noisy["robustness_score"], _interval(noisy, "robustness_score", ".1f")
    if score is None:
        yield "Robustness score: none, for the model is not above chance on what is not distorted."
    else:
        yield f"Robustness score: {score:.1f}" + (f" ({sure})" if sure else "")


def _variants(found: Mapping[str, Any]) -> Iterator[Table | str]:
    rows = table("variants", "", "95%")
    rows.add_row("scored", f"{found['variants']:,}", "")
    for reason, number in found["left_out"].items():
        rows.add_row(f"left out: {literal(reason)}", f"{number:,}", "")
    rows.add_row("ln P(alternative) - ln P(reference)", f"{found['llr']:.4f}", _interval(found, "llr"))
    for kind, number in found["kinds"].items():
        rows.add_row(f"  {kind} ({number:,})", f"{found[f'llr_{kind}']:.4f}", _interval(found, f"llr_{kind}"))
    if "strand_correlation" in found:
        rows.add_row("the two strands' scores, Spearman", f"{found['strand_correlation']:.3f}",
                     _interval(found, "strand_correlation", ".3f"))  # fmt: skip
    if "label" in found:
        label = found["label"]
        rows.add_row(f"{label['measure']} with {literal(label['field'])}", f"{label['model']:.3f}",
                     _interval(label, "model", ".3f"))  # fmt: skip
        rivals = {name: value for name, value in label["baselines"].items() if not name.endswith("_ci95")}
        for name, value in rivals.items():
            rows.add_row(f"  {literal(name)}, without a model", f"{value:.3f}",
                         _interval(label["baselines"], name, ".3f"))  # fmt: skip
    yield rows
    for reason, where in found["left_out_first"].items():
        yield f"[dim]{literal(f'{reason}: first {where}')}[/]"


def _share(figures: Mapping[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_ci95")
    return f"{figures[name]:.0%}" + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else "")


def _interval(figures: Mapping[str, Any], name: str, form: str = ".4f") -> str:
    interval = figures.get(f"{name}_ci95")
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""
