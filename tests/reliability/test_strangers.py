"""Files of strangers in every place that is read: one line, the right code, in a minute and two gigabytes."""

from __future__ import annotations

import json
import random
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import SMALLER, forked
from forms import trials
from runkit import SETTINGS
from strangerkit import KINDS, changed, replaced, resealed

from hnet_cli.cli.app import run

pytestmark = pytest.mark.reliability
STEP = "checkpoints/step-00000003"
MEMORY = 2 << 30
CODES = (0, 2, 3, 4)


def limited(*words: object) -> Callable[[], int]:
    def work() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        return run([str(word) for word in words])

    return work


class Trial:
    """Runs commands on hostile folders and counts what they say."""

    def __init__(self, counted: Any, place: Path) -> None:
        self.counted, self.place = counted, place

    def __call__(self, what: str, *words: object, codes: tuple[int, ...] = CODES, says: str = "") -> None:
        stderr, stdout = self.place / "stderr", self.place / "stdout"
        process = forked(limited(*words), stderr, stdout)
        try:
            code = process.wait(60)
        except AssertionError:
            code = -1
        error, printed = process.error, stdout.read_text(errors="replace")
        good = code in codes and "Traceback" not in error and "a bug of ours" not in error and says in printed
        good = good and "\x1b" not in error + printed and process.memory < MEMORY
        good = good and (code == 0 or any(line.startswith("hnet: ") for line in error.splitlines()))
        self.counted.count(good, f"{what}: exit {code}, {process.memory >> 20} MB: {error[-400:]}")


def resume(data: Path, folder: Path) -> list[object]:
    settings = [*SETTINGS, *SMALLER, "train.steps=4", "train.checkpoint_every=1", "train.eval_every=0"]
    words = ["train", "--preset", "nano", "--data", data, "--run", folder, "--device", "cpu", "--resume"]
    return words + [part for setting in settings for part in ("--set", setting)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HNET_MODEL", "")
    return tmp_path


def draws(seed: str, short: int = 3) -> list[random.Random]:
    return [random.Random(f"{seed} {n}") for n in range(trials(short, 60, 500))]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "manifest.json"])
def test_model_folders(name: str, tally: Any, place: Path, home: Path) -> None:
    counted = tally("R33", "model folders of strangers", name)
    attempt = Trial(counted, place)
    for luck in draws(name):
        folder = place / "model"
        shutil.copytree(home / "run" / STEP, folder)
        file = folder / name
        if luck.random() < 0.3 or name in ("tokenizer.json", "manifest.json"):
            what = luck.choice(list(KINDS))
            replaced(file, what)
        elif name == "config.json":
            text, what = changed(json.loads(file.read_text()), luck)
            file.write_text(text)
        else:
            what = hostile_header(file, luck)
        if name != "manifest.json":
            resealed(folder) if luck.random() < 0.5 else (folder / "manifest.json").unlink()
        attempt(f"{name}, {what}, sampled", "sample", folder, "--max-bytes", "2", "--device", "cpu")
        attempt(f"{name}, {what}, converted", "convert", folder, place / "out")
        shutil.rmtree(place / "out", ignore_errors=True)
        shutil.rmtree(folder)


def hostile_header(file: Path, luck: random.Random) -> str:
    """Change the header of a safetensors file; returns what was done."""
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    if luck.random() < 0.2:
        size = luck.choice([0, 1, len(whole), 1 << 24, 1 << 40, (1 << 64) - 1])
        file.write_bytes(struct.pack("<Q", size) + whole[8:])
        return f"a header of {size} bytes"
    text, what = changed(json.loads(whole[8 : 8 + length]), luck)
    file.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + whole[8 + length :])
    return what


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors", "random.safetensors"])
def test_states_of_training(name: str, tally: Any, place: Path, home: Path) -> None:
    counted = tally("R33", "states of training of strangers", name)
    attempt = Trial(counted, place)
    for luck in draws(name):
        folder = place / "run"
        shutil.copytree(home / "run", folder)
        file = folder / STEP / name
        if luck.random() < 0.3:
            what = luck.choice(list(KINDS))
            replaced(file, what)
        elif name == "state.json":
            text, what = changed(json.loads(file.read_text()), luck)
            file.write_text(text)
        else:
            what = hostile_header(file, luck)
        resealed(folder / STEP)
        attempt(f"{name}, {what}", *resume(home / "dataset", folder), codes=(*CODES, 5))
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "events.jsonl", "samples.jsonl", "config.yaml", "latest", "best", ".lock", "log.txt"]
)
def test_run_folders(name: str, tally: Any, place: Path, home: Path) -> None:
    """The other run is always listed."""
    counted = tally("R33", "run folders of strangers", name)
    attempt = Trial(counted, place)
    for luck in draws(name, 2):
        runs = place / "runs"
        shutil.copytree(home / "run", runs / "sound")
        folder = runs / "hostile"
        shutil.copytree(home / "run", folder)
        file = folder / name
        if luck.random() < 0.4 or not file.is_file() or name in ("latest", "best", ".lock", "log.txt"):
            what = luck.choice(list(KINDS))
            replaced(file, what)
        elif name == "config.yaml":
            what = hostile_yaml(file, luck)
        else:
            lines = file.read_text().splitlines()
            row = {"step": 2, "text": "x", "documents": [1], "kind": "spike", "val_bpb": 1.5, "bytes": 99}
            text, what = changed(json.loads(lines[-1]) if lines else row, luck)
            file.write_text("\n".join([*lines, text.replace("\n", " "), ""]))
        attempt(f"{name}, {what}, listed", "runs", runs, says="sound")
        attempt(f"{name}, {what}, page", "runs", runs, "--out", place / "page.html")
        attempt(f"{name}, {what}, report", "runs", folder, "--out", place / "report.html")
        attempt(f"{name}, {what}, resumed", *resume(home / "dataset", folder), codes=(*CODES, 73, 74))
        shutil.rmtree(runs)


