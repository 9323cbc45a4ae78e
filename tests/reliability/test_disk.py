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
from forms import trials
from runkit import fox, metrics

from hnet_cli.checkpoints.find import newest
from hnet_cli.cli.app import run as hnet_in_here
from hnet_cli.data.dataset import Dataset

VERBS = ("train", "prepare", "convert")


def arguments(verb: str, root: Path, *settings: str) -> list[str]:
    """A command line that works in the folder `root`."""
    train = command(root / "data", root / "run", "train.eval_every=0", *(settings or ("train.steps=4",)))
    return {
        "train": train,
        "prepare": ["prepare", f"{root}/fox.txt", "--out", f"{root}/data", "--val", "0.1", "--overwrite"],
        "convert": ["convert", f"{root}/run/checkpoints/step-00000002", f"{root}/converted", "--overwrite"],
    }[verb]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a dataset of it, and a run of two steps on that."""
    root = tmp_path_factory.mktemp("disk") / "root"
    root.mkdir()
    fox(root, 60)
    for words in (arguments("prepare", root), arguments("train", root, "train.steps=2")):
        process = hnet(*words, stderr=root.parent / "stderr")
        assert process.wait() == 0, process.error
    return root


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes the folder `root` a copy of the original again."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        return shutil.copytree(original, tmp_path / "root")

    return make


def loss(root: Path, converted: bool = False) -> str:
    """Describe what a failed command damaged of the earlier files; "" if nothing."""
    try:
        messages: list[str] = []
        folder = newest(root / "run", messages.append)
        if messages or folder is None or int(folder.name[5:]) < 2:
            return f"the newest checkpoint is {folder}: {messages}"
        Dataset.open(root / "data").verify()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "a part of the converted model is there" if (root / "converted").exists() and not converted else ""


def on_faulty_disk(fault: Fault, root: Path, words: list[str], names: Path | None = None) -> Command:
    """`hnet` on a disk with a fault; the names of its operations go to the file `names`."""

    def work() -> int:
        operations: list[str] = []

        def listening(disk: Disk, name: str, half: Callable[[], object]) -> None:
            operations.append(name)
            fault(disk, name, half)

        with Disk(root, listening).watched():
            code = hnet_in_here(words)
        if names is not None:
            names.write_text(" ".join(operations))
        return code

    return forked(work, root.parent / "stderr")


@pytest.mark.parametrize("verb", VERBS)
def test_r6_a_full_disk_at_every_write(copy: Any, verb: str, tmp_path: Path, tally: Any, finisher: Any) -> None:
    """It ends with 74 and says where and how much, or trains on; what was there is whole, and with space it goes on."""
    counted, finish = (
        tally("R6", "the disk full from one write on, or for that write alone", verb),
        finisher(f"{verb} on a full disk"),
    )
    root, names = copy(), tmp_path / "operations"
    words = arguments(verb, root)
    process = on_faulty_disk(lambda *_: None, root, words, names)
    assert process.wait() == 0, process.error
    needs_space = ("create", "write", "mkdir")
    writes = [at for at, name in enumerate(names.read_text().split()) if name in needs_space]
    assert len(writes) > 4
    for number, at in enumerate(writes[:: max(1, len(writes) // trials(3, 40, len(writes)))]):
        for_good = number % 2 == 0
        code, error = finish(on_faulty_disk(raising(at, FULL, for_good=for_good), copy(), words))
        clear = "disk full: " in error and " bytes free" in error and str(root) in error
        why = "" if (code == 74 and clear) or (code == 0 and not for_good) else f"exit {code}: {error[-300:]}"
        why = why or loss(root, converted=code == 0)
        if not why:  # somebody makes space
            again = hnet(*words, stderr=tmp_path / "stderr")
            why = "" if again.wait() == 0 else f"with space: {again.error[-300:]}"
            steps = [record["step"] for record in metrics(root / "run") if "loss" in record]
            why = why or ("" if steps == list(range(1, len(steps) + 1)) else f"records of steps {steps}")
        counted.count(not why, f"write {at}: {why}")
    counted.figures["writes"] = len(writes)


def test_r6_a_real_limit_of_file_size(copy: Any, tmp_path: Path, tally: Any, finisher: Any) -> None:
    counted = tally("R6", "train, prepare, convert under `ulimit -f`, met by the system itself")
    finish = finisher("file size limits")
    for verb, size in itertools.product(VERBS, (2000, 1000, 500)[: trials(1, 3, 3)]):
        root = copy()

        def work(verb: str = verb, size: int = size, root: Path = root) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return hnet_in_here(arguments(verb, root))

        code, error = finish(forked(work, tmp_path / "stderr"))
        good = code == 74 and "file size limit" in error and not loss(root)
        counted.count(good, f"{verb}, {size} bytes: exit {code}: {error[-300:]} {loss(root)}")


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
def test_r6_a_real_small_disk(original: Path, tmp_path: Path, tally: Any, finisher: Any) -> None:
    """The run stops where the disk is full; after something was removed it goes on, with every step once."""
    counted = tally("R6", "train on a tmpfs too small for its checkpoints, then made larger")
    finish, page = finisher("a small tmpfs"), 4096
    used = sum(-path.stat().st_size // page * -page + page for path in original.rglob("*"))
    for trial in range(trials(1, 5, 20)):
        with small_disk(tmp_path / f"disk{trial}", 2 * used + 3 * page * trial) as disk:
            root = shutil.copytree(original, disk / "root")
            words = arguments("train", root, "train.steps=9", "train.keep_checkpoints=9")
            code, error = finish(hnet(*words, stderr=tmp_path / "stderr"))
            good = code == 74 and "disk full: " in error and not loss(root)
            counted.count(good, f"exit {code}: {loss(root)} {error[-400:]}")
            subprocess.run(["mount", "-o", f"remount,size={used * 20}", disk], check=True)
            process = hnet(*words, stderr=tmp_path / "stderr")
            folder = newest(root / "run") if process.wait() == 0 else None
            good = folder is not None and folder.name == "step-00000009"
            counted.count(good, f"with space: exit {process.code}, {process.error[-300:]}")


def without_privileges(words: list[str], stderr: Path) -> Command:
    """`hnet` of a user whom permissions hold for: root gives up its capabilities (capset(2))."""

    def work() -> int:
        if os.geteuid() == 0:
            header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0
        return hnet_in_here(words)

    return forked(work, stderr)


def test_r7_places_that_cannot_be_written(copy: Any, tmp_path: Path, tally: Any, finisher: Any) -> None:
    """A folder without permission, a file where a folder belongs, a read-only disk: 73, or 74 for a failing one."""
    counted = tally("R7", "no permission, a file in the way, a read-only disk: exit 73, the path named")
    finish, root = finisher("places that cannot be written"), copy()
    locked, file, model = tmp_path / "locked", f"{root}/fox.txt", f"{root}/run/checkpoints/step-00000002"
    locked.mkdir(mode=0o500)
    train = arguments("train", root)
    at = train.index("--run") + 1
    cases = []
    for target in (f"{locked}/new", f"{file}/new", file):
        cases += [
            ([*train[:at], target, *train[at + 1 :]], target),
            (["prepare", file, "--out", target], target),
            (["convert", model, target], target),
            (["segment", file, "--model", model, "--out", target], target),
        ]
    for words, target in cases[:-1][:: trials(3, 1, 1)]:  # the last replaces the file
        code, error = finish(without_privileges(words, tmp_path / "stderr"))
        named = os.path.dirname(target) in error
        counted.count(code == 73 and named, f"{words[0]} to {target}: exit {code}: {error[-300:]}")
    numbers = (errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT)[: trials(1, 4, 4)]
    for verb, number in itertools.product(VERBS, numbers):
        code, error = finish(on_faulty_disk(_always(number), copy(), arguments(verb, root)))
        good = code == (73 if number in (errno.EROFS, errno.EACCES) else 74) and str(root) in error and not loss(root)
        counted.count(good, f"{verb}, {os.strerror(number)}: exit {code}: {error[-300:]} {loss(root)}")


def _always(number: int) -> Fault:
    """Every operation fails."""

    def fault(disk: Disk, name: str, half: Callable[[], object]) -> None:
        raise OSError(number, os.strerror(number))

    return fault


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux only")
def test_r7_disks_that_cannot_be_read(copy: Any, tmp_path: Path, tally: Any, finisher: Any) -> None:
    """An input/output error on reading, a real one: the first page of a process's memory has nothing to read."""
    counted = tally("R7", "input/output errors on reading inputs, models, datasets: exit 3, 4 or 74, the path named")
    finish, root = finisher("disks that cannot be read"), copy()
    model, broken = root / "run/checkpoints/step-00000002", root / "broken.txt"
    train = ["train", "--preset", broken, "--data", root / "data", "--run", tmp_path / "b"]
    cases: list[tuple[list[Any], Path, tuple[int, ...]]] = [
        (["prepare", broken, "--out", tmp_path / "a"], broken, (3,)),  # nothing of the kernel's is read
        (["segment", broken, "--model", model], broken, (3,)),
        (["sample", model, "--prompt-file", broken], broken, (3,)),
        (train, broken, (2, 74)),
    ]
    dataset = [path for path in sorted((root / "data").rglob("[!.]*")) if path.is_file()]
    for path in (*dataset, *(model / name for name in ("config.json", "manifest.json", "model.safetensors"))):
        words = ["sample", model, "--max-bytes", "4"] if path.parent == model else arguments("train", root)
        cases.append((words, path, (3, 4, 74)))
    for words, path, codes in (*cases[:4], *cases[4 :: trials(4, 1, 1)]):
        aside = path.with_name("aside")
        if path != broken:
            path.rename(aside)
        path.symlink_to("/proc/self/mem")
        code, error = finish(hnet(*words, stderr=tmp_path / "stderr"))
        counted.count(code in codes and str(path) in error, f"{words[0]}, {path.name}: {code}: {error[-300:]}")
        path.unlink()
        if path != broken:
            aside.rename(path)
