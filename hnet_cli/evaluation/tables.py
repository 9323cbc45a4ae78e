"""The figures of `hnet eval` as tables and lines for a terminal."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from hnet_cli import provenance
from hnet_cli.evaluation import elastic
from hnet_cli.evaluation.compression import ORDER_K_LIMIT
from hnet_cli.evaluation.tasks import PLACES
from hnet_cli.modality import escape
from hnet_cli.report.stages import LEAST_WORTH
from hnet_cli.terminal.chart import Chart
from hnet_cli.terminal.console import literal, size, table

Json = Mapping[str, Any]
WRONG = 3
"""Wrong rows of --exact that are shown; all that were kept are in the JSON."""
BOUNDARY_COLUMNS = {
    **{"precision": "precision", "recall": "recall", "f1": "F1", "95%": "95%"},
    **{"unit_f1": "units right", "precision_exact": "as they stand", "chance": "chance"},
}
"""Figures of boundaries by their key, and the heads of their columns."""
READ = (
    'A boundary inside a character is read at the next character, in white space at the next word ("as they stand": '
    'not so); "units right": F1 of whole units. Below the stages, rules that have learned nothing: a boundary at every '
    "place, in white space, at a fixed stride and at random, the last two as many as the model has."
)


def tables(result: Json, charts: bool = False) -> Iterator[Table | Chart | str]:
    """Tables and lines of `evaluate`'s result, in order; the definition stands before the figures. `charts`: also the
    curves of --elastic, for a terminal."""
    if "sources" in result:
        yield from _mixture(result)
        return
    models = result.get("models", [result])
    for model in models:
        yield from _model(model, charts and len(models) == 1)
    if charts and len(models) > 1 and "elastic" in result["models"][0]:
        yield elastic.drawn(models, _unit(models[0]))
    if "difference" in result:
        yield from _difference(result)


def _mixture(result: Json) -> Iterator[Table | Chart | str]:
    """The sources of a mixture one after the other, then all together."""
    for source in result["sources"]:
        yield f"[bold]{literal(source['name'])}[/]: {source['share']:.1%} of the bytes trained on"
        yield from tables(source)
    models = result.get("models", [result])
    yield "[bold]All, in their shares[/]"
    heads = [literal(model["model"]) for model in models] + ["difference"] * (len(models) > 1)
    shares = [source["share"] for source in result["sources"]]
    known = [source.get("models", [source])[0]["baselines"] for source in result["sources"]]
    beside = {
        head: [figures[name] for figures in known]
        for name, head in (("xz", "xz"), ("order_k", "order-k"))
        if all(name in figures for figures in known)
    }
    rows = table("bits per byte", "share", *(cell for head in heads for cell in (head, "95%")), *beside)
    for n, source in enumerate(result["sources"]):
        bits = [f"{values[n]:.4f}" for values in beside.values()]
        rows.add_row(literal(source["name"]), f"{shares[n]:.1%}", *_bits(source), *bits)
    means = [f"{sum(map(operator.mul, shares, values)):.4f}" for values in beside.values()]
    rows.add_row("[bold]all[/]", "", *_bits(result), *means)
    yield rows


def _bits(result: Json) -> Iterator[str]:
    """The cells of one or two models, and of their difference."""
    for model in result.get("models", [result]):
        yield from _cells(model, "bpb")
    if "difference" in result:
        yield from _cells(result["difference"], "bpb", "+.4f")


def _model(result: Json, charts: bool) -> Iterator[Table | Chart | str]:
    byte = _unit(result)
    yield f"[bold]{literal(result['model'])}[/]"
    for name, about in (("Model", result.get("made")), ("Evaluated", result.get("evaluated"))):
        if about := provenance.line(about):
            yield f"[dim]{name}: {literal(about)}[/]"
    if "bpb" in result:
        yield _definition(result, byte)
        if reasons := result.get("left_out"):
            listed = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
            yield f"[yellow]left out:[/] {literal(listed)}"
        yield _compression(result, byte)
        if "order_k_adaptive" not in result["baselines"]:
            yield f"[dim]No order-k models: they are measured on at most {size(ORDER_K_LIMIT)} (--max-bytes).[/]"
        yield _stages(result["stages"], byte)
        yield from _worth(result, byte)
        if "elastic" in result:
            yield from _elastic(result, byte)
            if charts:
                yield elastic.drawn([result], byte)
        yield from _edges(result, byte)
    if "exact" in result:
        yield from _exact(result["exact"])
    if "validity" in result:
        yield _validity(result["validity"])
    if "noise" in result:
        yield _noise(result["noise"], byte)
    if "gold" in result:
        gold = result["gold"]
        yield (
            f"[dim]Gold: {gold['bytes']:,} bytes in {gold['stretches']:,} stretches; the first position of each is not "
            f"counted. {READ}[/]"
        )
        yield from _boundaries(gold["kinds"], byte)
    if "annotation" in result:
        yield from _annotation(result["annotation"], byte)
    for name, task in result.get("tasks", {}).items():
        yield from _task(name, task)
    if "probe" in result:
        yield from _probe(result["probe"])
    if "variants" in result:
        yield from _variants(result["variants"])
    if "speed" in result:
        speed = size(result["speed"]["bytes_per_s"])
        yield f"[dim]{speed}/s in {result['definition']['precision']} (scoring, not generation).[/]"


def _unit(result: Json) -> str:
    return "base" if result.get("modality") == "dna" else "byte"


def _cells(figures: Json, name: str, form: str = ".4f") -> tuple[str, str]:
    """A figure and its interval, for two columns."""
    return _known(figures, name, form), _interval(figures, name, form)


def _known(figures: Json, name: str, form: str) -> str:
    return "-" if figures[name] is None else f"{figures[name]:{form}}"


def _interval(figures: Json, name: str, form: str = ".4f") -> str:
    interval = figures.get(f"{name}_ci95")
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""


def _difference(result: Json) -> Iterator[Table | str]:
    """The difference of two models."""
    first, second = (literal(model["model"]) for model in result["models"])
    difference = result["difference"]
    yield f"[bold]{second} minus {first}[/]"
    yield f"[dim]The same {difference['unit']}s, drawn together.[/]"
    rows = table(f"bits per {_unit(result['models'][0])}", "", "95%")
    for name, model in zip((first, second), result["models"], strict=True):
        rows.add_row(name, *_cells(model, "bpb"))
    rows.add_row("difference", *_cells(difference, "bpb", "+.4f"))
    rows.add_row("relative", *_cells(difference, "relative", "+.2%"))
    share = difference["share_of_draws_second_better"]
    if share is not None:
        rows.add_row(f"draws in which {second} is better", f"{share:.1%}", "")
    yield rows


def _definition(result: Json, byte: str) -> str:
    definition = result["definition"]
    context, stride = definition["context"], definition["stride"]
    if context is None:
        window = f"every {byte} is predicted from all of its document before it"
    else:
        least = f"windows of {stride:,} that do not overlap (--stride)"
        if stride < context:
            least = f"at least {context - stride + 1:,} where there are as many (stride {stride:,})"
        window = f"a {byte} is predicted from at most {context:,} {byte}s before it in its document, {least}"
    documents = "1 document" if result["documents"] == 1 else f"{result['documents']:,} documents"
    enough = f"95%, {definition['uncertainty']}"
    first = f"The first {byte} of a document is predicted too, from the mark before it. "
    if definition.get("completions"):
        first = f"A longer one is read from {context:,} {byte}s before its end on. " if context else ""
    return (
        f"[dim]{result['bytes']:,} {byte}s, each counted once, of {documents}; {literal(definition['bytes_counted'])}. "
        f"Context: {window}. {first}"
        f"Intervals: {enough if result['bpb_ci95'] else 'none, for fewer than 8 documents or windows'}.[/]"
    )


def _compression(result: Json, byte: str) -> Table:
    rows = table(f"bits per {byte}", "", "95%")
    rows.add_row("[bold]model[/]", f"[bold]{result['bpb']:.4f}[/]", _interval(result, "bpb"))
    several = result["documents"] > 1
    if several:
        rows.add_row("model, mean over documents", *_cells(result, "bpb_per_document"))
    if "strands" in result:
        rows.add_row("model, other strand", *_cells(result["strands"], "reverse"))
        rows.add_row("model, mean of both strands", *_cells(result["strands"], "mean"))
    rows.add_row(f"nats per {byte}", *_cells(result, "nats_per_byte"))
    rows.add_row(f"perplexity per {byte}", *_cells(result, "perplexity"))
    known = result["baselines"]
    joined = ", all as one stream" * several
    trained = f"model of {size(known.get('order_k_train_bytes', 0))} of training data"
    names = {
        "uniform": "uniform over the letters",
        "xz": f"xz -9e{joined}",
        "xz_each_document": "xz -9e, each document",
        "zstd": f"zstd -19 --long{joined}",
        "zstd_each_document": "zstd -19, each document",
        "order_k_adaptive": f"order-{known.get('k_adaptive')} {byte} model, learning as it reads",
        "order_k": f"order-{known.get('k')} {byte} {trained}",
    }
    for name, shown in names.items():
        if name in known and (several or not name.endswith("each_document")):
            rows.add_row(shown, *_cells(known, name))
    return rows


def _stages(stages: Sequence[Json], byte: str) -> Table:
    rows = table("stage", f"{byte}s/chunk", "95%", "target", "boundaries", "mean p", "surprisal after one", "at one")
    for number, stage in enumerate(stages):
        rows.add_row(
            str(number),
            *_cells(stage, "bytes_per_chunk", ".3f"),
            f"{stage['target']:.2f}" if stage["target"] else "-",
            f"{stage['boundary_fraction']:.1%}",
            f"{stage['mean_boundary_prob']:.3f}",
            *(
                _known(stage, name, ".2f") + " x" * (stage[name] is not None)
                for name in ("enrichment", "enrichment_first")
            ),
        )
    return rows


def _elastic(result: Json, byte: str) -> Iterator[Table | str]:
    """Bits against the length of chunks."""
    heads, *rows = elastic.rows(result)
    yield f"[dim]Shorter and longer chunks, on the same {byte}s: thresholds found on a sample of them.[/]"
    drawn = table(*heads)
    for row in rows:
        drawn.add_row(*row)
    yield drawn


def _worth(result: Json, byte: str) -> Iterator[Table | str]:
    """Bits lost without what the chunks of a stage carry."""
    worths = [(number, stage) for number, stage in enumerate(result["stages"]) if "worth" in stage]
    if not worths:
        return
    rows = table(
        f"without what its chunks carry, stage (on {size(result['definition']['worth_bytes'])})", "lost", "95%"
    )
    for number, stage in worths:
        rows.add_row(str(number), *_cells(stage, "worth"))
    yield rows
    for number, stage in worths:
        if stage["worth"] < LEAST_WORTH:
            yield (
                f"[yellow]warning:[/] the chunks of stage {number} are worth less than {LEAST_WORTH} bits per {byte}: "
                "what lies inside the stage hardly changes a prediction."
            )


def _edges(result: Json, byte: str) -> Iterator[Table | str]:
    """Boundaries against units that are known without gold, by kind."""
    stages = [stage["edges"] for stage in result["stages"] if "edges" in stage]
    kinds = {kind: [edges[kind] for edges in stages] for kind in (stages[0] if stages else {})}
    if kinds:
        measured = f"{result['definition']['edges_bytes']:,} {byte}s"
        yield f"[dim]Boundaries against units known without gold, on {measured}. {READ}[/]"
        yield from _boundaries(kinds, byte)


def _boundaries(kinds: Mapping[str, Sequence[Json]], byte: str) -> Iterator[Table]:
    """A table per kind of edge: each stage, then the trivial rules."""
    for kind, stages in kinds.items():
        rows = table(f"{literal(kind)}, stage", *BOUNDARY_COLUMNS.values())
        numbered = [(str(number), stage) for number, stage in enumerate(stages)]
        for name, figures in [*numbered, *_rules(stages, byte)]:
            cells = {key: f"{value:.3f}" for key, value in figures.items() if isinstance(value, float)}
            cells |= {"f1": f"[bold]{cells['f1']}[/]", "95%": _interval(figures, "f1", ".3f")}
            rows.add_row(name, *(cells.get(key, "") for key in BOUNDARY_COLUMNS))
        yield rows


def _rules(stages: Sequence[Json], byte: str) -> Iterator[tuple[str, Json]]:
    """Rules without a model, once; those as frequent as a stage's boundaries, for every stage."""
    always = stages[0]["trivial"]
    yield f"every {'base' if byte == 'base' else 'character'}", always["every_character"]
    if always["whitespace"]["recall"]:
        yield "whitespace", always["whitespace"]
    for name in ("fixed_stride", "random"):
        for number, stage in enumerate(stages):
            yield name.replace("_", " ") + (f", as stage {number}" if len(stages) > 1 else ""), stage["trivial"][name]