def hostile_yaml(file: Path, luck: random.Random) -> str:
    lines = file.read_text().splitlines()
    number = luck.randrange(len(lines))
    key = lines[number].partition(":")[0]
    value = luck.choice(
        [
            *(
                "!!bool maybe",
                "!!timestamp 2001-02-30",
                "!!float",
                "&a [*a]",
                "*a",
                "1e400",
                "-1",
                "9" * 400,
                "9" * 5000,
            ),
            *(
                "[" * 500,
                "{}",
                "[1]",
                ".nan",
                "-.inf",
                "~",
                "yes",
                "2**31",
                "1_000_000_000_000",
                "/dev/zero",
                '"\\e[31m"',
            ),
            *("[/red]", "18446744073709551616", "[0.9, 1.0]", "true", "[[0, 1], [0.5, -1]]", "0.0001"),
        ]
    )
    more = luck.choice(["", "", "", "".join(f"k{n}: 1\n" for n in range(200_000)), "a: &a [x, x]\nb: &b [*a, *a]\n"])
    file.write_text("\n".join([*lines[:number], f"{key}: {value}", *lines[number + 1 :], more]))
    return f"{key.strip()}: {value[:40]}{' and more' * bool(more)}"


@pytest.mark.parametrize("name", ["dataset.json", "documents.bin", "split-train.bin", "blocks.bin", "names.txt"])
def test_datasets(name: str, tally: Any, place: Path, home: Path) -> None:
    counted = tally("R33", "datasets of strangers", name)
    attempt = Trial(counted, place)
    for luck in draws(name):
        folder = place / "dataset"
        shutil.copytree(home / "dataset", folder)
        file = folder / name
        if luck.random() < 0.3 or name == "names.txt":
            what = luck.choice(list(KINDS))
            replaced(file, what)
        elif name == "dataset.json":
            text, what = changed(json.loads(file.read_text()), luck)
            file.write_text(text)
        else:
            numbers = bytearray(file.read_bytes())
            at = 8 * luck.randrange(max(1, len(numbers) // 8))
            value = luck.choice([-1, 0, 1, 1 << 20, 1 << 40, (1 << 63) - 1, -(1 << 63)])
            numbers[at : at + 8] = struct.pack("<q", value)
            what = f"{value} at {at}"
            file.write_bytes(numbers)
        if name != "dataset.json" and file.is_file() and file.stat().st_size < 1 << 24:
            about = json.loads((folder / "dataset.json").read_text())
            resealed(folder)
            about["files"] = json.loads((folder / "manifest.json").read_text())["files"]
            about["files"].pop("dataset.json")
            (folder / "dataset.json").write_text(json.dumps(about))
        resealed(folder)
        small = [part for setting in (*SETTINGS, *SMALLER, "train.steps=2") for part in ("--set", setting)]
        words = ["train", "--preset", "nano", "--data", folder, "--run", place / "new", "--device", "cpu", *small]
        attempt(f"{name}, {what}, trained", *words)
        attempt(f"{name}, {what}, evaluated", "eval", home / "run", "--data", folder, "--device", "cpu", "--no-samples")
        shutil.rmtree(place / "new", ignore_errors=True)
        shutil.rmtree(folder)


def test_presets(tally: Any, place: Path, home: Path) -> None:
    counted = tally("R33", "presets of strangers")
    attempt = Trial(counted, place)
    for luck in draws("presets"):
        file = place / "mine.yaml"
        if luck.random() < 0.2:
            what = luck.choice(list(KINDS))
            replaced(file, what)
        else:
            shutil.copy(home / "run/config.yaml", file)
            what = hostile_yaml(file, luck)
        parent = place / "child.yaml"
        parent.write_text("extends: mine.yaml\n")
        chosen = luck.choice([file, parent])
        words = ["train", "--preset", f"./{chosen.name}", "--data", home / "dataset", "--run", place / "new"]
        attempt(f"{what}", *words, "--device", "cpu", "--dry-run", codes=(0, 2, 3, 69))
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
