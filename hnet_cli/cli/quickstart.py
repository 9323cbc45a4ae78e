"""`hnet quickstart`: the main job on a bundled text, from raw file to learned chunks, in minutes on a laptop CPU."""

from __future__ import annotations

import dataclasses
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path

from hnet_cli import modality, storage
from hnet_cli.checkpoints.find import load, starters
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.config.run import resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import preparation
from hnet_cli.distributed.device import this_machine
from hnet_cli.errors import BusyError
from hnet_cli.inference import generate as sample
from hnet_cli.inference import render, segment
from hnet_cli.modality import Source
from hnet_cli.terminal.console import duration, literal, progress, say, size
from hnet_cli.training.plan import Plan
from hnet_cli.training.progress import follow

TEXT = "quickstart.txt"
PROMPT = b"The "


def run(out: Path, minutes: float, device: str) -> None:
    """Prepare the bundled text, train `nano` for `minutes`, sample, and show its chunks beside the starter model's."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BusyError(f"{out} exists already", "remove it, or choose another folder with --out")
    text = modality.get("text")
    data, folder = out / "data", out / "run"
    with as_file(files("hnet_cli.starters") / TEXT) as file:
        say(f"[bold]1. prepare[/]  hnet prepare {literal(TEXT)} --out {literal(data)}")
        with progress("reading") as task:
            summary = preparation.prepare([file], text, data, val=0.05, progress=task.update)
        say(f"   {size(summary.bytes)} of public-domain English; {size(summary.splits['val']['bytes'])} held out.")
        excerpt = _excerpt(storage.read_bytes(file))
    config = dataclasses.replace(resolve("nano"), data=str(data))
    command = f"hnet train --preset nano --data {literal(data)} --run {literal(folder)}"
    say(f"[bold]2. train[/]    {literal(command)} --minutes {minutes:g}")
    plan = Plan(config, data, Dataset.open(data).about, folder, this_machine(device))
    started = time.monotonic()
    follow(plan, seconds=60 * minutes)
    spent = duration(time.monotonic() - started)
    model = load(folder, device)
    say(f"[bold]3. sample[/]   hnet sample {literal(folder)} --prompt {literal(repr(PROMPT.decode()))}")
    for piece in sample.sample(model, [PROMPT], text, max_bytes=300, temperature=0.8, seed=1):
        sys.stdout.write(piece)
        sys.stdout.flush()
    say(f"[bold]4. segment[/]  hnet segment FILE --model {literal(folder)}")
    _show(f"learned by this model in {spent}", model, text, excerpt)
    if "starter:text" in starters():
        _show("the starter model that ships with hnet (starter:text)", load("starter:text", device), text, excerpt)
    say("Your own files: hnet prepare FILE..., hnet train, hnet segment FILE. More: hnet --help")


def _excerpt(data: bytes) -> bytes:
    """A paragraph from the middle of the text."""
    middle = data.index(b"\n\n", len(data) // 2) + 2
    return data[middle : data.index(b" ", middle + 420)]


def _show(title: str, model: LoadedModel, text: modality.Modality, excerpt: bytes) -> None:
    say(f"   [dim]{literal(title)}:[/]")
    format = "pretty" if render.use_colour(sys.stdout) else "plain"
    sys.stdout.writelines(segment.segment(model, [Source.of_bytes(excerpt)], text, format=format, stage=0))
    sys.stdout.write("\n")
    sys.stdout.flush()
