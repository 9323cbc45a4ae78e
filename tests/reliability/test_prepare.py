"""`prepare` under kill -9: the same command goes on, and ends with the very same bytes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forms import trials

from hnet_cli import modality
from hnet_cli.data.prepare import planning
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import BusyError
from hnet_cli.modality import Modality

UNIT_FILES = 2
PROGRAM = """
import os, sys
from hnet_cli import modality
from hnet_cli.data.prepare import planning; from hnet_cli.data.prepare.preparation import prepare
planning.UNIT_FILES = int(sys.argv[1])
text = modality.get("text")
os.write(1, b"begins\\n")
prepare(["in"], text, "data/out", val=0.1, workers=int(sys.argv[2]), measure=False, overwrite=sys.argv[3] == "again",
        progress=lambda done, total: os.write(1, b"%d\\n" % done))
"""


def corpus(folder: Path, files: int = 24) -> None:
    """Text files of some 80 kB, a few of them compressed."""
    rng = random.Random(0)
    words = [rng.randbytes(rng.randint(1, 5)).hex() for _ in range(500)]
    folder.mkdir()
    for index in range(files):
        text = "\n".join(" ".join(rng.choices(words, k=12)) for _ in range(900)).encode()
        if index % 5 == 4:
            (folder / f"{index:03}.txt.gz").write_bytes(gzip.compress(text, 1))
        else:
            (folder / f"{index:03}.txt").write_bytes(text)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def killed(place: Path, workers: int, after: float | Callable[[], bool], again: bool) -> int:
    """Start to prepare `place`/in, kill -9 after so many seconds or when something is true; the last progress told."""
    command = [sys.executable, "-c", PROGRAM, str(UNIT_FILES), str(workers), "again" if again else "first"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begins\n"
    if callable(after):
        while process.poll() is None and not after():
            time.sleep(0.0005)
    else:
        time.sleep(after)
    process.kill()
    told = process.stdout.read()
    process.wait()
    return int(told.split(b"\n")[-2]) if b"\n" in told else 0


def test_r4_kill(tally: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed once or twice at random moments, alone and with workers, new or over an older dataset."""
    found = tally("R4", "kill -9 at random moments of prepare, then the same command again")
    monkeypatch.setattr(planning, "UNIT_FILES", UNIT_FILES)
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "in")
    text = modality.get("text")
    began = time.monotonic()
    prepare(["in"], text, Path("whole"), val=0.1, measure=False)
    seconds = time.monotonic() - began
    expected = digests(tmp_path / "whole")
    sizes = [file.stat().st_size for file in sorted((tmp_path / "in").iterdir())]
    unit = max(sum(sizes[i : i + UNIT_FILES]) for i in range(0, len(sizes), UNIT_FILES))
    rng = random.Random(4)
    resumed, data = 0, tmp_path / "data"
    for trial in range(trials(5, 30, 100)):
        workers, again = rng.choice([1, 1, 2]), rng.random() < 0.3
        if again:
            prepare([tmp_path / "in" / "000.txt"], text, data / "out", val=0.1, measure=False)
        told = 0
        for _ in range(rng.choice([1, 1, 2])):
            span = (1.2 if workers == 1 else 3) * max(seconds, 0.2)
            told = max(told, killed(tmp_path, workers, rng.random() * span, again))
            if not (data / ".out.partial" / "done").exists():  # it had ended
                told = 0
        progress: list[int] = []

        def tell(done: int, total: int | None, progress: list[int] = progress) -> None:
            progress.append(done)

        with contextlib.suppress(BusyError):  # the kill came after the end
            prepare(["in"], text, Path("data/out"), val=0.1, measure=False, overwrite=again, progress=tell)
        same = (data / "out").exists() and digests(data / "out") == expected
        left = sorted(set(os.listdir(data)) - {"out"})
        lost = told - progress[0] if progress else 0
        resumed += bool(progress and progress[0])
        found.count(same and not left and lost <= unit, f"trial {trial}: same {same}, left {left}, lost {lost}")
        for name in os.listdir(data):
            subprocess.run(["rm", "-r", str(data / name)], check=True)
    found.figures["went on from the middle"] = resumed


def test_a_second_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nested(Modality):
        name, summary = "nested", "prepares its own target while it is prepared"

        def documents(self, source: Any) -> Any:
            prepare(["in"], modality.get("text"), Path("out"), measure=False)
            yield from ()

    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "in", 2)
    with pytest.raises(BusyError, match=rf"in use by process {os.getpid()} on host"):
        prepare(["in"], Nested(), Path("out"), measure=False)
    assert os.listdir(tmp_path) == ["in"]


def test_what_was_left_is_believed_only_if_it_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is damaged in the work folder of a killed run, or changed in its input: the right bytes result."""
    monkeypatch.setattr(planning, "UNIT_FILES", UNIT_FILES)
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "in", 12)
    text = modality.get("text")
    prepare(["in"], text, Path("whole"), val=0.1, measure=False)
    expected, rng = digests(tmp_path / "whole"), random.Random(1)
    work = tmp_path / "data" / ".out.partial"

    def begun() -> bool:
        journal = work / "journal.jsonl"
        return journal.exists() and b"\n" in journal.read_bytes()

    for trial in range(trials(4, 16, 40)):
        while not begun():
            subprocess.run(["rm", "-rf", "data"], check=True)  # it was over before it could be killed
            killed(tmp_path, 1, begun, False)
        names = ["journal.jsonl", *(f"done/{name}" for name in os.listdir(work / "done"))]
        file = work / names[trial % len(names)]
        data = bytearray(file.read_bytes())
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data[: rng.randint(len(data) // 2, len(data))])
        prepare(["in"], text, Path("data/out"), val=0.1, measure=False)
        assert digests(tmp_path / "data" / "out") == expected, file
        assert os.listdir(tmp_path / "data") == ["out"]
        subprocess.run(["rm", "-r", "data"], check=True)


def test_the_journal_goes_by_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed input is read again, with all that follows it; what comes before it is not."""

    class Breaks(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        seen.append(done)
        if len(json_lines(tmp_path)) >= 4:
            raise Breaks

    def json_lines(place: Path) -> list[Any]:
        file = place / "data" / ".out.partial" / "journal.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    monkeypatch.setattr(planning, "UNIT_FILES", UNIT_FILES)
    monkeypatch.setattr("hnet_cli.data.prepare.preparation.UNIT_BYTES", 1)  # worth keeping after an exception
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "in", 12)
    text, seen = modality.get("text"), []
    sizes = [file.stat().st_size for file in sorted((tmp_path / "in").iterdir())]
    with pytest.raises(Breaks):
        prepare(["in"], text, Path("data/out"), val=0.1, measure=False, progress=stop)
    (tmp_path / "in" / "005.txt").write_text("something else\n" * 500)
    seen.clear()
    prepare(["in"], text, Path("data/out"), val=0.1, measure=False, progress=lambda done, total: seen.append(done))
    assert seen[0] == sum(sizes[:4])
    prepare(["in"], text, Path("whole"), val=0.1, measure=False)
    assert digests(tmp_path / "data" / "out") == digests(tmp_path / "whole")
