"""The versions, command and machine that a run, a model folder, a dataset or a figure was made with."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hnet_cli
from hnet_cli import storage
from hnet_cli.errors import HNetError

PACKAGES = ("torch", "numpy", "triton", "mamba-ssm", "flash-attn", "causal-conv1d")
"""Packages that numbers depend on."""
FILE = ".made.json"
"""In the folder of a dataset, whose other files are the same whenever and wherever it is prepared."""
_FACTS = [
    "hnet",
    "commit",
    "python",
    "packages",
    "command",
    "system",
    "cpus",
    "threads",
    "device",
    "name",
    "kernels",
    "time",
]
_LONGEST = 2000
"""Characters of a command."""
_MOST = 20
"""Sessions of a run that are kept."""


def made(device: str = "", name: str = "", kernels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Versions, command, device and time of what this process makes, as JSON.

    {"hnet", "commit" (of hnet's source, where it is a checkout), "python", "packages": {name: version}, "command",
    "system", "cpus", "threads" (torch's; None before torch is imported), "device", "name" (of the device), "kernels"
    (backend by operation), "time" (UTC, ISO 8601)}.
    """
    torch = sys.modules.get("torch")
    return {
        "hnet": hnet_cli.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "command": _command(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch is not None and hasattr(torch, "get_num_threads") else None,
        "device": device,
        "name": name,
        "kernels": dict(kernels or {}),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def start(name: str, folder: Path) -> dict[str, Any]:
    """The model that a run began with, as JSON: its `name`, the SHA-256 of its weights, and what it was made with, as
    far as its folder says."""
    about: dict[str, Any] = {"model": name}
    with contextlib.suppress(HNetError, OSError, KeyError, TypeError):
        about["sha256"] = str(storage.read_manifest(folder)["files"]["model.safetensors"]["sha256"])
    with contextlib.suppress(HNetError, OSError, KeyError, TypeError):
        about["made"] = storage.read_json(folder / "config.json")["hnet"]["made"]
    return about


def write(dataset: Path) -> None:
    """Say in the folder of a dataset what it was made with, if it can be written to."""
    with contextlib.suppress(HNetError):
        storage.write_json(dataset / FILE, made())


def line(about: Any) -> str:
    """Format a record of `made`, which may come from anywhere, as one line; "" where nothing is known."""
    if not isinstance(about, Mapping):
        return ""
    packages = about.get("packages")
    kernels, threads = about.get("kernels"), about.get("threads")
    backends = sorted({str(name) for name in kernels.values()}) if isinstance(kernels, Mapping) else []
    device = " ".join(filter(None, (str(about.get("device") or ""), f"({about['name']})" if about.get("name") else "")))
    parts = [
        f"hnet {about.get('hnet')}" + (f" ({str(about['commit'])[:12]})" if about.get("commit") else ""),
        *([f"torch {packages['torch']}"] if isinstance(packages, Mapping) and packages.get("torch") else []),
        f"Python {about.get('python')}",
        *([device] if device else []),
        *([f"{threads} thread{'s' * (threads != 1)}"] if isinstance(threads, int) else []),
        *([f"kernels: {', '.join(backends)}"] if backends else []),
        *([str(about["time"])] if about.get("time") else []),
        *([f"`{about['command']}`"] if about.get("command") else []),
    ]
    return ", ".join(part[:_LONGEST] for part in parts)


def after(now: dict[str, Any], about: Any) -> dict[str, Any]:
    """`now` with what the same was made with before, the newest first, under "before".

    `about`: the `hnet` entry of a model's `config.json`, which may come from anywhere.
    """
    last = about.get("made") if isinstance(about, Mapping) else None
    if not isinstance(last, Mapping):
        return now
    earlier = last.get("before")
    earlier = [item for item in earlier if isinstance(item, Mapping)] if isinstance(earlier, list) else []
    last = {key: value for key, value in last.items() if key != "before"}
    return now | {"before": [last, *earlier][:_MOST]}


def of(folder: Path) -> dict[str, Any] | None:
    """What a dataset or a model folder says that it was made with; None where it says nothing, or cannot be read."""
    with contextlib.suppress(HNetError, OSError):
        if (folder / "dataset.json").is_file():
            return storage.read_json(folder / FILE)
        extra = storage.read_json(folder / "config.json").get("hnet")
        made = extra.get("made") if isinstance(extra, dict) else None
        return made if isinstance(made, dict) else None
    return None


def facts(about: Mapping[str, Any]) -> dict[str, str]:
    """A record of `made`, which may come from anywhere, as lines of text by name; what it does not say is left out."""
    found = {key: value for key, value in about.items() if key in _FACTS and value not in (None, "", {}, [])}
    for key in ("packages", "kernels"):
        if isinstance(pairs := found.get(key), Mapping):
            found[key] = ", ".join(f"{name} {value}" for name, value in pairs.items())
    if isinstance(before := about.get("before"), list) and before:
        found["before"] = "; ".join(line(item) for item in before)
    return {key: str(value)[:_LONGEST] for key, value in found.items()}


def without_places(about: dict[str, Any]) -> dict[str, Any]:
    """A record for a model that will be given to others: paths in its commands keep their last part only, and so the
    model that its training began with and what that was made with."""
    changed = dict(about)
    if isinstance(command := about.get("command"), str):
        changed["command"] = _without_places(command)
    if isinstance(before := about.get("before"), list):
        changed["before"] = [without_places(item) if isinstance(item, dict) else item for item in before]
    if isinstance(start := about.get("start"), dict):
        changed["start"] = without_places(start)
    if isinstance(model := about.get("model"), str):
        changed["model"] = _last(model)
    if isinstance(made := about.get("made"), dict):
        changed["made"] = without_places(made)
    return changed


def _last(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals:
        return f"{option.rstrip('/').rpartition('/')[2]}={_last(value)}"
    place = word.startswith("hf:") or ("://" in word and not word.startswith("file:"))
    return word if place else word.rstrip("/").rpartition("/")[2]


def _without_places(command: str) -> str:
    try:
        return shlex.join(map(_last, shlex.split(command)))
    except ValueError:  # it was cut in the midst of a quotation
        return ""


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def _command() -> str:
    """The command line without what is secret in addresses: a password, a signature."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    if program == "__main__.py":
        program = "hnet"
    command = shlex.join([program, *sys.argv[1:]])
    command = re.sub(r"(\w+://)[^/@\s']*@", r"\1", command)
    return re.sub(r"(\w+://[^?\s']*)\?[^\s']*", r"\1?...", command)[:_LONGEST]


@cache
def _commit() -> str | None:
    """The commit of the checkout that this package is run from, read without git; None where there is none."""
    root = Path(hnet_cli.__file__).parents[1]
    try:
        git = root / ".git"
        if git.is_file():  # a worktree
            git = root / storage.read_text(git).removeprefix("gitdir:").strip()
        head = storage.read_text(git / "HEAD").strip()
        if head.startswith("ref:"):
            head = _reference(git, head.removeprefix("ref:").strip())
    except (OSError, ValueError, HNetError):
        return None
    return head if re.fullmatch(r"[0-9a-f]{40,64}", head) else None


def _reference(git: Path, name: str) -> str:
    common = git / "commondir"
    shared = git / storage.read_text(common).strip() if common.is_file() else git
    for folder in (git, shared):
        if (folder / name).is_file():
            return storage.read_text(folder / name).strip()
    packed = storage.read_text(shared / "packed-refs").splitlines()
    return next((row.split()[0] for row in packed if row.endswith(" " + name)), "")
