"""YAML as configurations need it: strict, small, and with the line that every key stands on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hnet_cli import storage
from hnet_cli.errors import DamagedError, UsageError
from hnet_cli.modality import wide_encoding
from hnet_cli.storage import shown

MOST_BYTES = 1 << 18
"""Size limit of a configuration, of a run with the vocabulary of its chunker: the parser takes seconds for so much."""
MOST_DEPTH = 20
"""Depth limit of nested lists and mappings."""


class Loader(yaml.SafeLoader):
    """YAML as people mean it: 3e-4 is a number, 010 is ten, `no` and 1:30 are words, a key is a word and stands once.

    Anchors are refused: `extends` does that job, and a few lines of them can stand for gigabytes. So are tags: a value
    is what it looks like.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(None, None, "anchors (& and *) are not read; use extends:", event.start_mark)
        if (tag := getattr(event, "tag", None)) is not None:
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(None, None, f"tags such as {tag} are not read", event.start_mark)
        if self.depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply for a configuration", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back: words that it would take for something else are in quotes."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False", "tfTF"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|nan)", "-+.0123456789"),
):
    for _side in (Loader, Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def read_text(path: Path, kind: str, limit: int = MOST_BYTES) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes. Raises UsageError that calls it `kind`."""
    try:
        content = storage.read_bytes(path, limit)
    except FileNotFoundError as error:
        raise UsageError(f"cannot read the {kind}: {shown(path)} does not exist") from error
    except DamagedError as error:
        raise UsageError(f"cannot read the {kind}: {error}", error.hint) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = wide_encoding(content)
        what = f"is text in {encoding}, not in UTF-8 as" if encoding else "is not UTF-8 text, which"
        raise UsageError(f"{shown(path)} {what} a {kind} is", encoding and f"iconv -f {encoding} -t UTF-8") from error


def read(path: Path, kind: str) -> dict[str, Any]:
    """The mapping in a file. Raises UsageError, naming the line, for anything that `parse` refuses."""
    return parse(read_text(path, kind), shown(path))[0]


def parse(text: str, where: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in `text`, and the line of each dotted key. Raises UsageError with `where` and the line."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = f"{prefix}{key.value}"
                lines[path] = key.start_mark.line + 1
                walk(value, path + ".")

    try:
        loader = Loader(text)
        node = loader.get_single_node()
        data = {} if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 1__, or more digits than Python converts
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable as YAML"
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: {problem}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UsageError(f"{where} must hold sections such as model: and train:, not a {type(data).__name__}")
    if node is not None:
        walk(node, "")
    return data, lines
