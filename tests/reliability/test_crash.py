"""Kills, full disks and power cuts at every operation on files: what was saved is there, whole, and found again."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FAILING, FULL, Disk, Fault, Killed, after_power_cut, fingerprint, killing, lay_out, raising, tree
from forms import flip_bit, trials
from runkit import FLAT, fox, tiny

from hnet_cli import modality
from hnet_cli.checkpoints.find import find, newest, verify
from hnet_cli.checkpoints.training_state import TrainingState, load_checkpoint, save_checkpoint
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import preparation
from hnet_cli.errors import BusyError, DamagedError, StorageError
from hnet_cli.storage import FolderLock
from hnet_cli.training.build import build_model
from hnet_cli.training.optim import build_optimizer

SMALL = [
    *FLAT,
    "model.arch_layout=[m1]",
    "model.d_model=[16]",
    "model.ssm_cfg={d_state: 8, headdim: 16}",
    "model.attn_cfg={num_heads: [2], rotary_emb_dim: [8], window_size: [-1]}",
]


class Saver:
    """Saves checkpoints whose weights tell the step, so that a wrong one is noticed."""

    def __init__(self) -> None:
        config = tiny(*SMALL)
        torch.manual_seed(0)
        self.model = build_model(config)
        self.optimizer = build_optimizer(self.model, config)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.known: dict[str, str] = {}
        """Fault found in the checkpoint of each manifest; "" if none."""

    def save(self, run: Path, step: int, best: int | None = None, keep: int = 2) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(step)
        state = TrainingState(step=step, best_step=best)
        with FolderLock(run):
            save_checkpoint(run, self.model, self.optimizer, state, {"modality": "text"}, [], keep, "train: {}\n")

    def wrong(self, run: Path, least: int, most: int) -> str:
        """Return the fault of a run's newest checkpoint, which must be of step `least` to `most`; "" if none."""
        messages: list[str] = []
        step = newest_step(run, messages.append)
        if messages or not least <= step <= most:
            return f"the newest is step {step}, not {least} to {most}: {messages}"
        if not step:
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            find(run)  # the best, whichever step that is
        folder = run / "checkpoints" / f"step-{step:08d}"
        manifest = (folder / "manifest.json").read_text()
        if manifest not in self.known:
            state = load_checkpoint(folder, self.model, self.optimizer)
            weights = {float(w) for parameter in self.model.parameters() for w in parameter.detach().unique()}
            good = (state.step, weights) == (step, {float(step)})
            self.known[manifest] = "" if good else f"step {step} holds the weights of {weights}"
        return self.known[manifest]


def newest_step(run: Path, warn: Callable[[str], object] = lambda message: None) -> int:
    """The step of the newest sound checkpoint; 0 without one."""
    folder = newest(run, warn)
    return int(folder.name[5:]) if folder else 0


@dataclass
class Case:
    """Something that writes: what is there before, the writing, and what may be there after it was cut short."""

    name: str
    prepare: Callable[[Path], object]
    write: Callable[[Path], object]
    wrong: Callable[[Path, bool], str]
    """Return the fault of the folder, "" if none; the flag says that the write had returned."""
    exchanges: bool = True

    def write_on(self, root: Path, fault: Fault = lambda *_: None) -> Disk:
        """Do the writing on a disk with a fault."""
        with Disk(root, fault, self.exchanges).watched() as disk:
            self.write(root)
        return disk


def checkpoint_cases() -> Iterator[Case]:
    saver = cache(Saver)

    def save(root: Path, *steps: int, best: int = 1) -> None:
        for step in steps:
            saver().save(root / "run", step, best)

    def judge(before: int, after: int) -> Callable[[Path, bool], str]:
        return lambda root, done: saver().wrong(root / "run", after if done else before, after)

    def damaged(root: Path) -> None:
        save(root, 1, 2, 3)
        (root / "run/checkpoints/step-00000003/state.json").write_bytes(b"")

    def again(root: Path, done: bool) -> str:
        """Step 3 was damaged: it is passed over until it is written anew."""
        step = newest_step(root / "run")
        return "" if step == 3 or (step == 2 and not done) else f"the newest is step {step}"

    yield Case("first save", lambda root: None, lambda root: save(root, 1), judge(0, 1))
    yield Case("save and prune", lambda root: save(root, 1, 2, 3), lambda root: save(root, 4, best=4), judge(3, 4))
    yield Case("save over a damaged one", damaged, lambda root: save(root, 3), again)
    yield Case("the same without renameat2", damaged, lambda root: save(root, 3), again, exchanges=False)


