"""Hostile content of files and odd things in their place: values by type and size, and kinds of files."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from hnet_cli.storage.files import json_bytes

NUMBERS = (
    "-1",
    "0",
    "1",
    "255",
    "2147483648",
    "9223372036854775808",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "0.5",
    "1e15",
)
HOSTILE = (
    *NUMBERS,
    *("9" * 400, "9" * 5000, "null", "true", '""', '"x"', '"' + "y" * 5000 + '"', '"\\u001b]0;t\\u0007[/red]"', "[]"),
    *("{}", "[1]", '{"a": 1}', "[" * 900 + "]" * 900, "[" + "7," * 299 + "7]", '"/dev/zero"', '"../../x"', "[[], {}]"),
)
"""Values as JSON text, some of which no parser takes."""
MARK = "@hostile@"


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in parsed JSON."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def spoiled(data: Any) -> st.SearchStrategy[str]:
    """Parsed JSON as text, with up to three values `changed`."""

    def after(seed: int, times: int) -> str:
        luck, text = random.Random(seed), json.dumps(data)
        for _ in range(times):
            try:
                text, _what = changed(json.loads(text), luck)
            except (ValueError, IndexError, RecursionError):  # what no parser takes is spoiled enough
                break
        return text

    return st.builds(after, st.integers(0, 1 << 30), st.integers(1, 3))


def changed(data: Any, luck: random.Random) -> tuple[str, str]:
    """Parsed JSON as text with one value replaced, removed or put twice; and what was done."""
    data = json.loads(json.dumps(data))
    path = luck.choice(list(places(data)))
    place = data
    for key in path[:-1]:
        place = place[key]
    if luck.random() < 0.1:
        del place[path[-1]]
        return json.dumps(data), f"{path} removed"
    value = luck.choice(HOSTILE)
    place[path[-1]] = MARK
    return json.dumps(data, indent=2).replace(f'"{MARK}"', value), f"{path} = {value[:60]}"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 30)


KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": _fifo,
    "folder": lambda path: path.mkdir(),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "kernel": lambda path: path.symlink_to("/proc/kmsg"),
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("nothing/at/all"),
    "sparse": _sparse,
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "deep": lambda path: path.write_text('{"a":' * 200_000),
    "one long line": lambda path: path.write_text("{" * 3_000_000),
}
"""Kinds of things in the place of a file."""


def replaced(path: Path, kind: str) -> None:
    """Put another kind of thing in the place of a file."""
    path.unlink(missing_ok=True)
    KINDS[kind](path)


def resealed(folder: Path) -> None:
    """Write the manifest of a folder anew, as its owner can: digests are no defence against a stranger."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in list(manifest["files"]):
        path = folder / name
        if path.is_file() and path.stat().st_size < 1 << 24:
            data = path.read_bytes()
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_bytes(json_bytes(manifest))
