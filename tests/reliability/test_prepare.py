"""`prepare` under kill -9: the same command goes on, and ends with the very same bytes."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import Command, forked
from forms import contents, flip_bit, trials

from hnet_cli import modality
from hnet_cli.data.prepare import planning
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import BusyError
from hnet_cli.modality import Modality

TEXT = modality.get("text")
OUT = Path("data/out")
WORK = Path("data/.out.partial")
UNIT_FILES = 2


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """`corpus(files)` writes text files of some 80 kB, a few of them compressed, to `in`, and returns their sizes in
    bytes; two files are a unit of work."""
    monkeypatch.setattr(planning, "UNIT_FILES", UNIT_FILES)
    monkeypatch.chdir(tmp_path)

    def make(files: int) -> list[int]:
        rng = random.Random(0)
        words = [rng.randbytes(rng.randint(1, 5)).hex() for _ in range(500)]
        Path("in").mkdir()
        for index in range(files):
            text = "\n".join(" ".join(rng.choices(words, k=12)) for _ in range(900)).encode()
            compressed = index % 5 == 4
            path = Path(f"in/{index:03}.txt.gz" if compressed else f"in/{index:03}.txt")
            path.write_bytes(gzip.compress(text, 1) if compressed else text)
        return [path.stat().st_size for path in sorted(Path("in").iterdir())]

    return make


def prepared(out: Path, **options: Any) -> dict[str, bytes]:
    """Prepare `in` and return the files of the dataset."""
    prepare(["in"], TEXT, out, val=0.1, measure=False, **options)
    return contents(out)


def preparing(workers: int = 1, overwrite: bool = False) -> Command:
    """Start to prepare `in`; bytes done go to the file `progress`, a line each."""

    def work() -> int:
        os.write(1, b"0\n")
        prepared(OUT, workers=workers, overwrite=overwrite, progress=lambda done, _: os.write(1, b"%d\n" % done))
        return 0

    process = forked(work, Path("stderr"), Path("progress"))
    process.wait_for_text("0\n", Path("progress"))
    return process


def test_r4_kill(tally: Any, corpus: Callable[[int], list[int]]) -> None:
    """Killed once or twice at random moments, alone and with workers, new or over an older dataset."""
    counted = tally("R4", "kill -9 at random moments of prepare, then the same command again")
    sizes = corpus(24)
    unit = max(sum(sizes[i : i + UNIT_FILES]) for i in range(0, len(sizes), UNIT_FILES))
    began = os.times().elapsed
    expected = prepared(Path("whole"))
    seconds = max(os.times().elapsed - began, 0.2)
    rng, resumed = random.Random(4), 0
    for trial in range(trials(5, 30, 100)):
        workers, again, lost = rng.choice([1, 1, 2]), rng.random() < 0.3, 0
        if again:
            prepare([Path("in/000.txt")], TEXT, OUT, val=0.1, measure=False)
        reported = 0
        for _ in range(rng.choice([1, 1, 2])):
            process = preparing(workers, again)
            process.sleep(rng.random() * (1.2 if workers == 1 else 3) * seconds)
            process.kill()
            reported = max(reported, int(Path("progress").read_text().split("\n")[-2]))
            if not (WORK / "done").exists():  # it had ended
                reported = 0
        progress: list[int] = []
        with suppress(BusyError):  # the kill came after the end
            prepared(OUT, overwrite=again, progress=lambda done, _: progress.append(done))  # noqa: B023
        same, left = OUT.exists() and contents(OUT) == expected, sorted(set(os.listdir("data")) - {"out"})
        lost = reported - progress[0] if progress else 0
        resumed += bool(progress and progress[0])
        counted.count(same and not left and lost <= unit, f"trial {trial}: same {same}, left {left}, lost {lost}")
        shutil.rmtree("data")
    counted.figures["went on from the middle"] = resumed


def test_a_second_process_is_refused(corpus: Callable[[int], list[int]]) -> None:
    class Nested(Modality):
        name, summary = "nested", "prepares its own target while it is prepared"

        def documents(self, source: Any) -> Any:
            prepared(Path("out"))
            yield from ()

    corpus(2)
    with pytest.raises(BusyError, match=rf"in use by process {os.getpid()} on host"):
        prepare(["in"], Nested(), Path("out"), measure=False)
    assert os.listdir() == ["in"]


def test_what_was_left_is_used_only_if_it_is_sound(corpus: Callable[[int], list[int]]) -> None:
    """Whatever is damaged in the work folder of a killed run: the right bytes result."""
    corpus(12)
    expected, luck, journal = prepared(Path("whole")), random.Random(1), WORK / "journal.jsonl"
    for trial in range(trials(4, 16, 40)):
        while not journal.exists() or b"\n" not in journal.read_bytes():
            shutil.rmtree("data", ignore_errors=True)  # it was over before it could be killed
            process = preparing()
            while not process.ended() and not (journal.exists() and b"\n" in journal.read_bytes()):
                process.sleep(0.0005)
            process.kill()
        files = [journal, *sorted((WORK / "done").iterdir())]
        file = files[trial % len(files)]
        data = file.read_bytes()
        file.write_bytes((flip_bit(data, luck) if data else data)[: luck.randint(len(data) // 2, len(data))])
        assert prepared(OUT) == expected, file
        assert os.listdir("data") == ["out"]
        shutil.rmtree("data")


def test_the_journal_goes_by_the_files(corpus: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed input is read again, with all that follows it; what comes before it is not."""

    class Breaks(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        journal = WORK / "journal.jsonl"
        if journal.exists() and len([json.loads(line) for line in journal.read_text().splitlines()]) >= 4:
            raise Breaks

    monkeypatch.setattr("hnet_cli.data.prepare.preparation.UNIT_BYTES", 1)  # worth keeping after an exception
    sizes, progress = corpus(12), []
    with pytest.raises(Breaks):
        prepared(OUT, progress=stop)
    Path("in/005.txt").write_text("something else\n" * 500)
    again = prepared(OUT, progress=lambda done, _: progress.append(done))
    assert progress[0] == sum(sizes[:4])
    assert again == prepared(Path("whole"))