def dataset_cases() -> Iterator[Case]:
    def write(root: Path, lines: int) -> None:
        with tempfile.TemporaryDirectory() as place:
            source = fox(Path(place), lines).rename(Path(place, f"{lines}.txt"))
            preparation.prepare([source], modality.get("text"), root / "data", val=0.1, measure=False, overwrite=True)

    def judge(*allowed: int) -> Callable[[Path, bool], str]:
        def wrong(root: Path, done: bool) -> str:
            if not (root / "data").exists():
                return "" if 0 in allowed and not done else "there is no dataset"
            Dataset.open(root / "data").verify()
            name = Path(json.loads((root / "data/dataset.json").read_text())["sources"][0]["name"]).name
            good = [f"{lines}.txt" for lines in (allowed[-1:] if done else allowed)]
            return "" if name in good else f"the dataset is of {name}, not of {good}"

        return wrong

    yield Case("new dataset", lambda root: None, lambda root: write(root, 60), judge(0, 60))
    yield Case("dataset over another", lambda root: write(root, 50), lambda root: write(root, 60), judge(50, 60))


each_case = pytest.mark.parametrize("case", [*checkpoint_cases(), *dataset_cases()], ids=lambda case: case.name)


@pytest.fixture
def before(case: Case, tmp_path: Path) -> Path:
    """A folder as it is before the writing of a case."""
    folder = tmp_path / "before"
    folder.mkdir()
    with Disk(folder).watched():
        case.prepare(folder)
    return folder


def judged(case: Case, root: Path, done: bool) -> str:
    try:
        return case.wrong(root, done)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def chosen(operations: list[str]) -> list[int]:
    """Operations to try: all, but nightly few of many writes in a row, which are all alike, and in CI a sample."""
    writes = trials(1, 3, len(operations))
    tried = []
    for at, name in enumerate(operations):
        if name != "write" or "write" not in operations[max(0, at - writes) : at]:
            tried.append(at)
    return sorted(random.Random(len(tried)).sample(tried, min(len(tried), trials(8, len(tried), len(tried)))))


@each_case
def test_r1_a_fault_at_every_operation(case: Case, before: Path, tmp_path: Path, tally: Any) -> None:
    """After a kill, a full disk or an I/O error the old or the new is there, and writing again works."""
    counted = tally("R1", "kill, full disk and I/O error at each operation on files", case.name)
    root, operations = tmp_path / "tried", list[str]()
    shutil.copytree(before, root)
    case.write_on(root, lambda disk, name, half: operations.append(name))
    assert judged(case, root, True) == ""
    kinds: dict[str, Callable[[int], Fault]] = {
        "kill": killing,
        "full": lambda at: raising(at, FULL, for_good=True),
        "full once": lambda at: raising(at, FULL),
        "EIO": lambda at: raising(at, FAILING),
    }
    for kind, fault in kinds.items():
        for at in chosen(operations)[:: 1 if kind == "kill" else trials(3, 1, 1)]:
            shutil.rmtree(root)
            shutil.copytree(before, root)
            why = _try(case, root, fault(at), kind)
            counted.count(not why, f"{case.name}: {kind} at {at} ({operations[at]}): {why}")
    counted.figures["operations"] = len(operations)


def _try(case: Case, root: Path, fault: Fault, kind: str) -> str:
    """Return what a fault at this operation broke; "" if nothing."""
    done = False
    try:
        case.write_on(root, fault)
        done = kind != "kill"  # the fault met what may fail: the deletion of what nobody needs
    except Killed:
        pass
    except (StorageError, BusyError) as error:
        if "\n" in str(error) or not str(error):
            return f"the message is {error!s}"
    if why := judged(case, root, done):
        return why
    case.write_on(root)
    left = [path.name for path in root.rglob(".*") if path.name != ".lock"]
    return judged(case, root, True) or (f"left behind: {left}" if left else "")


