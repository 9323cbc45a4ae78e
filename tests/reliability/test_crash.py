"""Kills, full disks and power cuts at every operation on files: what was saved is there, whole, and found again."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FAILING, FULL, Disk, Fault, Killed, after_power_cut, fingerprint, killing, lay_out, raising, tree
from forms import trials
from runkit import FLAT, fox, tiny

from hnet_cli import modality
from hnet_cli.checkpoints.find import find, newest, verify
from hnet_cli.checkpoints.training_state import TrainingState, load_checkpoint, save_checkpoint
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import preparation
from hnet_cli.errors import BusyError, DamagedError, StorageError
from hnet_cli.storage import FolderLock
from hnet_cli.training.optim import build_optimizer
from hnet_cli.training.step import build_model

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
        """What is wrong with a checkpoint of this manifest."""

    def save(self, run: Path, step: int, best: int | None = None, keep: int = 2) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(step)
        state = TrainingState(step=step, best_step=best)
        with FolderLock(run):
            save_checkpoint(run, self.model, self.optimizer, state, {"modality": "text"}, [], keep, "train: {}\n")

    def wrong(self, run: Path, least: int, most: int) -> str:
        """What is wrong with the newest checkpoint of a run, which must be of step `least` to `most`; "" if nothing."""
        said: list[str] = []
        folder = newest(run, said.append)
        if said:
            return f"torn: {said[0]}"
        step = int(folder.name[5:]) if folder else 0
        if not least <= step <= most:
            return f"the newest is step {step}, not {least} to {most}"
        if folder is None:
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            find(run)
        manifest = (folder / "manifest.json").read_text()
        if manifest not in self.known:
            state = load_checkpoint(folder, self.model, self.optimizer)
            weights = {float(w) for parameter in self.model.parameters() for w in parameter.detach().unique()}
            good = (state.step, weights) == (step, {float(step)})
            self.known[manifest] = "" if good else f"step {step} holds the weights of {weights}"
        return self.known[manifest]


@dataclass
class Case:
    """Something that writes: what is there before, the writing, and what may be there after it was cut short."""

    prepare: Callable[[Path], object]
    write: Callable[[Path], object]
    wrong: Callable[[Path, bool], str]
    """What is wrong with the folder; the flag: the writing had returned."""
    exchanges: bool = True


def checkpoint_cases() -> dict[str, Case]:
    saver = Saver()

    def several(*steps: int) -> Callable[[Path], None]:
        return lambda run: [saver.save(run / "run", step, best=1) for step in steps][0]  # noqa: RUF015

    def judge(before: int, after: int) -> Callable[[Path, bool], str]:
        return lambda root, done: saver.wrong(root / "run", after if done else before, after)

    def damaged(root: Path) -> None:
        several(1, 2, 3)(root)
        (root / "run/checkpoints/step-00000003/state.json").write_bytes(b"")

    def again(root: Path, done: bool) -> str:
        """Step 3 was damaged: it is passed over until it is written anew."""
        folder = newest(root / "run", lambda message: None)
        found = int(folder.name[5:]) if folder else 0
        return "" if found == 3 or (found == 2 and not done) else f"the newest is step {found}"

    return {
        "first save": Case(lambda root: None, lambda root: saver.save(root / "run", 1, 1), judge(0, 1)),
        "save and prune": Case(several(1, 2, 3), lambda root: saver.save(root / "run", 4, 4), judge(3, 4)),
        "save over a damaged one": Case(damaged, lambda root: saver.save(root / "run", 3, 1), again),
        "the same without renameat2": Case(damaged, lambda root: saver.save(root / "run", 3, 1), again, False),
    }


def dataset_cases(text: Path) -> dict[str, Case]:
    def write(root: Path, lines: int) -> None:
        source = text / f"{lines}.txt"
        if not source.exists():
            fox(text, lines).rename(source)
        preparation.prepare([source], modality.get("text"), root / "data", val=0.1, measure=False, overwrite=True)

    def judge(*allowed: int) -> Callable[[Path, bool], str]:
        def wrong(root: Path, done: bool) -> str:
            if not (root / "data").exists():
                return "" if 0 in allowed and not done else "there is no dataset"
            dataset = Dataset.open(root / "data")
            dataset.verify()
            found = json.loads((root / "data/dataset.json").read_text())["sources"][0]["name"]
            good = [f"{lines}.txt" for lines in (allowed[-1:] if done else allowed)]
            return "" if Path(found).name in good else f"the dataset is of {found}, not of {good}"

        return wrong

    return {
        "new dataset": Case(lambda root: None, lambda root: write(root, 60), judge(0, 60)),
        "dataset over another": Case(lambda root: write(root, 50), lambda root: write(root, 60), judge(50, 60)),
    }


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return checkpoint_cases() | dataset_cases(tmp_path_factory.mktemp("text"))


CASES = [
    "first save",
    "save and prune",
    "save over a damaged one",
    "the same without renameat2",
    "new dataset",
    "dataset over another",
]


def judged(case: Case, root: Path, done: bool) -> str:
    try:
        return case.wrong(root, done)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def faults_of(case: Case, before: Path, tmp_path: Path) -> list[str]:
    """Names of the operations of a case; fails unless it works without a fault."""
    root = tmp_path / "whole"
    shutil.copytree(before, root)
    names: list[str] = []
    with Disk(root, lambda disk, name, half: names.append(name), case.exchanges).watched():
        case.write(root)
    assert judged(case, root, True) == ""
    return names


def chosen(operations: list[str]) -> list[int]:
    """Operations to try: all, but nightly few of many writes in a row, which are all alike, and in CI a sample."""
    writes = trials(1, 3, len(operations))
    kept = [
        at
        for at, name in enumerate(operations)
        if name != "write" or "write" not in operations[max(0, at - writes) : at]
    ]
    return sorted(random.Random(len(kept)).sample(kept, min(len(kept), trials(8, len(kept), len(kept)))))


@pytest.mark.parametrize("name", CASES)
def test_r1_a_fault_at_every_operation(cases: dict[str, Case], name: str, tmp_path: Path, tally: Any) -> None:
    """After a kill, a full disk or an I/O error the old or the new is there, and writing again works."""
    case = cases[name]
    counted = tally("R1", "kill, full disk and I/O error at each operation on files", name)
    before = tmp_path / "before"
    before.mkdir()
    with Disk(before).watched():
        case.prepare(before)
    operations = faults_of(case, before, tmp_path)
    kinds: dict[str, Callable[[int], Fault]] = {
        "kill": killing,
        "full": lambda at: raising(at, FULL, for_good=True),
        "full once": lambda at: raising(at, FULL),
        "EIO": lambda at: raising(at, FAILING),
    }
    for kind, fault in kinds.items():
        for at in chosen(operations)[:: 1 if kind == "kill" else trials(3, 1, 1)]:
            root = tmp_path / "tried"
            shutil.copytree(before, root)
            why = _try(case, root, fault(at), kind)
            counted.count(not why, f"{name}: {kind} at {at} ({operations[at]}): {why}")
            shutil.rmtree(root)
    counted.figures["operations"] = len(operations)


def _try(case: Case, root: Path, fault: Fault, kind: str) -> str:
    """What is wrong after a fault; "" if nothing."""
    done = False

    def write() -> None:
        with Disk(root, fault, case.exchanges).watched():
            case.write(root)

    try:
        write()
        done = kind != "kill"  # the fault hit what may fail: the deletion of what nobody needs
    except Killed:
        pass
    except (StorageError, BusyError) as error:
        if "\n" in str(error) or not str(error):
            return f"the message is {error!s}"
    if why := judged(case, root, done):
        return why
    with Disk(root, exchanges=case.exchanges).watched():
        case.write(root)
    left = [path.name for path in root.rglob(".*") if path.name not in (".lock",)]
    return judged(case, root, True) or (f"left behind: {left}" if left else "")


@pytest.mark.parametrize("name", CASES)
def test_r1_a_power_cut_at_every_operation(cases: dict[str, Case], name: str, tmp_path: Path, tally: Any) -> None:
    """What was not fsynced is lost, kept, or kept in part, each write and name by itself."""
    case = cases[name]
    counted = tally("R1", "power cut after each operation, unsynced writes lost or reordered", name)
    root, pool = tmp_path / "root", tmp_path / "pool"
    pool.mkdir()
    root.mkdir()
    with Disk(root).watched():
        case.prepare(root)
    top, before = tree(root)
    disk = Disk(root, exchanges=case.exchanges)
    with disk.watched():
        case.write(root)
        disk.acknowledge(True)
    luck, seen = random.Random(name), dict[tuple[str, bool], str]()
    for end in (*chosen([entry[0] for entry in disk.log])[:: trials(2, 1, 1)], len(disk.log) - 1, len(disk.log)):
        log = disk.log[:end]
        done = ("acknowledge", True) in log
        for _ in range(trials(4, 200, 200)):
            left = after_power_cut(top, before, log, luck)
            key = fingerprint(left), done
            if key not in seen:
                lay_out(left, tmp_path / "left", pool)
                seen[key] = judged(case, tmp_path / "left", done)
                if not seen[key] and len(seen) % 8 == 1:  # and the work can be done again on such a disk
                    shutil.rmtree(tmp_path / "left")
                    lay_out(left, tmp_path / "left")
                    with Disk(tmp_path / "left", exchanges=case.exchanges).watched():
                        case.write(tmp_path / "left")
                    seen[key] = judged(case, tmp_path / "left", True)
                shutil.rmtree(tmp_path / "left")
            counted.count(not seen[key], f"{name}: power cut after operation {end} {log[-1:]}: {seen[key]}")
    counted.figures["different disks"] = len(seen)


def sound(run: Path) -> list[int]:
    """Steps of the checkpoints that are as they were written, in order; told from the files alone."""
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
        run, keep, why, step = tmp_path / f"run{trial}", luck.randrange(1, 4), "", 0
        run.mkdir()
        history = []
        for _ in range(luck.randrange(5, 12)):
            before, kind = sound(run), luck.choice(("save", "save", "kill", "full", "damage", "damage"))
            history.append(kind)
            operations += 1
            if kind == "damage":
                damaged = luck.choice(before) if len(before) > 1 else None  # else there would be nothing to find
                if damaged:
                    spoil(run / f"checkpoints/step-{damaged:08d}", luck)
                expected = [other for other in before if other != damaged][-1:] or [None]
            else:
                step += 1
                done = attempt(lambda: saver.save(run, step, keep=keep), run, kind, luck)  # noqa: B023
                expected = [step] if done else [*(before[-1:] or [None]), step]
                kept = len(sound(run))
                if kept < min(keep, len(before) + done):
                    why = why or f"{kept} sound checkpoints remain of {before}, {keep} are to be kept"
            found = newest(run, lambda message: None)
            if (int(found.name[5:]) if found else None) not in expected and not why:
                why = f"the newest is {found}, not {expected}"
        counted.count(not why, f"trial {trial}, keep {keep}, {history}: {why}")
        shutil.rmtree(run)
    counted.figures["operations"] = operations


def attempt(save: Callable[[], None], run: Path, kind: str, luck: random.Random) -> bool:
    """Whether a save returned, which a kill or a full disk may meet at any of its operations."""
    at = luck.randrange(120)
    fault = {"kill": killing(at), "full": raising(at, FULL, for_good=luck.random() < 0.5)}.get(kind)
    try:
        with Disk(run, fault or (lambda *_: None)).watched():
            save()
    except (Killed, StorageError):
        return False
    return True


def spoil(folder: Path, luck: random.Random) -> None:
    """Cut a file of a checkpoint short, remove it, or flip a bit of it."""
    file = luck.choice([path for path in folder.iterdir() if path.stat().st_size])
    whole = bytearray(file.read_bytes())
    kind, at = luck.choice(("cut", "remove", "flip")), luck.randrange(len(whole))
    if kind == "remove":
        file.unlink()
        return
    whole[at] ^= 1 << luck.randrange(8)
    file.write_bytes(whole[:at] if kind == "cut" else whole)