def _exact(found: Json) -> Iterator[Table | str]:
    rows = table("rows of prompt and completion", "", "95%")
    rows.add_row("rows", f"{found['rows']:,}", "")
    rows.add_row("[bold]answered exactly[/]", *_cells(found, "exact"))
    rows.add_row("every byte likeliest after the true ones", *_cells(found, "forced"))
    rows.add_row("the most common completion, always", f"{found['trivial']['most_common']:.4f}", "")
    rows.add_row("the prompt, copied", f"{found['trivial']['copy']:.4f}", "")
    yield rows
    for row in found["wrong"][:WRONG]:
        prompt, completion, answer = (escape(row[name], "") for name in ("prompt", "completion", "answer"))
        yield f"[dim]Wrong: {literal(prompt[-60:])} -> {literal(answer[:60])}, not {literal(completion[:60])}[/]"


def _validity(valid: Json | None) -> str:
    if valid is None:
        return "[dim]No samples were drawn: for a model of this size they take longer than scoring. --samples does.[/]"
    wholly, prefix = (
        f"{valid[name]:.0%}"
        + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if (interval := valid[f"{name}_ci95"]) else "")
        for name in ("valid", "valid_prefix")
    )
    drawn = f"{valid['samples']} of {valid['bytes_each']} bytes, or up to where they end"
    drawn = drawn if valid.get("end") else drawn.partition(",")[0]
    return f"Samples drawn without rules ({drawn}): {wholly} wholly legal, legal for {prefix} of their length."


