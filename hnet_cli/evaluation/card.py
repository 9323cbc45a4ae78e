"""A model folder for others: the model, a card with its figures, a picture of its chunks, what `transformers` needs.

The Hub shows the card; `AutoModelForCausalLM` opens the folder where hnet-cli is installed.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from hnet_cli import modality as modalities
from hnet_cli import provenance, storage
from hnet_cli.checkpoints.find import find, load
from hnet_cli.checkpoints.model_folder import MODEL_TYPE, LoadedModel, read_json, read_tensors
from hnet_cli.checkpoints.safetensors_file import write_safetensors
from hnet_cli.errors import InputError, UsageError
from hnet_cli.evaluation.material import own_data
from hnet_cli.evaluation.report import EvaluationRequest, evaluate
from hnet_cli.inference.chunk_objects import BACKGROUNDS, Chunks
from hnet_cli.inference.render import shower
from hnet_cli.model.config import BOS, EOS

LANGUAGES = {"chinese": ["zh"]}
"""By modality, where it is one."""
SHOWN, COLUMNS = 600, 72
"""Bytes and columns of the picture."""
CODE = '''"""This model under transformers, with `trust_remote_code=True`: pip install hnet-cli, which has the code."""

from hnet_cli.transformers import ByteTokenizer, HNetForCausalLM, HNetHubConfig  # noqa: F401
'''
AUTO_MAP = {"AutoConfig": "modeling_hnet.HNetHubConfig", "AutoModelForCausalLM": "modeling_hnet.HNetForCausalLM"}
TOKENIZER = {"tokenizer_class": "ByteTokenizer", "auto_map": {"AutoTokenizer": ["modeling_hnet.ByteTokenizer", None]}}
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Card:
    """The words of a model's author; the rest of the card is measured."""

    licence: str = ""
    """Licence of the weights, as the Hub names it: mit, apache-2.0, cc-by-4.0. Empty: none is named."""
    languages: Sequence[str] = ()
    """Codes such as en; by default those of the modality."""
    base_model: str = ""
    """The model it began with, as the Hub names it."""


def publish(
    reference: str,
    target: Path,
    card: Card = Card(),
    *,
    data: Sequence[str] = (),
    max_bytes: int = 200_000,
    overwrite: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Write the folder `target` of the model that MODEL means; its figures, as `evaluate` gives them, or {}.

    They are measured on `data`, or on the held-out split of the run's own data if that is there. Raises UsageError for
    a model of tokens, BusyError where `target` exists, else as `evaluate`.
    """
    with storage.staged_folder(target, overwrite=overwrite, manifest={"kind": "model"}) as folder:
        source = find(reference)
        model = load(source)
        if model.tokenizer is not None:
            raise UsageError("a model of tokens is there to be compared with", "publish a model of bytes")
        figures: dict[str, Any] = {}
        if data or _has_data(reference):
            request = EvaluationRequest(data=data, max_bytes=max_bytes, samples=False)
            figures = evaluate([reference], request, device)
        config = read_json(source / "config.json") | {"model_type": MODEL_TYPE, "auto_map": AUTO_MAP}
        made = provenance.after(provenance.made(), config.get("hnet"))
        config["hnet"] = config.get("hnet", {}) | {"made": provenance.without_places(made)}
        storage.write_json(folder / "config.json", config)
        with storage.NewFile(folder / "model.safetensors") as file:
            write_safetensors(file, read_tensors(source / "model.safetensors"), lambda stored: stored.read(), METADATA)
        storage.write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})
        storage.write_json(folder / "tokenizer_config.json", TOKENIZER)
        storage.write_text(folder / "modeling_hnet.py", CODE)
        if picture := _picture(model):
            storage.write_text(folder / "chunks.svg", picture)
        words = text(
            model,
            modalities.escape(target.resolve().name, keep=""),
            card,
            figures,
            config["hnet"]["made"],
            bool(picture),
        )
        storage.write_text(folder / "README.md", words)
    return figures


def _has_data(reference: str) -> bool:
    """True if the datasets that a run was trained on are still there."""
    try:
        return bool(own_data(reference))
    except InputError:
        return False


def text(model: LoadedModel, name: str, card: Card, figures: Mapping[str, Any], made: Any, pictured: bool) -> str:
    """The card, in Markdown with the Hub's header in YAML."""
    kind, stages = model.modality or "", model.config.num_stages
    about = {
        "license": card.licence,
        "language": list(card.languages) or LANGUAGES.get(kind, []),
        "base_model": card.base_model,
        "library_name": "hnet-cli",
        "pipeline_tag": "text-generation",
        "tags": ["h-net", "byte-level", "dynamic-chunking", *([kind] if kind else [])],
    }
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in about.items() if value)
    levels = f"{stages} stage{'s' * (stages != 1)} of learned chunks" if stages else "no stages of chunks"
    lines = [
        f"---\n{header}\n---",
        f"# {name}",
        f"An [H-Net](https://arxiv.org/abs/2507.07955) over bytes{f' for {kind}' if kind else ''}, {levels}, "
        f"{model.config.num_parameters:,} parameters: no tokenizer, chunks learned with the rest.",
    ]
    if pictured:
        lines.append("![Chunks that it has learned](chunks.svg)")
    lines.append(_use(name))
    if figures:
        lines.append(_table(figures))
    before = made.get("before") if isinstance(made, Mapping) else None
    records = [*reversed(before if isinstance(before, list) else []), made]
    if history := [f"- {_plain(line)}" for line in map(provenance.line, records) if line]:
        lines.append("\n".join(["## Made with", "", *history]))
    return "\n\n".join(lines) + "\n"


