"""Full disks, folders that cannot be written, and disks that cannot be read: one line, the right code, nothing lost."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import Command, command, forked, hnet
from faults import FULL, Disk, Fault, raising
from forms import MANNERS, trials
from runkit import fox, metrics

from hnet_cli.checkpoints.find import newest
from hnet_cli.cli.app import run as hnet_in_here
from hnet_cli.data.dataset import Dataset

NEEDS_SPACE = ("create", "write", "mkdir")


class Place:
    """A folder with a text, a dataset of it, a run of two steps on that, and what a command is told to do there."""

    def __init__(self, root: Path) -> None:
        self.root, self.stderr = root, root.parent / "stderr"
        root.mkdir()
        fox(root, 60)
        self.good("prepare")
        self.good("train", "train.steps=2")

    def arguments(self, verb: str, *settings: str, root: Path | None = None) -> list[object]:
        root = root or self.root
        return {
            "train": command(root / "data", root / "run", "train.eval_every=0", *(settings or ("train.steps=4",))),
            "prepare": ["prepare", root / "fox.txt", "--out", root / "data", "--val", "0.1", "--overwrite"],
            "convert": ["convert", root / "run/checkpoints/step-00000002", root / "converted", "--overwrite"],
        }[verb]  # type: ignore[return-value]

    def good(self, verb: str, *settings: str, root: Path | None = None) -> None:
        process = hnet(*self.arguments(verb, *settings, root=root), stderr=self.stderr)
        assert process.wait() == 0, process.said()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("disk") / "root")


def wrong(root: Path, converted: bool) -> str:
    """What is wrong with what was there before a command failed; "" if nothing."""
    try:
        said: list[str] = []
        folder = newest(root / "run", said.append)
        if said or folder is None or int(folder.name[5:]) < 2:
            return f"the newest checkpoint is {folder}: {said}"
        Dataset.open(root / "data").verify()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "a part of the converted model is there" if (root / "converted").exists() and not converted else ""


def meeting(fault: Fault, root: Path, arguments: list[object], stderr: Path, tell: Path | None = None) -> Command:
    """`hnet` on a disk with a fault; the names of its operations go to `tell`."""

    def work() -> int:
        names: list[str] = []

        def listening(disk: Disk, name: str, half: Callable[[], object]) -> None:
            names.append(name)
            fault(disk, name, half)

        with Disk(root, listening).watched():
            code = hnet_in_here([str(argument) for argument in arguments])
        if tell is not None:
            tell.write_text(" ".join(names))
        return code

    return forked(work, stderr)


@pytest.mark.parametrize("verb", ["train", "prepare", "convert"])
def test_r6_a_full_disk_at_every_write(place: Place, verb: str, tmp_path: Path, tally: Any) -> None:
    """It ends with 74 and says where and how much, or trains on; what was there is whole, and with space it goes on."""
    counted = tally("R6", "the disk full from one write on, or for that write alone", verb)
    manners = tally("R31", MANNERS, f"{verb} on a full disk")
    told, stderr = tmp_path / "operations", tmp_path / "stderr"
    root = tmp_path / "whole"
    shutil.copytree(place.root, root)
    process = meeting(lambda *_: None, root, place.arguments(verb, root=root), stderr, told)
    assert process.wait() == 0, process.said()
    writes = [at for at, name in enumerate(told.read_text().split()) if name in NEEDS_SPACE]
    assert len(writes) > 4
    for number, at in enumerate(writes[:: max(1, len(writes) // trials(3, 40, len(writes)))]):
        root, for_good = tmp_path / "tried", number % 2 == 0
        shutil.copytree(place.root, root)
        process = meeting(raising(at, FULL, for_good=for_good), root, place.arguments(verb, root=root), stderr)
        code, said = process.wait(), process.said()
        manners.count(not process.clumsy(), process.clumsy())
        told_all = "disk full: " in said and " bytes free" in said and str(root) in said
        fine = (code == 74 and told_all) or (code == 0 and not for_good)
        why = "" if fine else f"exit {code}: {said[-300:]}"
        why = why or wrong(root, converted=code == 0)
        if not why:  # somebody makes space
            again = hnet(*place.arguments(verb, root=root), stderr=stderr)
            why = "" if again.wait() == 0 else f"with space: {again.said()[-300:]}"
            steps = [record["step"] for record in metrics(root / "run") if "loss" in record]
            why = why or ("" if steps == list(range(1, len(steps) + 1)) else f"records of steps {steps}")
        counted.count(not why, f"write {at}: {why}")
        shutil.rmtree(root)
    counted.figures["writes"] = len(writes)


def limited(arguments: list[object], size: int, stderr: Path) -> Command:
    def work() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return hnet_in_here([str(argument) for argument in arguments])

    return forked(work, stderr)


def test_r6_a_real_limit_of_file_size(place: Place, tmp_path: Path, tally: Any) -> None:
    counted = tally("R6", "train, prepare, convert under `ulimit -f`, met by the system itself")
    manners = tally("R31", MANNERS, "file size limits")
    verbs = ("train", "prepare", "convert")
    for verb, size in itertools.product(verbs, (2000, 1000, 500)[: trials(1, 3, 3)]):
        root = tmp_path / "root"
        shutil.copytree(place.root, root)
        process = limited(place.arguments(verb, root=root), size, tmp_path / "stderr")
        code, said = process.wait(), process.said()
        manners.count(not process.clumsy(), process.clumsy())
        why = "" if code == 74 and "file size limit" in said else f"exit {code}: {said[-300:]}"
        counted.count(not (why or wrong(root, False)), f"{verb}, {size} bytes: {why or wrong(root, False)}")
        shutil.rmtree(root)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes; skips where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="only root may mount")
def test_r6_a_real_small_disk(place: Place, tmp_path: Path, tally: Any) -> None:
    """The run stops where the disk is full; after something was removed it goes on, with every step once."""
    counted = tally("R6", "train on a tmpfs too small for its checkpoints, then made larger")
    manners = tally("R31", MANNERS, "a small tmpfs")
    page = 4096
    used = sum(-path.stat().st_size // page * -page + page for path in place.root.rglob("*"))
    for trial in range(trials(1, 5, 20)):
        with small_disk(tmp_path / f"disk{trial}", 2 * used + 3 * page * trial) as disk:
            root = disk / "root"
            shutil.copytree(place.root, root)
            arguments = place.arguments("train", "train.steps=9", "train.keep_checkpoints=9", root=root)
            process = hnet(*arguments, stderr=tmp_path / "stderr")
            code = process.wait()
            manners.count(not process.clumsy(), process.clumsy())
            good = code == 74 and "disk full: " in process.said() and not wrong(root, False)
            counted.count(good, f"exit {code}: {wrong(root, False)} {process.said()[-400:]}")
            subprocess.run(["mount", "-o", f"remount,size={used * 20}", disk], check=True)
            process = hnet(*arguments, stderr=tmp_path / "stderr")
            folder = newest(root / "run") if process.wait() == 0 else None
            good = folder is not None and folder.name == "step-00000009"
            counted.count(good, f"with space: exit {process.code}, {process.said()[-300:]}")


def without_privileges(arguments: list[object], stderr: Path) -> Command:
    """`hnet` as somebody whom permissions hold for: root gives up its capabilities (capset(2))."""

    def work() -> int:
        if os.geteuid() == 0:
            header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0
        return hnet_in_here([str(argument) for argument in arguments])

    return forked(work, stderr)


def test_r7_places_that_cannot_be_written(place: Place, tmp_path: Path, tally: Any) -> None:
    """A folder without permission, a file where a folder belongs, a read-only disk: 73, or 2 for a plain mistake."""
    counted = tally("R7", "no permission, a file in the way, a read-only disk: exit 73, the path named")
    manners = tally("R31", MANNERS, "places that cannot be written")
    stderr, root = tmp_path / "stderr", tmp_path / "root"
    shutil.copytree(place.root, root)
    locked, file = tmp_path / "locked", root / "fox.txt"
    locked.mkdir(mode=0o500)
    model, text = root / "run/checkpoints/step-00000002", root / "fox.txt"
    train = place.arguments("train", root=root)
    at = train.index("--run") + 1
    cases: list[tuple[list[object], Path]] = []
    for target in (locked / "new", file / "new", file):
        cases += [
            ([*train[:at], str(target), *train[at + 1 :]], target),
            (["prepare", text, "--out", target], target),
            (["convert", model, target], target),
            (["segment", text, "--model", model, "--out", target], target),
        ]
    cases.remove((["segment", text, "--model", model, "--out", file], file))  # that one replaces the file
    for arguments, target in cases[:: trials(3, 1, 1)]:
        process = without_privileges(arguments, stderr)
        code, said = process.wait(), process.said()
        manners.count(not process.clumsy(), process.clumsy())
        named = str(target.parent) in said
        counted.count(code == 73 and named, f"{arguments[0]} to {target.name}: exit {code}: {said[-300:]}")
    for verb in ("train", "prepare", "convert"):
        for number in (errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT)[: trials(1, 4, 4)]:
            shutil.rmtree(root)
            shutil.copytree(place.root, root)
            process = meeting(_all(number), root, place.arguments(verb, root=root), stderr)
            code, said = process.wait(), process.said()
            manners.count(not process.clumsy(), process.clumsy())
            wanted = 73 if number in (errno.EROFS, errno.EACCES) else 74
            why = "" if code == wanted and str(root) in said else f"exit {code}: {said[-300:]}"
            counted.count(
                not (why or wrong(root, False)), f"{verb}, {os.strerror(number)}: {why or wrong(root, False)}"
            )


def _all(number: int) -> Fault:
    """Every operation fails."""

    def fault(disk: Disk, name: str, half: Callable[[], object]) -> None:
        raise OSError(number, os.strerror(number))

    return fault


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux only")
def test_r7_disks_that_cannot_be_read(place: Place, tmp_path: Path, tally: Any) -> None:
    """An input/output error on reading, a real one: the first page of a process's memory has nothing to read."""
    counted = tally("R7", "input/output errors on reading inputs, models, datasets: exit 3, 4 or 74, the path named")
    manners = tally("R31", MANNERS, "disks that cannot be read")
    stderr, root = tmp_path / "stderr", tmp_path / "root"
    shutil.copytree(place.root, root)
    model = root / "run/checkpoints/step-00000002"
    broken = root / "broken.txt"
    broken.symlink_to("/proc/self/mem")
    cases: list[tuple[list[object], Path, tuple[int, ...]]] = [
        (["prepare", broken, "--out", tmp_path / "a"], broken, (74,)),
        (["segment", broken, "--model", model], broken, (74,)),
        (["sample", model, "--prompt-file", broken], broken, (74,)),
        (["train", "--preset", broken, "--data", root / "data", "--run", tmp_path / "b"], broken, (2, 74)),
    ]
    dataset = [path for path in (root / "data").rglob("*") if path.is_file() and not path.name.startswith(".")]
    inside = [path for path in model.iterdir() if path.name in ("model.safetensors", "manifest.json", "config.json")]
    for path in (*dataset, *inside):
        verb = ["sample", model, "--max-bytes", "4"] if path.parent == model else place.arguments("train", root=root)
        cases.append(([*verb], path, (3, 4, 74)))  # type: ignore[misc]
    for arguments, path, wanted in (*cases[:4], *cases[4 :: trials(4, 1, 1)]):
        aside = path.with_name("aside")
        if path != broken:
            path.rename(aside)
            path.symlink_to("/proc/self/mem")
        process = hnet(*arguments, stderr=stderr)
        code, said = process.wait(), process.said()
        manners.count(not process.clumsy(), process.clumsy())
        counted.count(code in wanted and str(path) in said, f"{arguments[0]}, {path.name}: {code}: {said[-300:]}")
        if path != broken:
            path.unlink()
            aside.rename(path)
