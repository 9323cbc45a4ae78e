"""The figures of `hnet eval` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from hnet_cli.console import literal, size, table

UNITS = {"dna": "base"}


def tables(result: Mapping[str, Any]) -> Iterator[Table | str]:
    """Tables and lines, in order: the definition first, so that no figure stands without what it means."""
    byte = UNITS.get(result.get("modality") or "", "byte")
    yield f"[bold]{literal(result['model'])}[/]"
    if "bpb" in result:
        yield from _compression(result, byte)
        yield _stages(result, byte)
        if edges := _edges(result["stages"]):
            yield edges
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
        yield from _gold(result["gold"])
    if "annotation" in result:
        yield from _annotation(result["annotation"])
    for name, task in result.get("tasks", {}).items():
        yield from _task(name, task)
    if "variants" in result:
        yield from _variants(result["variants"])
    if "speed" in result:
        speed = result["speed"]
        yield f"[dim]{speed['bytes_per_s'] / 1e3:.1f} kB/s in {result['definition']['precision']}[/]"


def comparison(result: Mapping[str, Any]) -> Iterator[Table | str]:
    """The difference of two models."""
    first, second = (literal(model["model"]) for model in result["models"])
    difference = result["difference"]
    rows = table("bits per byte", "", "95%", title=f"{second} minus {first}, on the same {difference['unit']}s")
    rows.add_row("difference", f"{difference['bpb']:+.4f}", _interval(difference, "bpb", "+.4f"))
    share = difference["share_of_draws_second_better"]
    if share is not None:
        rows.add_row(f"draws in which {second} is better", f"{share:.1%}", "")
    yield rows


def _compression(result: Mapping[str, Any], byte: str) -> Iterator[Table | str]:
    about = result["definition"]
    if about["context"] is None:
        window = f"every {byte} sees its whole document"
    else:
        least = about["context"] - about["stride"] + 1
        window = (f"a {byte} is predicted from at most {about['context']:,} {byte}s before it in its document, and "
                  f"from at least {least:,} where there are as many (stride {about['stride']:,})")  # fmt: skip
    yield (
        f"[dim]{result['bytes']:,} {byte}s, each counted once, of {result['documents']:,} documents; "
        f"{literal(about['bytes_counted'])}. Context: {window}. The first {byte} of a document is predicted too, from "
        f"the mark before it. Intervals: 95%, {about['uncertainty']}.[/]"
    )
    rows = table(f"bits per {byte}", "", "95%")
    rows.add_row("[bold]model[/]", f"[bold]{result['bpb']:.4f}[/]", _interval(result, "bpb"))
    rows.add_row("model, mean over documents", f"{result['bpb_per_document']:.4f}",
                 _interval(result, "bpb_per_document"))  # fmt: skip
    if "strands" in result:
        strands = result["strands"]
        rows.add_row("model, other strand", f"{strands['reverse']:.4f}", _interval(strands, "reverse"))
        rows.add_row("model, mean of both strands", f"{strands['mean']:.4f}", "")
    rows.add_row(f"nats per {byte}", f"{result['nats_per_byte']:.4f}", _interval(result, "nats_per_byte"))
    rows.add_row(f"perplexity per {byte}", f"{result['perplexity']:.4f}", _interval(result, "perplexity"))
    known = result["baselines"]
    counted = size(known.get("order_k_train_bytes", 0))
    names = {
        "uniform": "uniform over the letters",
        "xz": "xz -9e, all as one stream",
        "xz_each_document": "xz -9e, each document",
        "zstd": "zstd -19 --long, all as one stream",
        "zstd_each_document": "zstd -19, each document",
        "order_k_adaptive": f"order-{known.get('k_adaptive')} {byte} model, learning as it reads",
        "order_k": f"order-{known.get('k')} {byte} model of {counted} of training data",
    }
    for name, shown in names.items():
        if name in known:
            rows.add_row(shown, f"{known[name]:.4f}", _interval(known, name))
    yield rows


def _stages(result: Mapping[str, Any], byte: str) -> Table:
    rows = table("stage", f"{byte}s/chunk", "95%", "target", "boundaries", "mean p", "surprisal after", "at")
    for number, stage in enumerate(result["stages"]):
        target = f"{stage['target']:.2f}" if stage["target"] else "-"
        rows.add_row(
            *(str(number), f"{stage['bytes_per_chunk']:.3f}", _interval(stage, "bytes_per_chunk", ".3f"), target),
            *(f"{stage['boundary_fraction']:.1%}", f"{stage['mean_boundary_prob']:.3f}"),
            *(f"{stage['enrichment']:.2f} x", f"{stage['enrichment_first']:.2f} x"),
        )
    return rows


def _edges(stages: Sequence[Mapping[str, Any]]) -> Table | None:
    rows = _scores_table("stage, unit")
    for number, stage in enumerate(stages):
        for kind, score in stage.get("edges", {}).items():
            _add_scores(rows, f"{number} {kind}", score)
    return rows if rows.row_count else None


def _scores_table(first: str, title: str | None = None) -> Table:
    columns = ("precision", "recall", "F1", "95%", "units right", "as they stand", "chance")
    return table(first, *columns, title=title)


def _add_scores(rows: Table, name: str, score: Mapping[str, Any]) -> None:
    exact = f"{score['precision_exact']:.3f}" if "precision_exact" in score else ""
    rows.add_row(
        *(literal(name), f"{score['precision']:.3f}", f"{score['recall']:.3f}", f"[bold]{score['f1']:.3f}[/]"),
        *(_interval(score, "f1", ".3f"), f"{score['unit_f1']:.3f}", exact, f"{score['chance']:.3f}"),
    )


def _scores(kinds: Mapping[str, Any]) -> Iterator[Table]:
    """A table per kind of edge: each stage, then the trivial rules."""
    for kind, stages in kinds.items():
        rows = _scores_table(f"{kind}, stage")
        for number, score in enumerate(stages):
            _add_scores(rows, str(number), score)
        for name, score in stages[0]["trivial"].items():
            _add_scores(rows, name.replace("_", " "), score)
        yield rows


def _gold(gold: Mapping[str, Any]) -> Iterator[Table | str]:
    yield (f"[dim]Gold: {gold['bytes']:,} bytes in {gold['stretches']:,} stretches. A boundary inside a character is "
           "read at the next character, in white space at the next word (\"as they stand\": not so); the first "
           "position of a stretch counts for nothing; \"units right\": F1 of whole units.[/]")  # fmt: skip
    yield from _scores(gold["kinds"])


def _annotation(found: Mapping[str, Any]) -> Iterator[Table | str]:
    levels = len(next(iter(found["regions"].values()))["stages"]) if found["regions"] else 0
    columns = [name for s in range(levels) for name in (f"stage {s}", "to all", "95%")]
    rows = table("boundaries per base", "bases", *columns)
    for kind, region in found["regions"].items():
        cells = []
        for stage in region["stages"]:
            cells += [f"{stage['rate']:.4f}", f"{stage['enrichment']:.3f}", _interval(stage, "enrichment", ".3f")]
        rows.add_row(literal(kind), f"{region['positions']:,}", *cells)
    yield rows
    yield from _scores(found["edges"])


def _noise(noise: Mapping[str, Any], byte: str) -> Table:
    rows = table("distorted", f"bits per {byte}", f"per {byte} before", "to clean", "95%")
    for name, each in noise.items():
        if name == "clean":
            rows.add_row("clean", f"{each['bpb']:.4f}", f"{each['bpb']:.4f}", "1.000", "")
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
    if "robustness" in task:
        noisy = task["robustness"]
        for kind, each in noisy["perturbations"].items():
            rows.add_row(f"  {literal(kind)}", f"{each['acc']:.4f}", _interval(each, "acc"))
        score = noisy["robustness_score"]
        shown = "-" if score is None else f"{score:.1f}"
        rows.add_row("robustness score", shown, _interval(noisy, "robustness_score", ".1f"))
    yield rows


def _variants(found: Mapping[str, Any]) -> Iterator[Table | str]:
    rows = table("variants", "", "95%")
    rows.add_row("scored", f"{found['variants']:,}", "")
    for reason, number in found["left_out"].items():
        rows.add_row(f"left out: {literal(reason)}", f"{number:,}", "")
    rows.add_row("ln P(alternative) - ln P(reference)", f"{found['llr']:.4f}", _interval(found, "llr"))
    for kind, number in found["kinds"].items():
        rows.add_row(f"  {kind} ({number:,})", f"{found[f'llr_{kind}']:.4f}", "")
    rows.add_row("the two strands' scores, Spearman", f"{found['strand_correlation']:.3f}", "")
    if "label" in found:
        label = found["label"]
        rows.add_row(f"{label['measure']} with {literal(label['field'])}", f"{label['model']:.3f}",
                     _interval(label, "model", ".3f"))  # fmt: skip
        for name, value in label["baselines"].items():
            rows.add_row(f"  {literal(name)}", f"{value:.3f}", "")
    yield rows


def _share(figures: Mapping[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_ci95")
    return f"{figures[name]:.0%}" + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else "")


def _interval(figures: Mapping[str, Any], name: str, form: str = ".4f") -> str:
    interval = figures.get(f"{name}_ci95")
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""