def _annotation(found: Json, byte: str) -> Iterator[Table | str]:
    levels = len(next(iter(found["regions"].values()))["stages"]) if found["regions"] else 0
    columns = [name for stage in range(levels) for name in (f"stage {stage}", "over all", "95%")]
    which = literal(found["left_out_first"])
    beside = f" ({found['left_out']:,} more are of records that are not annotated: {which})" if which else ""
    yield (
        f"[dim]Boundaries on {found['bases']:,} bases{beside} by the kind of place, and over those of all bases, then "
        "against edges of features. Intervals: 95%, bootstrap over stretches of 10,000 bases, if there are 8. "
        '"Units right": F1 of what lies between two edges.[/]'
    )
    rows = table("boundaries per base", "bases", *columns)
    for kind, region in found["regions"].items():
        cells = [cell for s in region["stages"] for cell in (f"{s['rate']:.4f}", *_cells(s, "enrichment", ".3f"))]
        rows.add_row(literal(kind), f"{region['positions']:,}", *cells)
    yield rows
    for reason, count in found["rows_left_out"].items():
        where = found["rows_left_out_first"][reason]
        rows_of = f"{count:,} row{'s' * (count != 1)} of the annotation left out"
        yield f"[dim]{literal(f'{rows_of}: {reason}, first {where}')}[/]"
    yield from _boundaries(found["edges"], byte)


