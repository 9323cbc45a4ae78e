"""Write the reference pages of docs/reference/ from the code: `python docs/reference.py`. A test keeps them current."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from hnet_cli.cli import options
from hnet_cli.cli.app import app
from hnet_cli.config.bounds import Bounds
from hnet_cli.config.run import RunConfig
from hnet_cli.config.sources import DataSource
from hnet_cli.config.train import TrainConfig
from hnet_cli.model.config import SWITCHES, HNetConfig
from hnet_cli.model.settings import LEAST, MOST, AttnConfig, Chunker, Rotary, SSMConfig

FOLDER = Path(__file__).parent / "reference"
OFFICIAL = ("arch_layout", "d_model", "d_intermediate", "vocab_size", "tie_embeddings")


def settings() -> str:
    """Every key of a configuration: type, default, range, meaning."""
    sections = [
        (
            "The file",
            "",
            RunConfig,
            [f.name for f in dataclasses.fields(RunConfig) if f.name not in ("model", "train")],
        ),
        ("data, where there are several datasets", "data[].", DataSource, None),
        ("model:", "model.", HNetConfig, [*OFFICIAL, *SWITCHES]),
        ("model.chunker", "model.chunker.", Chunker, None),
        ("model.ssm_cfg", "model.ssm_cfg.", SSMConfig, None),
        ("model.attn_cfg", "model.attn_cfg.", AttnConfig, None),
        ("model.rotary, one per level", "model.rotary[].", Rotary, None),
        ("train:", "train.", TrainConfig, None),
    ]
    page = """\
# Settings

A configuration is a YAML file, or `--set key=value`. Generated from the code by `docs/reference.py`.
`extends: NAME` at the top of a file begins with a preset (`hnet presets`) or another file. Numbers that change over a
run are lists of `[share of the run, value]` points. `model.chunker` is written `learned`, `characters`, `space`,
`fixed:6`, `regex:PATTERN` or `bpe:FILE`, or as a list with one per stage.
"""
    for title, prefix, kind, names in sections:
        page += f"\n## {title}\n\n| key | type | default | range | meaning |\n|---|---|---|---|---|\n"
        for cells in _rows(kind, names):
            page += f"| `{prefix}{cells[0]}` | " + " | ".join(cells[1:]) + " |\n"
    return page


def _rows(kind: type, names: list[str] | None) -> Iterator[tuple[str, ...]]:
    meanings, hints = _docstrings(kind), typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if names is None or field.name in names:
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            shown = "required" if default is dataclasses.MISSING else f"`{_shown(default)}`"
            hint, least = hints[field.name], LEAST.get(field.name, 1)
            limits = _ranges(hint) or ([f"{least} to {MOST}"] if kind in (SSMConfig, AttnConfig) else [])
            if kind is Rotary:
                limits = ["above 0"]
            elif kind is HNetConfig and (hint is int or hint == tuple[int, ...]):
                limits = [f"{least} to {MOST}"]
            yield field.name, _type(hint), shown, ", ".join(dict.fromkeys(limits)), meanings[field.name]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value).lower() if isinstance(value, bool | None) else str(value) or '""'


def _type(hint: Any) -> str:
    """A type as one writes it in YAML: "integer", "[number, ...]"."""
    plain = {
        int: "integer",
        float: "number",
        bool: "true or false",
        str: "text",
        Any: "stack or layout",
        type(None): "",
    }
    if hint in plain:
        return plain[hint]
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (list, tuple):
        inner = dict.fromkeys(_type(part) for part in parts if part is not ...)
        return "schedule" if hint == list[tuple[float, float]] else f"[{' and '.join(inner)}, ...]"
    if parts:
        return " or ".join(filter(None, map(_type, parts)))
    return "mapping"


def _ranges(hint: Any) -> list[str]:
    """Bounds in a type, innermost too."""
    found = [str(part) for part in typing.get_args(hint) if isinstance(part, Bounds)]
    return found + [text for part in typing.get_args(hint) for text in _ranges(part)]


def _docstrings(kind: type) -> dict[str, str]:
    """The sentences below each attribute of a class, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    pairs = itertools.pairwise(body)
    return {
        attribute.target.id: re.sub(r"\s+", " ", text.value.value).replace("|", "\\|")
        for attribute, text in pairs
        if isinstance(attribute, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def commands() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    group = typer.main.get_command(app)
    page = f"""\
# Commands

{group.help} Generated from the code by `docs/reference.py`.

Data goes to standard output, all else to standard error. Exit codes: 0 done; 1 a bug of ours; 2 usage or configuration;
3 input data; 4 a damaged or incompatible checkpoint or dataset; 5 numerical failure; 69 environment (no such
device, too little memory, a missing optional package); 73 folder in use or not creatable; 74 I/O error, disk full;
75 stopped by a signal, saved, to be resumed; 130 interrupted; 129 and 143 ended by SIGHUP and SIGTERM.
"""
    pairs = [("hnet", group), *((f"hnet {name}", one) for name, one in group.commands.items())]
    for title, command in pairs:
        page += f"\n## {title}\n\n{command.help if command is not group else 'For every command:'}\n"
        page += "\n| | meaning |\n|---|---|\n"
        for parameter in command.params:
            if parameter.name in UNLISTED:
                continue
            names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            argument = parameter.param_type_name == "argument"
            label = f"`{parameter.metavar or parameter.name.upper()}`" if argument else names
            page += f"| {label} | {_help(parameter)} |\n"
    return page


UNLISTED = ("install_completion", "show_completion", "help")
"""Options that every command of the framework has."""


def _help(parameter: Any) -> str:
    """The help of a parameter on one line, with the installed plugins left out: they differ from machine to machine."""
    text = re.sub(r"\s+", " ", parameter.help or "")
    return (
        text.replace(options.installed_modalities(), "the installed modalities").replace("|", "\\|").replace("<", "\\<")
    )


PAGES = {"commands.md": commands, "settings.md": settings}
"""Functions that write a page, by its name."""


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