def _plain(line: str) -> str:
    """A line that a page cannot take for HTML, or for more than one: what a model began with may come from anywhere."""
    return html.escape(modalities.escape(line, keep=""), quote=False)


def _use(name: str) -> str:
    word = shlex.quote(name)
    return f"""## Use

```sh
pip install hnet-cli
hnet sample {word} --prompt "The "
hnet segment file.txt --model {word}   # the chunks; `hnet play {word}` shows them as you type
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({json.dumps(name, ensure_ascii=False)}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({json.dumps(name, ensure_ascii=False)}, trust_remote_code=True)
```

`{name}` is this folder, or `hf:OWNER/NAME` for `hnet` and `OWNER/NAME` for transformers once it is on the Hub."""


def _table(figures: Mapping[str, Any]) -> str:
    """Bits per byte beside the baselines on the same bytes, and the chunks of each stage, with intervals of 95%; of a
    model of a mixture on each of its sources, with the mean in their shares."""
    if "sources" in figures:
        mean = f"## Figures\n\nMean of the sources in their shares: {_with_interval(figures, 'bpb', 3)} bits per byte."
        tables = (f"### {html.escape(source['name'])}\n\n{_rows(source)}" for source in figures["sources"])
        return "\n\n".join([mean, *tables])
    return f"## Figures\n\n{_rows(figures)}"


def _rows(figures: Mapping[str, Any]) -> str:
    rows = [("bits per byte", _with_interval(figures, "bpb", 3))]
    names = {"xz": "xz, as one stream", "zstd": "zstd, as one stream", "order_k_adaptive": "adaptive order-k model"}
    rows += [(names[key], f"{figures['baselines'][key]:.3f}") for key in names if figures["baselines"].get(key)]
    for number, stage in enumerate(figures["stages"]):
        rows.append((f"bytes per chunk, stage {number}", _with_interval(stage, "bytes_per_chunk", 2)))
        if stage.get("worth") is not None:
            rows.append((f"bits per byte lost without its chunks, stage {number}", _with_interval(stage, "worth", 3)))
    counted = re.sub(r"\S*/", "", str(figures["definition"]["bytes_counted"]))  # no paths of this machine
    number = figures["documents"]
    body = "\n".join(f"| {html.escape(name)} | {value} |" for name, value in rows)
    return (
        f"On {figures['bytes']:,} bytes of {number:,} document{'s' * (number != 1)} "
        f"({html.escape(counted)}), intervals of 95%, by `hnet eval`:\n\n| | |\n|---|--:|\n{body}"
    )


def _with_interval(figures: Mapping[str, Any], name: str, digits: int) -> str:
    interval = figures.get(f"{name}_ci95")
    around = f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""
    return "-" if figures[name] is None else f"{figures[name]:.{digits}f}{around}"


def _picture(model: LoadedModel) -> str:
    """The chunks of the modality's example as SVG; empty where there are none."""
    example = modalities.get(model.modality).example if model.modality in modalities.names() else ""
    if not example or not model.config.num_stages:
        return ""
    return drawn(model.chunks(example.encode()[:SHOWN].decode(errors="ignore")))


def drawn(chunks: Chunks) -> str:
    """Chunks as SVG, in lines of `COLUMNS` columns: black on a colour each."""
    show = shower(None)
    parts, column, line = list[str](), 0, 0
    for number, chunk in enumerate(chunks):
        colour = BACKGROUNDS[number % len(BACKGROUNDS)][0]
        for n, piece in enumerate(show(chunk.data).split("\n")):
            if n or column + cell_len(piece) > COLUMNS:
                column, line = 0, line + 1
            if not piece:
                continue
            x, y, width = 9 * column + 9, 26 * line + 9, 9 * cell_len(piece)
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="22" rx="3" fill="{colour}"/>')
            shown = html.escape(piece).replace(" ", "\u00a0")
            parts.append(f'<text x="{x}" y="{y + 16}" textLength="{width}">{shown}</text>')
            column += cell_len(piece)
    size = f'width="{9 * COLUMNS + 18}" height="{26 * (line + 1) + 18}"'
    style = 'font-family="ui-monospace,Menlo,Consolas,monospace" font-size="15"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'
