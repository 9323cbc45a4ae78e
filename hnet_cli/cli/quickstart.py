"""`hnet quickstart`: the main job on a bundled text, from raw file to learned chunks, in minutes on a laptop CPU."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path

from hnet_cli import modality, provenance, storage
from hnet_cli.checkpoints.find import load, starters
from hnet_cli.checkpoints.model_folder import LoadedModel
from hnet_cli.config.run import resolve
from hnet_cli.data.mixture import Mixture
from hnet_cli.data.prepare import preparation
from hnet_cli.distributed.device import this_machine
from hnet_cli.distributed.threads import Meter
from hnet_cli.errors import BusyError
from hnet_cli.inference import generate as sample
from hnet_cli.inference import render, segment
from hnet_cli.modality import Source
from hnet_cli.terminal.console import duration, literal, progress, say, size
from hnet_cli.training.plan import Plan
from hnet_cli.training.progress import follow
from hnet_cli.training.timing import seconds_per_byte

TEXT = "quickstart.txt"
PROMPT = b"The "
ENOUGH = 1_000_000
"""Bytes of training after which `nano` has found words and is well below xz on this text."""


def run(out: Path, minutes: float, device: str, began: float | None = None) -> None:
    """Prepare the bundled text, train `nano`, sample, and show its chunks beside the starter model's.

    All of it takes `minutes`, from `began` on the monotonic clock (default: now).
    """
    end, meter = (time.monotonic() if began is None else began) + 60 * minutes, Meter()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BusyError(f"{out} exists already", "remove it, or choose another folder with --out")
    text = modality.get("text")
    data, folder = out / "data", out / "run"
    data_word, run_word = shlex.quote(str(data)), shlex.quote(str(folder))
    with as_file(files("hnet_cli.starters") / TEXT) as file:
        say(f"[bold]1. prepare[/]  hnet prepare {literal(TEXT)} --out {literal(data_word)}")
        with progress("reading") as task:
            summary = preparation.prepare([file], text, data, val=0.05, progress=task.update)
        provenance.write(summary.path)
        say(f"   {size(summary.bytes)} of public-domain English; {size(summary.splits['val']['bytes'])} held out.")
        excerpt = _excerpt(storage.read_bytes(file))
    here = this_machine(device)
    pace = seconds_per_byte(resolve("nano"), here.device, 60 * minutes / 40)
    left = end - time.monotonic()
    seconds = max(6 * minutes, left - closing_seconds(pace, left))  # as much as that, where reading took the time
    config = dataclasses.replace(resolve("nano"), data=str(data))
    command = f"hnet train --preset nano --data {data_word} --run {run_word}"
    say(f"[bold]2. train[/]    {literal(command)} --minutes {seconds / 60:.2g}")
    plan = Plan(config, Mixture.open(data), folder, here)
    result = follow(plan, seconds=seconds)
    trained = result.state.bytes_seen
    bits, xz = result.last.get("val_bpb", math.inf), result.last.get("val_xz", 0.0)
    if bits >= xz:
        say(f"[yellow]note:[/] {literal(poor(result.state.step, trained, result.seconds, meter.note()))}")
    model = load(folder, device)
    say(f"[bold]3. sample[/]   hnet sample {literal(run_word)} --prompt {literal(repr(PROMPT.decode()))}")
    for piece in sample.sample(model, [PROMPT], text, max_bytes=300, temperature=0.8, seed=1):
        sys.stdout.write(piece)
        sys.stdout.flush()
        if time.monotonic() > end:
            sys.stdout.write("\n")
            break
    say(f"[bold]4. segment[/]  hnet segment FILE --model {literal(run_word)}")
    _show(f"learned by this model in {duration(result.seconds)}", model, text, excerpt)
    if "starter:text" in starters():
        _show("the starter model that ships with hnet (starter:text)", load("starter:text", device), text, excerpt)
    say("Your own files: hnet prepare FILE..., hnet train, hnet segment FILE. More: hnet --help")


def closing_seconds(pace: float, left: float) -> float:
    """Seconds of the `left` ones to keep for sampling and chunks, at a `pace` of seconds per byte of training.

    A sampled byte takes about as long as 15 trained ones, and loading a model a second.
    """
    return min(left / 4, 3 + 8000 * pace)


def poor(steps: int, trained: int, seconds: float, busy: str) -> str:
    """The reason of a poor result, and the way to a better one."""
    speed = trained / max(seconds, 1e-9)
    minutes = math.ceil(ENOUGH / max(speed, 1.0) / 60) + 1
    why = busy or f"this machine trains {size(speed)}/s"
    return (
        f"only {steps:,} steps ({size(trained)}) fitted into the time, too few to learn words: {why}. What follows is "
        f"rough. `hnet quickstart --out FOLDER --minutes {minutes}` is enough at this speed"
    )


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