def _noise(noise: Json, byte: str) -> Table:
    rows = table("distorted", f"bits per {byte}", f"per clean {byte}", "over clean", "95%")
    for name, figures in noise.items():
        bits = [f"{figures.get(key, figures['bpb']):.4f}" for key in ("bpb", "bits_per_clean_byte")]
        rows.add_row(literal(name), *bits, *(("1", "") if name == "clean" else _cells(figures, "ratio", ".3f")))
    return rows


def _task(name: str, task: Json) -> Iterator[Table | str]:
    rows = table(literal(name), "", "95%")
    rows.add_row("items", f"{task['items']:,}", "")
    for figure in ("acc", "acc_norm", "perplexity"):
        if figure in task:
            rows.add_row(figure, *_cells(task, figure))
    rows.add_row("chance", f"{task['chance']:.4f}", "")
    rows.add_row("bits per byte of the right ending", *_cells(task, "answer_bpb"))
    yield rows
    if "robustness" in task:
        yield from _robustness(task["robustness"], "acc_norm" if "acc_norm" in task else "acc")


def _robustness(noisy: Json, figure: str) -> Iterator[Table | str]:
    rows = table("distorted", figure, "95%", *(f"in {place}" for place in PLACES), "bits per byte, right ending", "95%")
    for kind, figures in noisy["perturbations"].items():
        places = [f"{figures[place]:.4f}" for place in PLACES]
        rows.add_row(literal(kind), *_cells(figures, "acc"), *places, *_cells(figures, "answer_bpb"))
    yield rows
    if noisy["robustness_score"] is None:
        yield "Robustness score: none, for the model is not above chance on what is not distorted."
    else:
        score, interval = _cells(noisy, "robustness_score", ".1f")
        yield f"Robustness score: {score}" + (f" ({interval})" if interval else "")