@each_case
def test_r1_a_power_cut_at_every_operation(case: Case, before: Path, tmp_path: Path, tally: Any) -> None:
    """Writes and names that were not fsynced are lost, kept, or kept in part, each independently."""
    counted = tally("R1", "power cut after each operation, unsynced writes lost or reordered", case.name)
    left, pool = tmp_path / "left", tmp_path / "pool"
    pool.mkdir()
    top, content = tree(before)
    disk = case.write_on(before)
    disk.acknowledge(True)
    luck, seen = random.Random(case.name), dict[tuple[str, bool], str]()
    for end in (*chosen([entry[0] for entry in disk.log])[:: trials(2, 1, 1)], len(disk.log) - 1, len(disk.log)):
        log = disk.log[:end]
        done = ("acknowledge", True) in log
        for _ in range(trials(4, 200, 200)):
            after = after_power_cut(top, content, log, luck)
            key = fingerprint(after), done
            if key not in seen:
                lay_out(after, left, pool)
                seen[key] = judged(case, left, done)
                shutil.rmtree(left)
                if not seen[key] and len(seen) % 8 == 1:  # and the work can be done again on such a disk
                    lay_out(after, left)
                    case.write_on(left)
                    seen[key] = judged(case, left, True)
                    shutil.rmtree(left)
            counted.count(not seen[key], f"{case.name}: power cut after {end} {log[-1:]}: {seen[key]}")
    counted.figures["different disks"] = len(seen)


def sound(run: Path) -> list[int]:
    """Steps of the checkpoints that are as they were written, in order, judged by the files alone."""
    steps = []
    for folder in sorted((run / "checkpoints").glob("step-*")):
        with suppress(DamagedError):
            steps.append(int(verify(folder).name[5:]))
    return steps


def test_r11_one_sound_checkpoint_always_remains(tmp_path: Path, tally: Any) -> None:
    """Any sequence of saves, kills and full disks in saves, and damage: the newest sound one is found, none is lost
    that was to be kept, and pruning never takes a sound one for a damaged one's sake."""
    counted = tally("R11", "random sequences of saves, kills, full disks, damage: the newest sound checkpoint stays")
    saver, luck, operations = Saver(), random.Random(11), 0
    for trial in range(trials(20, 300, 1000)):
        run, keep, why, step, history = tmp_path / f"run{trial}", luck.randrange(1, 4), "", 0, list[str]()
        run.mkdir()
        for _ in range(luck.randrange(5, 12)):
            before, kind = sound(run), luck.choice(("save", "save", "kill", "full", "damage", "damage"))
            history.append(kind)
            operations += 1
            if kind == "damage":
                damaged = luck.choice(before) if len(before) > 1 else None  # else there would be nothing to find
                if damaged:
                    spoil(run / f"checkpoints/step-{damaged:08d}", luck)
                expected = [other for other in before if other != damaged][-1:] or [0]
            else:
                step += 1
                done = attempt(lambda: saver.save(run, step, keep=keep), run, kind, luck)  # noqa: B023
                expected = [step] if done else [*(before[-1:] or [0]), step]
                remaining = len(sound(run))
                if remaining < min(keep, len(before) + done):
                    why = why or f"{remaining} sound checkpoints remain of {before}, {keep} are to be kept"
            if newest_step(run) not in expected:
                why = why or f"the newest is {newest_step(run)}, not {expected}"
        counted.count(not why, f"trial {trial}, keep {keep}, {history}: {why}")
        shutil.rmtree(run)
    counted.figures["operations"] = operations


def attempt(save: Callable[[], None], run: Path, kind: str, luck: random.Random) -> bool:
    """Save under a fault at any operation, a kill or a full disk; return True if the save completed."""
    at = luck.randrange(120)
    faults = {"kill": killing(at), "full": raising(at, FULL, for_good=luck.random() < 0.5)}
    try:
        with Disk(run, faults.get(kind, lambda *_: None)).watched():
            save()
    except (Killed, StorageError):
        return False
    return True


def spoil(folder: Path, luck: random.Random) -> None:
    """Cut a file of a checkpoint short, remove it, or flip a bit of it."""
    file = luck.choice([path for path in folder.iterdir() if path.stat().st_size])
    kind, whole = luck.choice(("cut", "remove", "flip")), file.read_bytes()
    if kind == "remove":
        file.unlink()
    else:
        file.write_bytes(whole[: luck.randrange(len(whole))] if kind == "cut" else flip_bit(whole, luck))
