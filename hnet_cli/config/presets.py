"""The presets that ship: those written out in the files of `presets/`, and the members of `lineup.yaml` by size."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from hnet_cli.config.yaml import Dumper, parse
from hnet_cli.errors import UsageError

GROUPS = {
    "to train": ("nano", "small", "base"),
    "the paper's": ("1stage", "2stage", "dna"),
    "for hnet retrofit": ("retrofit",),
}
"""Files of presets by purpose. A file holds YAML documents, each a preset under a first line with its name."""
SIZES = ("nano", "small", "l", "xl")
"""Sizes of the line-up: `nano` and `small` are ours, `l` and `xl` the paper's."""


@dataclass(frozen=True)
class Preset:
    """A preset as it is written: sections of keys and values, before what it `extends`."""

    data: Mapping[str, Any]
    marks: Mapping[str, str]
    """File and line of each dotted key."""
    text: str
    """The YAML."""
    group: str
    """The key of `GROUPS`, or "line-up"."""


@cache
def shipped() -> dict[str, Preset]:
    """All presets by name: those written out, then the line-up by member and size."""
    presets: dict[str, Preset] = {}
    for group, stems in GROUPS.items():
        for where, first_line, text in (document for stem in stems for document in _documents(f"{stem}.yaml")):
            header, _, body = text.partition("\n")
            data, lines = parse(body, where)
            marks = {key: f"{where}:{first_line + line}" for key, line in lines.items()}
            presets[header.removeprefix("name: ")] = Preset(data, marks, body, group)
    for member, entry in line_up()["members"].items():
        for size in entry["sizes"]:
            if f"{member}-{size}" not in presets:
                data = {key: value for key, value in _member(member, size).items() if key != "flops"}
                text = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
                presets[f"{member}-{size}"] = Preset(data, {"": "presets/lineup.yaml"}, text, "line-up")
    return presets


def _documents(name: str) -> Iterable[tuple[str, int, str]]:
    """The documents of a file: where they stand, the line each begins on (from 1), and its text."""
    text, line = (files("hnet_cli.presets") / name).read_text(encoding="utf-8"), 1
    for document in re.split(r"^---\n", text, flags=re.MULTILINE):
        yield f"presets/{name}", line, document
        line += document.count("\n") + 1


@cache
def line_up() -> dict[str, Any]:
    """`lineup.yaml`: the paper's line-up in the order of its Table 2, and all members by name."""
    return parse((files("hnet_cli.presets") / "lineup.yaml").read_text(encoding="utf-8"), "presets/lineup.yaml")[0]


def _member(name: str, size: str) -> dict[str, Any]:
    """Sections of a member at a size: those of the member it is like, its own for all sizes, its own for this one."""
    entry = dict(line_up()["members"][name])
    sizes, like = entry.pop("sizes"), entry.pop("like", None)
    below = _member(like, size) if like and "extends" not in sizes[size] else {}
    return merge(merge(below, entry), sizes[size])


def preset_names() -> list[str]:
    """Names of the presets that ship with the tool, sorted."""
    return sorted(shipped())


def preset(name: str) -> Preset:
    """A shipped preset. Raises UsageError with the nearest name."""
    if name not in shipped():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"no preset is called {name!r}", f"{hint}`hnet presets` lists them; a file is given by its path"
        )
    return shipped()[name]


def preset_data(name: str) -> dict[str, Any]:
    """Sections of a shipped preset with what it extends, neither checked nor completed by defaults."""
    data = copy.deepcopy(dict(preset(name).data))
    parent = data.pop("extends", None)
    return merge(preset_data(parent), data) if parent else data


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top: sections key by key, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and (value is None or isinstance(value, Mapping)):
            value = merge(old, value or {})  # a section of which every line is commented out is None
        merged[key] = value
    return merged


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint for an unknown key: the nearest known one, or all."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