def _probe(found: Json) -> Iterator[Table | str]:
    about = f"{found['kind']} of {found['items']:,} items by {found['target']}"
    about += f" in {found['folds']} folds, {found['groups']:,} groups ({found['group']}) held out whole"
    yield f"[dim]{literal(about)}. Intervals: 95%, bootstrap over groups, if there are 8.[/]"
    for reason, number in found.get("documents_left_out", {}).items():
        yield f"[dim]{literal(f'left out: {number:,} documents, {reason}')}[/]"
    for reason, number in found["left_out"].items():
        first = found["left_out_first"][reason]
        yield f"[dim]{literal(f'left out: {number:,} rows, {reason}, first {first}')}[/]"
    if found["classes_in_one_group"]:
        few = ", ".join(found["classes_in_one_group"][:5])
        yield f"[yellow]In one group only, and so never right:[/] {literal(few)}"
    names = {"accuracy": "accuracy", "macro_f1": "macro F1", "r2": "R2", "spearman": "Spearman"}
    first = next(iter(found["layers"].values()))
    figures = [name for name in names if name in first]
    rows = table("vectors", *(cell for name in figures for cell in (names[name], "95%")))

    def row(name: str, own: Json) -> None:
        rows.add_row(name, *(cell for figure in figures for cell in _cells(own, figure, ".3f")))

    for name, own in found["layers"].items():
        row(f"[bold]{literal(name)}[/]" if name == found["vectors"] else literal(name), own)
    row(f"n-grams, n up to {found['n']:d}", found["baselines"]["ngrams"])
    row("the mean" if found["kind"] == "regression" else "the commonest class", found["baselines"]["majority"])
    row(f"{literal(found['vectors'])} less n-grams", found["difference"])
    yield rows


def _variants(found: Json) -> Iterator[Table | str]:
    rows = table("variants", "", "95%")
    rows.add_row("scored", f"{found['variants']:,}", "")
    for reason, number in found["left_out"].items():
        rows.add_row(f"left out: {literal(reason)}", f"{number:,}", "")
    rows.add_row("ln P(alternative) - ln P(reference)", *_cells(found, "llr"))
    for kind, number in found["kinds"].items():
        rows.add_row(f"  {kind} ({number:,})", *_cells(found, f"llr_{kind}"))
    if "strand_correlation" in found:
        rows.add_row("the two strands' scores, Spearman", *_cells(found, "strand_correlation", ".3f"))
    if "label" in found:
        label = found["label"]
        if label["left_out"]:
            rows.add_row(f"no value of {literal(label['field'])} to compare with", f"{label['left_out']:,}", "")
        rows.add_row(f"{label['measure']} with {literal(label['field'])}", *_cells(label, "model", ".3f"))
        for name in label["baselines"]:
            if not name.endswith("_ci95"):
                rows.add_row(f"  {literal(name)}, without a model", *_cells(label["baselines"], name, ".3f"))
    yield rows
    for reason, where in found["left_out_first"].items():
        yield f"[dim]{literal(f'{reason}: first {where}')}[/]"
